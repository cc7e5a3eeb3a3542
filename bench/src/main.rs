//! The bench's command line: reads what to run, runs it, prints the tables and writes the report.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use bench::instructions;
use bench::machine::{Cores, Machine, first_line};
use bench::overload;
use bench::report::{self, Provenance};
use bench::scenario::{SCENARIOS, Scenario};
use bench::side_by_side::{self, Plan};
use bench::system::{Programs, System, end_all};
use clap::{Parser, ValueEnum as _};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What passes before each measured stretch, for caches and pools to fill.
const WARM_UP: Duration = Duration::from_millis(300);

/// Measures the gateway beside its peers, in turns, on this machine.
#[derive(Parser)]
#[command(name = "bench", version)]
struct Arguments {
    /// Only these scenarios (all without it; `--list` names them).
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<String>,
    /// Only these systems (all that are found without it).
    #[arg(long, value_delimiter = ',')]
    systems: Vec<System>,
    /// How long each round of each system is measured.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How often each system has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Two rounds of 0.3 s: to see that everything works, not to be quoted.
    #[arg(long)]
    quick: bool,
    /// Requests a second that the fixed rates take their share of, instead of the reference's own capacity.
    #[arg(long)]
    capacity: Option<f64>,
    /// The gateway to measure (the one beside this program without it).
    #[arg(long)]
    gateway: Option<PathBuf>,
    /// Count instructions and system calls of a proxied request instead, against the recorded bound.
    #[arg(long, conflicts_with_all = ["scenario", "systems", "quick"])]
    instructions: bool,
    /// Put five times on the origin of what it can serve instead, and see what comes of it.
    #[arg(long, conflicts_with_all = ["scenario", "systems", "quick", "instructions"])]
    overload: bool,
    /// Where JSON, Markdown and plots go.
    #[arg(long, default_value = "bench/results")]
    results: PathBuf,
    /// Lists the scenarios and ends.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.list {
        SCENARIOS.iter().for_each(|scenario| println!("{:<20} {}", scenario.name, scenario.title));
        return Ok(());
    }
    end_systems_when_interrupted()?;
    let programs = Programs::find(arguments.gateway.as_deref());
    if arguments.instructions {
        return instructions::check(&programs);
    }
    let cores = Cores::find()?;
    if arguments.overload {
        return overload::run(&programs, cores, arguments.rounds);
    }
    let (rounds, seconds) = if arguments.quick { (2, 0.3) } else { (arguments.rounds, arguments.seconds) };
    let duration = Duration::try_from_secs_f64(seconds).context("--seconds")?;
    if rounds == 0 || duration.is_zero() {
        bail!("--rounds and --seconds must be more than nothing");
    }
    let (systems, missing) = systems(&arguments.systems, &programs)?;
    let plan = Plan {
        scenarios: scenarios(&arguments.scenario)?,
        systems,
        programs,
        cores,
        rounds,
        warm_up: WARM_UP,
        duration,
        capacity: arguments.capacity,
        most_connections: usize::MAX,
    };
    let results = side_by_side::run(&plan)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    let provenance = Provenance {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        unix_time: now.as_secs(),
        revision: first_line(Command::new("git").args(["describe", "--always", "--dirty"])),
        versions: plan.programs.versions(),
        missing,
        machine: Machine::describe(cores),
        rounds,
        seconds,
    };
    let (files, text) = report::write(&arguments.results, &provenance, &results)
        .with_context(|| format!("writing into {}", arguments.results.display()))?;
    println!("{text}");
    files.iter().for_each(|file| eprintln!("written: {}", file.display()));
    Ok(())
}

fn scenarios(names: &[String]) -> anyhow::Result<Vec<&'static Scenario>> {
    if let Some(unknown) = names.iter().find(|name| !SCENARIOS.iter().any(|scenario| scenario.name == **name))
    {
        bail!("there is no scenario `{unknown}`; `--list` names them");
    }
    let wanted = |scenario: &&Scenario| names.is_empty() || names.iter().any(|name| name == scenario.name);
    Ok(SCENARIOS.iter().filter(wanted).collect())
}

/// The systems to run and those that were not found.
fn systems(wanted: &[System], programs: &Programs) -> anyhow::Result<(Vec<System>, Vec<System>)> {
    if let Some(missing) = wanted.iter().find(|system| !programs.has(**system)) {
        bail!(
            "{missing:?} was not found: install or build it (the gateway: `cargo build --release -p gateway`)"
        );
    }
    let all = System::value_variants().iter().copied();
    let (found, missing): (Vec<System>, Vec<System>) = all
        .filter(|system| wanted.is_empty() || wanted.contains(system))
        .partition(|system| programs.has(*system));
    missing.iter().for_each(|system| eprintln!("not found, so not measured: {}", system.name()));
    Ok((found, missing))
}

/// A signal ends this process without dropping anything, so the systems are ended first.
fn end_systems_when_interrupted() -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            end_all();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}
