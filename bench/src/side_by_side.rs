//! Side by side: every system through every scenario, in turns, so that what the machine does in the meantime
//! falls on all alike.
//!
//! `main` gives the plan and reports the result; nothing is written here but progress.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::load::{self, Fault, Faults, Load, Outcome, idle};
use crate::machine::{Cores, allow_descriptors, pin_this_thread};
use crate::metric::{Figures, Metric, Spread};
use crate::origin::{EVENTS, Origin};
use crate::poll::Events;
use crate::scenario::{CAPACITY, Exchange, Kind, Rate, SCENARIOS, Scenario, Shape};
use crate::system::{Programs, REFERENCE, Running, StartError, System};
use crate::usage::{self, Usage};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_millis(300);
/// Memory counts as settled when it has not moved for this long.
const SETTLED: Duration = Duration::from_millis(500);
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
const MIB: f64 = 1_048_576.0;

/// What to run.
pub struct Plan {
    pub scenarios: Vec<&'static Scenario>,
    pub systems: Vec<System>,
    pub programs: Programs,
    pub cores: Cores,
    pub rounds: usize,
    pub duration: Duration,
    /// Requests a second to take shares of, instead of measuring the reference.
    pub capacity: Option<f64>,
}

/// What came of it.
pub struct Results {
    pub capacity: Option<f64>,
    pub scenarios: Vec<Rounds>,
}

