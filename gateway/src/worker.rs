//! A worker: one thread, one single-threaded runtime, its own listeners and upstream connections.

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::downstream::listener;
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
    /// Turns true once: accept no more, finish what is under way.
    pub drain: watch::Receiver<bool>,
}

impl Worker {
    /// Starts the thread; it ends when it has drained, or after the drain timeout.
    pub fn start(self) -> io::Result<JoinHandle<io::Result<()>>> {
        std::thread::Builder::new().name(format!("worker-{}", self.index)).spawn(|| {
            let mut runtime = Builder::new_current_thread();
            let runtime = runtime.enable_all().build_local(LocalOptions::default())?;
            runtime.block_on(self.run())
        })
    }

    async fn run(self) -> io::Result<()> {
        let wheel = Wheel::new(Instant::now());
        let proxy = Rc::new(Proxy::new(self.index, self.current, self.registry, wheel));
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        tokio::task::spawn_local(tick(proxy.clone()));
        let mut drain = self.drain.clone();
        listener::accept(proxy.clone(), listener, self.drain).await;

        let _ = drain.wait_for(|draining| *draining).await;
        proxy.draining.set(true);
        proxy.wheel.wake_all();
        let deadline = Instant::now() + proxy.local().snapshot.config.timeouts.drain;
        let open = &proxy.registry.workers[self.index].open;
        while open.get() > 0 && Instant::now() < deadline {
            tokio::time::sleep(TICK).await;
        }
        if open.get() > 0 {
            tracing::warn!(connections = open.get(), "drain timeout passed; closing what is left");
        }
        Ok(())
    }
}

/// Moves the worker's clock; once a second it looks after what nobody else polls.
async fn tick(proxy: Rc<Proxy>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut swept = Instant::now();
    loop {
        interval.tick().await;
        let now = Instant::now();
        proxy.wheel.advance(now);
        if now - swept >= Duration::from_secs(1) {
            swept = now;
            proxy.set_date();
            proxy.sweep();
        }
    }
}
