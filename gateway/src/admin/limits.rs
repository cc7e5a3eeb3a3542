//! The rate limits' part of `/metrics`: decisions by route and rule, and the table of keys.

use prometheus::proto::{MetricFamily, MetricType};

use super::State;
use super::metrics::{counter, family, number};
use crate::metrics::Limit;

pub fn render(state: &State, families: &mut Vec<MetricFamily>) {
    type Read = fn(&Limit) -> u64;
    let outcomes: [(&str, Read); 4] = [
        ("allowed", |cells| cells.allowed.get()),
        ("near", |cells| cells.near.get()),
        ("denied", |cells| cells.denied.get()),
        ("shadow", |cells| cells.shadow.get()),
    ];
    let (mut decisions, mut ignored) = (Vec::new(), Vec::new());
    for (label, cells) in state.registry.limits.snapshot() {
        let (route, rule) = label.split_once(' ').unwrap_or_default();
        let sum = |read: Read| cells.iter().map(read).sum();
        for (outcome, read) in outcomes {
            let labels = [("route", route), ("rule", rule), ("outcome", outcome)];
            decisions.push(counter(&labels, sum(read)));
        }
        ignored.push(counter(&[("route", route), ("rule", rule)], sum(|cells| cells.ignored.get())));
    }
    families.push(family(
        "gateway_limit_decisions_total",
        "Decisions of a rate limit; near: allowed with less than a tenth left; shadow: allowed though over it.",
        MetricType::COUNTER,
        decisions,
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
    let suspects = limits.refusals.suspects(limits.at(std::time::Instant::now())).len() as u64;
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
