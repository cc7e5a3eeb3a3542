//! The run as JSON: every round's figures beside their medians.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Provenance, claims};
use crate::load::Fault;
use crate::metric::{Metric, Spread};
use crate::side_by_side::{Results, Rounds};
use crate::system::REFERENCE;

pub fn render(provenance: &Provenance, results: &Results) -> Value {
    let scenarios: Vec<Value> = results.scenarios.iter().map(scenario).collect();
    json!({
        "provenance": provenance,
        "reference": REFERENCE,
        "reference_capacity": results.capacity,
        "scenarios": scenarios,
        "headline": claims::headline(provenance, results),
        "targets": claims::targets(results),
    })
}

fn scenario(rounds: &Rounds) -> Value {
    let compares = rounds.scenario.kind.compares();
    let contenders: Vec<Value> = rounds
        .contenders
        .iter()
        .map(|(contender, figures)| {
            let spreads: BTreeMap<Metric, Spread> = rounds
                .metrics()
                .into_iter()
                .filter_map(|metric| Some((metric, rounds.spread(*contender, metric)?)))
                .collect();
            let faults = rounds.faults.get(contender).copied().unwrap_or_default();
            let by_kind: BTreeMap<&str, u64> =
                Fault::ALL.iter().map(|fault| (fault.label(), faults.of(*fault))).collect();
            json!({
                "system": contender.system,
                "setup": contender.setup,
                "spread": spreads,
                "ratio": rounds.ratio(*contender, compares),
                "faults": by_kind,
                "rounds": figures,
            })
        })
        .collect();
    json!({
        "name": rounds.scenario.name,
        "title": rounds.scenario.title,
        "compares": compares,
        "ratio_to": rounds.scenario.against.label(),
        "contenders": contenders,
        "left_out": rounds.left_out,
    })
}
