//! The verbs that ask a running gateway, or look at the host without one. `main` runs them.
//!
//! Each prints what it found: lines for people, one JSON document with `--json`.

mod check;
mod doctor;
mod endpoints;
mod explain;
mod list;
mod profile;
mod rehearse;
mod status;
mod time;
mod top;

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde::de::DeserializeOwned;

use crate::cache;
use crate::config::{self, Config};
use crate::control::{self, Added, Done, Entries, Level, Reloaded, Request};
use crate::lists::List;

pub use check::Check;
pub use doctor::Doctor;
pub use endpoints::Endpoints;
pub use profile::Profile;
pub use rehearse::Rehearse;
pub use top::Top;

/// The gateway said no.
const REFUSED: u8 = 1;
/// There is no gateway to ask.
const NOT_REACHED: u8 = 3;

/// How an answer is wanted.
#[derive(Args)]
pub struct Output {
    /// Answer with one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Explain {
    /// Whose connections and requests.
    source: std::net::IpAddr,
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
pub struct Reload {
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
pub struct Log {
    /// off, error, warn, info, debug or trace, or a list such as info,hyper=debug; without it, shows it.
    level: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
pub struct Purge {
    #[command(subcommand)]
    what: Purged,
}

#[derive(Subcommand)]
enum Purged {
    /// One URL, whole: http://host/path?query.
    Url {
        url: String,
        #[command(flatten)]
        output: Output,
    },
    /// Every URL that begins so, such as http://host/images/.
    Prefix {
        url: String,
        #[command(flatten)]
        output: Output,
    },
    /// What its backend has named so in Cache-Tag or Surrogate-Key.
    Tag {
        name: String,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Args)]
pub struct ListVerb {
    #[command(subcommand)]
    verb: Change,
}

#[derive(Subcommand)]
enum Change {
    /// Put a network on the list, or change how long and why it is there.
    Add {
        /// An address or a CIDR.
        #[arg(value_parser = config::network)]
        network: IpNet,
        /// For so long, such as 90s, 15m, 2h or 7d; without it, for good.
        #[arg(long = "for", value_name = "TIME", value_parser = time::parse)]
        seconds: Option<u64>,
        /// Why, for those who ask later.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Count what it would meet, and do nothing.
        #[arg(long)]
        trial: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Take a network off the list.
    Del {
        /// As it stands on the list.
        #[arg(value_parser = config::network)]
        network: IpNet,
        #[command(flatten)]
        output: Output,
    },
    /// Show the list, the configuration's part included.
    List {
        #[command(flatten)]
        output: Output,
    },
}

/// Where the gateway of this configuration is asked.
fn socket(config: &Config) -> Result<&Path, String> {
    let control = config.control.as_ref().ok_or(
        "the configuration has no `control`: add \"control\": { \"socket\": \"/run/gateway/control.sock\", \
         \"state_file\": \"/var/lib/gateway/state.json\" } and restart the gateway",
    )?;
    Ok(&control.socket)
}

impl Explain {
    pub fn run(self, config: &Config) -> ExitCode {
        let request = Request::get(format!("/v1/explain?source={}", self.source));
        ask(config, &request, &self.output, |explanation| explain::lines(&explanation, time::now()))
    }
}

impl ListVerb {
    pub fn run(self, list: List, config: &Config) -> ExitCode {
        let path = format!("/v1/lists/{}", list.name());
        match self.verb {
            Change::Add { network, seconds, reason, trial, output } => {
                let added = Added { network, seconds, reason, trial };
                ask(config, &Request::post(path, &added), &output, done)
            }
            Change::Del { network, output } => {
                ask(config, &Request::delete(format!("{path}?network={network}")), &output, done)
            }
            Change::List { output } => ask(config, &Request::get(path), &output, |Entries { entries }| {
                list::lines(&entries, time::now())
            }),
        }
    }
}

impl Reload {
    pub fn run(self, config: &Config) -> ExitCode {
        ask(config, &Request::act("/v1/reload"), &self.output, |Reloaded { generation }| {
            format!("generation {generation} is in force\n")
        })
    }
}

impl Log {
    pub fn run(self, config: &Config) -> ExitCode {
        let request = match self.level {
            None => Request::get("/v1/log"),
            Some(level) => Request::put("/v1/log", &Level { level }),
        };
        ask(config, &request, &self.output, |Level { level }| format!("{level}\n"))
    }
}

impl Status {
    pub fn run(self, config: &Config) -> ExitCode {
        ask(config, &Request::get("/v1/status"), &self.output, |status| status::lines(&status))
    }
}

impl Purge {
    pub fn run(self, config: &Config) -> ExitCode {
        let (what, output) = match self.what {
            Purged::Url { url, output } => (cache::Purge::Url(url), output),
            Purged::Prefix { url, output } => (cache::Purge::Prefix(url), output),
            Purged::Tag { name, output } => (cache::Purge::Tag(name), output),
        };
        ask(config, &Request::post("/v1/purge", &what), &output, |control::Purged { purged }| {
            format!("{purged} stored responses are gone\n")
        })
    }
}

fn done(Done { message, note }: Done) -> String {
    let note = note.map(|note| format!("note: {note}\n")).unwrap_or_default();
    format!("{message}\n{note}")
}

/// Asks the gateway of this configuration, and prints its answer; `lines` are for people.
fn ask<T: DeserializeOwned>(
    config: &Config,
    request: &Request,
    output: &Output,
    lines: impl FnOnce(T) -> String,
) -> ExitCode {
    let answer =
        socket(config).and_then(|socket| control::ask(socket, request).map_err(|error| error.to_string()));
    let shown = answer.and_then(|answer| match answer {
        Ok(document) if output.json => Ok(Ok(format!("{document:#}\n"))),
        Ok(document) => match serde_json::from_value(document) {
            Ok(document) => Ok(Ok(lines(document))),
            Err(error) => Err(format!("what answers is no gateway of this version: {error}")),
        },
        Err(refusal) => Ok(Err(refusal)),
    });
    match shown {
        Ok(Ok(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Err(refusal)) => {
            eprintln!("gateway: {refusal}");
            REFUSED.into()
        }
        Err(error) => {
            eprintln!("gateway: {error}");
            NOT_REACHED.into()
        }
    }
}