/// One scenario's rounds, for each system in the order of time.
pub struct Rounds {
    pub scenario: &'static Scenario,
    pub systems: BTreeMap<System, Vec<Figures>>,
    pub faults: BTreeMap<System, Faults>,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Rounds {
    /// The spread of one metric over a system's rounds; `None` when it does not measure that.
    pub fn spread(&self, system: System, metric: Metric) -> Option<Spread> {
        Spread::of(self.systems.get(&system)?.iter().filter_map(|round| round.get(&metric).copied()))
    }

    /// The spread of a system's figure over the reference's of the same round.
    pub fn ratio(&self, system: System, metric: Metric) -> Option<Spread> {
        let (own, reference) = (self.systems.get(&system)?, self.systems.get(&REFERENCE)?);
        Spread::of(
            own.iter()
                .zip(reference)
                .filter_map(|(own, reference)| Some(own.get(&metric)? / reference.get(&metric)?)),
        )
    }
}

/// Runs the plan.
///
/// # Errors
/// A system that does not start, and what this process itself cannot do. Faults of a system are figures.
pub fn run(plan: &Plan) -> Result<Results, RunError> {
    pin_this_thread(plan.cores.load)?;
    let mut origin = Origin::bind()?;
    let mut results = Results { capacity: plan.capacity, scenarios: Vec::new() };
    for scenario in &plan.scenarios {
        let takes_share = matches!(&scenario.kind, Kind::Load(Shape { rate: Rate::OfCapacity(_), .. }));
        if takes_share && results.capacity.is_none() {
            results.capacity = Some(measure_capacity(plan, &mut origin)?);
        }
        eprint!("{:<10}", scenario.name);
        let rounds = match &scenario.kind {
            Kind::Load(shape) => loads(plan, scenario, shape, &mut origin, results.capacity.unwrap_or(0.0))?,
            Kind::Idle { connections } => idles(plan, scenario, *connections, &mut origin)?,
            Kind::Start => starts(plan, scenario, &mut origin)?,
        };
        eprintln!();
        if scenario.name == CAPACITY && results.capacity.is_none() {
            results.capacity =
                rounds.spread(reference_of(plan), Metric::RequestsPerSecond).map(|rate| rate.median);
        }
        results.scenarios.push(rounds);
    }
    Ok(results)
}

/// The system whose capacity is taken: the reference, or the last one where that is not part of the run.
fn reference_of(plan: &Plan) -> System {
    let present = plan.systems.contains(&REFERENCE).then_some(REFERENCE);
    present.or(plan.systems.last().copied()).unwrap_or(System::Direct)
}

fn measure_capacity(plan: &Plan, origin: &mut Origin) -> Result<f64, RunError> {
    let small = SCENARIOS.iter().find(|scenario| scenario.name == CAPACITY);
    let Some(Scenario { kind: Kind::Load(shape), .. }) = small else {
        unreachable!("the capacity scenario is a load, see its table")
    };
    let addr = origin.addr;
    let running = origin.serve_during(|| start(plan, reference_of(plan), addr))?;
    let (outcome, _) = put_load(&running, shape, plan.cores, origin, 0.0, Duration::from_secs(2))?;
    let rate = outcome.requests_per_second();
    eprintln!("capacity  {rate:.0} requests/s of {:?}", running.system);
    Ok(rate)
}

/// Starts a system; the origin has to be serving.
fn start(plan: &Plan, system: System, origin: SocketAddr) -> Result<Running, StartError> {
    let request = Exchange::Small.request(load::Reuse::Keepalive);
    Running::start(system, &plan.programs, origin, plan.cores.system, &request)
}

/// Everybody's accounts at one end of a measured stretch.
struct Accounts {
    system: Option<Usage>,
    bench: Duration,
    system_core: Duration,
}

fn put_load(
    running: &Running,
    shape: &Shape,
    cores: Cores,
    origin: &mut Origin,
    capacity: f64,
    duration: Duration,
) -> io::Result<(Outcome, [io::Result<Accounts>; 2])> {
    let load = Load {
        target: running.target,
        request: shape.exchange.request(shape.reuse),
        expect: shape.exchange.expect(),
        connections: shape.connections,
        pace: shape.pace(capacity),
        reuse: shape.reuse,
        warm_up: WARM_UP,
        duration,
        timeout: REQUEST_TIMEOUT,
    };
    let mut events = Events::with_capacity(EVENTS);
    let accounts = || -> io::Result<Accounts> {
        Ok(Accounts {
            system: running.usage()?,
            bench: usage::of_this_thread()?,
            system_core: usage::of_processor(cores.system)?,
        })
    };
    load::run(&load, || origin.turn(&mut events, Duration::ZERO), accounts)
}

fn loads(
    plan: &Plan,
    scenario: &'static Scenario,
    shape: &Shape,
    origin: &mut Origin,
    capacity: f64,
) -> Result<Rounds, RunError> {
    allow_descriptors(shape.connections as u64 * 2 + 512)?;
    let mut rounds = Rounds::new(scenario);
    let addr = origin.addr;
    let start_all = || plan.systems.iter().map(|system| start(plan, *system, addr)).collect();
    let running: Vec<Running> = origin.serve_during::<Result<_, StartError>>(start_all)?;
    for _ in 0..plan.rounds {
        for running in &running {
            let (outcome, [before, after]) =
                put_load(running, shape, plan.cores, origin, capacity, plan.duration)?;
            rounds.add(running.system, load_figures(&outcome, before?, after?), outcome.faults);
            eprint!(".");
        }
    }
    Ok(rounds)
}

fn load_figures(outcome: &Outcome, before: Accounts, after: Accounts) -> Figures {
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
    // The bench never sleeps: what it did not get of its core, somebody else had.
    let lost = elapsed - (after.bench - before.bench).as_secs_f64();
    let core_busy = (after.system_core - before.system_core).as_secs_f64();
    if let Some((before, after)) = before.system.zip(after.system) {
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        figures.insert(Metric::OthersPercent, (100.0 * (lost + core_busy - cpu) / elapsed / 2.0).max(0.0));
        figures.insert(Metric::CpuPercent, 100.0 * cpu / elapsed);
        if outcome.answers > 0 {
            figures.insert(Metric::CpuMicrosPerRequest, 1e6 * cpu / outcome.answers as f64);
        }
        figures.insert(Metric::RssMib, after.rss_bytes as f64 / MIB);
        figures.insert(Metric::PeakMib, after.peak_bytes as f64 / MIB);
    }
    figures
}

/// One round for each system, in a process of its own: memory that one round left would hide the next one's.
fn idles(
    plan: &Plan,
    scenario: &'static Scenario,
    count: usize,
    origin: &mut Origin,
) -> Result<Rounds, RunError> {
    allow_descriptors(count as u64 + 512)?;
    let mut rounds = Rounds::new(scenario);
    let request = Exchange::Small.request(load::Reuse::Keepalive);
    for system in proxies(plan) {
        let addr = origin.addr;
        let figures = origin.serve_during(|| -> Result<Option<Figures>, RunError> {
            let running = start(plan, system, addr)?;
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
        rounds.add(system, figures.unwrap_or_default(), Faults::default());
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

fn starts(plan: &Plan, scenario: &'static Scenario, origin: &mut Origin) -> Result<Rounds, RunError> {
    let mut rounds = Rounds::new(scenario);
    let addr = origin.addr;
    for _ in 0..plan.rounds {
        for system in proxies(plan) {
            let running = origin.serve_during(|| start(plan, system, addr))?;
            let millis = running.started_in.as_secs_f64() * 1e3;
            rounds.add(system, Figures::from([(Metric::StartMillis, millis)]), Faults::default());
            eprint!(".");
        }
    }
    Ok(rounds)
}

/// The systems that are a process of their own.
fn proxies(plan: &Plan) -> impl Iterator<Item = System> {
    plan.systems.iter().copied().filter(|system| *system != System::Direct)
}

impl Rounds {
    fn new(scenario: &'static Scenario) -> Rounds {
        Rounds { scenario, systems: BTreeMap::new(), faults: BTreeMap::new() }
    }

    fn add(&mut self, system: System, figures: Figures, faults: Faults) {
        self.systems.entry(system).or_default().push(figures);
        let sum = self.faults.entry(system).or_default();
        Fault::ALL.iter().for_each(|fault| sum.add(*fault, faults.of(*fault)));
    }
}
