//! The endpoints of all upstreams: how each is, which one gets no further requests.

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::serve::Control;
use crate::snapshot::Snapshot;
use crate::upstream;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoints {
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    /// As metrics and logs have it.
    pub name: String,
    pub addresses: Vec<String>,
    /// It gets no further requests until it is put back.
    pub drained: bool,
    /// Its health checks find it well, or it has none.
    pub healthy: bool,
    /// It is left out for a while for doing much worse than others.
    pub ejected: bool,
    /// `closed`, `open`, `half_open` or `recovering`.
    pub breaker: String,
    /// Part of its usual requests that it gets, from 0 to 1.
    pub share: f64,
    /// Requests under way.
    pub active: u64,
    /// The idle included.
    pub connections: u64,
}

/// It is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Drained {
    /// All that are called so, as they are now.
    pub endpoints: Vec<Endpoint>,
    /// What follows from it.
    pub note: Option<String>,
}

impl From<&upstream::Endpoint> for Endpoint {
    fn from(endpoint: &upstream::Endpoint) -> Self {
        let report = endpoint.health.report();
        Self {
            name: endpoint.name.clone(),
            addresses: endpoint.addresses.iter().map(ToString::to_string).collect(),
            drained: report.drained,
            healthy: report.checked_well,
            ejected: report.ejected,
            breaker: report.state.name().to_owned(),
            share: report.share,
            active: endpoint.active(),
            connections: endpoint.sum(|cells| cells.open.get()),
        }
    }
}

impl Control {
    pub(super) fn endpoints(&self) -> Endpoints {
        let snapshot = self.state.current.load();
        Endpoints {
            endpoints: snapshot.endpoints.iter().map(|endpoint| Endpoint::from(&**endpoint)).collect(),
        }
    }

    pub(super) fn drain(&self, called: &str, drained: bool) -> Result<Drained, Problem> {
        self.is_free()?;
        let snapshot = self.state.current.load();
        let changed = snapshot.drain(called, drained);
        if changed.is_empty() {
            let detail =
                format!("no endpoint is called {called:?}: `gateway endpoints` lists those there are");
            return Err(Problem::new(StatusCode::NOT_FOUND, detail));
        }
        let endpoints = changed.into_iter().map(Endpoint::from).collect();
        Ok(Drained { endpoints, note: drained.then(|| note(&snapshot)).flatten() })
    }
}

/// Who is left without any endpoint.
fn note(snapshot: &Snapshot) -> Option<String> {
    let is_out = |at: usize| {
        let members = &snapshot.clusters[at].members;
        !members.is_empty() && members.iter().all(|member| member.endpoint.health.word().is_drained())
    };
    let routes = snapshot.routes.iter().filter(|route| is_out(route.cluster));
    let routes: Vec<&str> = routes.map(|route| route.label.as_str()).collect();
    let (first, more) = (routes.first()?, routes.len() - 1);
    Some(match more {
        0 => format!("{first} has no endpoint left: it answers 503 until one is put back"),
        _ => format!(
            "{first} and {more} further routes have no endpoint left: they answer 503 until one is put back"
        ),
    })
}
