//! The report: a run as Markdown for people and as JSON for programs, and the project's headline lines.
//!
//! It reads results and writes text; it measures nothing.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde::Serialize;
use serde_json::{Value, json};

use crate::load::{Fault, Faults};
use crate::machine::Machine;
use crate::metric::{Metric, Spread};
use crate::scenario::{CAPACITY, HEADLINE, HEADLINE_PER_CORE};
use crate::side_by_side::{Results, Rounds};
use crate::system::{REFERENCE, System};

const HEADLINE_CORES: f64 = 4.0;

/// What is written beside the figures.
#[derive(Serialize)]
pub struct Provenance {
    pub command: String,
    /// Seconds since 1970.
    pub unix_time: u64,
    /// The tree that the bench was built from.
    pub revision: String,
    pub versions: BTreeMap<System, String>,
    pub machine: Machine,
    pub rounds: usize,
    pub seconds: f64,
}

/// The whole run as JSON: every round's figures beside their medians.
pub fn json(provenance: &Provenance, results: &Results) -> Value {
    let scenarios: Vec<Value> = results.scenarios.iter().map(scenario_json).collect();
    let headline = headline(provenance, results);
    json!({
        "provenance": provenance,
        "reference": REFERENCE,
        "reference_capacity": results.capacity,
        "scenarios": scenarios,
        "headline": headline,
    })
}

fn scenario_json(rounds: &Rounds) -> Value {
    let compares = rounds.scenario.kind.compares();
    let systems: Vec<Value> = rounds
        .systems
        .iter()
        .map(|(system, figures)| {
            let metrics = metrics(rounds);
            let spreads: BTreeMap<Metric, Spread> = metrics
                .into_iter()
                .filter_map(|metric| Some((metric, rounds.spread(*system, metric)?)))
                .collect();
            let faults = rounds.faults.get(system).copied().unwrap_or_default();
            let by_kind: BTreeMap<&str, u64> =
                Fault::ALL.iter().map(|fault| (fault.label(), faults.of(*fault))).collect();
            json!({
                "system": system,
                "spread": spreads,
                "ratio_to_reference": rounds.ratio(*system, compares),
                "faults": by_kind,
                "rounds": figures,
            })
        })
        .collect();
    json!({
        "name": rounds.scenario.name,
        "title": rounds.scenario.title,
        "compares": compares,
        "systems": systems,
    })
}

/// The whole run as Markdown.
pub fn markdown(provenance: &Provenance, results: &Results) -> String {
    let mut text = String::new();
    write_markdown(&mut text, provenance, results).expect("a String takes everything");
    text
}

fn write_markdown(out: &mut String, provenance: &Provenance, results: &Results) -> fmt::Result {
    let machine = &provenance.machine;
    writeln!(out, "# Benchmark\n")?;
    writeln!(out, "`{}`, tree {}\n", provenance.command, provenance.revision)?;
    writeln!(out, "{}, {} MiB, Linux {}. ", machine.processor, machine.memory_mib, machine.kernel)?;
    if machine.cores.are_shared() {
        writeln!(out, "**One core for all: the load takes from the system what it is measured by.**")?;
    } else {
        writeln!(
            out,
            "The system under test has core {} to itself, generator and origin share core {}.",
            machine.cores.system, machine.cores.load
        )?;
    }
    for (system, version) in &provenance.versions {
        writeln!(out, "{}: {version}.", name(*system))?;
    }
    writeln!(
        out,
        "\nMedian of {} rounds of {} s each, in turns (least–most). CPU is the system's own by the kernel's accounts; \
         `direct` is what the generator and the origin can do with nothing between them. Memory is summed over a system's processes. \
         `others` is what else ran on the two cores: figures with much of it are not to be quoted.",
        provenance.rounds, provenance.seconds
    )?;
    for rounds in &results.scenarios {
        write_scenario(out, rounds)?;
    }
    let lines = headline(provenance, results);
    if !lines.is_empty() {
        writeln!(out, "\n## Headline\n\n| claim | measured | |\n|---|---|---|")?;
        for line in lines {
            writeln!(
                out,
                "| {} | {} | {} |",
                line.claim,
                line.measured,
                if line.met { "met" } else { "**not met**" }
            )?;
        }
    }
    Ok(())
}

