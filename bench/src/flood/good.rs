//! The good client: a new connection and one request at fixed instants, whatever became of those before.
//!
//! A stretch turns it beside the attack. Latency counts from when a request was due, so that a stall is felt by
//! every request that fell due during it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddrV4;
use std::ops::Range;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::crowd::{Crowd, Manners};
use crate::load::response::{Answer, Reader};
use crate::load::{Expect, Fault, Faults, Reuse};
use crate::scenario::Exchange;

/// Half of what one source may have.
pub const PER_SECOND: u32 = 200;
/// After this an answer is no answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// A microsecond to ten minutes, to three digits.
const LATENCY_RANGE_NS: (u64, u64) = (1_000, 600_000_000_000);

pub struct GoodClient {
    pub tally: Tally,
    crowd: Crowd<Visit>,
    request: Vec<u8>,
    start: Instant,
    /// What falls due in here counts.
    counted: Range<Instant>,
    /// Of the next visit.
    number: u32,
    out: usize,
    gives_up: VecDeque<(Instant, usize, u32)>,
}

/// What became of the requests that count.
pub struct Tally {
    /// Of right answers.
    latency_ns: Histogram<u64>,
    pub faults: Faults,
}

struct Visit {
    number: u32,
    due: Instant,
    asked: bool,
    reader: Reader,
    /// It has its answer and waits for the server to close, as it asked it to.
    is_over: bool,
}

impl GoodClient {
    /// Belongs to the namespace of the calling thread.
    pub fn new(target: SocketAddrV4, start: Instant, counted: Range<Instant>) -> io::Result<GoodClient> {
        Ok(GoodClient {
            tally: Tally::new(),
            crowd: Crowd::new(target, Manners::Polite)?,
            request: Exchange::Small.request(Reuse::Fresh),
            start,
            counted,
            number: 0,
            out: 0,
            gives_up: VecDeque::new(),
        })
    }

    /// Nobody waits for an answer any more.
    pub fn has_gone(&self) -> bool {
        self.out == 0
    }

    /// Begins what is due and looks after the rest; says whether there was anything.
    pub fn turn(&mut self, now: Instant) -> io::Result<bool> {
        loop {
            let due = self.start + Duration::from_secs(1) * self.number / PER_SECOND;
            if due > now || due >= self.counted.end {
                break;
            }
            let (number, reader) = (self.number, Reader::default());
            let token = self.crowd.connect(Visit { number, due, asked: false, reader, is_over: false })?;
            self.gives_up.push_back((due + PATIENCE, token, number));
            self.number += 1;
            self.out += 1;
        }
        let ready = self.crowd.ready()?;
        let did_something = !ready.is_empty();
        for ready in ready {
            if ready.readable {
                self.read(ready.token);
            } else if self.crowd.send(ready.token, &self.request) {
                self.crowd.only_read(ready.token)?;
                self.crowd.state(ready.token).expect("it was just written to").asked = true;
            } else {
                self.settle(ready.token, Some(Fault::Connect));
                self.crowd.close(ready.token);
            }
        }
        while let Some((_, token, number)) = self.gives_up.pop_front_if(|(when, ..)| *when <= now) {
            if self.crowd.state(token).is_some_and(|visit| visit.number == number) {
                self.settle(token, Some(Fault::Timeout));
                self.crowd.close(token);
            }
        }
        Ok(did_something)
    }

    fn read(&mut self, token: usize) {
        let (heard, has_ended) = match self.crowd.receive(token) {
            Some((visit, mut bytes)) => (visit.reader.feed(&mut bytes).map_err(|_| Fault::Reset), false),
            None => (self.crowd.state(token).map_or(Ok(None), Visit::end), true),
        };
        match heard {
            Ok(None) => {}
            Ok(Some(answer)) => self.settle(token, wrong_with(answer)),
            Err(fault) => self.settle(token, Some(fault)),
        }
        if has_ended {
            self.crowd.close(token);
        }
    }

    /// Enters what became of a visit; once.
    fn settle(&mut self, token: usize, fault: Option<Fault>) {
        let Some(visit) = self.crowd.state(token).filter(|visit| !visit.is_over) else { return };
        visit.is_over = true;
        let due = visit.due;
        self.out -= 1;
        if !self.counted.contains(&due) {
            return;
        }
        match fault {
            Some(fault) => self.tally.faults.add(fault, 1),
            None => self.tally.served(due.elapsed()),
        }
    }
}

