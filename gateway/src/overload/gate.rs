//! A route's gate: who waits for its upstream, over all workers, and whether one more may.
//!
//! A line on each worker asks it. What every request writes are its worker's own cells. A worker that has no more
//! than a small share of the limit does not look at the others'; one that has more adds them up. So a worker on
//! which most clients happen to be gets the whole limit, and on the healthy path no cache line is contended. By the
//! shares of the other workers, an eighth of the limit together, the sum may exceed it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gateway_common::standing::Class;

use super::limit::{LEAST_ABANDONED, LEAST_SAMPLES, LONG_POLL, LONGEST_WINDOW, Limit, UNLIMITED, Window};
use super::pressure::favoured;
use crate::config::Priority;
use crate::metrics::{Cell, Worker};

/// How soon a window with too few samples is looked at again.
const LOOK_AGAIN_US: u64 = 10_000;

pub struct Gate {
    epoch: Instant,
    /// Requests that may wait for the upstream at once.
    waiting: Bound,
    /// What `waiting` may not exceed.
    most_waiting: AtomicU32,
    /// Requests that may be under way, to the last byte of their answers: what pressure on the gateway leaves.
    active: Bound,
    /// The same with those who are favoured.
    most_active: AtomicU32,
    /// The number of the window under way, and when it may close, in microseconds since `epoch`.
    window: AtomicU32,
    due_us: AtomicU64,
    cells: Box<[Cells]>,
    /// In the order of `cells`.
    workers: Arc<[Worker]>,
    control: Mutex<Control>,
}

/// A limit for all workers and what each of them may take without looking at the others.
struct Bound {
    total: AtomicU32,
    share: AtomicU32,
}

struct Control {
    limit: Limit,
    opened_us: u64,
    /// As `Gate::refused` was when the window opened.
    refused: u64,
}

/// One worker's.
#[derive(Default)]
#[repr(align(128))]
struct Cells {
    waiting: Cell,
    active: Cell,
    /// Of these, who was let in beyond the bound.
    favoured: Cell,
    queued: Cell,
    /// Turned away by the limit, or made to queue.
    refused: Cell,
    samples: [Samples; 2],
}

/// Waits of one window. Windows take turns with two of these, so that the last can be read while the next is filled.
#[derive(Default)]
struct Samples {
    window: AtomicU32,
    count: Cell,
    /// Of these; the others were abandoned.
    answered: Cell,
    sum_us: Cell,
    shortest_us: AtomicU64,
}

/// What a gate shows to metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `None`: no limit is in force.
    pub limit: Option<u32>,
    /// As `limit`, of requests under way.
    pub ceiling: Option<u32>,
    pub waiting: u64,
    pub queued: u64,
    pub active: u64,
}

impl Gate {
    pub fn new(workers: &Arc<[Worker]>, floor: u32, priority: Priority) -> Self {
        let this = Self {
            epoch: Instant::now(),
            waiting: Bound::unlimited(),
            most_waiting: AtomicU32::new(UNLIMITED),
            active: Bound::unlimited(),
            most_active: AtomicU32::new(UNLIMITED),
            window: AtomicU32::new(1),
            due_us: AtomicU64::new(0),
            cells: workers.iter().map(|_| Cells::default()).collect(),
            workers: workers.clone(),
            control: Mutex::new(Control { limit: Limit::new(floor, priority), opened_us: 0, refused: 0 }),
        };
        this.due_us.store(this.control(|control| control.limit.window_length().as_micros() as u64), Relaxed);
        this
    }

    /// What a new configuration says; the limit stays as far as that allows.
    pub fn configure(&self, floor: u32, priority: Priority) {
        let limit = self.control(|control| {
            control.limit.configure(floor, priority);
            control.limit.current()
        });
        self.waiting.set(limit.min(self.most_waiting.load(Relaxed)), self.cells.len());
    }

