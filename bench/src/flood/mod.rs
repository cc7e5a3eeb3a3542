//! Floods: a good client and an attacker on a system at once, and what the good client still gets.
//!
//! `bin/flood` gives the plan and writes the report. Everything happens between network namespaces that the run
//! makes itself and takes away again. The good client, the attacker and the origin share one thread and take
//! turns, so that none of them waits for another's time slice; the system under test has the other core.

mod attack;
mod connections;
mod crowd;
mod good;
mod pace;
mod packet;
pub mod report;
mod requests;
mod rig;
mod slow;
mod syn;
mod systems;
pub mod traces;
mod xdp;

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::thread::Pid;
use serde::Serialize;

pub use attack::{ATTACKS, Attack};
use attack::{Assault, Score};
use rig::{Rig, RigError};
pub use systems::System;
use systems::{Running, StartError};

use crate::load::{Fault, Faults};
use crate::machine::{Cores, allow_descriptors, pin_this_thread};
use crate::origin::{EVENTS, Origin};
use crate::poll::Events;
use crate::system::Programs;
use crate::usage;
use good::{GoodClient, Tally};

/// Both run for this long before anything counts.
const WARM_UP: Duration = Duration::from_millis(500);
/// The attacker's connections and the origin's are this process's.
const DESCRIPTORS: u64 = 19_000;

/// What to run.
pub struct Plan {
    pub attacks: Vec<&'static Attack>,
    pub systems: Vec<System>,
    pub programs: Programs,
    pub cores: Cores,
    pub rounds: usize,
    /// How long an attack is measured.
    pub attacked: Duration,
    /// How long the same system is measured without it, just before.
    pub calm: Duration,
}

/// One system under one attack, a pair of stretches for each round.
pub struct Row {
    pub attack: &'static Attack,
    pub system: System,
    pub rounds: Vec<Round>,
}

#[derive(Serialize)]
pub struct Round {
    pub calm: Stretch,
    pub attacked: Stretch,
}

/// What the good client got and what that cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stretch {
    /// Right answers in time, in percent of the requests that fell due.
    pub goodput_percent: f64,
    /// From when a request was due; of right answers.
    pub p50_micros: f64,
    pub p99_micros: f64,
    /// Requests without a right answer, by kind.
    pub failures: Vec<(&'static str, u64)>,
    pub core: Core,
    /// The attack's own rate a second, and the connections it held in the end.
    pub attack_per_second: Option<f64>,
    pub attack_holds: Option<usize>,
    /// What somebody else took of the load's core, in percent of the stretch: this thread never sleeps.
    pub others_percent: f64,
}

