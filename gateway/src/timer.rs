//! Deadlines of a worker: one coarse clock, one wheel, no `Sleep` per request, none of tokio's timers.
//!
//! A [`Timer`] belongs to one connection and holds the nearest instant at which its task must be
//! looked at. Moving the deadline later, which every request does, is one store: the wheel finds
//! out when the old entry comes up. The worker's ticker calls [`Wheel::advance`]; whoever is woken
//! reads [`Wheel::now`] and decides for itself what has expired.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Grain of the clock: a deadline fires at most this much late.
pub const TICK: Duration = Duration::from_millis(50);
const TICKS_PER_SECOND: u64 = 1_000 / TICK.as_millis() as u64;
const SLOTS: u32 = 64;
/// An entry lies in the wheel no longer than this, so that a closed connection's is soon gone; a
/// later deadline is looked at again and scheduled anew. Less than a revolution: a slot holds one tick.
const HORIZON: u32 = 40;

/// Coarse time since the wheel was made, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u32);

impl Tick {
    /// Later than any other: the deadline of a timer that is not armed.
    pub const NEVER: Self = Self(u32::MAX);

    /// The first tick at which `after` has surely passed.
    pub fn plus(self, after: Duration) -> Self {
        // Not `as_millis`: to divide its 128 bits takes a call, and a request sets several deadlines.
        let part = after.subsec_millis().div_ceil(TICK.as_millis() as u32) + 1;
        let ticks = after.as_secs().saturating_mul(TICKS_PER_SECOND).saturating_add(part.into());
        Self(self.0.saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX)))
    }
}

/// The worker's wheel; `Rc` because every connection of the worker reads it.
pub struct Wheel {
    now: Cell<Tick>,
    started: Instant,
    slots: RefCell<Vec<Vec<Entry>>>,
}

/// When a connection's task is to be woken next.
pub struct Timer {
    wheel: Rc<Wheel>,
    state: Rc<State>,
}

struct State {
    deadline: Cell<Tick>,
    /// The tick of the entry that stands for this timer; entries with another tick are stale.
    scheduled: Cell<Tick>,
    waker: RefCell<Option<Waker>>,
}

struct Entry {
    at: Tick,
    state: Rc<State>,
}

impl Wheel {
    pub fn new(started: Instant) -> Rc<Self> {
        let slots = (0..SLOTS).map(|_| Vec::new()).collect();
        Rc::new(Self { now: Cell::new(Tick(0)), started, slots: RefCell::new(slots) })
    }

    pub fn now(&self) -> Tick {
        self.now.get()
    }

