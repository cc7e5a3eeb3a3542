//! The keys of the section `access_log`, and `trace_context`.
//!
//! Part of `file`, which calls it.

use std::path::PathBuf;

use super::document::Object;
use super::file::ANY_COUNT;
use super::value;

const FORMATS: [(&str, LogFormat); 2] = [("combined", LogFormat::Combined), ("json", LogFormat::Json)];
const TRACES: [(&str, TraceContext); 3] = [
    ("off", TraceContext::Off),
    ("propagate", TraceContext::Propagate),
    ("generate", TraceContext::Generate),
];
const STDOUT: &str = "stdout";

/// What is written about requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    pub format: LogFormat,
    pub to: Destination,
    /// Of so many requests that went well, one is written.
    pub sample: u32,
}

/// What becomes of `traceparent` and `tracestate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceContext {
    /// They pass as any other field.
    Off,
    /// Valid ones pass.
    Propagate,
    /// The gateway is a part of the trace, and begins one where there is none.
    Generate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// As Apache and nginx have it.
    Combined,
    /// One object a line.
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Stdout,
    File(PathBuf),
}

pub(super) fn section(keys: &mut Object<'_>) -> AccessLog {
    keys.note("to", &STDOUT);
    AccessLog {
        format: keys.choice("format", LogFormat::Json, "format", &FORMATS),
        to: keys
            .optional("to", |node| {
                node.string("\"stdout\" or a path such as \"/var/log/gateway/access.log\"", destination)
            })
            .unwrap_or(Destination::Stdout),
        sample: keys.or("sample", 1, |node| node.integer(ANY_COUNT)),
    }
}

pub(super) fn trace_context(keys: &mut Object<'_>) -> TraceContext {
    keys.choice("trace_context", TraceContext::Propagate, "trace_context", &TRACES)
}

fn destination(text: &str) -> Result<Destination, String> {
    match text {
        STDOUT => Ok(Destination::Stdout),
        path if path.contains('/') => value::file_path(path).map(Destination::File),
        other => Err(format!(
            "{} is neither \"stdout\" nor a path: write \"./{other}\" for a file here",
            value::quote(other)
        )),
    }
}
