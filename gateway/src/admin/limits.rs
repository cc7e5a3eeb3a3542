//! The rate limits' part of `/metrics`: decisions by route and rule, and the table of keys.

use std::sync::Arc;

use prometheus::proto::{MetricFamily, MetricType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::State;
use super::metrics::{counter, family, number};
use crate::metrics::{Limit, Registry};

/// What a rule has decided since the start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Decisions {
    /// As metrics and logs have it.
    pub route: String,
    pub rule: String,
    /// With a tenth or more left.
    pub allowed: u64,
    /// Allowed with less than a tenth left.
    pub near: u64,
    pub denied: u64,
    /// Allowed though over it, for the rule is on trial.
    pub shadow: u64,
    /// Of the denied: those that came before the time an earlier refusal had named.
    pub ignored: u64,
}

pub fn decisions(registry: &Registry) -> Vec<Decisions> {
    let of_rule = |(label, cells): (String, Arc<[Limit]>)| {
        let (route, rule) = label.split_once(' ').unwrap_or_default();
        let sum = |read: fn(&Limit) -> u64| cells.iter().map(read).sum();
        Decisions {
            route: route.to_owned(),
            rule: rule.to_owned(),
            allowed: sum(|cells| cells.allowed.get()),
            near: sum(|cells| cells.near.get()),
            denied: sum(|cells| cells.denied.get()),
            shadow: sum(|cells| cells.shadow.get()),
            ignored: sum(|cells| cells.ignored.get()),
        }
    };
    registry.limits.snapshot().into_iter().map(of_rule).collect()
}

pub fn render(state: &State, families: &mut Vec<MetricFamily>) {
    let (mut decided, mut ignored) = (Vec::new(), Vec::new());
    for rule in decisions(&state.registry) {
        let labels = [("route", &*rule.route), ("rule", &*rule.rule)];
        let outcomes = [
            ("allowed", rule.allowed),
            ("near", rule.near),
            ("denied", rule.denied),
            ("shadow", rule.shadow),
        ];
        for (outcome, count) in outcomes {
            decided.push(counter(&[labels[0], labels[1], ("outcome", outcome)], count));
        }
        ignored.push(counter(&labels, rule.ignored));
    }
    families.push(family(
        "gateway_limit_decisions_total",
        "Decisions of a rate limit; near: allowed with less than a tenth left; shadow: allowed though over it.",
        MetricType::COUNTER,
        decided,
    ));
    families.push(family(
        "gateway_limit_ignored_refusals_total",
        "Requests denied that came before the time an earlier refusal had named.",
        MetricType::COUNTER,
        ignored,
    ));
    table(state, families);
}

fn table(state: &State, families: &mut Vec<MetricFamily>) {
    let limits = &state.current.load().limits;
    let tally = limits.tally();
    let suspects = limits.suspects(limits.at(std::time::Instant::now())) as u64;
    let (counted, now) = (MetricType::COUNTER, MetricType::GAUGE);
    for (name, help, kind, value) in [
        ("keys", "Keys of rate limits held now.", now, tally.keys),
        ("evictions_total", "Keys that owed nothing and made room for others.", counted, tally.evicted),
        ("expirations_total", "Keys forgotten after their time.", counted, tally.expired),
        (
            "overflows_total",
            "Decisions over keys that found no room of their own.",
            counted,
            tally.overflowed,
        ),
        ("suspects", "Sources that go on in spite of their refusals.", now, suspects),
    ] {
        families.push(family(
            &format!("gateway_limit_{name}"),
            help,
            kind,
            vec![number(kind, &[], value as f64)],
        ));
    }
}
