//! Scenarios: the one table of what is measured. A new line here is a new table in the report; what a system needs
//! for it stands in its file in `bench/peers`.

use std::fmt::Write as _;

use crate::load::{Active, Expect, Pace, Reuse};
use crate::metric::Metric;
use crate::origin::SMALL_BODY_BYTES;
use crate::system::contender::MIDDLE_ROUTE;
use crate::system::{Contender, REFERENCE, Setup, System};

/// What every contender is put through in turn.
pub struct Scenario {
    pub name: &'static str,
    pub title: &'static str,
    pub kind: Kind,
    pub contenders: &'static [Contender],
    pub against: Against,
}

/// What a contender's figures are divided by.
#[derive(Clone, Copy)]
pub enum Against {
    /// The reference system in the same setup.
    Reference,
    /// The same system in another setup.
    Setup(Setup),
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
    pub active: Active,
    pub depth: usize,
    pub rate: Rate,
    pub reuse: Reuse,
    /// The configuration is changed twice in each measured stretch.
    pub reloads: bool,
}

/// What is asked and answered.
#[derive(Clone, Copy)]
pub enum Exchange {
    Small,
    /// Through the route in the middle of many.
    Routed,
    Download {
        bytes: u64,
    },
    /// What a cache may keep.
    Cached {
        bytes: u64,
    },
    Upload {
        bytes: u64,
    },
    /// Refused by a limit.
    Refused,
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

const fn of(system: System, setup: Setup) -> Contender {
    Contender { system, setup }
}

const fn plain(system: System) -> Contender {
    of(system, Setup::Plain)
}

const DIRECT: Contender = plain(System::Direct);
const FEW: Setup = Setup::Routes(10);
const MANY: Setup = Setup::Routes(10_000);

const ALL: &[Contender] = &[
    DIRECT,
    plain(System::Nginx),
    plain(System::Gateway),
    plain(System::Haproxy),
    plain(System::Envoy),
    plain(System::Caddy),
    plain(System::Varnish),
];
/// Without the bare generator, which would have both ends of 10,000 connections.
const PROXIES: &[Contender] = &[
    plain(System::Nginx),
    plain(System::Gateway),
    plain(System::Haproxy),
    plain(System::Envoy),
    plain(System::Caddy),
    plain(System::Varnish),
];
/// Those that can do the rate; the others would only show that they cannot.
const FASTEST: &[Contender] = &[DIRECT, plain(System::Nginx), plain(System::Gateway), plain(System::Haproxy)];
const HEADLINERS: &[Contender] =
    &[DIRECT, plain(System::Nginx), plain(System::Gateway), plain(System::Haproxy), plain(System::Envoy)];
/// Those that have a way of finding a route among thousands without trying them one by one.
const ROUTERS: &[Contender] = &[
    of(System::Nginx, FEW),
    of(System::Nginx, MANY),
    of(System::Gateway, FEW),
    of(System::Gateway, MANY),
    of(System::Haproxy, FEW),
    of(System::Haproxy, MANY),
    of(System::Envoy, FEW),
    of(System::Envoy, MANY),
];
const ROUTERS_START: &[Contender] =
    &[of(System::Nginx, MANY), of(System::Gateway, MANY), of(System::Haproxy, MANY), of(System::Envoy, MANY)];
const LIMITERS: &[Contender] = &[
    plain(System::Nginx),
    of(System::Nginx, Setup::Limit),
    plain(System::Gateway),
    of(System::Gateway, Setup::Limit),
    plain(System::Haproxy),
    of(System::Haproxy, Setup::Limit),
    plain(System::Envoy),
    of(System::Envoy, Setup::Limit),
];
const LOGGERS: &[Contender] = &[
    plain(System::Nginx),
    of(System::Nginx, Setup::AccessLog),
    plain(System::Gateway),
    of(System::Gateway, Setup::AccessLog),
];
const REFUSERS: &[Contender] = &[
    of(System::Nginx, Setup::Refuse),
    of(System::Gateway, Setup::Refuse),
    of(System::Haproxy, Setup::Refuse),
    of(System::Envoy, Setup::Refuse),
];
const SHARERS: &[Contender] = &[of(System::Gateway, Setup::Limit), of(System::Gateway, Setup::Shared)];
const FAR_SHARERS: &[Contender] = &[
    of(System::Gateway, Setup::Limit),
    of(System::Gateway, Setup::Shared),
    of(System::Gateway, Setup::SharedFar),
];
const CACHES: &[Contender] = &[
    of(System::Nginx, Setup::Cache),
    of(System::Gateway, Setup::Cache),
    of(System::Haproxy, Setup::Cache),
    of(System::Varnish, Setup::Cache),
];
const RELOADERS: &[Contender] = &[
    of(System::Nginx, Setup::Reload),
    of(System::Gateway, Setup::Reload),
    of(System::Haproxy, Setup::Reload),
];

/// Small answers on 64 keepalive connections as fast as they come: what the others vary.
const SMALL: Shape = Shape {
    exchange: Exchange::Small,
    connections: 64,
    active: Active::All,
    depth: 1,
    rate: Rate::Saturating,
    reuse: Reuse::Keepalive,
    reloads: false,
};

const fn load(
    name: &'static str,
    title: &'static str,
    contenders: &'static [Contender],
    shape: Shape,
) -> Scenario {
    Scenario { name, title, kind: Kind::Load(shape), contenders, against: Against::Reference }
}

pub const SCENARIOS: &[Scenario] = &[
    load(CAPACITY, "Small answers, 64 keepalive connections, saturating", ALL, SMALL),
    load(
        "fixed-50",
        "Small answers at 50 % of the reference's capacity, open loop",
        FASTEST,
        Shape { rate: Rate::OfCapacity(0.5), ..SMALL },
    ),
    load(
        "fixed-80",
        "Small answers at 80 % of the reference's capacity, open loop",
        FASTEST,
        Shape { rate: Rate::OfCapacity(0.8), ..SMALL },
    ),
    load(
        HEADLINE,
        "Small answers at 12,500 a second for the one core (50,000 on four), open loop",
        HEADLINERS,
        Shape { rate: Rate::PerCore(HEADLINE_PER_CORE), ..SMALL },
    ),
    load(
        "keepalive-1k",
        "Small answers, 1,000 keepalive connections, saturating",
        ALL,
        Shape { connections: 1_000, ..SMALL },
    ),
    load(
        "keepalive-10k",
        "Small answers, 10,000 keepalive connections of which the same 100 ask, saturating",
        PROXIES,
        Shape { connections: 10_000, active: Active::Same(100), ..SMALL },
    ),
    load(
        "keepalive-10k-turns",
        "Small answers, 10,000 keepalive connections of which 100 ask at any time, each in its turn, saturating",
        PROXIES,
        Shape { connections: 10_000, active: Active::InTurn(100), ..SMALL },
    ),
    load(
        "pipelined",
        "Small answers, 16 requests at once on each of 64 keepalive connections, saturating",
        ALL,
        Shape { depth: 16, ..SMALL },
    ),
    load(
        "body-16k",
        "16 KiB answers, 64 keepalive connections, saturating",
        ALL,
        Shape { exchange: Exchange::Download { bytes: 16 << 10 }, ..SMALL },
    ),
    load(
        "body-1m",
        "1 MiB answers, 16 keepalive connections, saturating",
        ALL,
        Shape { exchange: Exchange::Download { bytes: 1 << 20 }, connections: 16, ..SMALL },
    ),
    load(
        "upload-1m",
        "1 MiB uploads, 16 keepalive connections, saturating",
        ALL,
        Shape { exchange: Exchange::Upload { bytes: 1 << 20 }, connections: 16, ..SMALL },
    ),
    load(
        "connect",
        "A new connection for each small answer, 64 at a time, saturating",
        ALL,
        Shape { reuse: Reuse::Fresh, ..SMALL },
    ),
    Scenario {
        against: Against::Setup(FEW),
        ..load(
            "routes",
            "Small answers through one of 10 and one of 10,000 routes, saturating",
            ROUTERS,
            Shape { exchange: Exchange::Routed, ..SMALL },
        )
    },
    Scenario {
        against: Against::Setup(Setup::Plain),
        ..load("limit-on", "Small answers with and without a limit on the route, saturating", LIMITERS, SMALL)
    },
    Scenario {
        against: Against::Setup(Setup::Plain),
        ..load(
            "access-log",
            "Small answers with and without a line in a JSON log, saturating",
            LOGGERS,
            SMALL,
        )
    },
    Scenario {
        against: Against::Setup(Setup::Limit),
        ..load(
            "limit-shared",
            "Small answers under a limit of one gateway, and of several by leases, saturating",
            SHARERS,
            SMALL,
        )
    },
    Scenario {
        against: Against::Setup(Setup::Limit),
        ..load(
            "store-5ms",
            "Small answers at 50 % of the reference's capacity, open loop, with a store at hand and one 5 ms away",
            FAR_SHARERS,
            Shape { rate: Rate::OfCapacity(0.5), ..SMALL },
        )
    },
    load(
        "refusal-429",
        "Requests past their limit, answered with 429, saturating",
        REFUSERS,
        Shape { exchange: Exchange::Refused, ..SMALL },
    ),
    load(
        "cache-hit",
        "Small answers from the cache, saturating",
        CACHES,
        Shape { exchange: Exchange::Cached { bytes: SMALL_BODY_BYTES }, ..SMALL },
    ),
    load(
        "cache-hit-1m",
        "1 MiB answers from the cache, 16 keepalive connections, saturating",
        CACHES,
        Shape { exchange: Exchange::Cached { bytes: 1 << 20 }, connections: 16, ..SMALL },
    ),
    load(
        "reload",
        "Small answers at 50 % of the reference's capacity, open loop, while the configuration changes twice a round",
        RELOADERS,
        Shape { rate: Rate::OfCapacity(0.5), reloads: true, ..SMALL },
    ),
    Scenario {
        name: "idle-10k",
        title: "10,000 idle keepalive connections",
        kind: Kind::Idle { connections: 10_000 },
        contenders: PROXIES,
        against: Against::Reference,
    },
    Scenario {
        name: "start",
        title: "Start to first answer",
        kind: Kind::Start,
        contenders: PROXIES,
        against: Against::Reference,
    },
    Scenario {
        name: "start-10k-routes",
        title: "Start to first answer with 10,000 routes",
        kind: Kind::Start,
        contenders: ROUTERS_START,
        against: Against::Reference,
    },
];

impl Scenario {
    /// The contender that another one's figures are divided by.
    pub fn baseline(&self, contender: Contender) -> Contender {
        match self.against {
            Against::Reference => Contender { system: REFERENCE, ..contender },
            Against::Setup(setup) => Contender { setup, ..contender },
        }
    }
}

impl Against {
    pub fn label(self) -> String {
        match self {
            Against::Reference => REFERENCE.name().into(),
            Against::Setup(setup) => format!("own {}", setup.label()),
        }
    }
}

impl Kind {
    /// The metric in which contenders are compared.
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

