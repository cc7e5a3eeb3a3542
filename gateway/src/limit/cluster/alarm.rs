//! The bound on waiting for the store, as a timer: every wait is as long, so the first to begin is the first to end,
//! and one descriptor serves all of a worker. The worker's own wheel is too coarse for a few milliseconds.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_settime};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;

pub struct Alarm {
    bound: Duration,
    descriptor: OwnedFd,
    /// Since when somebody waits. Those who wait no more are passed over when their turn comes.
    waits: RefCell<VecDeque<(Instant, oneshot::Sender<()>)>>,
}

impl Alarm {
    /// What it rings by is to be handed to [`Self::run`].
    pub fn new(bound: Duration) -> io::Result<(Self, Receiver)> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Tokio reads any descriptor like a pipe.
        let rings = Receiver::from_owned_fd_unchecked(descriptor.try_clone()?)?;
        Ok((Self { bound, descriptor, waits: RefCell::default() }, rings))
    }

    /// Rings for as long as it is polled.
    pub async fn run(&self, mut rings: Receiver) {
        loop {
            let _elapsed = rings.read_u64().await.expect("a timer's descriptor can be read");
            let now = Instant::now();
            let mut waits = self.waits.borrow_mut();
            while let Some((since, wait)) = waits.front() {
                let left = (*since + self.bound).saturating_duration_since(now);
                if !left.is_zero() && !wait.is_closed() {
                    self.set(left);
                    break;
                }
                waits.pop_front();
            }
        }
    }

    /// Ends, with an error, when the bound has passed from now on.
    pub fn wait(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut waits = self.waits.borrow_mut();
        if waits.is_empty() {
            self.set(self.bound);
        }
        waits.push_back((Instant::now(), sender));
        receiver
    }

    fn set(&self, after: Duration) {
        let once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let after = Timespec::try_from(after).expect("a bound is short");
        let alarm = Itimerspec { it_interval: once, it_value: after };
        timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &alarm).expect("it is a timer");
    }
}
