//! The run as Markdown: one table for docs/benchmarks.md, then everything.

use std::fmt::{self, Write};

use super::Provenance;
use super::claims::{self, Line};
use crate::load::{Fault, Faults};
use crate::metric::{Metric, Spread, load_was_limit};
use crate::side_by_side::{Results, Rounds};
use crate::system::{Contender, REFERENCE, System};

/// The columns of the summary, the one that it is about first.
const SUMMARY: [System; 6] =
    [System::Gateway, System::Nginx, System::Haproxy, System::Envoy, System::Caddy, System::Varnish];

/// Writes the whole run.
pub fn render(provenance: &Provenance, results: &Results) -> String {
    let mut text = String::new();
    write(&mut text, provenance, results).expect("a String takes everything");
    text
}

fn write(out: &mut String, provenance: &Provenance, results: &Results) -> fmt::Result {
    write_provenance(out, provenance)?;
    write_summary(out, results)?;
    write_lines(out, "Headline", "claim", claims::headline(provenance, results))?;
    write_lines(out, "Targets", "figure", claims::targets(results))?;
    results.scenarios.iter().try_for_each(|rounds| write_scenario(out, rounds))
}

fn write_provenance(out: &mut String, provenance: &Provenance) -> fmt::Result {
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
        writeln!(out, "{}: {version}.", system.name())?;
    }
    for system in &provenance.missing {
        writeln!(out, "{}: not installed, not measured.", system.name())?;
    }
    writeln!(
        out,
        "\nMedian of {} rounds of {} s each, in turns (least–most), of an open loop in fifths of a second. CPU is the system's own by the kernel's accounts; \
         `direct` is what the generator and the origin can do with nothing between them. Memory is summed over a system's processes. \
         `load %` is how busy generator and origin were: a row marked † was limited by them. \
         `others %` is what else ran on the two cores: figures with much of it are not to be quoted.",
        provenance.rounds, provenance.seconds
    )
}

/// Each system's median of the figure that a scenario compares, and its ratio.
fn write_summary(out: &mut String, results: &Results) -> fmt::Result {
    let columns: Vec<System> = SUMMARY
        .into_iter()
        .filter(|system| {
            let mut contenders = results.scenarios.iter().flat_map(|rounds| rounds.contenders.keys());
            contenders.any(|contender| contender.system == *system)
        })
        .collect();
    let names: Vec<&str> = columns.iter().map(|system| system.name()).collect();
    writeln!(out, "\n## Summary\n\nIn brackets the ratio to {}.\n", REFERENCE.name())?;
    writeln!(out, "| scenario | figure | {} |", names.join(" | "))?;
    writeln!(out, "|---|---|{}", "--:|".repeat(columns.len()))?;
    for rounds in &results.scenarios {
        let mut setups: Vec<_> = rounds.scenario.contenders.iter().map(|contender| contender.setup).collect();
        setups.sort();
        setups.dedup();
        for setup in &setups {
            let which = if setups.len() > 1 { format!(", {}", setup.label()) } else { String::new() };
            let metric = rounds.scenario.kind.compares();
            write!(out, "| `{}`{which} | {} |", rounds.scenario.name, metric.label())?;
            for system in &columns {
                let own = Contender { system: *system, setup: *setup };
                write!(out, " {} |", summary_cell(rounds, own, metric))?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
}

fn summary_cell(rounds: &Rounds, own: Contender, metric: Metric) -> String {
    let Some(spread) = rounds.spread(own, metric) else { return "–".into() };
    let reference = Contender { system: REFERENCE, ..own };
    let decimals = metric.decimals();
    match rounds.between(own, reference, metric).filter(|_| own != reference) {
        Some(ratio) => format!("{:.decimals$} ({:.2})", spread.median, ratio.median),
        None => format!("{:.decimals$}", spread.median),
    }
}

fn write_lines(out: &mut String, title: &str, first: &str, lines: Vec<Line>) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n## {title}\n\n| {first} | measured | |\n|---|---|---|")?;
    lines.iter().try_for_each(|line| {
        let met = if line.met { "met" } else { "**not met**" };
        writeln!(out, "| {} | {} | {met} |", line.claim, line.measured)
    })
}

fn write_scenario(out: &mut String, rounds: &Rounds) -> fmt::Result {
    let (metrics, compares) = (rounds.metrics(), rounds.scenario.kind.compares());
    writeln!(out, "\n## {} (`{}`)\n", rounds.scenario.title, rounds.scenario.name)?;
    let labels: Vec<&str> = metrics.iter().map(|metric| metric.label()).collect();
    let against = rounds.scenario.against.label();
    writeln!(out, "| system | {} | {} ÷ {against} |", labels.join(" | "), compares.label())?;
    writeln!(out, "|---|{}--:|", "--:|".repeat(metrics.len()))?;
    for contender in rounds.contenders.keys() {
        let median = |metric| rounds.spread(*contender, metric).map(|spread| spread.median);
        let cpu = median(Metric::CpuPercent);
        let limited = median(Metric::LoadPercent).is_some_and(|load| load_was_limit(load, cpu));
        let mark = if limited { " †" } else { "" };
        write!(out, "| {}{mark} |", rounds.label(*contender))?;
        for metric in &metrics {
            match (metric, rounds.spread(*contender, *metric)) {
                (Metric::Faults, _) => write!(out, " {} |", faults(rounds.faults.get(contender)))?,
                (_, Some(spread)) => write!(out, " {} |", cell(spread, metric.decimals()))?,
                (_, None) => write!(out, " – |")?,
            }
        }
        match rounds.ratio(*contender, compares) {
            Some(ratio) => writeln!(out, " {} |", cell(ratio, 2))?,
            None => writeln!(out, " – |")?,
        }
    }
    for left_out in &rounds.left_out {
        let why = left_out.why.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        writeln!(out, "\n{} is left out: {why}", rounds.label(left_out.contender))?;
    }
    Ok(())
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