    /// Lets no more than `active` requests be under way, `most` with those who are favoured, and no more than `waiting`
    /// of them wait for the upstream, whatever the limit is; [`UNLIMITED`] ends that.
    pub fn bound(&self, active: u32, most: u32, waiting: u32) {
        self.active.set(active.min(most), self.cells.len());
        self.most_active.store(most, Relaxed);
        if self.most_waiting.swap(waiting, Relaxed) != waiting {
            let limit = self.control(|control| control.limit.current());
            self.waiting.set(limit.min(waiting), self.cells.len());
        }
    }

    /// Counts a request as under way on `worker`; false: pressure leaves no room for it.
    pub fn begin(&self, worker: usize) -> bool {
        let own = &self.cells[worker].active;
        own.add(1);
        self.active.admits(own.get(), || self.sum(|cells| &cells.active))
    }

    /// Whether a request that began beyond the bound may stay because of who sends it.
    #[cold]
    pub fn favour(&self, worker: usize, class: Class) -> bool {
        let own = &self.cells[worker].favoured;
        own.add(1);
        let of_class = favoured(self.active.total.load(Relaxed), class);
        let stays = self.sum(|cells| &cells.favoured) <= u64::from(of_class)
            && self.active() <= u64::from(self.most_active.load(Relaxed));
        if !stays {
            own.sub(1);
        }
        stays
    }

    /// `favoured`: it was let in beyond the bound.
    pub fn end(&self, worker: usize, favoured: bool) {
        self.cells[worker].active.sub(1);
        if favoured {
            self.cells[worker].favoured.sub(1);
        }
    }

    /// Takes a place, if there is one.
    pub(super) fn enter(&self, worker: usize) -> bool {
        let own = &self.cells[worker].waiting;
        own.add(1);
        let admitted = self.waiting.admits(own.get(), || self.sum(|cells| &cells.waiting));
        if !admitted {
            own.sub(1);
        }
        admitted
    }

    /// Takes a place whether or not there is one.
    pub(super) fn force(&self, worker: usize) {
        self.cells[worker].waiting.add(1);
    }

    pub(super) fn leave(&self, worker: usize) {
        self.cells[worker].waiting.sub(1);
    }

    pub(super) fn set_queued(&self, worker: usize, queued: usize) {
        self.cells[worker].queued.set(queued as u64);
    }

    /// A request found no place.
    pub(super) fn refused(&self, worker: usize, now: Instant) {
        self.cells[worker].refused.add(1);
        self.close_window(now);
    }

    /// A request of `worker` was sent `wait` ago and its answer begins now.
    pub(super) fn answered(&self, worker: usize, wait: Duration, now: Instant) {
        if wait < LONG_POLL || self.limit().is_some() {
            self.sample(worker, wait).answered.add(1);
        }
        self.close_window(now);
    }

    /// A request of `worker` was sent `wait` ago and is waited for no more.
    #[cold]
    pub(super) fn abandoned(&self, worker: usize, wait: Duration, now: Instant) {
        if wait >= LEAST_ABANDONED && (wait < LONG_POLL || self.limit().is_some()) {
            self.sample(worker, wait);
        }
        self.close_window(now);
    }

    #[inline]
    fn sample(&self, worker: usize, wait: Duration) -> &Samples {
        let window = self.window.load(Relaxed);
        let samples = &self.cells[worker].samples[window as usize % 2];
        samples.add(window, wait.as_micros() as u64);
        samples
    }

    /// Requests under way.
    pub fn active(&self) -> u64 {
        self.sum(|cells| &cells.active)
    }

    /// The limit in force, if one is.
    pub(super) fn limit(&self) -> Option<u32> {
        let limit = self.waiting.total.load(Relaxed);
        (limit < self.most_waiting.load(Relaxed)).then_some(limit)
    }

    pub fn standing(&self) -> Standing {
        Standing {
            limit: self.limit(),
            ceiling: Some(self.active.total.load(Relaxed)).filter(|&ceiling| ceiling != UNLIMITED),
            waiting: self.sum(|cells| &cells.waiting),
            queued: self.sum(|cells| &cells.queued),
            active: self.active(),
        }
    }

    fn sum(&self, cell: fn(&Cells) -> &Cell) -> u64 {
        self.cells.iter().map(|cells| cell(cells).get()).sum()
    }

