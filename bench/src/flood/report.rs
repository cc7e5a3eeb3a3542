//! The report of the floods: a table for each attack as Markdown, and everything as JSON.
//!
//! It reads rows and writes text; it measures nothing.

use std::fmt::{self, Write};

use serde_json::{Value, json};

use super::{Attack, Core, Round, Row, Stretch, System, good};
use crate::metric::Spread;
use crate::report::Provenance;

/// An attack that reached less of its rate than this is marked.
const HELD_PERCENT: f64 = 98.0;

/// A round in one line, for who watches the run.
pub fn line(attack: &Attack, round: &Round) -> String {
    let Stretch { goodput_percent, p50_micros, p99_micros, core, .. } = &round.attacked;
    format!(
        "{goodput_percent:.1} %, p50 {p50_micros:.0} µs (× {:.1}), p99 {p99_micros:.0}, failures {}, core {:.0} %, {}",
        p50_ratio(round),
        failures([round]),
        core.busy_percent,
        rate(attack, round.attacked.attack_per_second.unwrap_or(0.0)),
    )
}

/// The whole run as JSON: every round of every row.
pub fn json(provenance: &Provenance<System>, rows: &[Row]) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "attack": row.attack.name,
                "title": row.attack.title,
                "unit": row.attack.unit,
                "offered_per_second": row.attack.per_second,
                "system": row.system,
                "rounds": row.rounds,
            })
        })
        .collect();
    json!({ "provenance": provenance, "rows": rows })
}

/// The whole run as Markdown.
pub fn markdown(provenance: &Provenance<System>, rows: &[Row]) -> String {
    let mut text = String::new();
    write_markdown(&mut text, provenance, rows).expect("a String takes everything");
    text
}

fn write_markdown(out: &mut String, provenance: &Provenance<System>, rows: &[Row]) -> fmt::Result {
    let machine = &provenance.machine;
    writeln!(out, "# Floods\n\n`{}`, tree {}\n", provenance.command, provenance.revision)?;
    writeln!(out, "{}, {} MiB, Linux {}.", machine.processor, machine.memory_mib, machine.kernel)?;
    if machine.cores.are_shared() {
        writeln!(out, "**One core for all: the attack takes from the system what it is measured by.**")?;
    } else {
        writeln!(
            out,
            "The system and the threads that receive for it have core {} to themselves; good client, attacker and \
             origin share core {}.",
            machine.cores.system, machine.cores.load
        )?;
    }
    for (system, version) in &provenance.versions {
        writeln!(out, "{}: {version}.", system.name())?;
    }
    for system in &provenance.missing {
        writeln!(out, "{}: not found.", system.name())?;
    }
    writeln!(
        out,
        "\nMedian of {} rounds, {} s of attack each, the same system without attack just before it. Goodput, p50 and \
         p99 are the good client's: {} new connections a second, open loop. `× calm`: p50 over that without attack. \
         `core`: what its core was busy with (processes + receive threads + other softirqs). Rates below {HELD_PERCENT} % of what \
         was offered are bold: there the attack was slower than it was meant to be. `others`: what somebody else took of the load's core; rows \
         with much of it are not to be quoted.",
        provenance.rounds,
        provenance.seconds,
        good::PER_SECOND
    )?;
    let mut attacks: Vec<&Attack> = rows.iter().map(|row| row.attack).collect();
    attacks.dedup_by_key(|attack| attack.name);
    for attack in attacks {
        let rows = rows.iter().filter(|row| row.attack.name == attack.name);
        writeln!(
            out,
            "\n## {} (`{}`): {:.0} {}/s\n",
            attack.title, attack.name, attack.per_second, attack.unit
        )?;
        writeln!(
            out,
            "| system | goodput | p50 µs | × calm | p99 µs | failures | core | core, calm | attack | others |"
        )?;
        writeln!(out, "|---|--:|--:|--:|--:|---|--:|--:|---|--:|")?;
        rows.into_iter().try_for_each(|row| write_row(out, row))?;
    }
    Ok(())
}