/// What the system's core was busy with, in percent of the stretch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Core {
    /// Everything.
    pub busy_percent: f64,
    /// The system's processes, with what the kernel did in their name.
    pub process_percent: f64,
    /// The threads that take packets off the cables.
    pub receive_percent: f64,
    /// What is neither: softirqs that interrupted nobody, and whatever else the kernel ran there.
    pub rest_percent: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Rig(#[from] RigError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs the plan.
///
/// # Errors
/// What the rig lacks, a system that does not start, and what this process itself cannot do. What a system does
/// under attack is a figure.
pub fn run(plan: &Plan) -> Result<Vec<Row>, RunError> {
    allow_descriptors(DESCRIPTORS)?;
    pin_this_thread(plan.cores.load)?;
    let mut rows = Vec::new();
    for &attack in &plan.attacks {
        let new = |system: &System| Row { attack, system: *system, rounds: Vec::new() };
        let mut of_attack: Vec<Row> = plan.systems.iter().map(new).collect();
        for _ in 0..plan.rounds {
            for row in &mut of_attack {
                let round = round(plan, row.system, attack)?;
                eprintln!("{:<12} {:<20} {}", attack.name, row.system.name(), report::line(attack, &round));
                row.rounds.push(round);
            }
        }
        rows.extend(of_attack);
    }
    Ok(rows)
}

fn round(plan: &Plan, system: System, attack: &Attack) -> Result<Round, RunError> {
    let rig = Rc::new(Rig::new(plan.cores)?);
    rig.good.namespace.enter()?;
    let mut origin = rig.server.run(Origin::bind)??;
    let addr = origin.addr;
    let running = origin.serve_during(|| Running::start(system, &plan.programs, &rig, addr))?;
    if system == System::Floor {
        rig.drop_attacker()?;
    }
    let receive = rig.pin_receive_threads()?;
    let mut measure = |duration, attack| stretch(&rig, &running, &receive, duration, attack, &mut origin);
    Ok(Round { calm: measure(plan.calm, None)?, attacked: measure(plan.attacked, Some(attack))? })
}

/// Everybody's accounts at one end of a measured stretch.
struct Accounts {
    at: Instant,
    idle: Duration,
    process: Duration,
    receive: Duration,
    bench: Duration,
    score: Option<Score>,
}

fn stretch(
    rig: &Rc<Rig>,
    running: &Running,
    receive: &[Pid],
    duration: Duration,
    attack: Option<&Attack>,
    origin: &mut Origin,
) -> io::Result<Stretch> {
    let start = Instant::now();
    let from = start + WARM_UP;
    let until = from + duration;
    let mut good = GoodClient::new(rig.good.target, start, from..until)?;
    let mut assault = attack.map(|attack| Assault::new(attack, rig, start)).transpose()?;
    let mut events = Events::with_capacity(EVENTS);
    let (mut before, mut after) = (None, None);
    loop {
        let now = Instant::now();
        for (ends_at, accounts) in [(from, &mut before), (until, &mut after)] {
            if accounts.is_none() && now >= ends_at {
                *accounts = Some(Accounts::read(rig, running, receive, assault.as_ref())?);
            }
        }
        let mut did_something = good.turn(now)?;
        if let Some(assault) = &mut assault {
            did_something |= assault.turn(now)?;
        }
        did_something |= origin.turn(&mut events, Duration::ZERO);
        if now >= until && good.has_gone() {
            break;
        }
        if !did_something {
            // Where there is only one core, the system has to come to it too. Sleeping would cost the one who wakes.
            std::thread::yield_now();
        }
    }
    let (before, after) = before.zip(after).expect("the loop ends after both");
    Ok(Stretch::of(&good.tally, &before, &after))
}

impl Accounts {
    fn read(
        rig: &Rig,
        running: &Running,
        receive: &[Pid],
        assault: Option<&Assault>,
    ) -> io::Result<Accounts> {
        Ok(Accounts {
            at: Instant::now(),
            idle: usage::idle_of_processor(rig.cores.system)?,
            process: usage::of_tree(running.pid())?.cpu,
            receive: receive.iter().map(|thread| usage::of_thread(*thread)).sum::<io::Result<_>>()?,
            bench: usage::of_this_thread()?,
            score: assault.map(Assault::score),
        })
    }
}

impl Stretch {
    fn of(tally: &Tally, before: &Accounts, after: &Accounts) -> Stretch {
        let elapsed = (after.at - before.at).as_secs_f64();
        let percent =
            |before: Duration, after: Duration| 100.0 * after.saturating_sub(before).as_secs_f64() / elapsed;
        let busy = (100.0 - percent(before.idle, after.idle)).max(0.0);
        let process = percent(before.process, after.process);
        let receive = percent(before.receive, after.receive);
        let scores = before.score.zip(after.score);
        Stretch {
            goodput_percent: tally.goodput_percent(),
            p50_micros: tally.micros(0.5),
            p99_micros: tally.micros(0.99),
            failures: failures(&tally.faults),
            core: Core {
                busy_percent: busy,
                process_percent: process,
                receive_percent: receive,
                rest_percent: (busy - process - receive).max(0.0),
            },
            attack_per_second: scores.map(|(before, after)| (after.done - before.done) as f64 / elapsed),
            attack_holds: after.score.and_then(|score| score.held),
            others_percent: (100.0 - percent(before.bench, after.bench)).max(0.0),
        }
    }
}

fn failures(faults: &Faults) -> Vec<(&'static str, u64)> {
    let met = Fault::ALL.iter().filter(|fault| faults.of(**fault) > 0);
    met.map(|fault| (fault.label(), faults.of(*fault))).collect()
}
