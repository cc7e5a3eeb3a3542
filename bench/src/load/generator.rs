//! The generator: many connections in one thread around one epoll, costing as little as it can.
//!
//! It shares a core, and this very thread, with the origin while the system under test has one to itself, so
//! each request costs it one `send`, one `recv` and a share of an `epoll_wait`, and no allocation. It counts how
//! long the two have nothing to do: where that is nothing, they are what is measured. It never sleeps: on a virtual machine waking an idle core costs as much as a request, and it would cost the system
//! under test part of that.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::connection::{Connection, Phase, Received};
use super::response::Answer;
use super::{Active, Fault, Faults, Load, Outcome, Pace, Reuse};
use crate::poll::{Events, Poll};

const SCRATCH_BYTES: usize = 256 * 1024;
/// How often timeouts are looked for and failed connections made again.
const TICK: Duration = Duration::from_millis(50);
/// Connections that are being opened at once, and how long opening all of them may take.
const OPENING: usize = 64;
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// Latencies from a microsecond to ten minutes, to three digits.
const LATENCY_RANGE_NS: (u64, u64) = (1_000, 600_000_000_000);

/// Opens the connections, puts the load on its target and waits for the outcome. `sample` is called at both ends of the measured
/// stretch, so that the system's own accounts can be read for exactly that time; `beside` over and over, to do
/// what shares this thread (the origin's turn) and say whether there was anything to do.
///
/// # Errors
/// Only what the generator itself cannot do (no epoll, no descriptors left). What the target does wrong is
/// counted, not returned.
pub fn run<S>(
    load: &Load,
    mut beside: impl FnMut() -> bool,
    mut sample: impl FnMut() -> S,
) -> io::Result<(Outcome, [S; 2])> {
    let start = Instant::now();
    let mut generator = Generator::new(load, start)?;
    generator.drive(start + OPEN_LIMIT, &mut beside, |generator| generator.opened == load.connections)?;
    generator.begin();
    generator.drive(Instant::now() + load.warm_up, &mut beside, |_| false)?;
    let before = sample();
    let from = generator.measure();
    generator.drive(from + load.duration, &mut beside, |_| false)?;
    let elapsed = from.elapsed();
    let (answers, spare) = (generator.answers, generator.spare);
    let open = generator.connections.iter().filter(|connection| connection.is_open()).count();
    let after = sample();
    generator.settle(&mut beside)?;
    let Generator { latency_ns, faults, .. } = generator;
    Ok((Outcome { open, spare, answers, elapsed, latency_ns, faults }, [before, after]))
}

struct Generator<'a> {
    load: &'a Load,
    /// What a connection sends at once.
    requests: Vec<u8>,
    poll: Poll,
    scratch: Vec<u8>,
    arrived: Vec<Answer>,
    connections: Vec<Connection>,
    /// Until all connections are open: how many were begun, and how many have their first answer or failed.
    is_opening: bool,
    begun: usize,
    opened: usize,
    /// Connections with nothing to do, the longest idle first.
    idle: VecDeque<usize>,
    /// Connections that failed and are tried again at the next tick.
    failed: Vec<usize>,
    tick: Instant,
    schedule: Option<Schedule>,
    measured: Option<(Instant, Instant)>,
    answers: u64,
    spare: Duration,
    latency_ns: Histogram<u64>,
    faults: Faults,
}

/// The open loop's instants. One that has passed with no connection free stays next, however late: its
/// request still goes out and its latency still counts from here.
struct Schedule {
    start: Instant,
    interval: Duration,
    number: u32,
    next: Instant,
}

impl Schedule {
    fn new(start: Instant, rate: f64) -> Schedule {
        Schedule { start, interval: Duration::from_secs_f64(1.0 / rate), number: 0, next: start }
    }

    fn advance(&mut self) {
        self.number += 1;
        self.next = self.start + self.interval * self.number;
    }
}

