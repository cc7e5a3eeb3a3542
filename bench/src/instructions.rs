//! Instructions: what a request costs the gateway in its own code on each of its paths, counted and not timed, so
//! that a change shows on any machine however busy.
//!
//! `main` asks for it. Each count is the difference of two runs over one connection, which takes start and end of
//! the process out of it. The bound is kept in `bench/instructions.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Signal, kill_process};
use rustix::thread::Pid;
use serde::Deserialize;

use crate::load::{Reuse, idle};
use crate::origin::Origin;
use crate::origin::SMALL_BODY_BYTES;
use crate::scenario::Exchange;
use crate::system::{Contender, Programs, Setup, System, configure};

const BOUND: &str = include_str!("../instructions.json");
/// How far a count may lie above the recorded one.
const TOLERANCE: f64 = 1.05;
/// Ticks and the guard's looks are time's and not a request's, and more of them come to one on a busy machine. They
/// read timers and files; sockets are read by other calls.
const OF_REQUESTS: &str = "trace=!read,openat,close,statx";
const FEW_REQUESTS: u64 = 500;
const MANY_REQUESTS: u64 = 2_500;
/// A process under valgrind takes its time.
const START_LIMIT: Duration = Duration::from_secs(60);

/// One way that a request can go, by the name of the scenario that times it.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    setup: Setup,
    exchange: Exchange,
}

const WAYS: [Way; 5] = [
    Way { name: "small", setup: Setup::Plain, exchange: Exchange::Small },
    Way { name: "limit-on", setup: Setup::Limit, exchange: Exchange::Small },
    Way { name: "access-log", setup: Setup::AccessLog, exchange: Exchange::Small },
    Way { name: "refusal-429", setup: Setup::Refuse, exchange: Exchange::Refused },
    Way { name: "cache-hit", setup: Setup::Cache, exchange: Exchange::Cached { bytes: SMALL_BODY_BYTES } },
];

/// What a request may cost.
#[derive(Deserialize)]
struct Bound {
    instructions: f64,
    system_calls: f64,
}

/// Counts and compares with the bound.
///
/// # Errors
/// A count more than 5 % above its bound, valgrind or strace not being installed, a gateway that does not answer.
pub fn check(programs: &Programs) -> anyhow::Result<()> {
    let bounds: BTreeMap<String, Bound> = serde_json::from_str(BOUND).context("bench/instructions.json")?;
    let gateway = programs.path(System::Gateway).context("the gateway is not built")?;
    let begun = Instant::now();
    println!("| one request | | counted | recorded | |\n|---|---|--:|--:|---|");
    let mut fits = true;
    for way in WAYS {
        let bound = bounds
            .get(way.name)
            .with_context(|| format!("bench/instructions.json has no \"{}\"", way.name))?;
        let instructions = per_request(|requests| instructions(gateway, way, requests))?;
        let calls = per_request(|requests| system_calls(gateway, way, requests))?;
        fits &= row([way.name, "instructions in user space"], instructions, bound.instructions, 0);
        fits &= row([way.name, "system calls"], calls, bound.system_calls, 2);
    }
    eprintln!("took {:.0} s", begun.elapsed().as_secs_f64());
    ensure!(
        fits,
        "more than 5 % above bench/instructions.json: find out what became dearer, or record the new count there"
    );
    Ok(())
}

fn row([way, what]: [&str; 2], counted: f64, recorded: f64, decimals: usize) -> bool {
    let fits = counted <= recorded * TOLERANCE;
    let verdict = match (fits, counted < recorded / TOLERANCE) {
        (false, _) => "**above its bound**",
        (true, true) => "well below: record it in bench/instructions.json",
        (true, false) => "within 5 %",
    };
    println!("| `{way}` | {what} | {counted:.decimals$} | {recorded:.decimals$} | {verdict} |");
    fits
}

fn per_request(count: impl Fn(u64) -> anyhow::Result<u64>) -> anyhow::Result<f64> {
    let (few, many) = (count(FEW_REQUESTS)?, count(MANY_REQUESTS)?);
    ensure!(many > few, "{many} for {MANY_REQUESTS} requests, {few} for {FEW_REQUESTS}");
    Ok((many - few) as f64 / (MANY_REQUESTS - FEW_REQUESTS) as f64)
}

