//! A worker: one thread, one single-threaded runtime, its own listeners and upstream connections.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_settime};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;

use crate::downstream::listener::Listener;
use crate::downstream::{Crowd, DRAIN_GRACE};
use crate::metrics::Registry;
use crate::proxy::Proxy;
use crate::snapshot::Current;
use crate::timer::{TICK, Wheel};

/// What a worker needs from the start; all of it can be sent to its thread.
pub struct Worker {
    pub index: usize,
    pub listener: TcpListener,
    pub current: Arc<Current>,
    pub registry: Arc<Registry>,
    /// Changes once: accept no more, finish what is under way.
    pub drain: watch::Receiver<Drain>,
}

/// Whether a worker is to come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    No,
    /// New connections are refused.
    Alone,
    /// Another process accepts from the listeners of so many workers, the first ones.
    Followed(usize),
}

impl Worker {
    /// Starts the thread and returns when it is about to accept, or has failed before. It ends when it
    /// has drained, or after the drain timeout.
    pub fn start(self) -> io::Result<JoinHandle<io::Result<()>>> {
        let (started, start) = mpsc::channel();
        let thread = std::thread::Builder::new().name(format!("worker-{}", self.index)).spawn(move || {
            let mut runtime = Builder::new_current_thread();
            // Not its timers: with them the worker reads the clock twice more each time it waits.
            let runtime = runtime.enable_io().build_local(LocalOptions::default())?;
            runtime.block_on(self.run(started))
        })?;
        match start.recv() {
            Ok(()) => Ok(thread),
            // It has ended without a word.
            Err(mpsc::RecvError) => Err(match thread.join() {
                Ok(Err(error)) => error,
                Ok(Ok(())) | Err(_) => io::Error::other("it panicked"),
            }),
        }
    }

    async fn run(self, started: mpsc::Sender<()>) -> io::Result<()> {
        let wheel = Wheel::new(Instant::now());
        let proxy = Rc::new(Proxy::new(self.index, self.current, self.registry, wheel));
        let listener = Listener::new(&proxy, self.listener)?;
        tokio::task::spawn_local(tick(
            proxy.clone(),
            listener.crowd.clone(),
            Receiver::from_owned_fd_unchecked(ticker()?)?,
        ));
        tokio::task::spawn_local({
            let proxy = proxy.clone();
            async move { proxy.wake_followers().await }
        });
        // Nobody listens any more where another worker has failed.
        let _ = started.send(());
        let mut drain = self.drain;
        listener.accept_until(drain.wait_for(|drain| *drain != Drain::No)).await;
        let is_followed = matches!(*drain.borrow(), Drain::Followed(listeners) if self.index < listeners);

        // Whoever is on the way to us arrives, and whoever is there may ask once more.
        let drain = proxy.local().snapshot.config.timeouts.drain;
        let deadline = Instant::now() + drain;
        let grace = proxy.wheel.sleep(DRAIN_GRACE.min(drain));
        proxy.draining.set(true);
        if is_followed {
            drop(listener);
            proxy.wheel.wake_all();
            grace.await;
        } else {
            listener.refuse_new();
            proxy.wheel.wake_all();
            listener.accept_until(grace).await;
            listener.close();
        }
        let open = &proxy.registry.workers[self.index].open;
        while open.get() > 0 && Instant::now() < deadline {
            proxy.wheel.sleep(TICK).await;
        }
        if open.get() > 0 {
            tracing::warn!(connections = open.get(), "drain timeout passed; closing what is left");
        }
        Ok(())
    }
}

/// A descriptor that is readable once per tick, which tokio reads like a pipe.
fn ticker() -> io::Result<OwnedFd> {
    let ticker = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let tick = Timespec::try_from(TICK).expect("a tick is short");
    let every = Itimerspec { it_interval: tick, it_value: tick };
    timerfd_settime(&ticker, TimerfdTimerFlags::empty(), &every)?;
    Ok(ticker)
}

/// Moves the worker's clock; once a second it looks after what nobody else polls.
async fn tick(proxy: Rc<Proxy>, crowd: Rc<Crowd>, mut ticker: Receiver) {
    let begun = Instant::now();
    let (mut swept, mut ticks, mut elapsed) = (begun, 0u32, [0; 8]);
    let cells = &proxy.registry.workers[proxy.worker];
    loop {
        ticker.read_exact(&mut elapsed).await.expect("a timer's descriptor can be read");
        let now = Instant::now();
        // The first of the ticks that have passed since the last look is the one that was waited for.
        let due = begun + TICK * (ticks + 1);
        ticks = ticks.saturating_add(u64::from_ne_bytes(elapsed) as u32);
        cells.late_us.set(now.saturating_duration_since(due).as_micros() as u64);
        cells.ticked_us.set(now.saturating_duration_since(proxy.registry.epoch).as_micros() as u64);
        proxy.wheel.advance(now);
        proxy.tick(now);
        crowd.make_room();
        if now - swept >= Duration::from_secs(1) {
            swept = now;
            proxy.set_date();
            proxy.sweep();
        }
    }
}
