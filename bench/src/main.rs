//! The bench's command line: reads what to run, runs it, prints the tables and writes the JSON.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use bench::machine::{Cores, Machine, first_line};
use bench::report::{self, Provenance};
use bench::scenario::{SCENARIOS, Scenario};
use bench::side_by_side::{self, Plan};
use bench::system::{Programs, System, end_all};
use clap::{Parser, ValueEnum as _};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

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
    /// Where the JSON goes.
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
        SCENARIOS.iter().for_each(|scenario| println!("{:<10} {}", scenario.name, scenario.title));
        return Ok(());
    }
    end_systems_when_interrupted()?;
    let cores = Cores::find()?;
    let (rounds, seconds) = if arguments.quick { (2, 0.3) } else { (arguments.rounds, arguments.seconds) };
    let duration = Duration::try_from_secs_f64(seconds).context("--seconds")?;
    if rounds == 0 || duration.is_zero() {
        bail!("--rounds and --seconds must be more than nothing");
    }
    let programs = Programs::find(arguments.gateway.as_deref());
    let plan = Plan {
        scenarios: scenarios(&arguments.scenario)?,
        systems: systems(&arguments.systems, &programs)?,
        programs,
        cores,
        rounds,
        duration,
        capacity: arguments.capacity,
    };
    let results = side_by_side::run(&plan)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    let provenance = Provenance {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        unix_time: now.as_secs(),
        revision: first_line(Command::new("git").args(["describe", "--always", "--dirty"])),
        versions: plan.programs.versions(),
        machine: Machine::describe(cores),
        rounds,
        seconds,
    };
    println!("{}", report::markdown(&provenance, &results));
    let path = arguments.results.join(format!("{}.json", provenance.unix_time));
    let json = serde_json::to_string_pretty(&report::json(&provenance, &results))?;
    std::fs::create_dir_all(&arguments.results)
        .and_then(|()| std::fs::write(&path, json))
        .with_context(|| format!("writing {}", path.display()))?;
    eprintln!("written: {}", path.display());
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

fn systems(wanted: &[System], programs: &Programs) -> anyhow::Result<Vec<System>> {
    if let Some(missing) = wanted.iter().find(|system| !programs.has(**system)) {
        bail!(
            "{missing:?} was not found: install or build it (the gateway: `cargo build --release -p gateway`)"
        );
    }
    let all = System::value_variants().iter().copied();
    let (found, missing): (Vec<System>, Vec<System>) = all
        .filter(|system| wanted.is_empty() || wanted.contains(system))
        .partition(|system| programs.has(*system));
    for system in missing {
        eprintln!("not found, so not measured: {system:?}");
    }
    Ok(found)
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
