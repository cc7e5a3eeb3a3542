//! The live objects built from a configuration, swapped as one.
//!
//! A request loads the snapshot once and keeps it to its end. What a new configuration leaves
//! unchanged (endpoints, counters, what is cached) is carried over from the snapshot before.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use http::{HeaderValue, Method};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::access::Access;
use crate::cache::{self, Cache};
use crate::config::{self, Config, Files, HealthCheck};
use crate::datapath::Sources;
use crate::limit::{self, Limits};
use crate::metrics::{self, Registry};
use crate::overload::distress::Distress;
use crate::overload::gate::Gate;
use crate::route::Table;
use crate::upstream::Endpoint;
use crate::upstream::cluster::{Cluster, Member};
use crate::upstream::health;
use crate::upstream::resolve::{Group, Names};

pub struct Snapshot {
    /// Of the configuration.
    pub generation: u64,
    /// Of the snapshot: the same configuration has another when a name leads elsewhere.
    pub serial: u64,
    pub config: Config,
    pub table: Table,
    /// In the order of the configuration; the table's values are indices into it.
    pub routes: Vec<Route>,
    pub clusters: Vec<Cluster>,
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Which endpoints are to be asked whether they are well, and how.
    pub checks: Vec<(Arc<Endpoint>, HealthCheck)>,
    /// What is counted outlives every snapshot.
    pub limits: Arc<Limits>,
    pub cache: Arc<Cache>,
    pub distress: Arc<Distress>,
    /// What the kernel half is told of sources.
    pub sources: Arc<Sources>,
    /// Opened by whoever puts it in force; `None`: nothing is written about requests.
    pub access: Option<Arc<Access>>,
    /// What the configuration was read from, said by whoever puts it in force.
    pub files: Option<Arc<Files>>,
}

pub struct Route {
    pub config: config::Route,
    /// For metrics and logs: the path, after the host if the route names one.
    pub label: String,
    /// Index into the snapshot's clusters.
    pub cluster: usize,
    /// The `Allow` field of a 405.
    pub allow: Option<HeaderValue>,
    pub limits: limit::Rules,
    /// `None`: it neither stores nor coalesces.
    pub cache: Option<cache::Route>,
    /// Who is under way, and who waits for the upstream; it outlives reloads.
    pub gate: Arc<Gate>,
    /// One cell for each worker.
    pub cells: Arc<[metrics::Route]>,
}

/// The snapshot in force.
pub type Current = ArcSwap<Snapshot>;

impl Snapshot {
    /// `names`: the addresses of the configuration's upstreams.
    pub fn build(config: Config, names: &Names, before: Option<&Snapshot>, registry: &Registry) -> Self {
        let mut table = Table::default();
        let limits = before.map_or_else(|| Arc::new(self::limits(&config)), |before| before.limits.clone());
        let mut routes = Vec::with_capacity(config.routes.len());
        let mut upstreams = Upstreams::new(&config, names, before, registry);
        let gates: FxHashMap<&str, &Arc<Gate>> = before
            .iter()
            .flat_map(|before| before.routes.iter().map(|route| (route.label.as_str(), &route.gate)))
            .collect();
        for (index, route) in config.routes.iter().enumerate() {
            table.insert(route.host.as_deref(), &route.path, index);
            let label = format!("{}{}", route.host.as_deref().unwrap_or_default(), route.path);
            let cluster = upstreams.cluster(route, &label);
            let cells = registry.routes.member(&label);
            let allow = route.methods.as_deref().map(allow);
            let limits = limit::Rules::new(&limits, &config, route, &label, registry);
            let cache = cache::Route::new(route, &config);
            let gate = gate(gates.get(label.as_str()).copied(), &config, route, &registry.workers);
            routes.push(Route { config: route.clone(), label, cluster, allow, limits, cache, gate, cells });
        }
        let Upstreams { clusters, endpoints, checks, .. } = upstreams;
        configure(&config, &endpoints, &checks);
        let generation = before.map_or(1, |before| before.generation + 1);
        let serial = before.map_or(1, |before| before.serial + 1);
        let cache = match before {
            Some(before) => {
                before.cache.store.resize(config.cache.max_bytes);
                before.cache.clone()
            }
            None => Cache::new(&config.cache, registry.workers.len()),
        };
        let distress = before.map_or_else(Arc::default, |before| before.distress.clone());
        let access = before.and_then(|before| before.access.clone());
        let files = before.and_then(|before| before.files.clone());
        let sources = before.map_or_else(Arc::default, |before| before.sources.clone());
        Self {
            generation,
            serial,
            config,
            table,
            routes,
            clusters,
            endpoints,
            checks,
            limits,
            cache,
            distress,
            sources,
            access,
            files,
        }
    }

    /// Drains the endpoints that an operator calls so, or gives them requests again; none: there is no such.
    pub fn drain(&self, called: &str, drained: bool) -> Vec<&Endpoint> {
        let called = self.endpoints.iter().filter(|endpoint| endpoint.is_called(called));
        called
            .map(|endpoint| {
                endpoint.drain(drained);
                &**endpoint
            })
            .collect()
    }

    /// Drops the counters of routes, rules and endpoints that are configured no more.
    pub fn forget_others(&self, registry: &Registry) {
        self.limits.forget_others(self.routes.iter().map(|route| &route.limits));
        let routes: FxHashMap<&str, &Route> =
            self.routes.iter().map(|route| (route.label.as_str(), route)).collect();
        registry.routes.retain(|label| routes.contains_key(label));
        registry.limits.retain(|label| {
            let (route, rule) = label.split_once(' ').unwrap_or_default();
            routes.get(route).is_some_and(|route| route.limits.iter().any(|of| of.name() == rule))
        });
        let endpoints: FxHashSet<&[u8]> =
            self.endpoints.iter().map(|endpoint| endpoint.name.as_bytes()).collect();
        registry.endpoints.retain(|label| endpoints.contains(label.as_bytes()));
    }
}

