//! What is counted while requests are served: cells that only one worker writes.
//!
//! A cell is written by a plain load and store, so counting costs no locked instruction; readers
//! sum the workers' cells at scrape. Nothing here knows the exposition format: `admin::metrics` does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// How a request ended, for the `outcome` label and the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    Ok,
    BadRequest,
    NoRoute,
    MethodNotAllowed,
    ConnectFailed,
    UpstreamFailed,
    Timeout,
    ClientAbort,
}

impl Outcome {
    pub const ALL: [Self; 8] = [
        Self::Ok,
        Self::BadRequest,
        Self::NoRoute,
        Self::MethodNotAllowed,
        Self::ConnectFailed,
        Self::UpstreamFailed,
        Self::Timeout,
        Self::ClientAbort,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::BadRequest => "bad_request",
            Self::NoRoute => "no_route",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::ConnectFailed => "connect_failed",
            Self::UpstreamFailed => "upstream_failed",
            Self::Timeout => "timeout",
            Self::ClientAbort => "client_abort",
        }
    }
}

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

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the latency buckets; the last bucket is unbounded.
pub const LATENCY_BOUNDS_US: [u64; 15] = [
    250, 500, 1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// One worker's counts for one route.
#[derive(Default)]
#[repr(align(128))]
pub struct Route {
    answers: OnceLock<Box<[Answer; ANSWERS]>>,
    latency: [Cell; LATENCY_BOUNDS_US.len() + 1],
    latency_sum_us: Cell,
}

/// Distinct (status, outcome) pairs a route can tell apart; further ones are counted together.
const ANSWERS: usize = 32;

#[derive(Default)]
struct Answer {
    /// 0: free; else status × 256 + outcome. 1: what found no place.
    key: AtomicU32,
    count: Cell,
}

const OVERFLOW: u32 = 1;

impl Route {
    pub fn record(&self, status: u16, outcome: Outcome, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.iter().position(|&bound| us <= bound);
        self.latency[bucket.unwrap_or(LATENCY_BOUNDS_US.len())].add(1);
        self.latency_sum_us.add(us);
        self.answer(u32::from(status) << 8 | outcome as u32).count.add(1);
    }

    fn answer(&self, key: u32) -> &Answer {
        let answers = self.answers.get_or_init(Default::default);
        let start = (key ^ key >> 8) as usize;
        for step in 0..ANSWERS - 1 {
            let answer = &answers[(start + step) % (ANSWERS - 1)];
            match answer.key.load(Relaxed) {
                taken if taken == key => return answer,
                // Only this worker writes here, so a free place stays free until the store.
                0 => {
                    answer.key.store(key, Relaxed);
                    return answer;
                }
                _ => {}
            }
        }
        let last = &answers[ANSWERS - 1];
        last.key.store(OVERFLOW, Relaxed);
        last
    }

    /// Adds this worker's counts to `total`.
    pub fn add_to(&self, total: &mut RouteTotal) {
        for (sum, cell) in total.latency.iter_mut().zip(&self.latency) {
            *sum += cell.get();
        }
        total.latency_sum_us += self.latency_sum_us.get();
        for answer in self.answers.get().into_iter().flat_map(|answers| answers.iter()) {
            let key = answer.key.load(Relaxed);
            let name = match key {
                0 => continue,
                OVERFLOW => "other",
                _ => Outcome::ALL[(key & 0xff) as usize].label(),
            };
            *total.answers.entry(((key >> 8) as u16, name)).or_default() += answer.count.get();
        }
    }
}

/// The sum of a route's cells.
#[derive(Default)]
pub struct RouteTotal {
    /// (status, outcome) → requests; status 0 collects what a full table could not tell apart.
    pub answers: BTreeMap<(u16, &'static str), u64>,
    pub latency: [u64; LATENCY_BOUNDS_US.len() + 1],
    pub latency_sum_us: u64,
}

/// One worker's counts for one upstream endpoint.
#[derive(Default)]
#[repr(align(128))]
pub struct Endpoint {
    pub connects: Cell,
    pub connect_failures: Cell,
    pub reuses: Cell,
    /// Requests sent again because a kept connection turned out to be closed.
    pub retries: Cell,
    pub idle: Cell,
}

/// One worker's counts of its own.
#[derive(Default)]
#[repr(align(128))]
pub struct Worker {
    pub accepted: Cell,
    pub accept_errors: Cell,
    pub open: Cell,
    pub parked: Cell,
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
    pub routes: Family<Route>,
    pub endpoints: Family<Endpoint>,
    pub workers: Arc<[Worker]>,
    /// Requests that matched no route or were too malformed to be matched.
    pub unrouted: Arc<[Route]>,
    pub reloads: Reloads,
}

/// Written by the control thread alone.
#[derive(Default)]
pub struct Reloads {
    pub succeeded: Cell,
    pub failed: Cell,
}

impl Registry {
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self {
            routes: Family::new(workers),
            endpoints: Family::new(workers),
            workers: (0..workers).map(|_| Worker::default()).collect(),
            unrouted: (0..workers).map(|_| Route::default()).collect(),
            reloads: Reloads::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_latency_are_summed_over_workers() {
        let registry = Registry::new(2);
        let cells = registry.routes.member("/");
        cells[0].record(200, Outcome::Ok, Duration::from_micros(250));
        cells[0].record(200, Outcome::Ok, Duration::from_micros(251));
        cells[1].record(502, Outcome::ConnectFailed, Duration::from_secs(60));
        let mut total = RouteTotal::default();
        registry.routes.member("/").iter().for_each(|cells| cells.add_to(&mut total));
        assert_eq!(total.answers[&(200, "ok")], 2);
        assert_eq!(total.answers[&(502, "connect_failed")], 1);
        assert_eq!((total.latency[0], total.latency[1], total.latency[15]), (1, 1, 1));
        assert_eq!(total.latency_sum_us, 60_000_501);
    }

    #[test]
    fn more_answers_than_places_are_counted_together() {
        let cells = Route::default();
        for status in 200..300 {
            cells.record(status, Outcome::Ok, Duration::ZERO);
        }
        let mut total = RouteTotal::default();
        cells.add_to(&mut total);
        assert_eq!(total.answers.values().sum::<u64>(), 100);
        assert_eq!(total.answers[&(0, "other")], 100 - (ANSWERS as u64 - 1));
    }
}
