//! How a route's requests ended, how long they took, and what became of its look-ups in the cache.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use super::Cell;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

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
