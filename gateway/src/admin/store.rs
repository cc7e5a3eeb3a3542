//! What the metrics port says of the store that gateways share rate limits through: its part of `/metrics` and of
//! `/stats`. Both are silent where none is configured.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::proto::{MetricFamily, MetricType};
use schemars::JsonSchema;
use serde::Serialize;

use super::State;
use super::metrics::{counter, family, histogram, number};
use crate::config::{self, OnFailure};
use crate::metrics::{Loss, STEP_BOUNDS_US, Store};

pub fn render(state: &State, families: &mut Vec<MetricFamily>) {
    if configured(state).is_none() {
        return;
    }
    let cells = &*state.registry.store;
    let (counted, now) = (MetricType::COUNTER, MetricType::GAUGE);
    let (times, sum_us) = times(cells);
    let losses = Loss::ALL.map(|loss| {
        counter(&[("reason", loss.label())], sum(cells, |cells| cells.losses[loss as usize].get()))
    });
    let alone = OnFailure::ALL.map(|how| counter(&[("on_failure", how.label())], alone(cells, how)));
    let single = |kind, value: u64| vec![number(kind, &[], value as f64)];
    for (name, help, kind, metrics) in [
        ("up", "Workers whose store answers.", now, single(now, sum(cells, |cells| cells.up.get()))),
        ("losses_total", "Times that a worker lost the store, by why.", counted, losses.into()),
        (
            "seconds",
            "How long the store took for a step.",
            MetricType::HISTOGRAM,
            vec![histogram(&[], &STEP_BOUNDS_US, &times, sum_us)],
        ),
        (
            "late_total",
            "Steps that were waited for in vain.",
            counted,
            single(counted, sum(cells, |cells| cells.late.get())),
        ),
        (
            "leased",
            "Requests that may be admitted without asking, as of the last second.",
            now,
            single(now, sum(cells, |cells| cells.leased.get())),
        ),
        ("alone_total", "Decisions of rules without it, by what they go by.", counted, alone.into()),
    ] {
        families.push(family(&format!("gateway_limit_store_{name}"), help, kind, metrics));
    }
}

/// Its section of `/stats`.
#[derive(Serialize, JsonSchema)]
pub struct StoreStats {
    pub servers: Vec<String>,
    /// `unused`, `up`, `away` or `partly away`.
    pub status: &'static str,
    /// Why it is away, where it is.
    pub reason: Option<&'static str>,
    pub workers_up: u64,
    /// Decisions that it was asked for.
    pub steps: u64,
    pub mean_ms: f64,
    /// Answers that came too late to count.
    pub late: u64,
    /// Requests admitted from what had been taken in advance.
    pub leased: u64,
    /// Requests decided without it, by `on_failure`.
    pub alone: BTreeMap<&'static str, u64>,
}

/// `None`: there is none.
pub fn stats(state: &State) -> Option<StoreStats> {
    let config = configured(state)?;
    let cells = &*state.registry.store;
    let (times, sum_us) = times(cells);
    let steps: u64 = times.iter().sum();
    let up = sum(cells, |cells| cells.up.get());
    let why = cells.iter().find_map(Store::why_away).map(Loss::label);
    let status = match (up, why) {
        (0, None) => "unused",
        (_, None) => "up",
        (0, Some(_)) => "away",
        (_, Some(_)) => "partly away",
    };
    Some(StoreStats {
        servers: config.servers.iter().map(ToString::to_string).collect(),
        status,
        reason: why,
        workers_up: up,
        steps,
        mean_ms: Duration::from_micros(sum_us).as_secs_f64() * 1e3 / steps.max(1) as f64,
        late: sum(cells, |cells| cells.late.get()),
        leased: sum(cells, |cells| cells.leased.get()),
        alone: OnFailure::ALL.map(|how| (how.label(), alone(cells, how))).into(),
    })
}

fn configured(state: &State) -> Option<config::Store> {
    state.current.load().config.rate_limit.as_ref()?.store.clone()
}

fn alone(cells: &[Store], how: OnFailure) -> u64 {
    sum(cells, |cells| cells.alone[how as usize].get())
}

fn sum(cells: &[Store], read: impl Fn(&Store) -> u64) -> u64 {
    cells.iter().map(read).sum()
}

/// Of all workers: how many steps took up to each bound and longer, and all of them together in microseconds.
fn times(cells: &[Store]) -> ([u64; STEP_BOUNDS_US.len() + 1], u64) {
    cells.iter().map(Store::step_times).fold(Default::default(), |(mut counts, sum), (more, us)| {
        counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        (counts, sum + us)
    })
}
