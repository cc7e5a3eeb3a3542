//! The guard: ten times a second it reads how the gateway itself is, and bounds what may be under way.
//!
//! A task on the main thread, so that it runs when the workers are late. What follows from the readings is
//! `overload::pressure`'s; this reads, and writes what has been decided where the workers look.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::datapath::sys::release_free_memory;
use crate::downstream::Affordable;
use crate::metrics::{Registry, Worker};
use crate::overload::distress::Readings;
use crate::overload::limit::UNLIMITED;
use crate::overload::meter::Meter;
use crate::overload::pressure::{Pressure, ceilings};
use crate::overload::room::{Room, is_short};
use crate::snapshot::{Current, Route, Snapshot};
use crate::timer::TICK;

const ROUND: Duration = Duration::from_millis(100);
/// A delay counts when it has lasted this long: others of the host's programs have their turns too.
const STANDING: usize = 10;

/// Watches for as long as it is polled.
pub async fn watch(meter: Meter, current: Arc<Current>, registry: Arc<Registry>) {
    let affordable = Affordable::with(registry.workers.len());
    let (mut pressure, mut room) = (Pressure::default(), Room::default());
    let mut delays: Vec<Delay> = registry.workers.iter().map(|_| Delay::default()).collect();
    let mut interval = tokio::time::interval(ROUND);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut bounded, mut unlimited) = (false, None::<Settled>);
    loop {
        interval.tick().await;
        let (snapshot, now) = (current.load(), Instant::now());
        let overload = &snapshot.config.overload;
        let since = now.saturating_duration_since(registry.epoch);
        let each = delays.iter_mut().zip(registry.workers.iter());
        let all = u32::try_from(registry.under_way()).unwrap_or(u32::MAX);
        let most = snapshot.config.connections.max.map_or(affordable.clients, u64::from);
        let readings = Readings {
            delay: each.map(|(delay, worker)| delay.see(worker, since)).max().unwrap_or_default(),
            memory: meter.memory(overload.max_memory_bytes),
            descriptors: meter.descriptors().max(f64::from(all) / most as f64),
        };
        let verdict = pressure.round(&readings, all, overload, now);
        snapshot.distress.write(verdict.state, &readings, now);
        let (total, bounds) = (verdict.total, verdict.total != UNLIMITED);
        let bound = |of: u64| of_one_route(&snapshot, of);
        let (most, upstream) = (bound(most), bound(affordable.upstream));
        let settled = Settled { of: Arc::downgrade(&snapshot), most, upstream };
        if total != UNLIMITED || !unlimited.is_some_and(|before| before.is(&settled)) {
            let routes = snapshot.routes.iter();
            let under_way: Vec<_> = routes.map(|route| (route.config.priority, active(route))).collect();
            for (route, ceiling) in snapshot.routes.iter().zip(ceilings(total, &under_way)) {
                route.gate.bound(ceiling, most, upstream);
            }
        }
        unlimited = (total == UNLIMITED).then_some(settled);
        make_room(&mut room, &snapshot, readings.memory, bounds, now);
        if bounds != bounded {
            let (cause, permille) = (verdict.state.cause, verdict.state.permille);
            if bounds {
                tracing::warn!(?cause, permille, under_way = all, "overloaded; refusing some requests");
            } else {
                tracing::info!("no longer overloaded");
            }
            bounded = bounds;
        }
    }
}

/// Has the cache hold less while memory is short. A reload sets its capacity anew: it is set again here.
fn make_room(room: &mut Room, snapshot: &Snapshot, memory: f64, shedding: bool, now: Instant) {
    let (store, most) = (&snapshot.cache.store, snapshot.config.cache.max_bytes);
    let changed = room.round(memory, shedding, store.bytes(), most, now);
    store.resize(room.of(most));
    if changed.is_some() && is_short(memory, shedding) {
        store.evict_excess();
        release_free_memory();
    }
}

/// What one route may have of so many connections: not all of them, or one whose upstream hangs would leave none to
/// the others.
fn of_one_route(snapshot: &Snapshot, connections: u64) -> u32 {
    if !snapshot.config.overload.enabled || snapshot.routes.len() < 2 {
        return UNLIMITED;
    }
    u32::try_from((connections * 4 / 5).max(1)).unwrap_or(UNLIMITED)
}

/// Requests of a route that are under way.
fn active(route: &Route) -> u32 {
    u32::try_from(route.gate.active()).unwrap_or(u32::MAX)
}

/// What every route of a snapshot has been told while there was no ceiling: while it stays so, ten thousand routes are
/// not looked at ten times a second.
struct Settled {
    of: Weak<Snapshot>,
    most: u32,
    upstream: u32,
}

impl Settled {
    fn is(&self, other: &Self) -> bool {
        Weak::ptr_eq(&self.of, &other.of) && (self.most, self.upstream) == (other.most, other.upstream)
    }
}

/// One worker's delays of the last second.
#[derive(Default)]
struct Delay {
    last: VecDeque<Duration>,
}

impl Delay {
    /// The least of the last second, when there is one. `now`: since the registry was made.
    fn see(&mut self, worker: &Worker, now: Duration) -> Duration {
        // A worker that has not come round at all is late by that.
        let overdue = now.saturating_sub(Duration::from_micros(worker.ticked_us.get()) + TICK);
        let late = overdue.max(Duration::from_micros(worker.late_us.get()));
        self.last.push_back(late);
        if self.last.len() > STANDING {
            self.last.pop_front();
        }
        match self.last.len() {
            STANDING => self.last.iter().min().copied().unwrap_or_default(),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_counts_when_it_stands() {
        let (worker, mut delay) = (Worker::default(), Delay::default());
        let mut see = |late_ms: u64, round: u64| {
            let now = Duration::from_millis(100 * round);
            worker.late_us.set(late_ms * 1000);
            worker.ticked_us.set(now.as_micros() as u64);
            delay.see(&worker, now).as_millis()
        };
        for round in 0..9 {
            assert_eq!(see(200, round), 0);
        }
        assert_eq!(see(300, 9), 200);
        assert_eq!(see(70, 10), 70);
        assert_eq!(see(0, 11), 0, "one look in time, and it no longer stands");
        for round in 12..21 {
            assert_eq!(see(100, round), 0);
        }
        assert_eq!(see(100, 21), 100);
    }

    #[test]
    fn a_worker_that_stands_still_is_late() {
        let (worker, mut delay) = (Worker::default(), Delay::default());
        worker.ticked_us.set(1_000_000);
        let late: Vec<_> =
            (0..20).map(|round| delay.see(&worker, Duration::from_millis(1_000 + 100 * round))).collect();
        // Of the last ten rounds, the first is the least.
        assert_eq!(late[19], Duration::from_millis(1_000) - TICK);
    }
}
