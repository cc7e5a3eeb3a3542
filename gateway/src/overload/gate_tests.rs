//! Gates and lines: places are counted exactly, whoever holds them, and a queue empties in its order.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use gateway_common::standing::Class;

use super::gate::{Gate, Standing};
use super::limit::{LEAST_SAMPLES, UNLIMITED};
use super::line::{Line, Place};
use crate::config::Priority;
use crate::metrics::Registry;

const FLOOR: u32 = 4;
const MS: Duration = Duration::from_millis(1);

fn gate(workers: usize) -> Arc<Gate> {
    Arc::new(Gate::new(&Registry::new(workers).workers, FLOOR, Priority::Normal))
}

/// Lets the gate see a queue until its limit is at the floor.
fn overload(line: &Rc<Line>) {
    slow_down(line);
    assert_eq!(line.gate.standing().limit, Some(FLOOR));
}

fn slow_down(line: &Rc<Line>) {
    let mut now = Instant::now();
    // Quick at first, then ever slower, while a hundred wait.
    for wait in [MS, 20 * MS, 40 * MS, 80 * MS, 160 * MS] {
        now += Duration::from_secs(1);
        let waiting: Vec<Place> = (0..100 + LEAST_SAMPLES).map(|_| line.force(now)).collect();
        let mut waiting = waiting.into_iter();
        waiting.by_ref().take(LEAST_SAMPLES as usize).for_each(|place| place.answered(now + wait));
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn places_end_at_the_limit_and_come_back() {
    let line = Line::new(gate(1), 0);
    let free: Vec<_> =
        (0..1_000).map(|_| line.enter(Instant::now()).expect("no limit is in force")).collect();
    drop(free);
    overload(&line);
    let held: Vec<_> = (0..FLOOR).map(|_| line.enter(Instant::now()).expect("a place")).collect();
    assert!(line.enter(Instant::now()).is_none());
    let forced = line.force(Instant::now());
    assert_eq!(line.gate.standing().waiting, u64::from(FLOOR) + 1);
    drop((held, forced));
    assert!(line.enter(Instant::now()).is_some());
    let standing = Standing { limit: Some(FLOOR), ceiling: None, waiting: 0, queued: 0, active: 0 };
    assert_eq!(line.gate.standing(), standing);
}

#[test]
fn waits_for_the_gateway_itself_are_no_queue_upstream() {
    let limit = |late_ms: [u64; 3]| {
        let registry = Registry::new(3);
        for (worker, late) in registry.workers.iter().zip(late_ms) {
            worker.late_us.set(1_000 * late);
        }
        let gate = Arc::new(Gate::new(&registry.workers, FLOOR, Priority::Normal));
        slow_down(&Line::new(gate.clone(), 1));
        gate.standing().limit
    };
    assert_eq!(limit([0, 160, 0]), None, "the worker was as late as that");
    assert_eq!(limit([0, 10, 0]), Some(FLOOR), "it was late, and there is a queue besides");
    assert_eq!(limit([160, 0, 160]), Some(FLOOR), "those who were late had nothing to do with it");
}

#[test]
fn a_worker_may_use_what_the_others_leave() {
    let gate = gate(4);
    let lines: Vec<_> = (0..4).map(|worker| Line::new(gate.clone(), worker)).collect();
    overload(&lines[0]);
    // All four places on one worker, though its share is one.
    let held: Vec<_> = std::iter::from_fn(|| lines[0].enter(Instant::now())).collect();
    assert_eq!(held.len(), 4);
    // The others have their shares all the same, and no more.
    let others: Vec<_> =
        lines[1..].iter().map(|line| line.enter(Instant::now()).expect("its share")).collect();
    assert!(lines.iter().all(|line| line.enter(Instant::now()).is_none()));
    drop((held, others));
    assert_eq!(gate.standing().waiting, 0);
}

#[test]
fn a_queue_is_served_in_its_order_and_has_an_end() {
    let line = Line::new(gate(1), 0);
    overload(&line);
    let mut held: Vec<_> = (0..FLOOR).map(|_| line.enter(Instant::now()).expect("a place")).collect();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    let mut queue: Vec<_> = (0..3).map(|_| line.queue(3, Instant::now()).expect("room")).collect();
    assert!(line.queue(3, Instant::now()).is_none(), "the queue is full");
    assert_eq!(line.gate.standing().queued, 3);
    assert!(queue.iter_mut().all(|queued| queued.poll(&mut cx).is_pending()));

    // The second gives up; places go to the first and the third.
    drop(queue.remove(1));
    drop(held.pop());
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    let Poll::Ready(first) = queue[0].poll(&mut cx) else { panic!("the first is not first") };
    assert!(queue[1].poll(&mut cx).is_pending());
    assert!(line.enter(Instant::now()).is_none(), "a newcomer passes nobody by");
    drop(first);
    assert_eq!(woken.0.load(Ordering::Relaxed), 2);

    // A place that has come and is not taken is given back.
    drop(queue);
    drop(held);
    let standing = line.gate.standing();
    assert_eq!((standing.waiting, standing.queued), (0, 0));
    assert!(line.enter(Instant::now()).is_some());
}

#[test]
fn pressure_bounds_what_is_under_way() {
    let gate = gate(2);
    assert!((0..100).all(|n| gate.begin(n % 2)));
    gate.bound(100, UNLIMITED, UNLIMITED);
    assert!(!gate.begin(0) && !gate.begin(1));
    (0..3).for_each(|_| gate.end(0, false));
    assert!(gate.begin(0));
    gate.bound(UNLIMITED, UNLIMITED, UNLIMITED);
    assert!(gate.begin(0) && gate.begin(1));
}

/// Strangers' requests that go on are no reason to refuse the proven, and these are bounded by themselves.
#[test]
fn the_proven_are_let_in_beyond_the_bound() {
    use Class::{Known, Proven, Unknown};
    let gate = gate(2);
    let begin = |class| gate.begin(1) || gate.favour(1, class);
    assert!((0..100).all(|n| gate.begin(n % 2)));
    gate.bound(8, 120, UNLIMITED);
    // What was refused ends at once.
    let asks = |class| {
        let let_in = begin(class);
        if !let_in {
            gate.end(1, false);
        }
        let_in
    };
    for (class, want) in [
        (Unknown, false),
        (Known, true),
        (Known, true),
        (Known, false),
        (Proven, true),
        (Known, false),
        (Unknown, false),
    ] {
        assert_eq!(asks(class), want, "{class:?}");
    }
    assert_eq!((0..10).filter(|_| asks(Proven)).count(), 5, "as many as the bound in all");
    gate.end(1, true);
    assert!(asks(Proven) && !asks(Proven));
    // Not beyond what one route may have, whoever asks.
    gate.bound(8, 100, UNLIMITED);
    (0..3).for_each(|_| gate.end(1, true));
    assert!(!asks(Proven));
    gate.bound(UNLIMITED, 100, UNLIMITED);
    assert!(!asks(Proven), "at ease neither");
    (0..5).for_each(|_| gate.end(1, true));
    (0..100).for_each(|n| gate.end(n % 2, false));
    assert_eq!(gate.active(), 0);
}

#[test]
fn the_upstream_has_a_bound_whatever_the_limit() {
    let line = Line::new(gate(1), 0);
    line.gate.bound(UNLIMITED, UNLIMITED, 10);
    let held: Vec<_> = std::iter::from_fn(|| line.enter(Instant::now())).collect();
    assert_eq!(held.len(), 10);
    drop(held);
    overload(&line);
    assert_eq!(std::iter::from_fn(|| line.enter(Instant::now())).collect::<Vec<_>>().len(), FLOOR as usize);
    line.gate.bound(UNLIMITED, UNLIMITED, 2);
    assert_eq!(std::iter::from_fn(|| line.enter(Instant::now())).collect::<Vec<_>>().len(), 2);
    line.gate.bound(UNLIMITED, UNLIMITED, UNLIMITED);
    assert_eq!(std::iter::from_fn(|| line.enter(Instant::now())).collect::<Vec<_>>().len(), FLOOR as usize);
}

/// Each worker writes its own cells only, so nothing is lost however they meet.
#[test]
fn workers_count_beside_each_other() {
    let gate = gate(4);
    overload(&Line::new(gate.clone(), 0));
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let gate = gate.clone();
            scope.spawn(move || {
                let line = Line::new(gate, worker);
                for _ in 0..5_000 {
                    let held: Vec<_> = std::iter::from_fn(|| line.enter(Instant::now())).collect();
                    // The limit, the shares of the others, and one for each who is just asking.
                    assert!(line.gate.standing().waiting <= 4 + 3 + 4);
                    let now = Instant::now();
                    held.into_iter().for_each(|place| place.answered(now));
                }
            });
        }
    });
    assert_eq!(gate.standing().waiting, 0);
}