fn write_row(out: &mut String, row: &Row) -> fmt::Result {
    let of = |figure: &dyn Fn(&Round) -> f64| {
        Spread::of(row.rounds.iter().map(figure)).map_or(0.0, |spread| spread.median)
    };
    let core = |of_stretch: &dyn Fn(&Round) -> Core| {
        format!(
            "{:.0} % ({:.0} + {:.0} + {:.0})",
            of(&|round| of_stretch(round).busy_percent),
            of(&|round| of_stretch(round).process_percent),
            of(&|round| of_stretch(round).receive_percent),
            of(&|round| of_stretch(round).rest_percent)
        )
    };
    let attack = rate(row.attack, of(&|round| round.attacked.attack_per_second.unwrap_or(0.0)));
    let held = row.rounds.iter().filter_map(|round| round.attacked.attack_holds).max();
    writeln!(
        out,
        "| {} | {:.1} % | {:.0} | {:.1} | {:.0} | {} | {} | {} | {}{} | {:.0} % |",
        row.system.name(),
        of(&|round| round.attacked.goodput_percent),
        of(&|round| round.attacked.p50_micros),
        of(&p50_ratio),
        of(&|round| round.attacked.p99_micros),
        failures(&row.rounds),
        core(&|round| round.attacked.core),
        core(&|round| round.calm.core),
        attack,
        held.map_or(String::new(), |held| format!(", {held} held")),
        of(&|round| round.attacked.others_percent.max(round.calm.others_percent)),
    )
}

fn p50_ratio(round: &Round) -> f64 {
    round.attacked.p50_micros / round.calm.p50_micros
}

/// The attack's own rate, bold where it is not what was offered.
fn rate(attack: &Attack, per_second: f64) -> String {
    match 100.0 * per_second >= HELD_PERCENT * attack.per_second {
        true => format!("{per_second:.0}/s"),
        false => format!("**{per_second:.0}/s**"),
    }
}

/// All rounds' failures under attack, summed by kind; those without attack are named as such.
fn failures<'a>(rounds: impl IntoIterator<Item = &'a Round>) -> String {
    let mut sums: Vec<(String, u64)> = Vec::new();
    for round in rounds {
        let attacked = round.attacked.failures.iter().map(|(kind, count)| (kind.to_string(), count));
        let calm = round.calm.failures.iter().map(|(kind, count)| (format!("{kind} while calm"), count));
        for (kind, count) in attacked.chain(calm) {
            match sums.iter_mut().find(|(other, _)| *other == kind) {
                Some((_, sum)) => *sum += count,
                None => sums.push((kind, *count)),
            }
        }
    }
    let shown: Vec<String> = sums.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    if shown.is_empty() { "0".into() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flood::ATTACKS;

    fn stretch(p50_micros: f64, failures: Vec<(&'static str, u64)>, rate: Option<f64>) -> Stretch {
        let core =
            Core { busy_percent: 50.4, process_percent: 30.0, receive_percent: 20.0, rest_percent: 0.4 };
        Stretch {
            goodput_percent: 99.96,
            p50_micros,
            p99_micros: 900.0,
            failures,
            core,
            attack_per_second: rate,
            attack_holds: None,
            others_percent: 0.3,
        }
    }

    #[test]
    fn a_row_has_medians_ratios_sums_and_marks() {
        let round = |p50, failures, rate| Round {
            calm: stretch(100.0, vec![("timeout", 1)], None),
            attacked: stretch(p50, failures, Some(rate)),
        };
        let row = Row {
            attack: &ATTACKS[0],
            system: System::Nginx,
            rounds: vec![
                round(100.0, vec![], 10_000.0),
                round(300.0, vec![("timeout", 2)], 9_000.0),
                round(200.0, vec![("timeout", 3), ("reset", 1)], 9_799.0),
            ],
        };
        let mut out = String::new();
        write_row(&mut out, &row).unwrap();
        assert_eq!(
            out,
            "| nginx | 100.0 % | 200 | 2.0 | 900 | 3 timeout while calm, 5 timeout, 1 reset | 50 % (30 + 20 + 0) | \
             50 % (30 + 20 + 0) | **9799/s** | 0 % |\n"
        );
        assert_eq!(rate(&ATTACKS[0], 9_800.0), "9800/s");
    }
}
