//! Side by side: every contender through every scenario, in turns, so that what the machine does in the meantime
//! falls on all alike.
//!
//! `main` gives the plan and reports the result; nothing is written here but progress.

mod loads;
mod rounds;
mod unloaded;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::load::{self, Active};
use crate::machine::{Cores, allow_descriptors, pin_this_thread};
use crate::metric::Metric;
use crate::origin::Origin;
use crate::scenario::{CAPACITY, Exchange, Kind, Rate, SCENARIOS, Scenario, Shape};
use crate::system::{Contender, Programs, REFERENCE, Running, Setup, StartError, System};

pub use rounds::{LeftOut, Results, Rounds};

/// Listeners, files, what a server keeps for itself.
const OTHER_DESCRIPTORS: u64 = 1_024;

/// What to run.
pub struct Plan {
    pub scenarios: Vec<&'static Scenario>,
    pub systems: Vec<System>,
    pub programs: Programs,
    pub cores: Cores,
    pub rounds: usize,
    pub warm_up: Duration,
    pub duration: Duration,
    /// Requests a second to take shares of, instead of measuring the reference.
    pub capacity: Option<f64>,
    /// No scenario opens more connections than this.
    pub most_connections: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs the plan.
///
/// # Errors
/// A gateway that does not start, and what this process itself cannot do. Faults of a system are figures, and one
/// that does not start is left out.
pub fn run(plan: &Plan) -> Result<Results, RunError> {
    pin_this_thread(plan.cores.load)?;
    // Here, and in what is started.
    allow_descriptors(plan.descriptors())?;
    let mut origin = Origin::bind()?;
    let mut results = Results { capacity: plan.capacity, scenarios: Vec::new() };
    for scenario in &plan.scenarios {
        let takes_share = matches!(&scenario.kind, Kind::Load(Shape { rate: Rate::OfCapacity(_), .. }));
        if takes_share && results.capacity.is_none() {
            results.capacity = Some(measure_capacity(plan, &mut origin)?);
        }
        eprint!("{:<20}", scenario.name);
        let rounds = match &scenario.kind {
            Kind::Load(shape) => {
                loads::run(plan, scenario, shape, &mut origin, results.capacity.unwrap_or(0.0))?
            }
            Kind::Idle { connections } => unloaded::idles(plan, scenario, *connections, &mut origin)?,
            Kind::Start => unloaded::starts(plan, scenario, &mut origin)?,
        };
        eprintln!();
        if scenario.name == CAPACITY && results.capacity.is_none() {
            results.capacity =
                rounds.spread(plan.reference(), Metric::RequestsPerSecond).map(|rate| rate.median);
        }
        results.scenarios.push(rounds);
    }
    Ok(results)
}

impl Plan {
    /// The contender whose capacity is taken: the reference, or the last one where that is not part of the run.
    fn reference(&self) -> Contender {
        let present = self.systems.contains(&REFERENCE).then_some(REFERENCE);
        let system = present.or(self.systems.last().copied()).unwrap_or(System::Direct);
        Contender { system, setup: Setup::Plain }
    }

    fn contenders(&self, scenario: &'static Scenario) -> impl Iterator<Item = Contender> {
        scenario.contenders.iter().copied().filter(|contender| self.systems.contains(&contender.system))
    }

    /// Every connection has one at its client and one at the proxy; those with a request on its way have another at
    /// the proxy and at the origin.
    fn descriptors(&self) -> u64 {
        let needed = |scenario: &&Scenario| match scenario.kind {
            Kind::Load(Shape { connections, active: Active::All, .. }) => 2 * connections,
            Kind::Load(Shape {
                connections, active: Active::Same(asking) | Active::InTurn(asking), ..
            }) => connections + 2 * asking,
            Kind::Idle { connections } => connections,
            Kind::Start => 0,
        };
        self.scenarios.iter().map(needed).max().unwrap_or(0) as u64 + OTHER_DESCRIPTORS
    }

    /// Starts a contender; the origin has to be serving.
    fn start(&self, contender: Contender, origin: SocketAddr) -> Result<Running, StartError> {
        let request = Exchange::Small.request(load::Reuse::Keepalive);
        Running::start(contender, &self.programs, origin, self.cores.system, &request)
    }

    /// Starts a contender, or writes down why it is left out: only the gateway has to start, where it has what is
    /// asked of it.
    fn try_start(
        &self,
        contender: Contender,
        origin: SocketAddr,
        left_out: &mut Vec<LeftOut>,
    ) -> Result<Option<Running>, StartError> {
        match self.start(contender, origin) {
            Ok(running) => Ok(Some(running)),
            Err(error) if contender.system == System::Gateway && !matches!(error, StartError::Store(_)) => {
                Err(error)
            }
            Err(error) => {
                left_out.push(LeftOut { contender, why: error.to_string() });
                Ok(None)
            }
        }
    }
}

fn measure_capacity(plan: &Plan, origin: &mut Origin) -> Result<f64, RunError> {
    let small = SCENARIOS.iter().find(|scenario| scenario.name == CAPACITY);
    let Some(Scenario { kind: Kind::Load(shape), .. }) = small else {
        unreachable!("the capacity scenario is a load, see its table")
    };
    let addr = origin.addr;
    let running = origin.serve_during(|| plan.start(plan.reference(), addr))?;
    let rate = loads::requests_per_second(plan, &running, shape, origin)?;
    eprintln!("capacity            {rate:.0} requests/s of {:?}", running.contender.system);
    origin.serve_during(|| drop(running));
    Ok(rate)
}
