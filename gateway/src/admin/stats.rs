//! `/health` and `/stats`: the documents of the metrics port, whose schemas the admin API gives.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::store::StoreStats;
use super::upstreams::UpstreamStats;
use super::{Health, State, metrics, store, upstreams};

#[derive(Serialize, JsonSchema)]
pub struct HealthReport {
    pub status: Health,
    pub version: &'static str,
    pub uptime_seconds: u64,
    pub config: ConfigHealth,
}

#[derive(Serialize, JsonSchema)]
pub struct ConfigHealth {
    pub generation: u64,
    /// `null`: what the file says is in force.
    pub last_reload_error: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub struct Stats {
    pub uptime_seconds: u64,
    pub workers: usize,
    pub connections_open: u64,
    pub requests_active: u64,
    /// `null`: it does not drain.
    pub drain: Option<DrainStats>,
    /// By label; requests without a route last.
    pub routes: BTreeMap<String, RouteStats>,
    /// By name.
    pub upstreams: BTreeMap<String, UpstreamStats>,
    pub names: BTreeMap<String, NameStats>,
    /// `null`: no rule is counted by several gateways.
    pub limit_store: Option<StoreStats>,
}

#[derive(Serialize, JsonSchema)]
pub struct DrainStats {
    pub elapsed_seconds: f64,
    /// Until what is open is cut off.
    pub left_seconds: f64,
}

#[derive(Serialize, JsonSchema)]
pub struct RouteStats {
    pub requests: u64,
    pub mean_ms: f64,
    pub answers: Vec<Answers>,
}

#[derive(Serialize, JsonSchema)]
pub struct Answers {
    /// 499: the client left.
    pub status: u16,
    /// As in `gateway_requests_total`.
    pub outcome: &'static str,
    pub requests: u64,
}

/// What became of the attempts to resolve a name.
#[derive(Serialize, JsonSchema)]
pub struct NameStats {
    pub answered: u64,
    /// By reason.
    pub failures: BTreeMap<&'static str, u64>,
    /// The reason, where the last one failed.
    pub failing: Option<&'static str>,
}

/// The process serves even when the newest configuration was refused, so this is a 200 that says so.
pub fn health(state: &State) -> HealthReport {
    HealthReport {
        status: state.health(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: state.started.elapsed().as_secs(),
        config: ConfigHealth {
            generation: state.current.load().generation,
            last_reload_error: state.reload_error(),
        },
    }
}

pub fn stats(state: &State) -> Stats {
    let routes = metrics::route_totals(&state.registry).into_iter().map(|(label, total)| {
        let requests: u64 = total.answers.values().sum();
        let answers = total.answers.iter();
        let answers =
            answers.map(|(&(status, outcome), &requests)| Answers { status, outcome, requests }).collect();
        let mean_ms = total.latency_sum_us as f64 / 1e3 / requests.max(1) as f64;
        (label, RouteStats { requests, mean_ms, answers })
    });
    let names = state.registry.resolutions().clone().into_iter().map(|(name, of)| {
        (name, NameStats { answered: of.answered, failures: of.failures, failing: of.failing })
    });
    Stats {
        uptime_seconds: state.started.elapsed().as_secs(),
        workers: state.registry.workers.len(),
        connections_open: state.open(),
        requests_active: state.active(),
        drain: state.drain().map(|drain| DrainStats {
            elapsed_seconds: drain.elapsed.as_secs_f64(),
            left_seconds: drain.left.as_secs_f64(),
        }),
        routes: routes.collect(),
        upstreams: upstreams::stats(state),
        names: names.collect(),
        limit_store: store::stats(state),
    }
}
