//! What is counted while requests are served: cells that only one worker writes.
//!
//! A cell is written by a plain load and store, so counting costs no locked instruction; readers
//! sum the workers' cells at scrape. Nothing here knows the exposition format: `admin::metrics` does.

mod endpoint;
mod limit;
mod route;
mod worker;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub use endpoint::{Again, Cause, Endpoint};
pub use limit::{Limit, Loss, STEP_BOUNDS_US, Store};
pub use route::{LATENCY_BOUNDS_US, Lookups, Outcome, Route, RouteTotal};
pub use worker::{Ended, Worker};

/// A number with one writer: the worker it belongs to.
#[derive(Default)]
pub struct Cell(AtomicU64);

impl Cell {
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Cells of one kind by label, one for each worker under every label.
pub struct Family<T> {
    workers: usize,
    members: Mutex<BTreeMap<String, Arc<[T]>>>,
}

impl<T: Default> Family<T> {
    fn new(workers: usize) -> Self {
        Self { workers, members: Mutex::default() }
    }

    /// The cells under `label`, those from before a reload included.
    pub fn member(&self, label: &str) -> Arc<[T]> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cells) = members.get(label) {
            return cells.clone();
        }
        let cells: Arc<[T]> = (0..self.workers).map(|_| T::default()).collect();
        members.insert(label.to_owned(), cells.clone());
        cells
    }

    /// Forgets what the configuration no longer names.
    pub fn retain(&self, mut keep: impl FnMut(&str) -> bool) {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).retain(|label, _| keep(label));
    }

    pub fn snapshot(&self) -> Vec<(String, Arc<[T]>)> {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.iter().map(|(label, cells)| (label.clone(), cells.clone())).collect()
    }
}

/// Every cell of the process.
pub struct Registry {
    pub epoch: Instant,
    pub routes: Family<Route>,
    pub endpoints: Family<Endpoint>,
    /// By route and rule, with a space between.
    pub limits: Family<Limit>,
    pub store: Arc<[Store]>,
    pub workers: Arc<[Worker]>,
    /// Requests that matched no route or were too malformed to be matched.
    pub unrouted: Arc<[Route]>,
    pub reloads: Reloads,
    /// By the backend whose name it is.
    resolutions: Mutex<BTreeMap<String, Resolution>>,
}

/// What became of the attempts to resolve a name. Told by the control thread.
#[derive(Clone, Default)]
pub struct Resolution {
    pub answered: u64,
    /// By reason.
    pub failures: BTreeMap<&'static str, u64>,
    /// The reason, where the last one failed.
    pub failing: Option<&'static str>,
}

/// Written by the control thread alone.
#[derive(Default)]
pub struct Reloads {
    pub succeeded: Cell,
    pub failed: Cell,
}

impl Registry {
    /// Requests under way, those on routes of before a reload included.
    pub fn under_way(&self) -> u64 {
        self.workers.iter().map(|cells| cells.under_way.get()).sum()
    }

    pub fn resolutions(&self) -> MutexGuard<'_, BTreeMap<String, Resolution>> {
        self.resolutions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self {
            epoch: Instant::now(),
            routes: Family::new(workers),
            endpoints: Family::new(workers),
            limits: Family::new(workers),
            store: (0..workers).map(|_| Store::default()).collect(),
            workers: (0..workers).map(|_| Worker::default()).collect(),
            unrouted: (0..workers).map(|_| Route::default()).collect(),
            reloads: Reloads::default(),
            resolutions: Mutex::default(),
        })
    }
}
