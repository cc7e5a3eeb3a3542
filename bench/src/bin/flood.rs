//! The command line of the floods: reads what to run, runs it, prints the tables and writes the JSON.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use bench::flood::{self, ATTACKS, Attack, Plan, System, report, traces};
use bench::machine::{Cores, Machine, first_line};
use bench::report::Provenance;
use bench::system::Programs;
use clap::{Parser, ValueEnum as _};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Floods the gateway and its peers, in turns, and measures what a good client still gets (root).
#[derive(Parser)]
#[command(name = "flood", version)]
struct Arguments {
    /// Only these attacks (all without it; `--list` names them).
    #[arg(long, value_delimiter = ',')]
    attack: Vec<String>,
    /// Only these systems (all that are found without it).
    #[arg(long, value_delimiter = ',')]
    systems: Vec<System>,
    /// How long each attack is measured; the same system without attack for half of it.
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// How often each system has its turn.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// One round of 0.5 s: to see that everything works, not to be quoted.
    #[arg(long)]
    quick: bool,
    /// The gateway to flood (the one beside this program without it).
    #[arg(long)]
    gateway: Option<PathBuf>,
    /// Where JSON and Markdown go.
    #[arg(long, default_value = "bench/results")]
    results: PathBuf,
    /// Lists the attacks and ends.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flood: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.list {
        ATTACKS.iter().for_each(|attack| println!("{:<12} {}", attack.name, attack.title));
        return Ok(());
    }
    let (rounds, seconds) = if arguments.quick { (1, 0.5) } else { (arguments.rounds, arguments.seconds) };
    let attacked = Duration::try_from_secs_f64(seconds).context("--seconds")?;
    if rounds == 0 || attacked.is_zero() {
        bail!("--rounds and --seconds must be more than nothing");
    }
    let programs = Programs::find(arguments.gateway.as_deref());
    let all = System::value_variants().iter().copied();
    let (found, missing): (Vec<System>, Vec<System>) = all
        .filter(|system| arguments.systems.is_empty() || arguments.systems.contains(system))
        .partition(|system| arguments.systems.contains(system) || programs.has(system.of()));
    let plan = Plan {
        attacks: attacks(&arguments.attack)?,
        systems: found,
        programs,
        cores: Cores::find()?,
        rounds,
        attacked,
        calm: attacked / 2,
    };
    take_all_away_when_interrupted()?;
    let rows = flood::run(&plan)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    let told = plan.programs.versions();
    let versions = plan.systems.iter().filter_map(|system| Some((*system, told.get(&system.of())?.clone())));
    let provenance = Provenance {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        unix_time: now.as_secs(),
        revision: first_line(Command::new("git").args(["describe", "--always", "--dirty"])),
        versions: versions.collect(),
        missing,
        machine: Machine::describe(plan.cores),
        rounds,
        seconds,
    };
    let markdown = report::markdown(&provenance, &rows);
    println!("{markdown}");
    let json = serde_json::to_string_pretty(&report::json(&provenance, &rows))?;
    let stem = arguments.results.join(format!("flood-{}", provenance.unix_time));
    std::fs::create_dir_all(&arguments.results)?;
    for (extension, text) in [("json", json), ("md", markdown)] {
        let path = stem.with_extension(extension);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        eprintln!("written: {}", path.display());
    }
    Ok(())
}

fn attacks(names: &[String]) -> anyhow::Result<Vec<&'static Attack>> {
    if let Some(unknown) = names.iter().find(|name| !ATTACKS.iter().any(|attack| attack.name == **name)) {
        bail!("there is no attack `{unknown}`; `--list` names them");
    }
    let wanted = |attack: &&Attack| names.is_empty() || names.iter().any(|name| name == attack.name);
    Ok(ATTACKS.iter().filter(wanted).collect())
}

/// A signal ends this process without dropping anything, so what it made is taken away first.
fn take_all_away_when_interrupted() -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            traces::take_all_away();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}
