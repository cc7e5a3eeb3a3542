//! Load: what is sent to a system under test, how fast, and what came of it.
//!
//! `side_by_side` describes a [`Load`] and reads the [`Outcome`]; `generator` does the work. Knows nothing
//! of which system it talks to.

mod connection;
mod generator;
pub mod idle;
pub mod response;

use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;

pub use generator::run;

/// One measured stretch of load.
pub struct Load {
    pub target: SocketAddr,
    /// A whole request, head and body, as it goes over the wire.
    pub request: Vec<u8>,
    pub expect: Expect,
    /// All of them are opened, and have one answer each, before anything is measured.
    pub connections: usize,
    pub active: Active,
    /// Requests that a connection sends at once, without waiting for answers in between.
    pub depth: usize,
    pub pace: Pace,
    pub reuse: Reuse,
    pub warm_up: Duration,
    pub duration: Duration,
    /// How long an answer may take before the connection is given up.
    pub timeout: Duration,
}

/// The only answer that is no fault.
#[derive(Clone, Copy)]
pub struct Expect {
    pub status: u16,
    /// `None` where each server has its own words.
    pub body_bytes: Option<u64>,
}

/// Which of the connections a closed loop asks on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Active {
    All,
    /// So many at any time, always the same ones; the others stay open.
    Same(usize),
    /// So many at any time, each connection in its turn.
    InTurn(usize),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Closed loop: each connection sends its next request as soon as it has its answer.
    Saturating,
    /// Open loop: requests fall due evenly, so many a second, whatever became of those before. Latency counts
    /// from when a request was due, so that a stall is felt by every request that fell due during it.
    Rate(f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    Keepalive,
    /// A new connection for each request, which must ask for `Connection: close`: the server closes first, so
    /// that no local port is kept waiting.
    Fresh,
}

/// What can go wrong with a request, as its client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No connection came about.
    Connect,
    /// An answer of another status than expected.
    Status,
    /// The connection ended, or spoke nonsense, before a byte of an answer.
    Reset,
    /// No whole answer in time, or never sent because no connection came free.
    Timeout,
    /// The answer ended early, or its body was of another length than expected.
    Short,
}

impl Fault {
    pub const ALL: [Fault; 5] = [Fault::Connect, Fault::Status, Fault::Reset, Fault::Timeout, Fault::Short];

    pub fn label(self) -> &'static str {
        match self {
            Fault::Connect => "connect",
            Fault::Status => "status",
            Fault::Reset => "reset",
            Fault::Timeout => "timeout",
            Fault::Short => "short",
        }
    }
}

/// Faults counted by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults([u64; Fault::ALL.len()]);

impl Faults {
    pub fn add(&mut self, fault: Fault, count: u64) {
        self.0[fault as usize] += count;
    }

    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// What came of a [`Load`] between the end of its warm-up and its own end.
pub struct Outcome {
    /// Connections that were open at the end of the stretch.
    pub open: usize,
    /// How long generator and origin had nothing to do.
    pub spare: Duration,
    /// Answers that arrived within the stretch, faulty ones included: what the system worked for.
    pub answers: u64,
    /// How long the stretch was in truth.
    pub elapsed: Duration,
    /// Nanoseconds from a request (open loop: from when it was due) to the last byte of its right answer.
    pub latency_ns: Histogram<u64>,
    pub faults: Faults,
}

impl Outcome {
    pub fn requests_per_second(&self) -> f64 {
        self.answers as f64 / self.elapsed.as_secs_f64()
    }

    pub fn latency_micros(&self, quantile: f64) -> f64 {
        self.latency_ns.value_at_quantile(quantile) as f64 / 1_000.0
    }
}
