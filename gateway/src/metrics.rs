//! What is counted while requests are served: cells that only one worker writes.
//!
//! A cell is written by a plain load and store, so counting costs no locked instruction; readers
//! sum the workers' cells at scrape. Nothing here knows the exposition format: `admin::metrics` does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How a request ended, for the `outcome` label and the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    Ok,
    BadRequest,
    NoRoute,
    MethodNotAllowed,
    Limited,
    Concurrency,
    ConnectFailed,
    UpstreamFailed,
    Timeout,
    Overloaded,
    /// Refused so that others are served, by what there is too little of.
    ShedLimit,
    ShedQueue,
    ShedDelay,
    ShedMemory,
    ShedDescriptors,
    ClientAbort,
    /// No endpoint is to be asked now.
    Unavailable,
}

impl Outcome {
    pub const ALL: [Self; 17] = [
        Self::Ok,
        Self::BadRequest,
        Self::NoRoute,
        Self::MethodNotAllowed,
        Self::Limited,
        Self::Concurrency,
        Self::ConnectFailed,
        Self::UpstreamFailed,
        Self::Timeout,
        Self::Overloaded,
        Self::ShedLimit,
        Self::ShedQueue,
        Self::ShedDelay,
        Self::ShedMemory,
        Self::ShedDescriptors,
        Self::ClientAbort,
        Self::Unavailable,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::BadRequest => "bad_request",
            Self::NoRoute => "no_route",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Limited => "limited",
            Self::Concurrency => "concurrency",
            Self::ConnectFailed => "connect_failed",
            Self::UpstreamFailed => "upstream_failed",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::ShedLimit => "shed:limit",
            Self::ShedQueue => "shed:queue",
            Self::ShedDelay => "shed:delay",
            Self::ShedMemory => "shed:memory",
            Self::ShedDescriptors => "shed:descriptors",
            Self::ClientAbort => "client_abort",
            Self::Unavailable => "no_upstream",
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

    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
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
    pub cache: Lookups,
}

/// What came of a route's look-ups in the cache, on one worker.
#[derive(Default)]
pub struct Lookups {
    pub hits: Cell,
    pub stale: Cell,
    pub misses: Cell,
    /// Of what was stored, the upstream said that it still holds.
    pub revalidated: Cell,
    /// Requests that were answered by another's fetch.
    pub collapsed: Cell,
    /// Requests that had nothing to do with the cache.
    pub bypassed: Cell,
}

impl Lookups {
    /// With the names they have in metrics.
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("hit", self.hits.get()),
            ("stale", self.stale.get()),
            ("miss", self.misses.get()),
            ("revalidated", self.revalidated.get()),
            ("collapsed", self.collapsed.get()),
            ("bypass", self.bypassed.get()),
        ]
    }
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
    pub idle: Cell,
    /// Connections, those in use included.
    pub open: Cell,
    /// Requests under way, from the choice of the endpoint to the end of the response's body.
    pub active: Cell,
    /// Of these, those whose response has not begun.
    pub waiting: Cell,
    /// Requests that went well.
    pub successes: Cell,
    /// By [`Again`].
    pub retries: [Cell; Again::ALL.len()],
    /// By [`Cause`].
    pub failures: [Cell; Cause::ALL.len()],
}

/// Why a request was sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Again {
    /// A kept connection turned out to be closed: the same endpoint, on a new one.
    Stale,
    /// No connection.
    Connect,
    /// No response, or nonsense.
    Response,
    /// None in the time for one try.
    Timeout,
    /// A status that is as good as none.
    Status,
}

impl Again {
    pub const ALL: [Self; 5] = [Self::Stale, Self::Connect, Self::Response, Self::Timeout, Self::Status];

    pub fn name(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Connect => "connect",
            Self::Response => "response",
            Self::Timeout => "timeout",
            Self::Status => "status",
        }
    }
}

/// What went wrong with a try, as far as the endpoint is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    ConnectRefused,
    ConnectFailed,
    ConnectTimeout,
    /// Closed before a whole head.
    ResponseClosed,
    ResponseReset,
    ResponseMalformed,
    ResponseTimeout,
    /// A status of 500 or more, 501 and 505 aside.
    ResponseStatus,
    BodyCut,
    BodyMalformed,
    BodyTimeout,
}

impl Cause {
    pub const ALL: [Self; 11] = [
        Self::ConnectRefused,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::ResponseClosed,
        Self::ResponseReset,
        Self::ResponseMalformed,
        Self::ResponseTimeout,
        Self::ResponseStatus,
        Self::BodyCut,
        Self::BodyMalformed,
        Self::BodyTimeout,
    ];

    /// The phase it happened in, and what happened.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::ConnectRefused => ("connect", "refused"),
            Self::ConnectFailed => ("connect", "failed"),
            Self::ConnectTimeout => ("connect", "timeout"),
            Self::ResponseClosed => ("response", "closed"),
            Self::ResponseReset => ("response", "reset"),
            Self::ResponseMalformed => ("response", "malformed"),
            Self::ResponseTimeout => ("response", "timeout"),
            Self::ResponseStatus => ("response", "status"),
            Self::BodyCut => ("body", "cut"),
            Self::BodyMalformed => ("body", "malformed"),
            Self::BodyTimeout => ("body", "timeout"),
        }
    }
}

