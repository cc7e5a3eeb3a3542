//! What the metrics port says of upstreams: their counters, and how each is doing.

use std::collections::BTreeMap;

use prometheus::proto::{MetricFamily, MetricType};
use schemars::JsonSchema;
use serde::Serialize;

use super::State;
use super::metrics::{counter, family, number};
use crate::metrics::{Again, Cause, Endpoint};
use crate::upstream::breaker;

type Read = fn(&Endpoint) -> u64;

fn sum(cells: &[Endpoint], read: impl Fn(&Endpoint) -> u64) -> u64 {
    let sum = cells.iter().map(read).fold(0, u64::wrapping_add);
    // Workers' parts of a gauge are read one after the other.
    if sum > u64::MAX / 2 { 0 } else { sum }
}

pub fn render(state: &State, families: &mut Vec<MetricFamily>) {
    const ROWS: [(&str, &str, MetricType, Read); 7] = [
        ("connects_total", "Connections opened.", MetricType::COUNTER, |cells| cells.connects.get()),
        ("connect_failures_total", "Connections that no address took.", MetricType::COUNTER, |cells| {
            cells.connect_failures.get()
        }),
        ("reuses_total", "Requests sent over a kept connection.", MetricType::COUNTER, |cells| {
            cells.reuses.get()
        }),
        ("idle_connections", "Connections kept for later requests.", MetricType::GAUGE, |cells| {
            cells.idle.get()
        }),
        ("connections", "Connections, those in use included.", MetricType::GAUGE, |cells| cells.open.get()),
        ("active_requests", "Requests under way.", MetricType::GAUGE, |cells| cells.active.get()),
        ("waiting_requests", "Requests whose response has not begun.", MetricType::GAUGE, |cells| {
            cells.waiting.get()
        }),
    ];
    let endpoints = state.registry.endpoints.snapshot();
    for (name, help, kind, read) in ROWS {
        let values = endpoints
            .iter()
            .map(|(upstream, cells)| number(kind, &[("upstream", upstream)], sum(cells, read) as f64));
        families.push(family(&format!("gateway_upstream_{name}"), help, kind, values.collect()));
    }
    let (mut retries, mut failures) = (Vec::new(), Vec::new());
    for (upstream, cells) in &endpoints {
        for why in Again::ALL {
            let count = sum(cells, |cells| cells.retries[why as usize].get());
            retries.push(counter(&[("upstream", upstream), ("reason", why.name())], count));
        }
        for cause in Cause::ALL {
            let (phase, what) = cause.names();
            let count = sum(cells, |cells| cells.failures[cause as usize].get());
            failures.push(counter(&[("upstream", upstream), ("phase", phase), ("cause", what)], count));
        }
    }
    families.extend([
        family(
            "gateway_upstream_retries_total",
            "Requests that came to nothing here and were sent again, here or elsewhere.",
            MetricType::COUNTER,
            retries,
        ),
        family(
            "gateway_upstream_failures_total",
            "Tries that failed, by the phase they were in and what happened.",
            MetricType::COUNTER,
            failures,
        ),
    ]);
    health(state, families);
    budgets(state, families);
    names(state, families);
}

fn health(state: &State, families: &mut Vec<MetricFamily>) {
    let (mut states, mut changes, mut ejections, mut checks) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut gauges = [const { Vec::new() }; 6];
    for endpoint in &state.current.load().endpoints {
        let (report, upstream) = (endpoint.health.report(), ("upstream", endpoint.name.as_str()));
        for of in breaker::State::ALL {
            let is = if of == report.state { 1.0 } else { 0.0 };
            states.push(number(MetricType::GAUGE, &[upstream, ("state", of.name())], is));
        }
        changes.extend(
            report
                .changes
                .iter()
                .map(|((to, reason), count)| counter(&[upstream, ("state", to), ("reason", reason)], *count)),
        );
        ejections.extend(
            report.ejections.iter().map(|(reason, count)| counter(&[upstream, ("reason", reason)], *count)),
        );
        checks.push(counter(&[upstream], report.checks_failed));
        let whether = |holds: bool| if holds { 1.0 } else { 0.0 };
        let values = [
            report.score,
            report.share,
            report.probes as f64,
            whether(report.checked_well),
            whether(report.ejected),
            whether(report.drained),
        ];
        for (gauge, value) in gauges.iter_mut().zip(values) {
            gauge.push(number(MetricType::GAUGE, &[upstream], value));
        }
    }
    for (name, help, kind, metrics) in [
        ("breaker_state", "1 for the state that the circuit breaker is in.", MetricType::GAUGE, states),
        ("breaker_changes_total", "States entered, and why.", MetricType::COUNTER, changes),
        (
            "ejections_total",
            "Times it was left out for doing much worse than others.",
            MetricType::COUNTER,
            ejections,
        ),
        ("failed_checks_total", "Health checks that failed.", MetricType::COUNTER, checks),
    ] {
        families.push(family(&format!("gateway_upstream_{name}"), help, kind, metrics));
    }
    let named = [
        ("score", "Health score, from 0 to 1."),
        ("share", "Part of its usual requests that it gets, from 0 to 1."),
        ("breaker_probes", "Probes of the circuit breaker under way."),
        ("healthy", "Whether the health checks find it well."),
        ("ejected", "Whether it is left out for doing much worse than others."),
        ("drained", "Whether its operator lets it have no further requests."),
    ];
    for ((name, help), metrics) in named.into_iter().zip(gauges) {
        families.push(family(&format!("gateway_upstream_{name}"), help, MetricType::GAUGE, metrics));
    }
}

