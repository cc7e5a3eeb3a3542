//! Overload: five times what the origin can serve, and how much of it still comes to a right answer in time.
//!
//! `main` asks for it. The origin serves one request after the other and works off whatever it has read, as a
//! database does. Each system is configured as for the other scenarios, so as it comes.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memchr::memmem;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, listen, recv, send};

use crate::load::{self, Active, Expect, Fault, Load, Outcome, Pace, Reuse};
use crate::machine::Cores;
use crate::poll::{Events, Interest, Poll};
use crate::scenario::Exchange;
use crate::system::{Contender, Programs, Running, Setup, System};

/// How long the origin takes for each request: 500 a second, so that no system is short of its own processor.
const SERVICE: Duration = Duration::from_millis(2);
const TIMES_CAPACITY: f64 = 5.0;
/// In a closed loop, for the peak: enough that the origin is never idle.
const PEAK_CONNECTIONS: usize = 32;
const CONNECTIONS: usize = 2_000;
/// What comes later is of no use to whoever asked.
const USEFUL: Duration = Duration::from_secs(1);
const WARM_UP: Duration = Duration::from_secs(2);
const DURATION: Duration = Duration::from_secs(4);
const SYSTEMS: [System; 3] = [System::Nginx, System::Gateway, System::Envoy];

/// One system's figures of one round.
struct Figures {
    peak: f64,
    goodput: f64,
    p99_ms: f64,
    refused: f64,
    failed: f64,
}

/// Puts the load on each system in turn, and prints the medians.
///
/// # Errors
/// A system that does not start, or what the generator itself cannot do.
pub fn run(programs: &Programs, cores: Cores, rounds: usize) -> anyhow::Result<()> {
    let mut all: Vec<(System, Vec<Figures>)> = Vec::new();
    for system in SYSTEMS.into_iter().filter(|system| programs.has(*system)) {
        all.push((system, Vec::new()));
    }
    for _ in 0..rounds {
        for (system, figures) in &mut all {
            // A new origin each time: what one system has left in its queue is not the next one's.
            let origin = Origin::start()?;
            let contender = Contender { system: *system, setup: Setup::Plain };
            let request = Exchange::Small.request(Reuse::Keepalive);
            let running = Running::start(contender, programs, origin.addr, cores.system, &request)?;
            figures.push(measure(&running)?);
            eprint!(".");
        }
    }
    eprintln!();
    println!(
        "| at {TIMES_CAPACITY} × capacity | peak a second | goodput a second | of its peak | p99 of right answers, ms | refused a second | failed or too late a second |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|");
    for (system, figures) in &all {
        let median = |read: fn(&Figures) -> f64| median(figures.iter().map(read).collect());
        let (peak, goodput) = (median(|of| of.peak), median(|of| of.goodput));
        println!(
            "| {} | {peak:.0} | {goodput:.0} | {:.0} % | {:.0} | {:.0} | {:.0} |",
            system.name(),
            100.0 * goodput / peak,
            median(|of| of.p99_ms),
            median(|of| of.refused),
            median(|of| of.failed),
        );
    }
    Ok(())
}

fn measure(running: &Running) -> io::Result<Figures> {
    let peak = put_load(running, PEAK_CONNECTIONS, Pace::Saturating)?;
    let capacity = 1.0 / SERVICE.as_secs_f64();
    let outcome = put_load(running, CONNECTIONS, Pace::Rate(TIMES_CAPACITY * capacity))?;
    let seconds = DURATION.as_secs_f64();
    let (refused, goodput) = (outcome.faults.of(Fault::Status) as f64 / seconds, useful(&outcome));
    Ok(Figures {
        peak: useful(&peak),
        goodput,
        p99_ms: outcome.latency_micros(0.99) / 1e3,
        refused,
        failed: TIMES_CAPACITY * capacity - goodput - refused,
    })
}

fn put_load(running: &Running, connections: usize, pace: Pace) -> io::Result<Outcome> {
    let load = Load {
        target: running.target,
        request: Exchange::Small.request(Reuse::Keepalive),
        expect: Expect { status: 200, body_bytes: None },
        connections,
        active: Active::All,
        depth: 1,
        pace,
        reuse: Reuse::Keepalive,
        warm_up: WARM_UP,
        duration: DURATION,
        timeout: 2 * USEFUL,
    };
    let (outcome, _) = load::run(&load, || false, || ())?;
    Ok(outcome)
}

/// Right answers in time, a second.
fn useful(outcome: &Outcome) -> f64 {
    let within = outcome
        .latency_ns
        .iter_recorded()
        .filter(|value| Duration::from_nanos(value.value_iterated_to()) <= USEFUL);
    within.map(|value| value.count_at_value()).sum::<u64>() as f64 / outcome.elapsed.as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// A server of one request at a time, on a thread of its own.
struct Origin {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// What serves.
struct Server {
    listener: OwnedFd,
    poll: Poll,
    connections: Vec<Option<OwnedFd>>,
    /// Connections by their requests, first come, first served.
    queue: VecDeque<usize>,
    /// When the request under way is done.
    free: Instant,
}

const LISTENER: usize = usize::MAX;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

impl Origin {
    fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        listen(&listener, 4_096)?;
        let (addr, stop) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let poll = Poll::new()?;
        poll.add(&listener, LISTENER, Interest::Read)?;
        let listener = OwnedFd::from(listener);
        let server =
            Server { listener, poll, connections: Vec::new(), queue: VecDeque::new(), free: Instant::now() };
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || server.serve(&stopped));
        Ok(Self { addr, stop, thread: Some(thread) })
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(error)) = self.thread.take().and_then(|thread| thread.join().ok()) {
            eprintln!("the origin: {error}");
        }
    }
}

impl Server {
    fn serve(mut self, stop: &AtomicBool) -> io::Result<()> {
        const LONGEST_WAIT: Duration = Duration::from_millis(20);
        let mut events = Events::with_capacity(1024);
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            let wait =
                if self.queue.is_empty() { LONGEST_WAIT } else { self.free.saturating_duration_since(now) };
            self.poll.wait(&mut events, wait)?;
            for ready in events.iter() {
                match ready.token {
                    LISTENER => self.accept()?,
                    token => self.read(token),
                }
            }
            self.answer();
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        while let Ok(socket) = accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            self.poll.add(&socket, self.connections.len(), Interest::Read)?;
            self.connections.push(Some(socket));
        }
        Ok(())
    }

    /// Takes in requests, none of which has a body.
    fn read(&mut self, token: usize) {
        let mut scratch = [0; 64 * 1024];
        let Some(socket) = &self.connections[token] else { return };
        match recv(socket, &mut scratch, RecvFlags::empty()) {
            Ok((0, _)) => self.connections[token] = None,
            Ok((bytes, _)) => {
                let ends = memmem::find_iter(&scratch[..bytes], b"\r\n\r\n").count();
                if self.queue.is_empty() {
                    self.free = self.free.max(Instant::now()) + SERVICE;
                }
                self.queue.extend(std::iter::repeat_n(token, ends));
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.connections[token] = None,
        }
    }

    /// Answers whatever is done; also whom nobody waits for any more has cost its time.
    fn answer(&mut self) {
        while self.free <= Instant::now()
            && let Some(token) = self.queue.pop_front()
        {
            if let Some(socket) = &self.connections[token] {
                let _ = send(socket, ANSWER, SendFlags::NOSIGNAL);
            }
            if !self.queue.is_empty() {
                self.free += SERVICE;
            }
        }
    }
}
