//! The attacks: one table of what is done to a system, and at what rate.
//!
//! A new line here is a new table in the report, once [`Means`] knows how it is done.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use serde::Serialize;

use super::connections::ConnectionFlood;
use super::pace::Pace;
use super::requests::RequestFlood;
use super::rig::Rig;
use super::slow::{Part, SlowClients};
use super::syn::{Sources, SynFlood};

pub struct Attack {
    pub name: &'static str,
    pub title: &'static str,
    pub kind: Kind,
    /// So many of the unit a second: what the generator holds with room to spare.
    pub per_second: f64,
    /// What is counted.
    pub unit: &'static str,
}

#[derive(Clone, Copy)]
pub enum Kind {
    Connections,
    Syn(Sources),
    Requests,
    Slow(Part),
}

pub const ATTACKS: &[Attack] = &[
    Attack {
        name: "connections",
        title: "Connection flood, one source",
        kind: Kind::Connections,
        per_second: 10_000.0,
        unit: "connections",
    },
    Attack {
        name: "syn",
        title: "SYN flood, one source",
        kind: Kind::Syn(Sources::One),
        per_second: 300_000.0,
        unit: "packets",
    },
    Attack {
        name: "spoofed",
        title: "SYN flood, 4 million spoofed sources",
        kind: Kind::Syn(Sources::Many),
        per_second: 300_000.0,
        unit: "packets",
    },
    Attack {
        name: "requests",
        title: "HTTP flood over 50 keepalive connections",
        kind: Kind::Requests,
        per_second: 20_000.0,
        unit: "requests",
    },
    Attack {
        name: "slow-heads",
        title: "Slow clients: heads",
        kind: Kind::Slow(Part::Head),
        per_second: 900.0,
        unit: "connections",
    },
    Attack {
        name: "slow-bodies",
        title: "Slow clients: bodies",
        kind: Kind::Slow(Part::Body),
        per_second: 900.0,
        unit: "connections",
    },
];

/// An attack that is going on, for as long as somebody turns it.
pub struct Assault {
    pace: Pace,
    means: Means,
}

enum Means {
    Connections(ConnectionFlood),
    Syn(Box<SynFlood>),
    Requests(RequestFlood),
    Slow(SlowClients),
}

/// What an attack has come to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Score {
    pub done: u64,
    /// Connections that it holds open; of slow clients only.
    pub held: Option<usize>,
}

impl Assault {
    pub fn new(attack: &Attack, rig: &Rc<Rig>, now: Instant) -> io::Result<Assault> {
        let rig = Rc::clone(rig);
        let means = match attack.kind {
            Kind::Connections => Means::Connections(ConnectionFlood::new(rig)?),
            Kind::Syn(sources) => {
                let (inside, target) = (&rig.attacker.namespace, rig.attacker.target);
                Means::Syn(Box::new(inside.run(|| SynFlood::new(sources, target))??))
            }
            Kind::Requests => Means::Requests(RequestFlood::new(rig, now)?),
            Kind::Slow(part) => Means::Slow(SlowClients::new(rig, part)?),
        };
        Ok(Assault { pace: Pace::new(now, attack.per_second), means })
    }

    /// Does a little of what is due; says whether there was anything.
    ///
    /// # Errors
    /// What the attacker's own side cannot do.
    pub fn turn(&mut self, now: Instant) -> io::Result<bool> {
        let due = self.pace.due(now);
        let done = match &mut self.means {
            Means::Connections(flood) => flood.advance(due, now),
            Means::Syn(flood) => flood.advance(due),
            Means::Requests(flood) => flood.advance(due, now),
            Means::Slow(clients) => clients.advance(due, now),
        };
        self.pace.did(done?);
        Ok(due > 0)
    }

    pub fn score(&self) -> Score {
        let held = match &self.means {
            Means::Slow(clients) => Some(clients.held()),
            Means::Connections(_) | Means::Syn(_) | Means::Requests(_) => None,
        };
        Score { done: self.pace.done(), held }
    }
}
