//! Loads: the rounds of a scenario in which requests are answered, and the figures of each.
//!
//! All contenders run at once and have their turns; those that wait have nothing to do.

use std::cell::Cell;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Plan, Rounds, RunError};
use crate::load::{self, Active, Load, Outcome};
use crate::metric::{Figures, Metric};
use crate::origin::{EVENTS, Origin};
use crate::poll::Events;
use crate::scenario::{Rate, Scenario, Shape};
use crate::system::{Running, StartError};
use crate::usage::{self, Usage};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const CAPACITY_DURATION: Duration = Duration::from_secs(2);
/// An open loop has shorter turns, and more of them. The machine itself stalls for milliseconds now and then, which in a
/// long turn is every tail there is, and in a short one falls on few: the median turn then tells of the system.
const OPEN_TURN: Duration = Duration::from_millis(200);
/// When in the measured stretch the configuration changes.
const RELOADS_AT: [f64; 2] = [0.25, 0.75];
/// From so many connections on their memory and number are figures.
const MANY_CONNECTIONS: usize = 1_000;
pub const MIB: f64 = 1_048_576.0;

/// Everybody's accounts at one end of a measured stretch.
struct Accounts {
    system: Option<Usage>,
    bench: Duration,
    system_core: Duration,
    origin_answers: u64,
}

pub fn run(
    plan: &Plan,
    scenario: &'static Scenario,
    shape: &Shape,
    origin: &mut Origin,
    capacity: f64,
) -> Result<Rounds, RunError> {
    let mut rounds = Rounds::new(scenario);
    let (addr, left_out) = (origin.addr, &mut rounds.left_out);
    let running: Vec<Running> = origin.serve_during(|| {
        let started = plan.contenders(scenario).map(|contender| plan.try_start(contender, addr, left_out));
        started.filter_map(Result::transpose).collect::<Result<_, StartError>>()
    })?;
    let (many, duration) = turns(plan, shape);
    for _ in 0..many {
        for running in &running {
            let (outcome, accounts) = put_load(plan, running, shape, origin, capacity, duration)?;
            let connections = shape.connections.min(plan.most_connections);
            let figures = figures(&outcome, accounts, running, shape, connections);
            rounds.add(running.contender, figures, outcome.faults);
            eprint!(".");
        }
    }
    // Whoever ends in order waits for answers that the origin still owes.
    origin.serve_during(|| drop(running));
    Ok(rounds)
}

/// How many turns each contender has, and how long one is.
fn turns(plan: &Plan, shape: &Shape) -> (usize, Duration) {
    let is_closed = shape.rate == Rate::Saturating;
    // A configuration that changes takes its time.
    if is_closed || shape.reloads {
        return (plan.rounds, plan.duration);
    }
    let parts = (plan.duration.as_secs_f64() / OPEN_TURN.as_secs_f64()).round().max(1.0) as u32;
    (plan.rounds * parts as usize, plan.duration / parts)
}

/// What a system reaches on its own.
pub fn requests_per_second(
    plan: &Plan,
    running: &Running,
    shape: &Shape,
    origin: &mut Origin,
) -> io::Result<f64> {
    let duration = CAPACITY_DURATION.min(plan.duration * 2);
    Ok(put_load(plan, running, shape, origin, 0.0, duration)?.0.requests_per_second())
}

fn put_load(
    plan: &Plan,
    running: &Running,
    shape: &Shape,
    origin: &mut Origin,
    capacity: f64,
    duration: Duration,
) -> io::Result<(Outcome, [Accounts; 2])> {
    let load = Load {
        target: running.target,
        request: shape.exchange.request(shape.reuse),
        expect: shape.exchange.expect(),
        connections: shape.connections.min(plan.most_connections),
        active: shape.active,
        depth: shape.depth,
        pace: shape.pace(capacity),
        reuse: shape.reuse,
        warm_up: plan.warm_up,
        duration,
        timeout: REQUEST_TIMEOUT,
    };
    let answered = origin.answered.clone();
    let measured_since = Cell::new(None);
    let accounts = || -> io::Result<Accounts> {
        let accounts = Accounts {
            system: running.usage()?,
            bench: usage::of_this_thread()?,
            system_core: usage::of_processor(plan.cores.system)?,
            origin_answers: answered.load(Ordering::Relaxed),
        };
        measured_since.set(measured_since.get().or(Some(Instant::now())));
        Ok(accounts)
    };
    let mut events = Events::with_capacity(EVENTS);
    let mut reloads =
        RELOADS_AT.iter().filter(|_| shape.reloads).map(|share| duration.mul_f64(*share)).peekable();
    let mut broken = Ok(());
    let beside = || {
        let since = measured_since.get().filter(|_| reloads.peek().is_some());
        if since.is_some_and(|since: Instant| reloads.next_if(|at| since.elapsed() >= *at).is_some()) {
            broken = running.reload();
        }
        origin.turn(&mut events, Duration::ZERO)
    };
    let (outcome, [before, after]) = load::run(&load, beside, accounts)?;
    broken?;
    Ok((outcome, [before?, after?]))
}

fn figures(
    outcome: &Outcome,
    [before, after]: [Accounts; 2],
    running: &Running,
    shape: &Shape,
    connections: usize,
) -> Figures {
    let mut figures = Figures::from([
        (Metric::RequestsPerSecond, outcome.requests_per_second()),
        (Metric::Faults, outcome.faults.total() as f64),
    ]);
    if !outcome.latency_ns.is_empty() {
        figures.insert(Metric::P50Micros, outcome.latency_micros(0.5));
        figures.insert(Metric::P99Micros, outcome.latency_micros(0.99));
        figures.insert(Metric::P999Micros, outcome.latency_micros(0.999));
        figures.insert(Metric::MaxMicros, outcome.latency_micros(1.0));
    }
    let elapsed = outcome.elapsed.as_secs_f64();
    figures.insert(Metric::LoadPercent, 100.0 * (1.0 - outcome.spare.as_secs_f64() / elapsed));
    let at_origin = (after.origin_answers - before.origin_answers) as f64;
    if shape.spares_the_origin() && outcome.answers > 0 {
        figures.insert(Metric::OriginPercent, 100.0 * at_origin / outcome.answers as f64);
    }
    // The bench never sleeps: what it did not get of its core, somebody else had.
    let lost = elapsed - after.bench.saturating_sub(before.bench).as_secs_f64();
    let core_busy = after.system_core.saturating_sub(before.system_core).as_secs_f64();
    let Some((before, after)) = before.system.zip(after.system) else { return figures };
    let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
    figures.insert(Metric::OthersPercent, (100.0 * (lost + core_busy - cpu) / elapsed / 2.0).max(0.0));
    figures.insert(Metric::CpuPercent, 100.0 * cpu / elapsed);
    if outcome.answers > 0 {
        figures.insert(Metric::CpuMicrosPerRequest, 1e6 * cpu / outcome.answers as f64);
    }
    figures.insert(Metric::RssMib, after.rss_bytes as f64 / MIB);
    figures.insert(Metric::PeakMib, after.peak_bytes as f64 / MIB);
    if connections >= MANY_CONNECTIONS && shape.active != Active::All {
        figures.insert(Metric::OpenConnections, outcome.open as f64);
        if let Some(start) = running.at_start {
            let grown = after.rss_bytes as f64 - start.rss_bytes as f64;
            figures.insert(Metric::IdleConnectionKib, grown / connections as f64 / 1024.0);
        }
    }
    figures
}