impl Visit {
    /// What the end of the connection means.
    fn end(&mut self) -> Result<Option<Answer>, Fault> {
        match (self.asked, self.reader.is_fresh()) {
            (false, _) => Err(Fault::Connect),
            (true, true) => Err(Fault::Reset),
            (true, false) => self.reader.end().map(Some).ok_or(Fault::Short),
        }
    }
}

fn wrong_with(answer: Answer) -> Option<Fault> {
    let Expect { status, body_bytes } = Exchange::Small.expect();
    match answer {
        Answer { status: other, .. } if other != status => Some(Fault::Status),
        Answer { body_bytes: other, .. } if body_bytes.is_some_and(|right| other != right) => {
            Some(Fault::Short)
        }
        Answer { .. } => None,
    }
}

impl Tally {
    fn new() -> Tally {
        let (lowest, highest) = LATENCY_RANGE_NS;
        let latency_ns = Histogram::new_with_bounds(lowest, highest, 3).expect("the bounds are constants");
        Tally { latency_ns, faults: Faults::default() }
    }

    fn served(&mut self, latency: Duration) {
        self.latency_ns.saturating_record(latency.as_nanos() as u64);
    }

    /// Right answers in percent of what fell due.
    pub fn goodput_percent(&self) -> f64 {
        let served = self.latency_ns.len();
        match served + self.faults.total() {
            0 => 0.0,
            due => 100.0 * served as f64 / due as f64,
        }
    }

    /// The latency that so many of the right answers stayed within.
    pub fn micros(&self, quantile: f64) -> f64 {
        self.latency_ns.value_at_quantile(quantile) as f64 / 1_000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::Origin;
    use crate::poll::Events;

    #[test]
    fn a_stall_is_felt_by_every_request_that_fell_due_during_it() {
        let mut origin = Origin::bind().unwrap();
        let std::net::SocketAddr::V4(target) = origin.addr else { panic!("it is on 127.0.0.1") };
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut good = GoodClient::new(target, start, at(100)..at(1_100)).unwrap();
        let (stall, mut events) = (at(400)..at(800), Events::with_capacity(64));
        while Instant::now() < at(1_100) || !good.has_gone() {
            good.turn(Instant::now()).unwrap();
            if !stall.contains(&Instant::now()) {
                origin.turn(&mut events, Duration::ZERO);
            }
            std::thread::yield_now();
        }
        let tally = good.tally;
        assert_eq!((tally.latency_ns.len(), tally.faults.total()), (u64::from(PER_SECOND), 0));
        // 40 of 100 fell due during the stall, evenly: they waited from 400 ms down to nothing.
        assert!(tally.micros(0.5) < 100_000.0, "p50 {}", tally.micros(0.5));
        assert!(tally.micros(0.8) > 150_000.0, "p80 {}", tally.micros(0.8));
        assert!(tally.micros(0.99) > 350_000.0, "p99 {}", tally.micros(0.99));
    }

    #[test]
    fn what_is_never_answered_is_a_timeout() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let std::net::SocketAddr::V4(target) = listener.local_addr().unwrap() else { unreachable!() };
        let start = Instant::now();
        let until = start + Duration::from_millis(100);
        let mut good = GoodClient::new(target, start, start..until).unwrap();
        while Instant::now() < until || !good.has_gone() {
            good.turn(Instant::now()).unwrap();
            std::thread::yield_now();
        }
        assert_eq!(good.tally.faults.of(Fault::Timeout), u64::from(PER_SECOND) / 10);
        assert_eq!(good.tally.goodput_percent(), 0.0);
    }

    #[test]
    fn goodput_is_of_all_that_fell_due() {
        for (served, failed, percent) in [(1_600, 0, 100.0), (1_200, 400, 75.0), (0, 7, 0.0), (0, 0, 0.0)] {
            let mut tally = Tally::new();
            (0..served).for_each(|_| tally.served(Duration::from_micros(100)));
            tally.faults.add(Fault::Timeout, failed);
            assert_eq!(tally.goodput_percent(), percent, "{served} of {}", served + failed);
        }
    }

    #[test]
    fn quantiles_are_of_right_answers_to_three_digits() {
        let mut tally = Tally::new();
        (1..=1_000).for_each(|micros| tally.served(Duration::from_micros(micros)));
        for (quantile, micros) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1_000.0)] {
            let told = tally.micros(quantile);
            assert!((told / micros - 1.0_f64).abs() < 0.001, "{quantile}: {told}");
        }
    }
}
