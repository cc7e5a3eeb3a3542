//! Unloaded: what a system costs that has nothing to do, and how long it takes to come up.
//!
//! One process a round, since memory that one round left would hide the next one's.

use std::io;
use std::time::{Duration, Instant};

use super::loads::MIB;
use super::{Plan, Rounds, RunError};
use crate::load::{Faults, Reuse, idle};
use crate::metric::{Figures, Metric};
use crate::origin::Origin;
use crate::scenario::{Exchange, Scenario};
use crate::system::Running;
use crate::usage::Usage;

/// Memory counts as settled when it has not moved for this long.
const SETTLED: Duration = Duration::from_millis(500);
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// One round for each contender: memory for each of so many connections.
pub fn idles(
    plan: &Plan,
    scenario: &'static Scenario,
    count: usize,
    origin: &mut Origin,
) -> Result<Rounds, RunError> {
    let count = count.min(plan.most_connections);
    let mut rounds = Rounds::new(scenario);
    let request = Exchange::Small.request(Reuse::Keepalive);
    for contender in plan.contenders(scenario) {
        let (addr, left_out) = (origin.addr, &mut rounds.left_out);
        let figures = origin.serve_during(|| -> Result<Option<Figures>, RunError> {
            let Some(running) = plan.try_start(contender, addr, left_out)? else { return Ok(None) };
            let _warm = idle::hold(running.target, &request, 16)?;
            let before = settled(&running)?;
            let _held = idle::hold(running.target, &request, count)?;
            let after = settled(&running)?;
            Ok(before.zip(after).map(|(before, after)| {
                let grown = after.rss_bytes as f64 - before.rss_bytes as f64;
                Figures::from([
                    (Metric::IdleConnectionKib, grown / count as f64 / 1024.0),
                    (Metric::RssMib, after.rss_bytes as f64 / MIB),
                    (Metric::PeakMib, after.peak_bytes as f64 / MIB),
                ])
            }))
        })?;
        if let Some(figures) = figures {
            rounds.add(contender, figures, Faults::default());
        }
        eprint!(".");
    }
    Ok(rounds)
}

/// Waits until the system's memory stands still.
fn settled(running: &Running) -> io::Result<Option<Usage>> {
    let start = Instant::now();
    let (mut usage, mut since) = (running.usage()?, Instant::now());
    while since.elapsed() < SETTLED && start.elapsed() < SETTLE_LIMIT {
        std::thread::sleep(Duration::from_millis(20));
        let now = running.usage()?;
        if now.map(|usage| usage.rss_bytes) != usage.map(|usage| usage.rss_bytes) {
            since = Instant::now();
        }
        usage = now;
    }
    Ok(usage)
}

pub fn starts(plan: &Plan, scenario: &'static Scenario, origin: &mut Origin) -> Result<Rounds, RunError> {
    let mut rounds = Rounds::new(scenario);
    for round in 0..plan.rounds {
        for contender in plan.contenders(scenario) {
            let addr = origin.addr;
            if round > 0 && !rounds.contenders.contains_key(&contender) {
                continue;
            }
            let left_out = &mut rounds.left_out;
            let running = origin.serve_during(|| plan.try_start(contender, addr, left_out))?;
            if let Some(running) = running {
                let millis = running.started_in.as_secs_f64() * 1e3;
                rounds.add(contender, Figures::from([(Metric::StartMillis, millis)]), Faults::default());
            }
            eprint!(".");
        }
    }
    Ok(rounds)
}
