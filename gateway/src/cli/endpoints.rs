//! `gateway endpoints`: how each is, and taking one out of service.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{Output, ask};
use crate::config::Config;
use crate::control::{self, Drained, Endpoint, Request};

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Endpoints {
    #[command(subcommand)]
    verb: Option<Change>,
    #[command(flatten)]
    output: Output,
}

#[derive(Subcommand)]
enum Change {
    /// Give an endpoint no further requests; those under way finish.
    Drain(Named),
    /// Give it requests again, few at first.
    Undrain(Named),
}

#[derive(Args)]
struct Named {
    /// Its name or an address of it, or an upstream's name for all of that.
    endpoint: String,
    #[command(flatten)]
    output: Output,
}

impl Endpoints {
    pub fn run(self, config: &Config) -> ExitCode {
        match self.verb {
            None => {
                let shown = |found: control::Endpoints| lines(&found.endpoints);
                ask(config, &Request::get("/v1/endpoints"), &self.output, shown)
            }
            Some(Change::Drain(named)) => named.change(config, "drain"),
            Some(Change::Undrain(named)) => named.change(config, "undrain"),
        }
    }
}

impl Named {
    fn change(self, config: &Config, verb: &str) -> ExitCode {
        let request = Request::act(format!("/v1/endpoints/{}/{verb}", segment(&self.endpoint)));
        ask(config, &request, &self.output, |Drained { endpoints, note }| {
            let note = note.map(|note| format!("note: {note}\n")).unwrap_or_default();
            lines(&endpoints) + &note
        })
    }
}

/// As one segment of a path.
fn segment(text: &str) -> String {
    let mut segment = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b':' | b'@' => {
                segment.push(byte.into())
            }
            _ => write!(segment, "%{byte:02X}").expect("a string takes everything"),
        }
    }
    segment
}

fn lines(endpoints: &[Endpoint]) -> String {
    let width = endpoints.iter().map(|endpoint| endpoint.name.len()).max().unwrap_or_default();
    let line = |endpoint: &Endpoint| {
        let Endpoint { name, active, connections, share, .. } = endpoint;
        let share = share * 100.0;
        format!(
            "{name:width$}  {:<10}  share {share:>3.0} %  {active} under way  {connections} connections\n",
            state(endpoint)
        )
    };
    endpoints.iter().map(line).collect()
}

/// What keeps requests from it, the strongest reason first.
fn state(endpoint: &Endpoint) -> &str {
    match endpoint {
        Endpoint { drained: true, .. } => "drained",
        Endpoint { healthy: false, .. } => "unhealthy",
        Endpoint { ejected: true, .. } => "ejected",
        Endpoint { breaker, .. } if breaker != "closed" => breaker,
        _ => "serves",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_segment() {
        for (name, want) in
            [("a:80@10.0.0.1", "a:80@10.0.0.1"), ("[::1]:80", "%5B::1%5D:80"), ("../x?", "..%2Fx%3F")]
        {
            assert_eq!(segment(name), want);
        }
    }
}