fn instructions(gateway: &Path, way: Way, requests: u64) -> anyhow::Result<u64> {
    let text = observe(gateway, way, requests, "valgrind", |output| {
        let file = format!("--callgrind-out-file={}", output.display());
        vec!["--tool=callgrind".into(), "--quiet".into(), file]
    })?;
    callgrind_total(&text).context("callgrind wrote no total")
}

/// The sum over all of a callgrind file: the `totals` line, or `summary` where there is none.
fn callgrind_total(text: &str) -> Option<u64> {
    let line = |key| text.lines().find_map(|line| line.strip_prefix(key));
    line("totals: ").or(line("summary: "))?.split_whitespace().next()?.parse().ok()
}

fn system_calls(gateway: &Path, way: Way, requests: u64) -> anyhow::Result<u64> {
    let text = observe(gateway, way, requests, "strace", |output| {
        vec![
            "-f".into(),
            "-c".into(),
            "-e".into(),
            OF_REQUESTS.into(),
            "-o".into(),
            output.display().to_string(),
        ]
    })?;
    strace_total(&text).context("strace wrote no total")
}

/// The `calls` column of strace's last line, `100.00 seconds usecs/call calls errors total`.
fn strace_total(text: &str) -> Option<u64> {
    let line = text.lines().rev().find(|line| line.ends_with(" total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// Lets the gateway answer so many requests under a program that watches it, and returns what that wrote.
fn observe(
    gateway: &Path,
    way: Way,
    requests: u64,
    watcher: &str,
    arguments: impl Fn(&Path) -> Vec<String>,
) -> anyhow::Result<String> {
    let mut origin = Origin::bind()?;
    let contender = Contender { system: System::Gateway, setup: way.setup };
    let configured = configure(contender, origin.addr).context("writing the gateway's configuration")?;
    let output: PathBuf = configured.dir.path().join("counts");
    let mut command = Command::new(watcher);
    command.args(arguments(&output)).arg(gateway).args(&configured.arguments).env("GATEWAY_LOG", "warn");
    let mut child = command.spawn().with_context(|| format!("{watcher}: is it installed?"))?;
    let asked = origin.serve_during(|| ask(configured.target, way.exchange, requests));
    // Both pass it on to what they watch, or are the same process.
    let gateway = child_of(child.id()).unwrap_or(Pid::from_child(&child));
    kill_process(gateway, Signal::TERM)?;
    let status = child.wait()?;
    asked?;
    ensure!(status.success(), "{watcher} ended with {status}");
    std::fs::read_to_string(&output).with_context(|| format!("{watcher} wrote nothing"))
}

/// The only child of a process, if it has one: the gateway under strace.
fn child_of(parent: u32) -> Option<Pid> {
    let text = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    Pid::from_raw(text.split_whitespace().next()?.parse().ok()?)
}

/// The first request is answered with 200 on every way.
fn ask(target: std::net::SocketAddr, exchange: Exchange, requests: u64) -> anyhow::Result<()> {
    let (request, status) = (exchange.request(Reuse::Keepalive), exchange.expect().status);
    let begun = Instant::now();
    let mut stream = loop {
        match idle::open(target, &request) {
            Ok(stream) => break stream,
            Err(error) if begun.elapsed() > START_LIMIT => bail!("the gateway gave no answer: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    for _ in 1..requests {
        idle::ask(&mut stream, &request, status)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read() {
        assert_eq!(callgrind_total("events: Ir\nsummary: 12\n\ntotals: 34\n"), Some(34));
        assert_eq!(callgrind_total("events: Ir\nsummary: 12\n"), Some(12));
        assert_eq!(callgrind_total("events: Ir\n"), None);
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ----------------\n\
                     100.00    0.014201           5      2534        30 total\n";
        assert_eq!(strace_total(table), Some(2534));
        assert_eq!(strace_total(""), None);
    }

    #[test]
    fn the_bound_is_five_percent() {
        assert!(row(["x", "y"], 104.9, 100.0, 0));
        assert!(!row(["x", "y"], 105.1, 100.0, 0));
    }
}
