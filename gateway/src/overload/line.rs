//! A route's line on one worker: requests that have a place before the upstream, and those that wait for one.
//!
//! Bounded in length by whoever lets somebody queue, and in time by the queuing request's own deadline. First come,
//! first served; a place that is given back goes to the longest waiting.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::gate::Gate;

pub struct Line {
    pub gate: Arc<Gate>,
    worker: usize,
    queue: RefCell<VecDeque<Rc<Turn>>>,
}

/// A request before its upstream. Dropped, it gives its place back.
pub struct Place {
    line: Rc<Line>,
    /// Since when; `None` once it is answered.
    since: Option<Instant>,
}

/// A request that waits for a place. Dropped, it leaves the queue.
pub struct Queued {
    line: Rc<Line>,
    turn: Rc<Turn>,
}

#[derive(Default)]
struct Turn {
    /// It has a place now.
    come: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Line {
    pub fn new(gate: Arc<Gate>, worker: usize) -> Rc<Self> {
        Rc::new(Self { gate, worker, queue: RefCell::default() })
    }

    /// A place, if there is one and nobody waits for it.
    #[inline]
    pub fn enter(self: &Rc<Self>, now: Instant) -> Option<Place> {
        let free = self.queue.borrow().is_empty() && self.gate.enter(self.worker);
        free.then(|| Place { line: self.clone(), since: Some(now) })
    }

    /// A place, whether or not there is one.
    pub fn force(self: &Rc<Self>, now: Instant) -> Place {
        self.gate.force(self.worker);
        Place { line: self.clone(), since: Some(now) }
    }

    /// Whether a limit of the upstream's own keeps requests from it; else it is the gateway that has no more connections.
    pub fn is_limited(&self) -> bool {
        self.gate.limit().is_some()
    }

    /// The end of the queue; `None`: `longest` wait already.
    pub fn queue(self: &Rc<Self>, longest: usize, now: Instant) -> Option<Queued> {
        self.gate.refused(self.worker, now);
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= longest {
            return None;
        }
        let turn = Rc::<Turn>::default();
        queue.push_back(turn.clone());
        self.gate.set_queued(self.worker, queue.len());
        Some(Queued { line: self.clone(), turn })
    }

    /// Gives free places to those who wait longest.
    fn call(&self) {
        let mut queue = self.queue.borrow_mut();
        while !queue.is_empty() && self.gate.enter(self.worker) {
            let turn = queue.pop_front().expect("it is not empty");
            turn.come.set(true);
            if let Some(waker) = turn.waker.take() {
                waker.wake();
            }
        }
        self.gate.set_queued(self.worker, queue.len());
    }
}

impl Place {
    /// Since when it is held; asked before it is answered.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// The answer begins, `now`; gives the place back.
    pub fn answered(mut self, now: Instant) {
        let line = &self.line;
        if let Some(since) = self.since.take() {
            line.gate.answered(line.worker, now.saturating_duration_since(since), now);
        }
    }

    /// An answer has begun that measures nothing; gives the place back.
    pub fn failed(mut self) {
        self.since = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let line = &self.line;
        line.gate.leave(line.worker);
        if let Some(since) = self.since {
            let now = Instant::now();
            line.gate.abandoned(line.worker, now.saturating_duration_since(since), now);
        }
        if !self.line.queue.borrow().is_empty() {
            self.line.call();
        }
    }
}

impl Queued {
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Place> {
        if self.turn.come.replace(false) {
            return Poll::Ready(Place { line: self.line.clone(), since: Some(Instant::now()) });
        }
        *self.turn.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if self.turn.come.get() {
            // The place came and was not taken.
            drop(Place { line: self.line.clone(), since: None });
            return;
        }
        let mut queue = self.line.queue.borrow_mut();
        queue.retain(|turn| !Rc::ptr_eq(turn, &self.turn));
        self.line.gate.set_queued(self.line.worker, queue.len());
    }
}
