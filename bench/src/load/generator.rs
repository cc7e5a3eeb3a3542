//! The generator: many connections in one thread around one epoll, costing as little as it can.
//!
//! It shares a core, and this very thread, with the origin while the system under test has one to itself, so
//! each request costs it one `send`, one `recv` and a share of an `epoll_wait`, and no allocation. It never
//! sleeps: on a virtual machine waking an idle core costs as much as a request, and it would cost the system
//! under test part of that.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::connection::{Connection, Phase, Received};
use super::response::Answer;
use super::{Fault, Faults, Load, Outcome, Pace, Reuse};
use crate::poll::{Events, Poll};

const SCRATCH_BYTES: usize = 256 * 1024;
/// How often timeouts are looked for and failed connections made again.
const TICK: Duration = Duration::from_millis(50);
/// Latencies from a microsecond to ten minutes, to three digits.
const LATENCY_RANGE_NS: (u64, u64) = (1_000, 600_000_000_000);

/// Puts the load on its target and waits for the outcome. `sample` is called at both ends of the measured
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
    generator.drive(start + load.warm_up, &mut beside, |_| false)?;
    let before = sample();
    let from = generator.measure();
    generator.drive(from + load.duration, &mut beside, |_| false)?;
    let elapsed = from.elapsed();
    let answers = generator.answers;
    let after = sample();
    generator.settle(&mut beside)?;
    let Generator { latency_ns, faults, .. } = generator;
    Ok((Outcome { answers, elapsed, latency_ns, faults }, [before, after]))
}

struct Generator<'a> {
    load: &'a Load,
    poll: Poll,
    scratch: Vec<u8>,
    connections: Vec<Connection>,
    /// Connections with nothing to do (open loop only), the longest idle first.
    idle: VecDeque<usize>,
    /// Connections that failed and are tried again at the next tick.
    failed: Vec<usize>,
    tick: Instant,
    schedule: Option<Schedule>,
    measured: Option<(Instant, Instant)>,
    answers: u64,
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
        let mut generator = Generator {
            load,
            poll: Poll::new()?,
            scratch: vec![0; SCRATCH_BYTES],
            connections: (0..load.connections).map(|token| Connection::new(token, start)).collect(),
            idle: VecDeque::with_capacity(load.connections),
            failed: Vec::with_capacity(load.connections),
            tick: start + TICK,
            schedule: match load.pace {
                Pace::Saturating => None,
                Pace::Rate(rate) => Some(Schedule::new(start, rate)),
            },
            measured: None,
            answers: 0,
            latency_ns: Histogram::new_with_bounds(lowest, highest, 3).expect("the bounds are constants"),
            faults: Faults::default(),
        };
        (0..load.connections).for_each(|token| generator.next(token, start));
        Ok(generator)
    }

    /// Begins the measured stretch now.
    fn measure(&mut self) -> Instant {
        let now = Instant::now();
        self.measured = Some((now, now + self.load.duration));
        self.answers = 0;
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
        loop {
            let now = Instant::now();
            if now >= end || done(self) {
                return Ok(());
            }
            if now >= self.tick {
                self.tick(now);
            }
            self.dispatch(now);
            self.poll.wait(&mut events, Duration::ZERO)?;
            for ready in events.iter() {
                if ready.writable {
                    self.writable(ready.token);
                }
                if ready.readable {
                    self.readable(ready.token);
                }
            }
            if !beside() && events.is_empty() {
                // Where there is only one core, the system under test has to come to it too.
                std::thread::yield_now();
            }
        }
    }

    /// Open loop: sends what is due as long as a connection is free.
    fn dispatch(&mut self, now: Instant) {
        while let Some(schedule) = &mut self.schedule {
            let due = schedule.next;
            if due > now || self.measured.is_some_and(|(_, until)| due >= until) {
                return;
            }
            let Some(token) = self.idle.pop_front() else { return };
            schedule.advance();
            self.ask(token, due);
        }
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
        if let Err(fault) = connection.ask(&self.load.request, self.load.target, &self.poll) {
            self.give_up(token, fault);
        }
    }

    /// The connection is free: the closed loop asks again at once, the open loop when the next request is due.
    fn next(&mut self, token: usize, now: Instant) {
        match self.schedule {
            None => self.ask(token, now),
            Some(_) => self.idle.push_back(token),
        }
    }

    fn writable(&mut self, token: usize) {
        let connection = &mut self.connections[token];
        if let Err(fault) = connection.flush(&self.load.request, &self.poll) {
            self.give_up(token, fault);
        }
    }

    fn readable(&mut self, token: usize) {
        let connection = &mut self.connections[token];
        match connection.receive(&mut self.scratch) {
            Received::Nothing => {}
            Received::Answer(answer) => self.answered(token, answer),
            Received::Fault(fault) => self.give_up(token, fault),
            Received::End => {
                let was_ending = connection.phase == Phase::Ending;
                connection.close();
                if was_ending {
                    self.next(token, Instant::now());
                }
            }
        }
    }

    fn answered(&mut self, token: usize, answer: Answer) {
        let now = Instant::now();
        let Load { expect, reuse, .. } = self.load;
        let connection = &mut self.connections[token];
        let due = connection.due;
        match (reuse, answer.close) {
            (Reuse::Keepalive, false) => connection.phase = Phase::Idle,
            (Reuse::Keepalive, true) => connection.close(),
            (Reuse::Fresh, _) => connection.phase = Phase::Ending,
        }
        let asks_next = connection.phase != Phase::Ending;
        self.answers += 1;
        if answer.status != expect.status {
            self.fault(Fault::Status, due);
        } else if answer.body_bytes != expect.body_bytes {
            self.fault(Fault::Short, due);
        } else if self.counts(due, now) {
            self.latency_ns.saturating_record((now - due).as_nanos() as u64);
        }
        if asks_next {
            self.next(token, now);
        }
    }

    fn give_up(&mut self, token: usize, fault: Fault) {
        let connection = &mut self.connections[token];
        let (phase, due) = (connection.phase, connection.due);
        connection.close();
        // An idle connection that breaks has failed nobody, and its place in the idle queue is still good.
        if phase != Phase::Idle {
            self.fault(fault, due);
            self.failed.push(token);
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
