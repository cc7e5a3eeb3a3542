//! What this host can do for the kernel half, and how the store of rate limits answers it, as a table.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;

use super::Output;
use crate::config::{self, Config};
use crate::datapath::{Finding, State, examine};
use crate::limit::cluster;
use crate::metrics::Loss;

/// The kernel half does not run here.
const CANNOT: u8 = 1;

#[derive(Args)]
pub struct Doctor {
    #[command(flatten)]
    output: Output,
}

impl Doctor {
    pub fn run(self, config: &Config) -> ExitCode {
        let mut findings = examine(&config.kernel);
        let store = config.rate_limit.as_ref().and_then(|section| section.store.as_ref());
        findings.extend(store.into_iter().flat_map(|store| stores(store, config)));
        if self.output.json {
            println!("{}", serde_json::to_string_pretty(&findings).expect("it has string keys only"));
        } else {
            print!("{}", lines(&findings));
        }
        match findings.iter().any(|finding| finding.state == State::Missing) {
            true => CANNOT.into(),
            false => ExitCode::SUCCESS,
        }
    }
}

/// A finding for each of the store's servers. None is missing: the gateway runs without, by each rule's `on_failure`.
fn stores(store: &config::Store, config: &Config) -> Vec<Finding> {
    let finding = |point: String, found: String, state, advice: Option<&str>| Finding {
        point,
        found,
        state,
        advice: advice.map(str::to_owned),
    };
    let looked = match cluster::examine(store) {
        Ok(looked) => looked,
        Err(error) => return vec![finding("store".to_owned(), error.to_string(), State::Limited, None)],
    };
    let leases = leases(config);
    let findings = looked.into_iter().map(|(server, answer)| {
        let point = format!("store {server}");
        match answer {
            Ok(took) if took <= store.wait => {
                finding(point, format!("answers in {took:.1?}; {leases}"), State::Good, None)
            }
            Ok(took) => {
                let found = format!("answers in {took:.1?}, and requests wait {:?}", store.wait);
                finding(point, found, State::Limited, Some(remedy(Loss::Slow)))
            }
            Err((loss, why)) => finding(point, why, State::Limited, Some(remedy(loss))),
        }
    });
    findings.collect()
}

/// What is counted there.
fn leases(config: &Config) -> String {
    let rules = config.rate_limit.iter().flat_map(|section| &section.rules);
    let rules = rules.chain(config.routes.iter().flat_map(|route| &route.rate_limits));
    let leases: Vec<u32> = rules.filter_map(|rule| Some(rule.cluster?.lease)).collect();
    match leases.iter().max() {
        None => "no rule is counted in it".to_owned(),
        Some(1) => format!("rules counted in it: {}, each exactly", leases.len()),
        Some(most) => format!("rules counted in it: {}, with leases of up to {most}", leases.len()),
    }
}

fn remedy(loss: Loss) -> &'static str {
    match loss {
        Loss::Gone => "start it, or correct rate_limit.store",
        Loss::Slow => "bring it nearer, or raise rate_limit.store_wait above what it takes",
        Loss::Loading => "wait until it has loaded",
        Loss::ReadOnly => "a replica: rate_limit.store must name the primary as well",
        Loss::Full => "raise its maxmemory",
        Loss::Password => "correct rate_limit.store_password_file, or what the user may do (docs/limits.md)",
        Loss::Refused => "see docs/limits.md for what it must be",
    }
}

fn lines(findings: &[Finding]) -> String {
    let widest = findings.iter().map(|finding| finding.point.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { point, found, state, advice } in findings {
        let state = match state {
            State::Good => "good",
            State::Limited => "limited",
            State::Missing => "MISSING",
        };
        writeln!(text, "{state:<8}{point:<widest$}  {found}").expect("a string takes everything");
        if let Some(advice) = advice {
            writeln!(text, "{:<8}{:<widest$}  → {advice}", "", "").expect("a string takes everything");
        }
    }
    text
}
