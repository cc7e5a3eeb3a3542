//! How many connections the process may have to one endpoint, and who waits for one to end.
//!
//! A worker that holds idle connections while another waits closes them: see [`Slots::is_wanted`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::sync::Notify;

/// So many times the most connections may wait: as many as could be served at once, and as many again,
/// for the moment in which idle connections of other workers are closed.
const WAITING: usize = 2;

#[derive(Debug)]
pub struct Slots {
    used: AtomicUsize,
    most: AtomicUsize,
    waiting: AtomicUsize,
    freed: Notify,
}

/// The right to one connection.
#[derive(Debug)]
pub struct Slot(Arc<Slots>);

/// Enough wait already.
#[derive(Debug, PartialEq)]
pub struct Crowded;

impl Slots {
    /// `None`: as many as are asked for.
    pub fn new(most: Option<usize>) -> Arc<Self> {
        let slots = Self {
            used: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            freed: Notify::new(),
        };
        slots.set_most(most);
        Arc::new(slots)
    }

    /// Connections beyond a lower number live on until they end.
    pub fn set_most(&self, most: Option<usize>) {
        self.most.store(most.unwrap_or(usize::MAX), SeqCst);
        self.freed.notify_waiters();
    }

    /// Waits until there is room; whoever stops waiting loses nothing.
    pub async fn take(self: &Arc<Self>) -> Result<Slot, Crowded> {
        if let Some(slot) = self.try_take() {
            return Ok(slot);
        }
        let _waits = Waits::begin(self)?;
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // Before looking, so that what is freed in between is not missed.
            freed.as_mut().enable();
            if let Some(slot) = self.try_take() {
                return Ok(slot);
            }
            freed.await;
        }
    }

    /// Whether somebody waits while connections are kept idle.
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(SeqCst) > 0
    }

    fn try_take(self: &Arc<Self>) -> Option<Slot> {
        let most = self.most.load(SeqCst);
        let taken = self.used.fetch_update(SeqCst, SeqCst, |used| (used < most).then_some(used + 1));
        taken.ok().map(|_| Slot(self.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, SeqCst);
        if self.0.is_wanted() {
            self.0.freed.notify_waiters();
        }
    }
}

struct Waits<'a>(&'a Slots);

impl<'a> Waits<'a> {
    fn begin(slots: &'a Slots) -> Result<Self, Crowded> {
        let most = slots.most.load(SeqCst).saturating_mul(WAITING);
        let begun =
            slots.waiting.fetch_update(SeqCst, SeqCst, |waiting| (waiting < most).then_some(waiting + 1));
        begun.map(|_| Self(slots)).map_err(|_| Crowded)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn as_many_as_allowed_and_the_freed_one_goes_to_who_waits() {
        let slots = Slots::new(Some(2));
        let first = now(slots.take()).unwrap().unwrap();
        let second = now(slots.take()).unwrap().unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let mut third = Box::pin(slots.take());
        let mut others = [(); 3].map(|()| Box::pin(slots.take()));
        assert!(third.as_mut().poll(&mut cx).is_pending());
        assert!(others.iter_mut().all(|other| other.as_mut().poll(&mut cx).is_pending()));
        assert!(slots.is_wanted());
        assert_eq!(now(slots.take()).unwrap().unwrap_err(), Crowded);
        drop(others);
        drop(first);
        let Poll::Ready(Ok(third)) = third.as_mut().poll(&mut cx) else { panic!("one is free") };
        assert!(!slots.is_wanted());
        assert!(now(slots.take()).is_none(), "two are in use");
        drop((second, third));
        assert!(now(slots.take()).unwrap().is_ok());
    }

    #[test]
    fn another_limit_holds_at_once() {
        let slots = Slots::new(Some(1));
        let _one = now(slots.take()).unwrap().unwrap();
        let mut waits = Box::pin(slots.take());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        slots.set_most(None);
        assert!(waits.as_mut().poll(&mut cx).is_ready());
    }
}
