//! `gateway rehearse`: what a configuration would have done to the requests of a recorded access log.
//!
//! `record` reads a line, `play` judges it; this compares what two configurations say, and prints it.

mod play;
mod record;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use self::play::{Fate, Stage};
use self::record::Record;
use super::Output;
use crate::config::{self, Config};

const INVALID: u8 = 1;
const UNREADABLE: u8 = 2;
/// Lines that cannot be read, and clients, that are named.
const NAMED: usize = 5;

#[derive(Args)]
pub struct Rehearse {
    /// An access log in JSON, as the gateway writes it.
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// The configuration to compare with; without it, with what the log says of limits.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Report {
    requests: u64,
    /// Lines, and the first of them with what is wrong.
    unreadable: u64,
    first_unreadable: Vec<String>,
    /// Lines that stand for others, so that limits met fewer requests here.
    sampled: u64,
    /// Rules that count by what the log does not have.
    counted_by_client: Vec<String>,
    /// By what became of requests: as it is now, and as it would have been.
    fates: BTreeMap<String, Counts>,
    /// Requests served now that would not have been, and the other way round.
    newly_refused: u64,
    newly_served: u64,
    /// Clients with the most of the former.
    clients: Vec<(IpAddr, u64)>,
    penalties_slowed: u64,
    penalties_blocked: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Counts {
    now: u64,
    then: u64,
}

impl Rehearse {
    pub fn run(self, config: Config) -> ExitCode {
        let against = match self.against.as_deref().map(config::load).transpose() {
            Ok(against) => against,
            Err(error) => {
                eprintln!("{error}");
                return INVALID.into();
            }
        };
        let bytes = match fs::read(&self.log) {
            Ok(bytes) => bytes,
            Err(error) => {
                eprintln!(
                    "gateway: {}: {error}: give the path of an access log with --log",
                    self.log.display()
                );
                return UNREADABLE.into();
            }
        };
        let has_other = against.is_some();
        let report = rehearse(&String::from_utf8_lossy(&bytes), config, against);
        if report.requests == 0 && report.unreadable > 0 {
            let first = &report.first_unreadable[0];
            eprintln!("gateway: {}: no line is one of a JSON access log; {first}", self.log.display());
            return INVALID.into();
        }
        if self.output.json {
            println!(
                "{}",
                serde_json::to_string_pretty(&report).expect("it has string keys and numbers only")
            );
        } else {
            print!("{}", lines(&report, if has_other { "against" } else { "recorded" }));
        }
        ExitCode::SUCCESS
    }
}

fn rehearse(log: &str, config: Config, against: Option<Config>) -> Report {
    let mut report = Report::default();
    let mut records = Vec::new();
    for (number, line) in log.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match Record::read(line) {
            Ok(record) => records.push(record),
            Err(error) => {
                report.unreadable += 1;
                if report.first_unreadable.len() < NAMED {
                    report.first_unreadable.push(format!("line {}: {error}", number + 1));
                }
            }
        }
    }
    // A line is written at its request's end; the time is that of its beginning.
    records.sort_by_key(|record| record.at_ms);
    let (mut then, mut now) = (Stage::new(config), against.map(Stage::new));
    let mut clients = BTreeMap::<IpAddr, u64>::new();
    for record in &records {
        let after = then.judge(record);
        let before = now.as_mut().map(|now| now.judge(record));
        let (refused, name) = match &before {
            Some(fate) => (fate.is_refused(), fate.name()),
            None if record.was_limited => (true, "limited".to_owned()),
            None => (false, Fate::Served.name()),
        };
        report.fates.entry(name).or_default().now += 1;
        report.fates.entry(after.name()).or_default().then += 1;
        if after.is_refused() && !refused {
            report.newly_refused += 1;
            *clients.entry(record.client).or_default() += 1;
        } else if refused && !after.is_refused() {
            report.newly_served += 1;
        }
        report.sampled += u64::from(record.sampled);
    }
    report.requests = records.len() as u64;
    report.counted_by_client = then.blind();
    (report.penalties_slowed, report.penalties_blocked) = (then.slowed, then.blocks);
    report.clients = clients.into_iter().collect();
    report.clients.sort_by_key(|&(client, count)| (std::cmp::Reverse(count), client));
    report.clients.truncate(NAMED);
    report
}

/// `beside`: what the new configuration is compared with.
fn lines(report: &Report, beside: &str) -> String {
    let mut text = format!("{} requests\n", report.requests);
    let mut say = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    if report.unreadable > 0 {
        say(format!("{} lines could not be read:", report.unreadable));
        report.first_unreadable.iter().for_each(|line| say(format!("  {line}")));
    }
    if report.sampled > 0 {
        say(format!("{} stand for others: limits would have met more than here", report.sampled));
    }
    for rule in &report.counted_by_client {
        say(format!("{rule} counts by a header, which the log does not have: counted by client here"));
    }
    let widest = report.fates.keys().map(String::len).max().unwrap_or_default();
    let mut row = format!("{:widest$}  {beside:>10}  {:>10}\n", "", "rehearsed");
    for (name, Counts { now, then }) in &report.fates {
        writeln!(row, "{name:widest$}  {now:>10}  {then:>10}").expect("a string takes everything");
    }
    say(row.trim_end().to_owned());
    say(format!("newly refused {}, newly served {}", report.newly_refused, report.newly_served));
    if report.penalties_slowed + report.penalties_blocked > 0 {
        let (slowed, blocked) = (report.penalties_slowed, report.penalties_blocked);
        say(format!("penalties: connections slowed {slowed} times, packets dropped {blocked} times"));
    }
    for (client, count) in &report.clients {
        say(format!("  {client}: {count} newly refused"));
    }
    text
}
