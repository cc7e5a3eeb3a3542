//! What the control thread does for upstreams: asks endpoints whether they are well, and resolves names
//! again and again.
//!
//! `server` owns one, and gives it each snapshot that is put in force.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::config::{Backend, Config, HealthCheck};
use crate::snapshot::Snapshot;
use crate::upstream::resolve::{self, Names};
use crate::upstream::{Endpoint, probe};

/// How long a start or a reload waits for names; those that take longer follow.
const PATIENCE: Duration = Duration::from_secs(2);
/// Before a name that does not resolve is tried again, if `resolve_every` is longer.
const SOON: Duration = Duration::from_secs(1);

pub struct Upkeep {
    names: Names,
    checks: Vec<Check>,
    /// What names were found to be, by whoever asked last.
    found: mpsc::UnboundedReceiver<Vec<Found>>,
    resolver: Option<AbortHandle>,
    sender: mpsc::UnboundedSender<Vec<Found>>,
}

type Found = (Backend, std::io::Result<Vec<std::net::SocketAddr>>);

/// A task that asks one endpoint; ended with this.
struct Check {
    endpoint: Arc<Endpoint>,
    check: HealthCheck,
    task: AbortHandle,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upkeep {
    /// With the names of `config` resolved, those that can be.
    pub fn new(config: &Config) -> Self {
        let (sender, found) = mpsc::unbounded_channel();
        let mut this = Self { names: Names::default(), checks: Vec::new(), found, resolver: None, sender };
        this.resolve_new(config);
        this
    }

    /// Resolves names that `config` has for the first time. Blocks for as long as a start may.
    pub fn resolve_new(&mut self, config: &Config) {
        self.names.resolve_new(backends(config), PATIENCE);
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Follows `snapshot` from now on. Called on the control thread's runtime.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        let wanted = |check: &Check| {
            snapshot
                .checks
                .iter()
                .any(|(endpoint, of)| Arc::ptr_eq(endpoint, &check.endpoint) && *of == check.check)
        };
        self.checks.retain(wanted);
        for (endpoint, check) in &snapshot.checks {
            if self.checks.iter().any(|known| Arc::ptr_eq(endpoint, &known.endpoint) && known.check == *check)
            {
                continue;
            }
            let (endpoint, check) = (endpoint.clone(), check.clone());
            let task = tokio::spawn(probe::follow(endpoint.clone(), check.clone())).abort_handle();
            self.checks.push(Check { endpoint, check, task });
        }
        self.names.retain(|backend| backends(&snapshot.config).any(|used| used == backend));
        if let Some(resolver) = self.resolver.take() {
            resolver.abort();
        }
        let names: Vec<Backend> = backends(&snapshot.config)
            .filter(|backend| resolve::literal(backend).is_none())
            .cloned()
            .collect();
        if !names.is_empty() {
            let unresolved = snapshot.clusters.iter().any(|cluster| !cluster.unresolved.is_empty());
            let every = snapshot.config.upstreams.resolve_every;
            let every = if unresolved { every.min(SOON) } else { every };
            self.resolver = Some(tokio::spawn(look_up(names, every, self.sender.clone())).abort_handle());
        }
    }

    /// Waits until a name leads elsewhere.
    pub async fn moved(&mut self) {
        loop {
            // The sender is our own as well.
            let Some(found) = self.found.recv().await else { std::future::pending().await };
            let before = self.names.clone();
            for (backend, addresses) in found {
                self.names.learn(backend, addresses);
            }
            if self.names != before {
                return;
            }
        }
    }
}

/// Of all routes, with repetitions.
fn backends(config: &Config) -> impl Iterator<Item = &Backend> {
    config.routes.iter().flat_map(|route| &route.cluster.members).map(|member| &member.backend)
}

/// Tells at each interval what `names` are now.
async fn look_up(names: Vec<Backend>, every: Duration, to: mpsc::UnboundedSender<Vec<Found>>) {
    loop {
        tokio::time::sleep(every).await;
        let mut lookups = JoinSet::new();
        for name in names.iter().cloned() {
            lookups.spawn_blocking(move || {
                let addresses = resolve::lookup(&name);
                (name, addresses)
            });
        }
        if to.send(lookups.join_all().await).is_err() {
            return;
        }
    }
}
