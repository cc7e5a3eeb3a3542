//! Responses kept for later requests, and one fetch for many at once.
//!
//! The proxy asks it before a request goes upstream and feeds it what comes back. Nothing here opens a
//! connection or knows a client: decisions are pure, and what is shared between workers is sharded and
//! locked for a look-up only.

pub mod coalesce;
pub mod conditional;
mod control;
pub mod entry;
pub mod fanout;
pub mod flight;
mod invalidated;
pub mod key;
pub mod memory;
pub mod policy;
mod purge;
pub mod range;
mod route;
pub mod select;
pub mod status;
pub mod store;
mod targeted;

use std::sync::Arc;
use std::time::Instant;

use coalesce::Flights;
use key::Keys;
pub use purge::Purge;
pub use route::Route;
use store::Store;

use crate::config;

/// What the workers of a process share.
pub struct Cache {
    pub keys: Keys,
    pub store: Store,
    pub flights: Arc<Flights>,
}

impl Cache {
    pub fn new(config: &config::Cache, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            keys: Keys::default(),
            store: Store::new(config.max_bytes, config.shards, Instant::now()),
            flights: Flights::new(workers),
        })
    }
}
