//! A new configuration in the place of the one in force: everything that can fail comes before anything changes.
//!
//! The server calls it when a file has changed, at SIGHUP, and for whoever asks at the control socket.

use std::io;
use std::sync::Arc;

use super::{Server, open_log};
use crate::config::{self, Config};
use crate::datapath;
use crate::reload::Outcome;
use crate::snapshot::Snapshot;

/// Why the configuration in force stays.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error("{} cannot change while the gateway runs: put it back, or restart", .0.join(", "))]
    Fixed(Vec<&'static str>),
    #[error("cannot open the access log: {0}; check `access_log.to`")]
    AccessLog(#[from] io::Error),
    #[error(transparent)]
    Kernel(#[from] datapath::Error),
}

impl Server {
    /// Reads the configuration and puts it in force in both halves, or leaves everything as it is and says why.
    pub(super) fn reload(&mut self) -> Outcome {
        let outcome = self.change().map_err(|refused| refused.to_string());
        let reloads = &self.registry.reloads;
        match &outcome {
            Ok(generation) => {
                reloads.succeeded.add(1);
                let routes = self.current.load().routes.len();
                tracing::info!(generation, routes, "configuration reloaded");
            }
            Err(error) => {
                reloads.failed.add(1);
                tracing::error!(%error, "configuration refused; the one in force stays");
            }
        }
        self.state.set_reload_error(outcome.as_ref().err().cloned());
        outcome
    }

    /// The generation of what is in force now. The kernel half gets the looser of old and new before userspace
    /// changes, and the new one after: it is never stricter than the configuration that is in force.
    fn change(&mut self) -> Result<u64, Refused> {
        let before = self.current.load_full();
        let (config, files) = self.source.load()?;
        let fixed = fixed(&before.config, &config);
        if !fixed.is_empty() {
            return Err(Refused::Fixed(fixed));
        }
        let access = open_log(&config, before.access.as_ref())?;
        // A name that leads nowhere is tried on: it is no reason to refuse.
        self.upkeep.resolve_new(&config);
        let kernel = self.kernel.clone();
        let loosened = kernel.loosen(&config.kernel).inspect_err(|_| self.upkeep.follow(&before))?;

        // From here on nothing fails.
        let mut next = Snapshot::build(config, self.upkeep.names(), Some(&before), &self.registry);
        next.access = access;
        next.files = Some(Arc::new(files));
        let generation = next.generation;
        self.put_in_force(Arc::new(next));
        if let Err(error) = loosened.tighten() {
            tracing::error!(%error, "the kernel half lets pass more than the configuration says");
        }
        Ok(generation)
    }
}

/// What differs and cannot.
fn fixed(before: &Config, next: &Config) -> Vec<&'static str> {
    let (old, new) = (&before.kernel, &next.kernel);
    let (old_keys, new_keys) = (before.limit_table(), next.limit_table());
    let keys = [
        ("listen_addr", before.listen != next.listen),
        ("metrics_addr", before.metrics != next.metrics),
        ("user", before.user != next.user),
        ("control", before.control != next.control),
        ("workers", before.workers != next.workers),
        ("cache.shards", before.cache.shards != next.cache.shards),
        ("rate_limit.num_shards", old_keys.0 != new_keys.0),
        ("rate_limit.max_keys", old_keys.1 != new_keys.1),
        ("kernel.interfaces", old.interfaces != new.interfaces),
        ("kernel.mode", old.mode != new.mode),
        ("kernel.persist", old.persist != new.persist),
    ];
    keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}