fn budgets(state: &State, families: &mut Vec<MetricFamily>) {
    let (mut out, mut refused) = (Vec::new(), Vec::new());
    for cluster in &state.current.load().clusters {
        let label = [("route", cluster.name.as_str())];
        out.push(number(MetricType::GAUGE, &label, f64::from(cluster.budget.out())));
        refused.push(counter(&label, cluster.budget.refused()));
    }
    families.extend([
        family(
            "gateway_retries_active",
            "Retries under way, by the first route of a cluster.",
            MetricType::GAUGE,
            out,
        ),
        family(
            "gateway_retries_refused_total",
            "Retries that found the budget spent.",
            MetricType::COUNTER,
            refused,
        ),
    ]);
}

fn names(state: &State, families: &mut Vec<MetricFamily>) {
    let (mut resolutions, mut failures) = (Vec::new(), Vec::new());
    for (name, of) in state.registry.resolutions().iter() {
        let upstream = ("upstream", name.as_str());
        resolutions.push(counter(&[upstream], of.answered));
        failures.extend(
            of.failures.iter().map(|(reason, count)| counter(&[upstream, ("reason", reason)], *count)),
        );
    }
    families.extend([
        family(
            "gateway_upstream_resolutions_total",
            "Times that the name was resolved.",
            MetricType::COUNTER,
            resolutions,
        ),
        family(
            "gateway_upstream_failed_resolutions_total",
            "Times that it was not, and why.",
            MetricType::COUNTER,
            failures,
        ),
    ]);
}

/// An endpoint in `/stats`. How it is doing is left out where it is configured no more.
#[derive(Serialize, JsonSchema)]
pub struct UpstreamStats {
    pub connects: u64,
    pub connect_failures: u64,
    pub reuses: u64,
    pub retries: u64,
    pub idle: u64,
    pub active: u64,
    pub failures: Vec<Failures>,
    /// Of its circuit breaker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<&'static str>,
    /// From 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// The checks that are made find it well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drained: Option<bool>,
}

#[derive(Serialize, JsonSchema)]
pub struct Failures {
    pub phase: &'static str,
    pub cause: &'static str,
    pub requests: u64,
}

/// The part of `/stats`.
pub fn stats(state: &State) -> BTreeMap<String, UpstreamStats> {
    let current = state.current.load();
    let rows = state.registry.endpoints.snapshot().into_iter().map(|(label, cells)| {
        let failures = Cause::ALL.into_iter().filter_map(|cause| {
            let (phase, what) = cause.names();
            let requests = sum(&cells, |cells| cells.failures[cause as usize].get());
            (requests > 0).then_some(Failures { phase, cause: what, requests })
        });
        let retries = |cells: &Endpoint| cells.retries.iter().map(crate::metrics::Cell::get).sum();
        let endpoint = current.endpoints.iter().find(|endpoint| endpoint.name == label);
        let report = endpoint.map(|endpoint| endpoint.health.report());
        let row = UpstreamStats {
            connects: sum(&cells, |cells| cells.connects.get()),
            connect_failures: sum(&cells, |cells| cells.connect_failures.get()),
            reuses: sum(&cells, |cells| cells.reuses.get()),
            retries: sum(&cells, retries),
            idle: sum(&cells, |cells| cells.idle.get()),
            active: sum(&cells, |cells| cells.active.get()),
            failures: failures.collect(),
            breaker: report.as_ref().map(|report| report.state.name()),
            score: report.as_ref().map(|report| report.score),
            healthy: report.as_ref().map(|report| report.checked_well),
            ejected: report.as_ref().map(|report| report.ejected),
            drained: report.as_ref().map(|report| report.drained),
        };
        (label, row)
    });
    rows.collect()
}