    /// Moves the clock to `now` and wakes the owner of every deadline that has passed.
    pub fn advance(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.started).as_millis() / TICK.as_millis();
        let target = u32::try_from(elapsed).unwrap_or(u32::MAX - 1);
        // A stall longer than a revolution still visits each slot once only.
        let steps = target.saturating_sub(self.now.get().0).min(SLOTS);
        self.now.set(Tick(target));
        for step in 0..steps {
            let due = std::mem::take(&mut self.slots.borrow_mut()[slot(target - step)]);
            for entry in due {
                if entry.at == entry.state.scheduled.get() {
                    self.come_up(entry.state);
                }
            }
        }
    }

    /// Waits for `after`, and up to two ticks more.
    pub async fn sleep(self: &Rc<Self>, after: Duration) {
        let timer = Timer::new(self);
        timer.arm(self.now().plus(after));
        poll_fn(|cx| {
            timer.register(cx.waker());
            if timer.expired() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Wakes the owner of every armed timer, whatever its deadline: something it should know has changed.
    pub fn wake_all(&self) {
        let wakers: Vec<Waker> = self
            .slots
            .borrow()
            .iter()
            .flatten()
            .filter(|entry| entry.at == entry.state.scheduled.get())
            .filter_map(|entry| entry.state.waker.borrow().clone())
            .collect();
        wakers.iter().for_each(Waker::wake_by_ref);
    }

    fn come_up(&self, state: Rc<State>) {
        let deadline = state.deadline.get();
        state.scheduled.set(Tick::NEVER);
        if deadline > self.now() {
            self.schedule(state, deadline);
        } else if let Some(waker) = state.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Puts an entry into the wheel unless an earlier one, or none, stands for this deadline.
    fn schedule(&self, state: Rc<State>, deadline: Tick) {
        let now = self.now().0;
        // Never in the past: a slot already visited comes round a revolution later.
        let at = Tick(deadline.0.clamp(now.saturating_add(1), now.saturating_add(HORIZON)));
        if deadline < Tick::NEVER && at < state.scheduled.get() {
            state.scheduled.set(at);
            self.slots.borrow_mut()[slot(at.0)].push(Entry { at, state });
        }
    }
}

fn slot(tick: u32) -> usize {
    (tick % SLOTS) as usize
}

impl Timer {
    pub fn new(wheel: &Rc<Wheel>) -> Self {
        let state = State {
            deadline: Cell::new(Tick::NEVER),
            scheduled: Cell::new(Tick::NEVER),
            waker: RefCell::new(None),
        };
        Self { wheel: wheel.clone(), state: Rc::new(state) }
    }

    /// Sets the one deadline; the former one is forgotten.
    pub fn arm(&self, deadline: Tick) {
        self.state.deadline.set(deadline);
        if deadline < self.state.scheduled.get() {
            self.wheel.schedule(self.state.clone(), deadline);
        }
    }

    /// Sets the deadline, unless an earlier one is set.
    pub fn arm_sooner(&self, deadline: Tick) {
        if deadline < self.state.deadline.get() {
            self.arm(deadline);
        }
    }

    /// The task to wake; a connection keeps one task for life, so this is called once.
    pub fn register(&self, waker: &Waker) {
        *self.state.waker.borrow_mut() = Some(waker.clone());
    }

    /// Wakes the task now, whatever the deadline.
    pub fn wake(&self) {
        if let Some(waker) = self.state.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    pub fn now(&self) -> Tick {
        self.wheel.now()
    }

    pub fn expired(&self) -> bool {
        self.state.deadline.get() <= self.wheel.now()
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.state.deadline.set(Tick::NEVER);
        self.state.waker.borrow_mut().take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Rig {
        wheel: Rc<Wheel>,
        timer: Timer,
        woken: Arc<Count>,
        start: Instant,
    }

    fn rig() -> Rig {
        let start = Instant::now();
        let wheel = Wheel::new(start);
        let timer = Timer::new(&wheel);
        let woken = Arc::new(Count::default());
        timer.register(&Waker::from(woken.clone()));
        Rig { wheel, timer, woken, start }
    }

    impl Rig {
        fn at(&self, ms: u64) -> usize {
            self.wheel.advance(self.start + Duration::from_millis(ms));
            self.woken.0.load(Ordering::Relaxed)
        }
        fn arm(&self, ms: u64) {
            self.timer.arm(self.wheel.now().plus(Duration::from_millis(ms)));
        }
    }

    #[test]
    fn fires_once_and_not_early() {
        let rig = rig();
        rig.arm(1000);
        assert_eq!(rig.at(999), 0);
        assert_eq!(rig.at(1000 + 2 * TICK.as_millis() as u64), 1);
        assert!(rig.timer.expired());
        assert_eq!(rig.at(60_000), 1);
    }

    #[test]
    fn later_deadline_replaces_earlier_one() {
        let rig = rig();
        rig.arm(100);
        rig.arm(5_000);
        assert_eq!(rig.at(4_900), 0);
        assert_eq!(rig.at(5_100), 1);
    }

    #[test]
    fn earlier_deadline_replaces_later_one() {
        let rig = rig();
        rig.arm(30_000);
        rig.arm(200);
        assert_eq!(rig.at(300), 1);
        rig.arm(100_000);
        assert_eq!(rig.at(31_000), 1, "the entry of the first deadline is stale");
    }

    #[test]
    fn a_sooner_deadline_never_puts_one_off() {
        let rig = rig();
        rig.arm(1_000);
        rig.timer.arm_sooner(rig.wheel.now().plus(Duration::from_secs(5)));
        assert_eq!(rig.at(1_200), 1);
        rig.arm(5_000);
        rig.timer.arm_sooner(rig.wheel.now().plus(Duration::from_millis(100)));
        assert_eq!(rig.at(1_400), 2);
    }

    #[test]
    fn beyond_the_horizon_and_after_a_stall() {
        let rig = rig();
        rig.arm(3_600_000);
        for ms in (0..3_600_000).step_by(50) {
            assert_eq!(rig.at(ms), 0);
        }
        assert_eq!(rig.at(7_200_000), 1);
    }

    #[test]
    fn a_dropped_timer_wakes_nobody() {
        let Rig { wheel, timer, woken, start } = rig();
        timer.arm(wheel.now().plus(TICK));
        drop(timer);
        wheel.advance(start + Duration::from_secs(1));
        wheel.wake_all();
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn wake_all_reaches_an_armed_timer_once() {
        let rig = rig();
        rig.arm(30_000);
        rig.arm(200);
        rig.wheel.wake_all();
        assert_eq!(rig.woken.0.load(Ordering::Relaxed), 1);
    }
}
