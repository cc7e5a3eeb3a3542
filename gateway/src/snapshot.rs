//! The live objects built from a configuration, swapped as one.
//!
//! A request loads the snapshot once and keeps it to its end. What a new configuration leaves
//! unchanged (endpoints, counters) is carried over from the snapshot before.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{HeaderValue, Method};

use crate::config::{self, Config};
use crate::metrics::{self, Registry};
use crate::route::Table;
use crate::upstream::Endpoint;

pub struct Snapshot {
    pub generation: u64,
    pub config: Config,
    pub table: Table,
    /// In the order of the configuration; the table's values are indices into it.
    pub routes: Vec<Route>,
    pub endpoints: Vec<Arc<Endpoint>>,
}

pub struct Route {
    pub config: config::Route,
    /// For metrics and logs: the path, after the host if the route names one.
    pub label: String,
    /// Index into the snapshot's endpoints.
    pub endpoint: usize,
    /// The `Allow` field of a 405.
    pub allow: Option<HeaderValue>,
    /// One cell for each worker.
    pub cells: Arc<[metrics::Route]>,
}

/// The snapshot in force.
pub type Current = ArcSwap<Snapshot>;

impl Snapshot {
    pub fn build(config: Config, before: Option<&Snapshot>, registry: &Registry) -> Self {
        let mut table = Table::default();
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        let mut routes = Vec::with_capacity(config.routes.len());
        let mut places = rustc_hash::FxHashMap::default();
        for (index, route) in config.routes.iter().enumerate() {
            table.insert(route.host.as_deref(), &route.path, index);
            let endpoint = *places.entry(route.backend.clone()).or_insert_with(|| {
                endpoints.push(endpoint(&route.backend, before, registry));
                endpoints.len() - 1
            });
            let label = format!("{}{}", route.host.as_deref().unwrap_or_default(), route.path);
            let cells = registry.routes.member(&label);
            let allow = route.methods.as_deref().map(allow);
            routes.push(Route { config: route.clone(), label, endpoint, allow, cells });
        }
        let generation = before.map_or(1, |before| before.generation + 1);
        Self { generation, config, table, routes, endpoints }
    }

    /// Drops the counters of routes and endpoints that are configured no more.
    pub fn forget_others(&self, registry: &Registry) {
        let routes: rustc_hash::FxHashSet<&str> =
            self.routes.iter().map(|route| route.label.as_str()).collect();
        registry.routes.retain(|label| routes.contains(label));
        registry.endpoints.retain(|label| self.endpoints.iter().any(|endpoint| endpoint.authority == label));
    }
}

impl Route {
    pub fn admits(&self, method: &Method) -> bool {
        self.config.methods.as_ref().is_none_or(|methods| methods.contains(method))
    }
}

fn endpoint(backend: &config::Backend, before: Option<&Snapshot>, registry: &Registry) -> Arc<Endpoint> {
    let kept =
        before.and_then(|before| before.endpoints.iter().find(|endpoint| endpoint.backend == *backend));
    kept.cloned().unwrap_or_else(|| Arc::new(Endpoint::new(backend.clone(), registry)))
}

fn allow(methods: &[Method]) -> HeaderValue {
    let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    HeaderValue::try_from(names.join(", ")).expect("methods are tokens")
}