    /// Whether the origin is asked for less than every answer.
    pub fn spares_the_origin(&self) -> bool {
        matches!(self.exchange, Exchange::Cached { .. } | Exchange::Refused)
    }
}

impl Exchange {
    pub fn expect(self) -> Expect {
        let (status, body_bytes) = match self {
            Exchange::Small | Exchange::Routed | Exchange::Upload { .. } => (200, Some(SMALL_BODY_BYTES)),
            Exchange::Download { bytes } | Exchange::Cached { bytes } => (200, Some(bytes)),
            Exchange::Refused => (429, None),
        };
        Expect { status, body_bytes }
    }

    /// The bytes of the request, of about the size that a browserless client sends.
    pub fn request(self, reuse: Reuse) -> Vec<u8> {
        let (method, path, upload) = match self {
            Exchange::Small | Exchange::Refused => ("GET", "/api/users".to_owned(), None),
            Exchange::Routed => ("GET", format!("/route-{MIDDLE_ROUTE}/users"), None),
            Exchange::Download { bytes } => ("GET", format!("/bytes/{bytes}"), None),
            Exchange::Cached { bytes } => ("GET", format!("/cached/{bytes}"), None),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_has_somebody_to_be_divided_by() {
        for scenario in SCENARIOS {
            for contender in scenario.contenders {
                let baseline = scenario.baseline(*contender);
                assert!(scenario.contenders.contains(&baseline), "{}: {contender:?}", scenario.name);
            }
        }
    }

    #[test]
    fn names_are_told_apart() {
        for (at, scenario) in SCENARIOS.iter().enumerate() {
            assert!(SCENARIOS[at + 1..].iter().all(|other| other.name != scenario.name), "{}", scenario.name);
        }
    }
}