/// Clusters and endpoints as they come up, one route after the other.
struct Upstreams<'a> {
    config: &'a Config,
    names: &'a Names,
    before: Option<&'a Snapshot>,
    registry: &'a Registry,
    clusters: Vec<Cluster>,
    endpoints: Vec<Arc<Endpoint>>,
    checks: Vec<(Arc<Endpoint>, HealthCheck)>,
    /// Indices of the endpoints made so far.
    places: FxHashMap<(String, Group), usize>,
}

impl<'a> Upstreams<'a> {
    fn new(
        config: &'a Config,
        names: &'a Names,
        before: Option<&'a Snapshot>,
        registry: &'a Registry,
    ) -> Self {
        let (clusters, endpoints, checks) = (Vec::new(), Vec::new(), Vec::new());
        Self { config, names, before, registry, clusters, endpoints, checks, places: FxHashMap::default() }
    }

    /// The index of the route's cluster, which routes with the same endpoints share.
    fn cluster(&mut self, route: &config::Route, label: &str) -> usize {
        let known = self.clusters.iter().position(|cluster| cluster.config == route.cluster);
        let at = known.unwrap_or_else(|| {
            let cluster = self.make(&route.cluster, label);
            self.clusters.push(cluster);
            self.clusters.len() - 1
        });
        for Member { endpoint, .. } in &self.clusters[at].members {
            if let Some(check) = &route.health_check
                && !self.checks.iter().any(|(other, of)| Arc::ptr_eq(other, endpoint) && of == check)
            {
                self.checks.push((endpoint.clone(), check.clone()));
            }
        }
        at
    }

    fn make(&mut self, config: &config::Cluster, label: &str) -> Cluster {
        let (mut members, mut unresolved) = (Vec::new(), Vec::new());
        for member in &config.members {
            match self.names.groups(&member.backend) {
                Ok(groups) => {
                    let several = groups.len() > 1;
                    for group in groups {
                        let index = self.endpoint(&member.backend, group, several);
                        let endpoint = self.endpoints[index].clone();
                        members.push(Member { endpoint, index, weight: member.weight });
                    }
                }
                Err(why) => unresolved.push(format!("cannot resolve {}: {why}", member.backend)),
            }
        }
        let before = self.before.into_iter().flat_map(|before| &before.clusters);
        let kept = before.into_iter().find(|cluster| cluster.config == *config);
        let budget = kept.map_or_else(Arc::default, |cluster| cluster.budget.clone());
        Cluster::new(config.clone(), label.to_owned(), members, unresolved, budget)
    }

    /// The index of the endpoint at `addresses`; the one of the snapshot before, if it had it.
    fn endpoint(&mut self, backend: &config::Backend, addresses: Group, several: bool) -> usize {
        let name = match several {
            true => format!("{backend}@{}", addresses[0].ip()),
            false => backend.to_string(),
        };
        let (config, before, registry, endpoints) =
            (self.config, self.before, self.registry, &mut self.endpoints);
        *self.places.entry((name, addresses)).or_insert_with_key(|(name, addresses)| {
            let same = |other: &&Arc<Endpoint>| other.name == *name && other.addresses == *addresses;
            let kept = before.and_then(|before| before.endpoints.iter().find(same)).cloned();
            endpoints.push(kept.unwrap_or_else(|| {
                let drained = |other: &Arc<Endpoint>| other.name == *name && other.health.word().is_drained();
                let drained = before.is_some_and(|before| before.endpoints.iter().any(drained));
                let (backend, addresses, name) = (backend.clone(), addresses.clone(), name.clone());
                let new = Endpoint::new(backend, addresses, name, config, registry, before.is_some());
                // The operator has named a server, which has another address now.
                new.health.drain(drained, Instant::now());
                Arc::new(new)
            }));
            endpoints.len() - 1
        })
    }
}

/// Puts the configuration in force for endpoints, those that were there before included.
fn configure(config: &Config, endpoints: &[Arc<Endpoint>], checks: &[(Arc<Endpoint>, HealthCheck)]) {
    let (rules, now) = (health::Rules::of(config), Instant::now());
    for endpoint in endpoints {
        let own = checks.iter().filter(|(other, _)| Arc::ptr_eq(other, endpoint));
        let own: Vec<&HealthCheck> = own.map(|(_, check)| check).collect();
        endpoint.health.configure(rules.clone(), &own, now, endpoint.successes());
        endpoint.slots.set_most(config.upstreams.max_connections);
    }
}

impl Route {
    pub fn admits(&self, method: &Method) -> bool {
        self.config.methods.as_ref().is_none_or(|methods| methods.contains(method))
    }
}

/// The gate of `route`: the one `before` a reload, if there is one.
fn gate(
    before: Option<&Arc<Gate>>,
    config: &Config,
    route: &config::Route,
    workers: &Arc<[metrics::Worker]>,
) -> Arc<Gate> {
    let (floor, priority) = (config.overload.min_concurrency, route.priority);
    match before {
        Some(gate) => {
            gate.configure(floor, priority);
            gate.clone()
        }
        None => Arc::new(Gate::new(workers, floor, priority)),
    }
}

fn limits(config: &Config) -> Limits {
    let (shards, keys) = config.limit_table();
    Limits::new(shards, keys)
}

fn allow(methods: &[Method]) -> HeaderValue {
    let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    HeaderValue::try_from(names.join(", ")).expect("methods are tokens")
}
