//! What the control thread does for upstreams: asks endpoints whether they are well, and looks names up
//! again when what was found ends.
//!
//! `server` owns one, and gives it each snapshot that is put in force.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::config::{Backend, Config, HealthCheck, Upstreams};
use crate::metrics::Registry;
use crate::snapshot::Snapshot;
use crate::upstream::dns::Failure;
use crate::upstream::resolve::{self, Lookup, Names};
use crate::upstream::{Endpoint, probe};

/// How long a start or a reload waits for names; those that take longer follow.
const PATIENCE: Duration = Duration::from_secs(2);

pub struct Upkeep {
    names: Names,
    checks: Vec<Check>,
    /// How they are looked up.
    config: Upstreams,
    registry: Arc<Registry>,
    found: mpsc::UnboundedReceiver<Lookup>,
    sender: mpsc::UnboundedSender<Lookup>,
}

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
    pub fn new(config: &Config, registry: Arc<Registry>) -> Self {
        let (sender, found) = mpsc::unbounded_channel();
        let (names, checks, rules) = (Names::default(), Vec::new(), config.upstreams.clone());
        let mut this = Self { names, checks, config: rules, registry, found, sender };
        this.resolve_new(config);
        this
    }

    /// Resolves names that `config` has for the first time. Blocks for as long as a start may.
    pub fn resolve_new(&mut self, config: &Config) {
        self.names.resolve_new(backends(config), PATIENCE, &config.upstreams);
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
        let config = &snapshot.config.upstreams;
        if (&config.resolver, config.resolve_every) != (&self.config.resolver, self.config.resolve_every) {
            self.names.expire(Instant::now());
        }
        self.config = config.clone();
        *self.registry.resolutions() = self.names.resolutions();
    }

    /// Waits until a name leads elsewhere, and has them looked up meanwhile.
    pub async fn moved(&mut self) {
        loop {
            let next = self.names.next_due();
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender is our own as well, so there is always one.
                Some((of, found)) = self.found.recv() => {
                    let moved = self.names.learn(of, found, Instant::now(), &self.config);
                    *self.registry.resolutions() = self.names.resolutions();
                    if moved {
                        return;
                    }
                }
                () = due => self.look_up(),
            }
        }
    }

    fn look_up(&mut self) {
        for due in self.names.due(Instant::now()) {
            let to = self.sender.clone();
            let started = resolve::start(due.clone(), self.config.resolver.clone(), move |found| {
                // The receiver is gone when the process ends.
                let _ = to.send(found);
            });
            if let Err(error) = started {
                let _ = self.sender.send((due, Err(Failure::System(error))));
            }
        }
    }
}

/// Of all routes, with repetitions.
fn backends(config: &Config) -> impl Iterator<Item = &Backend> {
    config.routes.iter().flat_map(|route| &route.cluster.members).map(|member| &member.backend)
}