fn write_scenario(out: &mut String, rounds: &Rounds) -> fmt::Result {
    let (metrics, compares) = (metrics(rounds), rounds.scenario.kind.compares());
    writeln!(out, "\n## {} (`{}`)\n", rounds.scenario.title, rounds.scenario.name)?;
    let labels: Vec<&str> = metrics.iter().map(|metric| metric.label()).collect();
    writeln!(out, "| system | {} | {} ÷ {} |", labels.join(" | "), compares.label(), name(REFERENCE))?;
    writeln!(out, "|---|{}--:|", "--:|".repeat(metrics.len()))?;
    for system in rounds.systems.keys() {
        write!(out, "| {} |", name(*system))?;
        for metric in &metrics {
            match (metric, rounds.spread(*system, *metric)) {
                (Metric::Faults, _) => write!(out, " {} |", faults(rounds.faults.get(system)))?,
                (_, Some(spread)) => write!(out, " {} |", cell(spread, metric.decimals()))?,
                (_, None) => write!(out, " – |")?,
            }
        }
        match rounds.ratio(*system, compares).filter(|_| *system != System::Direct) {
            Some(ratio) => writeln!(out, " {} |", cell(ratio, 2))?,
            None => writeln!(out, " – |")?,
        }
    }
    Ok(())
}

/// The columns of a scenario: whatever any system has a figure for.
fn metrics(rounds: &Rounds) -> Vec<Metric> {
    let mut metrics: Vec<Metric> =
        rounds.systems.values().flatten().flat_map(|round| round.keys().copied()).collect();
    metrics.sort();
    metrics.dedup();
    metrics
}

fn name(system: System) -> &'static str {
    match system {
        System::Direct => "direct",
        System::Nginx => "nginx",
        System::Gateway => "gateway",
    }
}

fn cell(spread: Spread, decimals: usize) -> String {
    let Spread { median, min, max } = spread;
    if min == max {
        return format!("{median:.decimals$}");
    }
    format!("{median:.decimals$} ({min:.decimals$}–{max:.decimals$})")
}

fn faults(faults: Option<&Faults>) -> String {
    let Some(faults) = faults.filter(|faults| faults.total() > 0) else { return "0".into() };
    let kinds = Fault::ALL.iter().filter(|fault| faults.of(**fault) > 0);
    let kinds: Vec<String> = kinds.map(|fault| format!("{} {}", faults.of(*fault), fault.label())).collect();
    format!("**{}**", kinds.join(", "))
}

/// One of the project's claims and what this run says of it.
#[derive(Debug, PartialEq, Serialize)]
pub struct Line {
    pub claim: &'static str,
    pub measured: String,
    pub met: bool,
}

/// The headline lines, for the gateway; those whose scenario is not in the run are left out.
///
/// The claims are for four cores; a run has one. Throughput is met when one core does what each of four would
/// have to; the others are read at exactly that load.
fn headline(provenance: &Provenance, results: &Results) -> Vec<Line> {
    let find = |scenario, metric| {
        let rounds = results.scenarios.iter().find(|rounds: &&Rounds| rounds.scenario.name == scenario)?;
        rounds.spread(System::Gateway, metric).map(|spread| spread.median)
    };
    let mut lines = Vec::new();
    if let Some(rate) = find(CAPACITY, Metric::RequestsPerSecond) {
        let whole = HEADLINE_CORES * HEADLINE_PER_CORE;
        let how = match rate >= whole {
            true => "the whole claim on one core, nothing scaled".to_owned(),
            false => format!("scaled: a core of four has to do {HEADLINE_PER_CORE:.0}"),
        };
        lines.push(Line {
            claim: "50,000+ requests/s on 4 cores",
            measured: format!("{rate:.0} on 1 of {} cores ({how})", provenance.machine.cores.available),
            met: rate >= HEADLINE_PER_CORE,
        });
    }
    let at = format!("at {HEADLINE_PER_CORE:.0} requests/s on 1 core");
    let mut claim = |claim, metric, limit: f64, unit: &str| {
        if let Some(figure) = find(HEADLINE, metric) {
            let measured = format!("{figure:.1} {unit} {at}");
            lines.push(Line { claim, measured, met: figure < limit });
        }
    };
    claim("p50 < 0.5 ms", Metric::P50Micros, 500.0, "µs");
    claim("p99 < 2 ms", Metric::P99Micros, 2_000.0, "µs");
    claim("CPU < 70 %", Metric::CpuPercent, 70.0, "%");
    let peaks = results.scenarios.iter().filter_map(|rounds| rounds.spread(System::Gateway, Metric::PeakMib));
    if let Some(highest) = Spread::of(peaks.map(|peak| peak.max)) {
        lines.push(Line {
            claim: "memory < 100 MB",
            measured: format!("{:.1} MB at the highest of any scenario", highest.max * 1.048_576),
            met: highest.max * 1.048_576 < 100.0,
        });
    }
    lines
}