/// One worker's decisions of one rate limit on one route.
#[derive(Default)]
#[repr(align(128))]
pub struct Limit {
    pub allowed: Cell,
    /// Allowed, with less than a tenth left.
    pub near: Cell,
    pub denied: Cell,
    /// Allowed, though the rule would have refused.
    pub shadow: Cell,
    /// Of the denied: those that came in spite of an earlier refusal.
    pub ignored: Cell,
}

/// Why a worker has no store that rate limits are shared through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Loss {
    Gone,
    Slow,
    Loading,
    /// A replica, or a primary that was made one.
    ReadOnly,
    Full,
    Password,
    /// Anything else that it answers.
    Refused,
}

impl Loss {
    pub const ALL: [Self; 7] =
        [Self::Gone, Self::Slow, Self::Loading, Self::ReadOnly, Self::Full, Self::Password, Self::Refused];

    pub fn label(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Slow => "slow",
            Self::Loading => "loading",
            Self::ReadOnly => "read_only",
            Self::Full => "full",
            Self::Password => "password",
            Self::Refused => "refused",
        }
    }
}

/// Upper bounds of the buckets of a step's time; the last bucket is unbounded.
pub const STEP_BOUNDS_US: [u64; 9] = [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000, 1_000_000];

/// One worker's side of the store that rate limits are shared through.
#[derive(Default)]
#[repr(align(128))]
pub struct Store {
    /// One while it is there.
    pub up: Cell,
    /// Why it is not: one more than the number of the loss.
    away: Cell,
    /// By the loss.
    pub losses: [Cell; Loss::ALL.len()],
    step_times: [Cell; STEP_BOUNDS_US.len() + 1],
    step_sum_us: Cell,
    /// Steps that were waited for in vain.
    pub late: Cell,
    /// Requests that may be admitted without asking, as of the last second.
    pub leased: Cell,
    /// Decisions of rules without it, by what they go by.
    pub alone: [Cell; 3],
}

impl Store {
    pub fn find(&self) {
        self.up.set(1);
        self.away.set(0);
    }

    /// It was lost, or is not there for this reason; the same one is counted once.
    pub fn lose(&self, loss: Loss) {
        if self.why_away() != Some(loss) {
            self.losses[loss as usize].add(1);
        }
        self.forget();
        self.away.set(loss as u64 + 1);
    }

    /// Nobody asks for it.
    pub fn forget(&self) {
        self.up.set(0);
        self.away.set(0);
        self.leased.set(0);
    }

    pub fn why_away(&self) -> Option<Loss> {
        let number = self.away.get().checked_sub(1)?;
        Loss::ALL.into_iter().find(|loss| *loss as u64 == number)
    }

    pub fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = STEP_BOUNDS_US.iter().position(|bound| us <= *bound);
        self.step_times[bucket.unwrap_or(STEP_BOUNDS_US.len())].add(1);
        self.step_sum_us.add(us);
    }

    /// How many steps took up to each bound and longer, and all of them together in microseconds.
    pub fn step_times(&self) -> ([u64; STEP_BOUNDS_US.len() + 1], u64) {
        (self.step_times.each_ref().map(Cell::get), self.step_sum_us.get())
    }
}

/// One worker's counts of its own.
#[derive(Default)]
#[repr(align(128))]
pub struct Worker {
    pub accepted: Cell,
    pub accept_errors: Cell,
    /// Connections closed since their PROXY header was missing, malformed or not to be believed.
    pub proxy_headers_refused: Cell,
    pub open: Cell,
    pub parked: Cell,
    /// Tasks of its runtime.
    pub tasks: Cell,
    /// Connections closed at once, since there are too many in all, or of their source.
    pub refused_in_all: Cell,
    pub refused_of_source: Cell,
    pub ended: Ended,
    /// Connections that were asked to go and have not gone yet.
    pub leaving: Cell,
    /// Other workers ask this one to let connections go until there are less than this; 0: they do not.
    pub room_wanted: AtomicU64,
    /// Microseconds by which its clock's last tick came late, and when that was, since the registry was made.
    pub late_us: Cell,
    pub ticked_us: Cell,
    /// Lines of the access log for which there was no room.
    pub log_dropped: Cell,
}

/// Connections that were ended before their clients wanted to, by the bound they met.
#[derive(Default)]
pub struct Ended {
    /// Made room for another.
    pub evicted: Cell,
    /// A head was not there in time.
    pub head: Cell,
    /// Nothing was asked for too long.
    pub idle: Cell,
    /// A body stood still, or moved too slowly.
    pub stalled: Cell,
    pub slow: Cell,
    /// Had as many requests as one may.
    pub requests: Cell,
}

impl Ended {
    /// With the names they have in metrics.
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("evicted", self.evicted.get()),
            ("head", self.head.get()),
            ("idle", self.idle.get()),
            ("stalled", self.stalled.get()),
            ("slow", self.slow.get()),
            ("requests", self.requests.get()),
        ]
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
