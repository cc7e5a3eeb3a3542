//! Scenarios: the one table of what is measured. A new line here is a new table in the report.

use std::fmt::Write as _;

use crate::load::{Expect, Pace, Reuse};
use crate::metric::Metric;
use crate::origin::SMALL_BODY_BYTES;

/// What every system is put through in turn.
pub struct Scenario {
    pub name: &'static str,
    pub title: &'static str,
    pub kind: Kind,
}

pub enum Kind {
    Load(Shape),
    /// Memory for each connection that is open and quiet.
    Idle {
        connections: usize,
    },
    /// From the start of the process to its first answer.
    Start,
}

/// Load, before it is known where it goes and how long it lasts.
pub struct Shape {
    pub exchange: Exchange,
    pub connections: usize,
    pub rate: Rate,
    pub reuse: Reuse,
}

/// What is asked and answered.
#[derive(Clone, Copy)]
pub enum Exchange {
    Small,
    Download { bytes: u64 },
    Upload { bytes: u64 },
}

#[derive(Clone, Copy, PartialEq)]
pub enum Rate {
    Saturating,
    /// A share of what the reference system reaches in the first scenario, in the same run.
    OfCapacity(f64),
    /// Requests a second for each core that a system has.
    PerCore(f64),
}

/// The scenario whose throughput on the reference system is the capacity that others take a share of.
pub const CAPACITY: &str = "small";
/// The scenario that the headline lines are read from.
pub const HEADLINE: &str = "headline";
/// 50,000 requests a second on 4 cores.
pub const HEADLINE_PER_CORE: f64 = 12_500.0;

const fn load(exchange: Exchange, rate: Rate, connections: usize, reuse: Reuse) -> Kind {
    Kind::Load(Shape { exchange, connections, rate, reuse })
}

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: CAPACITY,
        title: "Small answers, 64 keepalive connections, saturating",
        kind: load(Exchange::Small, Rate::Saturating, 64, Reuse::Keepalive),
    },
    Scenario {
        name: "fixed-50",
        title: "Small answers at 50 % of the reference's capacity, open loop",
        kind: load(Exchange::Small, Rate::OfCapacity(0.5), 64, Reuse::Keepalive),
    },
    Scenario {
        name: "fixed-80",
        title: "Small answers at 80 % of the reference's capacity, open loop",
        kind: load(Exchange::Small, Rate::OfCapacity(0.8), 64, Reuse::Keepalive),
    },
    Scenario {
        name: HEADLINE,
        title: "Small answers at 12,500 a second for the one core (50,000 on four), open loop",
        kind: load(Exchange::Small, Rate::PerCore(HEADLINE_PER_CORE), 64, Reuse::Keepalive),
    },
    Scenario {
        name: "body-16k",
        title: "16 KiB answers, 64 keepalive connections, saturating",
        kind: load(Exchange::Download { bytes: 16 << 10 }, Rate::Saturating, 64, Reuse::Keepalive),
    },
    Scenario {
        name: "body-1m",
        title: "1 MiB answers, 16 keepalive connections, saturating",
        kind: load(Exchange::Download { bytes: 1 << 20 }, Rate::Saturating, 16, Reuse::Keepalive),
    },
    Scenario {
        name: "upload-1m",
        title: "1 MiB uploads, 16 keepalive connections, saturating",
        kind: load(Exchange::Upload { bytes: 1 << 20 }, Rate::Saturating, 16, Reuse::Keepalive),
    },
    Scenario {
        name: "connect",
        title: "A new connection for each small answer, 64 at a time, saturating",
        kind: load(Exchange::Small, Rate::Saturating, 64, Reuse::Fresh),
    },
    Scenario {
        name: "idle-10k",
        title: "10,000 idle keepalive connections",
        kind: Kind::Idle { connections: 10_000 },
    },
    Scenario { name: "start", title: "Start to first answer", kind: Kind::Start },
];

impl Kind {
    /// The metric in which systems are compared with the reference.
    pub fn compares(&self) -> Metric {
        match self {
            Kind::Load(_) => Metric::CpuMicrosPerRequest,
            Kind::Idle { .. } => Metric::IdleConnectionKib,
            Kind::Start => Metric::StartMillis,
        }
    }
}

impl Shape {
    pub fn pace(&self, capacity: f64) -> Pace {
        match self.rate {
            Rate::Saturating => Pace::Saturating,
            Rate::OfCapacity(share) => Pace::Rate(share * capacity),
            Rate::PerCore(rate) => Pace::Rate(rate),
        }
    }
}

impl Exchange {
    pub fn expect(self) -> Expect {
        match self {
            Exchange::Small | Exchange::Upload { .. } => Expect { status: 200, body_bytes: SMALL_BODY_BYTES },
            Exchange::Download { bytes } => Expect { status: 200, body_bytes: bytes },
        }
    }

    /// The bytes of the request, of about the size that a browserless client sends.
    pub fn request(self, reuse: Reuse) -> Vec<u8> {
        let (method, path, upload) = match self {
            Exchange::Small => ("GET", "/api/users".to_owned(), None),
            Exchange::Download { bytes } => ("GET", format!("/bytes/{bytes}"), None),
            Exchange::Upload { bytes } => ("POST", "/api/users".to_owned(), Some(bytes)),
        };
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: bench.test\r\nUser-Agent: bench\r\nAccept: */*\r\n");
        if let Some(bytes) = upload {
            write!(head, "Content-Length: {bytes}\r\n").expect("a String takes everything");
        }
        match reuse {
            Reuse::Keepalive => {}
            Reuse::Fresh => head.push_str("Connection: close\r\n"),
        }
        head.push_str("\r\n");
        let mut request = head.into_bytes();
        request.resize(request.len() + upload.unwrap_or(0) as usize, b'x');
        request
    }
}
