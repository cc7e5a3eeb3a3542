//! Wakes the readers of one worker: many of them cost one wake-up from another thread.
//!
//! A flight knows workers, not readers. News reach a worker's [`Inbox`]; the worker's own task takes
//! them out and wakes whoever waits there, without leaving the thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use super::flight::Flight;

/// Where a worker is told of news, from any thread.
#[derive(Default)]
pub struct Inbox {
    flights: Mutex<Vec<Arc<Flight>>>,
    news: Notify,
}

impl Inbox {
    pub(super) fn tell(&self, flight: Arc<Flight>) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).push(flight);
        self.news.notify_one();
    }
}

/// One worker's waiting readers, by flight.
pub struct Fanout {
    pub worker: usize,
    inbox: Arc<Inbox>,
    waiting: RefCell<FxHashMap<*const Flight, Waiting>>,
    rounds: Cell<u64>,
}

struct Waiting {
    round: u64,
    tasks: Vec<Waker>,
}

impl Fanout {
    pub fn new(worker: usize, inbox: Arc<Inbox>) -> Rc<Self> {
        Rc::new(Self { worker, inbox, waiting: RefCell::default(), rounds: Cell::new(0) })
    }

    /// Passes news on for as long as it is polled: the worker's task for it.
    pub async fn run(&self) {
        loop {
            self.inbox.news.notified().await;
            let flights =
                std::mem::take(&mut *self.inbox.flights.lock().unwrap_or_else(PoisonError::into_inner));
            for flight in flights {
                // The borrow ends before anybody is woken.
                let waiting = self.waiting.borrow_mut().remove(&Arc::as_ptr(&flight));
                waiting.into_iter().for_each(|waiting| waiting.tasks.into_iter().for_each(Waker::wake));
            }
        }
    }

    /// Has `task` woken at the next news of `flight`; `registered` is the round in which it was last
    /// registered, so that a reader polled for other reasons stands there once.
    pub(super) fn register(&self, flight: &Arc<Flight>, registered: &mut Option<u64>, task: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        let waiting = waiting.entry(Arc::as_ptr(flight)).or_insert_with(|| {
            self.rounds.set(self.rounds.get() + 1);
            Waiting { round: self.rounds.get(), tasks: Vec::new() }
        });
        if *registered != Some(waiting.round) {
            *registered = Some(waiting.round);
            waiting.tasks.push(task.clone());
        }
    }
}
