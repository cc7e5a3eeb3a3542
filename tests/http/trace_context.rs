//! W3C Trace Context through the gateway: what the upstream gets, and what the log says.

use std::fs;
use std::time::Instant;

use gateway_tests::client::get;
use gateway_tests::{Gateway, PATIENCE, Upstream};
use serde_json::{Value, json};
use tempfile::TempDir;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
const ZERO: &str = "00-00000000000000000000000000000000-00f067aa0ba902b7-00";

/// What becomes of a field.
#[derive(Debug, PartialEq)]
enum Fate {
    Kept,
    Gone,
    /// Another parent in the same trace, with the same flags.
    Continued,
    /// Another trace.
    Begun,
}

fn fate(sent: Option<&str>, got: Option<&str>) -> Fate {
    match (sent, got) {
        (_, None) => Fate::Gone,
        (Some(sent), Some(got)) if sent == got => Fate::Kept,
        (Some(sent), Some(got)) if got[..36] == sent[..36] && got[52..] == sent[52..] => Fate::Continued,
        (_, Some(got)) => {
            assert!(got.len() == 55 && got.ends_with("-01"), "{got}");
            Fate::Begun
        }
    }
}

#[test]
fn by_mode_and_field() {
    let upstream = Upstream::ok();
    let folder = TempDir::new().expect("there is room for a folder");
    for (mode, valid, zero, none) in [
        ("off", Fate::Kept, Fate::Kept, Fate::Gone),
        ("propagate", Fate::Kept, Fate::Gone, Fate::Gone),
        ("generate", Fate::Continued, Fate::Begun, Fate::Begun),
    ] {
        for cached in [false, true] {
            let file = folder.path().join(format!("{mode}-{cached}.log"));
            let gateway = Gateway::start(json!({
                "routes": [{ "path": "/", "backend": upstream.url(), "enable_cache": cached }],
                "trace_context": mode, "access_log": { "to": file }, "workers": 1,
            }));
            let mut client = gateway.connect();
            for (at, (sent, want)) in
                [(Some(VALID), &valid), (Some(ZERO), &zero), (None, &none)].into_iter().enumerate()
            {
                let parent = sent.map(|sent| format!("traceparent: {sent}\r\n")).unwrap_or_default();
                let head = get(&format!("/{mode}/{cached}/{at}"));
                let head = head.replacen("\r\n", &format!("\r\n{parent}tracestate: a=b\r\n"), 1);
                client.send(head).response();
                let got = upstream.last();
                assert_eq!(&fate(sent, got.field("traceparent")), want, "{mode} {sent:?}: {got}");
                let keeps_state = mode == "off" || matches!(want, Fate::Kept | Fate::Continued);
                assert_eq!(got.field("tracestate").is_some(), keeps_state, "{mode} {sent:?}: {got}");
                let line = nth_line(&file, at);
                let in_log = line["trace_id"].as_str();
                let upward = got.field("traceparent").filter(|_| mode != "off").map(|got| &got[3..35]);
                assert_eq!(in_log, upward, "{mode} {sent:?}: {line}");
                assert!(sent != Some(VALID) || mode == "off" || in_log == Some(TRACE), "{line}");
            }
        }
    }
}

#[track_caller]
fn nth_line(file: &std::path::Path, at: usize) -> Value {
    let started = Instant::now();
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        if let Some(line) = text.lines().nth(at).filter(|_| text.ends_with('\n')) {
            return serde_json::from_str(line).expect("an object");
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for line {at}: {text}");
        std::thread::yield_now();
    }
}