    fn control<T>(&self, change: impl FnOnce(&mut Control) -> T) -> T {
        change(&mut self.control.lock().unwrap_or_else(PoisonError::into_inner))
    }

    #[inline]
    fn close_window(&self, now: Instant) {
        let now_us = now.saturating_duration_since(self.epoch).as_micros() as u64;
        if now_us >= self.due_us.load(Relaxed) {
            self.close_due_window(now, now_us);
        }
    }

    /// Whoever comes first when a window is due closes it; nobody waits for another.
    #[cold]
    fn close_due_window(&self, now: Instant, now_us: u64) {
        let Ok(mut control) = self.control.try_lock() else { return };
        if now_us < self.due_us.load(Relaxed) {
            return;
        }
        let number = self.window.load(Relaxed);
        let all = self.cells.iter().map(|cells| &cells.samples[number as usize % 2]).zip(&*self.workers);
        let found = all.filter(|(samples, _)| samples.window.load(Relaxed) == number);
        let (mut count, mut answered, mut sum_us, mut shortest_us, mut late_us) =
            (0, 0, 0, u64::MAX, u64::MAX);
        for (samples, worker) in found {
            // The shortest wait may be that of the worker which is least late.
            late_us = late_us.min(worker.late_us.get());
            count += samples.count.get();
            answered += samples.answered.get();
            sum_us += samples.sum_us.get();
            shortest_us = shortest_us.min(samples.shortest_us.load(Relaxed));
        }
        let length_us = now_us - control.opened_us;
        let refused = self.sum(|cells| &cells.refused);
        let limit = if count >= u64::from(LEAST_SAMPLES) {
            let window = Window {
                shortest: Duration::from_micros(shortest_us),
                mean: Duration::from_micros(sum_us / count),
                late: Duration::from_micros(late_us),
                rate: answered as f64 * 1e6 / length_us.max(1) as f64,
                waiting: u32::try_from(self.sum(|cells| &cells.waiting)).unwrap_or(u32::MAX),
                refused: refused != control.refused,
            };
            control.limit.close(&window, now)
        } else if length_us >= LONGEST_WINDOW.as_micros() as u64 {
            control.limit.lift()
        } else {
            self.due_us.store(now_us + LOOK_AGAIN_US, Relaxed);
            return;
        };
        (control.opened_us, control.refused) = (now_us, refused);
        self.waiting.set(limit.min(self.most_waiting.load(Relaxed)), self.cells.len());
        self.window.store(number.wrapping_add(1), Relaxed);
        self.due_us.store(now_us + control.limit.window_length().as_micros() as u64, Relaxed);
    }
}

impl Bound {
    fn unlimited() -> Self {
        Self { total: AtomicU32::new(UNLIMITED), share: AtomicU32::new(UNLIMITED) }
    }

    fn set(&self, total: u32, workers: usize) {
        let share = if total == UNLIMITED { UNLIMITED } else { (total / 8 / workers as u32).max(1) };
        // Written only if it changes, for all workers read it.
        if self.total.load(Relaxed) != total {
            self.total.store(total, Relaxed);
            self.share.store(share, Relaxed);
        }
    }

    /// Whether the last of a worker's `own` may stay; `all` adds up the workers'.
    #[inline]
    fn admits(&self, own: u64, all: impl FnOnce() -> u64) -> bool {
        own <= u64::from(self.share.load(Relaxed)) || all() <= u64::from(self.total.load(Relaxed))
    }
}

impl Samples {
    #[inline]
    fn add(&self, window: u32, wait_us: u64) {
        if self.window.load(Relaxed) != window {
            self.count.set(0);
            self.answered.set(0);
            self.sum_us.set(0);
            self.shortest_us.store(u64::MAX, Relaxed);
            self.window.store(window, Relaxed);
        }
        self.count.add(1);
        self.sum_us.add(wait_us);
        if wait_us < self.shortest_us.load(Relaxed) {
            self.shortest_us.store(wait_us, Relaxed);
        }
    }
}