impl<'a> Generator<'a> {
    fn new(load: &'a Load, start: Instant) -> io::Result<Generator<'a>> {
        let (lowest, highest) = LATENCY_RANGE_NS;
        Ok(Generator {
            load,
            requests: load.request.repeat(load.depth),
            poll: Poll::new()?,
            scratch: vec![0; SCRATCH_BYTES],
            arrived: Vec::with_capacity(load.depth),
            connections: (0..load.connections).map(|token| Connection::new(token, start)).collect(),
            is_opening: true,
            begun: 0,
            opened: 0,
            idle: VecDeque::with_capacity(load.connections),
            failed: Vec::with_capacity(load.connections),
            tick: start + TICK,
            schedule: None,
            measured: None,
            answers: 0,
            spare: Duration::ZERO,
            latency_ns: Histogram::new_with_bounds(lowest, highest, 3).expect("the bounds are constants"),
            faults: Faults::default(),
        })
    }

    /// Begins the load itself, now that the connections are there.
    fn begin(&mut self) {
        let now = Instant::now();
        self.is_opening = false;
        match (self.load.pace, self.load.active) {
            (Pace::Rate(rate), _) => self.schedule = Some(Schedule::new(now, rate)),
            (Pace::Saturating, Active::All) => self.ask_on(self.load.connections, now),
            (Pace::Saturating, Active::Same(count) | Active::InTurn(count)) => self.ask_on(count, now),
        }
    }

    fn ask_on(&mut self, count: usize, now: Instant) {
        let tokens: Vec<usize> = self.idle.drain(..count.min(self.idle.len())).collect();
        tokens.into_iter().for_each(|token| self.ask(token, now));
    }

    /// Begins the measured stretch now.
    fn measure(&mut self) -> Instant {
        let now = Instant::now();
        self.measured = Some((now, now + self.load.duration));
        self.answers = 0;
        self.spare = Duration::ZERO;
        self.faults = Faults::default();
        self.latency_ns.reset();
        now
    }

    /// Runs the loop until `end`, or until `done` says so.
    fn drive(
        &mut self,
        end: Instant,
        beside: &mut impl FnMut() -> bool,
        done: impl Fn(&Self) -> bool,
    ) -> io::Result<()> {
        let mut events = Events::with_capacity(self.connections.len().clamp(1, 1024));
        let mut idle_since = None;
        loop {
            let now = Instant::now();
            if let Some(since) = idle_since.take() {
                self.spare += now - since;
            }
            if now >= end || done(self) {
                return Ok(());
            }
            if now >= self.tick {
                self.tick(now);
            }
            let dispatched = self.dispatch(now);
            self.poll.wait(&mut events, Duration::ZERO)?;
            for ready in events.iter() {
                if ready.writable {
                    self.writable(ready.token);
                }
                if ready.readable {
                    self.readable(ready.token);
                }
            }
            if !beside() && !dispatched && events.is_empty() {
                idle_since = Some(now);
                // Where there is only one core, the system under test has to come to it too.
                std::thread::yield_now();
            }
        }
    }

    /// Sends what is to be sent now, and says whether that was anything. While connections are opened: a first
    /// request on the next ones. Open loop: what is due, as long as a connection is free.
    fn dispatch(&mut self, now: Instant) -> bool {
        let mut any = false;
        while self.is_opening && self.begun < self.connections.len() && self.begun - self.opened < OPENING {
            self.begun += 1;
            self.ask(self.begun - 1, now);
            any = true;
        }
        while let Some(schedule) = &mut self.schedule {
            let due = schedule.next;
            if due > now || self.measured.is_some_and(|(_, until)| due >= until) {
                return any;
            }
            let Some(token) = self.idle.pop_front() else { return any };
            schedule.advance();
            self.ask(token, due);
            any = true;
        }
        any
    }

    /// Waits for the open loop's requests that are still out; what does not come in time is a timeout.
    fn settle(&mut self, beside: &mut impl FnMut() -> bool) -> io::Result<()> {
        let (Some((_, until)), true) = (self.measured, self.schedule.is_some()) else { return Ok(()) };
        let everything = |g: &Self| {
            let sent = g.schedule.as_ref().is_none_or(|schedule| schedule.next >= until);
            sent && g.connections.iter().all(|connection| connection.phase != Phase::Asking)
        };
        self.drive(Instant::now() + self.load.timeout, beside, everything)?;
        let out = self.connections.iter().filter(|connection| connection.phase == Phase::Asking);
        let out = out.filter(|connection| self.counts(connection.due, until)).count() as u64;
        self.faults.add(Fault::Timeout, out);
        while let Some(schedule) = self.schedule.as_mut().filter(|schedule| schedule.next < until) {
            let due = schedule.next;
            schedule.advance();
            self.fault(Fault::Timeout, due);
        }
        Ok(())
    }

    fn ask(&mut self, token: usize, due: Instant) {
        let connection = &mut self.connections[token];
        connection.due = due;
        connection.asked = if self.schedule.is_some() { Instant::now() } else { due };
        if let Err(fault) = connection.ask(&self.requests, self.load.depth, self.load.target, &self.poll) {
            self.give_up(token, fault);
        }
    }

    /// The connection is free: the closed loop asks again at once, the open loop when the next request is due.
    fn next(&mut self, token: usize, now: Instant) {
        if self.is_opening {
            self.opened += 1;
            self.idle.push_back(token);
            return;
        }
        match (self.load.pace, self.load.active) {
            (Pace::Rate(_), _) => self.idle.push_back(token),
            (Pace::Saturating, Active::All | Active::Same(_)) => self.ask(token, now),
            (Pace::Saturating, Active::InTurn(_)) => {
                self.idle.push_back(token);
                self.ask_on(1, now);
            }
        }
    }

    fn writable(&mut self, token: usize) {
        let connection = &mut self.connections[token];
        if let Err(fault) = connection.flush(&self.requests, &self.poll) {
            self.give_up(token, fault);
        }
    }

    fn readable(&mut self, token: usize) {
        let mut arrived = std::mem::take(&mut self.arrived);
        let received = self.connections[token].receive(&mut self.scratch, &mut arrived);
        let close = arrived.last().is_some_and(|answer| answer.close);
        let now = Instant::now();
        for answer in arrived.drain(..) {
            self.answered(token, answer, now);
        }
        self.arrived = arrived;
        let connection = &mut self.connections[token];
        match received {
            Received::Part => {}
            Received::All => {
                match (self.load.reuse, close) {
                    (Reuse::Keepalive, false) => connection.phase = Phase::Idle,
                    (Reuse::Keepalive, true) => connection.close(),
                    (Reuse::Fresh, _) => connection.phase = Phase::Ending,
                }
                if connection.phase != Phase::Ending {
                    self.next(token, now);
                }
            }
            Received::Fault(fault) => self.give_up(token, fault),
            Received::End => {
                let was_ending = connection.phase == Phase::Ending;
                connection.close();
                if was_ending {
                    self.next(token, now);
                }
            }
        }
    }

    fn answered(&mut self, token: usize, answer: Answer, now: Instant) {
        let (due, expect) = (self.connections[token].due, self.load.expect);
        // The last turn of the loop may end after the stretch: what it brings belongs to nobody.
        self.answers += u64::from(self.measured.is_some_and(|(_, until)| now < until));
        if answer.status != expect.status {
            self.fault(Fault::Status, due);
        } else if expect.body_bytes.is_some_and(|bytes| bytes != answer.body_bytes) {
            self.fault(Fault::Short, due);
        } else if self.counts(due, now) {
            self.latency_ns.saturating_record((now - due).as_nanos() as u64);
        }
    }

    fn give_up(&mut self, token: usize, fault: Fault) {
        let connection = &mut self.connections[token];
        let (phase, due) = (connection.phase, connection.due);
        connection.close();
        // An idle connection that breaks has failed nobody, and its place in the idle queue is still good.
        if phase == Phase::Idle {
            return;
        }
        self.fault(fault, due);
        match self.is_opening {
            // It is opened when its turn to ask comes.
            true => self.next(token, due),
            false => self.failed.push(token),
        }
    }

    fn fault(&mut self, fault: Fault, due: Instant) {
        if self.counts(due, Instant::now()) {
            self.faults.add(fault, 1);
        }
    }

    /// Whether a request belongs to the measured stretch: the closed loop's by when it ends, the open loop's by
    /// when it was due, since those that end late are the ones it is about.
    fn counts(&self, due: Instant, ended: Instant) -> bool {
        let when = if self.schedule.is_some() { due } else { ended };
        self.measured.is_some_and(|(from, until)| from <= when && when < until)
    }

    fn tick(&mut self, now: Instant) {
        self.tick = now + TICK;
        for token in 0..self.connections.len() {
            let connection = &self.connections[token];
            let waits = matches!(connection.phase, Phase::Asking | Phase::Ending);
            if waits && now.saturating_duration_since(connection.asked) > self.load.timeout {
                self.give_up(token, Fault::Timeout);
            }
        }
        for token in std::mem::take(&mut self.failed) {
            self.next(token, now);
        }
    }
}
