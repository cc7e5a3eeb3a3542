//! The verbs that ask a running gateway, or look at the host without one. `main` runs them.
//!
//! Each prints what it found: lines for people, one JSON document with `--json`.

mod check;
mod doctor;
mod explain;
mod list;
mod rehearse;
mod time;

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use ipnet::IpNet;

use crate::config::{self, Config};
use crate::control::{self, Answer, Request};
use crate::lists::List;

pub use check::Check;
pub use doctor::Doctor;
pub use rehearse::Rehearse;

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
        ask(config, &Request::Explain { source: self.source }, &self.output)
    }
}

impl ListVerb {
    pub fn run(self, list: List, config: &Config) -> ExitCode {
        let (request, output) = match self.verb {
            Change::Add { network, seconds, reason, trial, output } => {
                (Request::Add { list, network, seconds, reason, trial }, output)
            }
            Change::Del { network, output } => (Request::Del { list, network }, output),
            Change::List { output } => (Request::List { list }, output),
        };
        ask(config, &request, &output)
    }
}

fn ask(config: &Config, request: &Request, output: &Output) -> ExitCode {
    let answer =
        socket(config).and_then(|socket| control::ask(socket, request).map_err(|error| error.to_string()));
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("gateway: {error}");
            return NOT_REACHED.into();
        }
    };
    if output.json {
        println!("{}", serde_json::to_string_pretty(&answer).expect("it has string keys and numbers only"));
    } else {
        match &answer {
            Answer::Explanation(explanation) => print!("{}", explain::lines(explanation, time::now())),
            Answer::Entries(entries) => print!("{}", list::lines(entries, time::now())),
            Answer::Done { message, note } => {
                println!("{message}");
                note.iter().for_each(|note| println!("note: {note}"));
            }
            Answer::Refused(reason) => eprintln!("gateway: {reason}"),
        }
    }
    match answer {
        Answer::Explanation(_) | Answer::Entries(_) | Answer::Done { .. } => ExitCode::SUCCESS,
        Answer::Refused(_) => REFUSED.into(),
    }
}
