//! One upstream server: its addresses, its health, its connections' number, its counters.
//!
//! Shared by all workers and kept over a reload while the configuration still leads to it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::HeaderValue;

use super::health::{Health, Rules};
use super::outlier::Sample;
use super::resolve::Group;
use super::slots::Slots;
use crate::config::{Backend, Config};
use crate::metrics;

pub struct Endpoint {
    pub backend: Backend,
    /// Of the one server; the preferred first.
    pub addresses: Group,
    /// For metrics and logs: the authority, with the address where a name has several.
    pub name: String,
    /// The `Host` a route sends that does not preserve the client's.
    pub authority: HeaderValue,
    pub health: Health,
    pub slots: Arc<Slots>,
    /// One cell for each worker.
    pub cells: Arc<[metrics::Endpoint]>,
    pace: Mutex<Pace>,
}

/// Requests and waiting of the last seconds, the newest weighing most.
#[derive(Debug, Default)]
struct Pace {
    ticked: Option<Instant>,
    /// Requests begun in all, when they were last looked at.
    begun: u64,
    /// Request-seconds waited since.
    waiting: f64,
    /// Both for some time back, fading.
    waited: f64,
    requests: f64,
}

/// Of the former sums, what is left after a second.
const FADES: f64 = 0.5;
/// Fewer in the last seconds make no mean.
const LEAST_REQUESTS: f64 = 20.0;

impl Endpoint {
    /// `joined`: others of its cluster serve already.
    pub fn new(
        backend: Backend,
        addresses: Group,
        name: String,
        config: &Config,
        registry: &metrics::Registry,
        joined: bool,
    ) -> Self {
        let cells = registry.endpoints.member(&name);
        let authority = HeaderValue::try_from(backend.to_string())
            .expect("the configuration admits host names and ports only");
        let successes = cells.iter().map(|cells| cells.successes.get()).sum();
        let health = Health::new(name.clone(), Rules::of(config), Instant::now(), successes, joined);
        let slots = Slots::new(config.upstreams.max_connections);
        Self { backend, addresses, name, authority, health, slots, cells, pace: Mutex::default() }
    }

    /// Whether an operator means it: by its name, by its upstream's, or by an address of it.
    pub fn is_called(&self, text: &str) -> bool {
        let is_address = || text.parse().is_ok_and(|address| self.addresses.contains(&address));
        self.name == text || self.backend.to_string() == text || is_address()
    }

    /// Gives it no further requests, or gives it some again; whether that is news.
    pub fn drain(&self, drained: bool) -> bool {
        let changed = self.health.drain(drained, Instant::now());
        if changed {
            let (upstream, active) = (&self.name, self.active());
            match drained {
                true => tracing::info!(upstream, active, "drained: it gets no further requests"),
                false => tracing::info!(upstream, "drained no more: it gets requests again"),
            }
        }
        changed
    }

    /// Requests that went well.
    pub fn successes(&self) -> u64 {
        self.sum(|cells| cells.successes.get())
    }

    /// Requests under way.
    pub fn active(&self) -> u64 {
        self.sum(|cells| cells.active.get())
    }

    pub fn sum(&self, read: impl Fn(&metrics::Endpoint) -> u64) -> u64 {
        // Cells of different workers are read at different moments: a sum of gauges may be below 0.
        let sum = self.cells.iter().map(read).fold(0, u64::wrapping_add);
        if sum > u64::MAX / 2 { 0 } else { sum }
    }

    /// Lets time pass for its health, and looks at how many wait. One worker calls it at each tick.
    pub fn tick(&self, now: Instant) {
        self.health.tick(now, self.successes());
        let mut pace = self.pace();
        if let Some(before) = pace.ticked.replace(now) {
            let waiting = self.sum(|cells| cells.waiting.get()) as f64;
            pace.waiting += waiting * now.saturating_duration_since(before).as_secs_f64();
        }
    }

    /// Once a second: how it did lately. The mean wait is the number of those who wait over the rate at
    /// which they come (Little's law), so no request has to be timed.
    pub fn sample(&self) -> Sample {
        let begun = self.sum(|cells| cells.connects.get().wrapping_add(cells.reuses.get()));
        let mut pace = self.pace();
        pace.waited = pace.waited * FADES + std::mem::take(&mut pace.waiting);
        let new = begun.wrapping_sub(std::mem::replace(&mut pace.begun, begun));
        pace.requests = pace.requests * FADES + new as f64;
        let wait = (pace.requests >= LEAST_REQUESTS).then(|| pace.waited / pace.requests);
        self.health.sample(self.successes(), wait)
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
