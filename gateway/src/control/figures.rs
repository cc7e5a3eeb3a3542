//! Routes, cache and limits as they are in force, and what each holds now.

use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::serve::Control;
use crate::admin::limits::{Decisions, decisions};
use crate::snapshot;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Routes {
    /// In the order of the configuration.
    pub routes: Vec<Route>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Route {
    /// As metrics and logs have it.
    pub name: String,
    /// `null`: any.
    pub host: Option<String>,
    pub path: String,
    /// `null`: all.
    pub methods: Option<Vec<String>>,
    /// Names of the endpoints that it goes to.
    pub endpoints: Vec<String>,
    /// Its rate limits, as answers name them.
    pub limits: Vec<String>,
    /// Whether responses are stored, or fetches shared.
    pub cached: bool,
    /// Requests under way.
    pub active: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cache {
    /// URLs that something is stored for.
    pub keys: u64,
    pub bytes: u64,
    pub max_bytes: u64,
    /// Stored responses that made room for others.
    pub evictions: u64,
    /// Requests that read fetches which others can join, now.
    pub waiters: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Held now.
    pub keys: u64,
    pub max_keys: u64,
    /// Keys that owed nothing and made room for others.
    pub evicted: u64,
    /// Keys forgotten after their time.
    pub expired: u64,
    /// Decisions over keys that found no room of their own.
    pub overflowed: u64,
    /// How many sources go on in spite of their refusals.
    pub suspects: u64,
    /// By route and rule.
    pub rules: Vec<Decisions>,
}

impl Control {
    pub(super) fn routes(&self) -> Routes {
        let snapshot = self.state.current.load();
        let row = |route: &snapshot::Route| Route {
            name: route.label.clone(),
            host: route.config.host.clone(),
            path: route.config.path.clone(),
            methods: route.config.methods.as_ref().map(|all| all.iter().map(ToString::to_string).collect()),
            endpoints: snapshot.clusters[route.cluster]
                .members
                .iter()
                .map(|member| member.endpoint.name.clone())
                .collect(),
            limits: route.limits.iter().map(|rule| rule.name().to_owned()).collect(),
            cached: route.cache.is_some(),
            active: route.gate.active(),
        };
        Routes { routes: snapshot.routes.iter().map(row).collect() }
    }

    pub(super) fn cache(&self) -> Cache {
        let snapshot = self.state.current.load();
        let (store, flights) = (&snapshot.cache.store, &snapshot.cache.flights);
        Cache {
            keys: store.len() as u64,
            bytes: store.bytes() as u64,
            max_bytes: snapshot.config.cache.max_bytes as u64,
            evictions: store.evictions(),
            waiters: flights.waiters() as u64,
        }
    }

    pub(super) fn limits(&self) -> Limits {
        let snapshot = self.state.current.load();
        let limits = &snapshot.limits;
        let tally = limits.tally();
        let mut rules = decisions(&self.state.registry);
        rules.sort_unstable_by(|a, b| (&a.route, &a.rule).cmp(&(&b.route, &b.rule)));
        Limits {
            keys: tally.keys,
            max_keys: snapshot.config.limit_table().1 as u64,
            evicted: tally.evicted,
            expired: tally.expired,
            overflowed: tally.overflowed,
            suspects: limits.suspects(limits.at(Instant::now())) as u64,
            rules,
        }
    }
}
