//! The judgement once more, in plain safe Rust over slices: what the differential test holds against the
//! kernel half. It shares with it the verdicts and nothing else.

use std::collections::{HashMap, HashSet};
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use gateway::config::{Kernel, Listed};
use gateway::datapath::Entry;
use gateway_common::standing::Class;
use gateway_common::{Family, Verdict};
use siphasher::sip::SipHasher13;

use crate::headers::{self, Kind, Segment};

const SECOND_NS: u64 = 1_000_000_000;

/// A kernel half on one CPU, whose clock its owner moves.
pub struct Model {
    pub now_ns: u64,
    /// Level and end, of sources as userspace tells them apart.
    pub penalties: HashMap<IpAddr, (u32, u64)>,
    pub known: HashMap<IpAddr, (Class, u64)>,
    /// Until when cookies are armed when they are due, are sent, and may come back.
    pub can_arm_until_ns: u64,
    pub armed_until_ns: u64,
    pub taking_until_ns: u64,
    /// Of each class: level, epoch, end.
    pub shed: [(u16, u16, u64); 3],
    /// What the source sends when it has been answered with a cookie.
    pub returns: HashSet<Returned>,
    entry: Entry,
    policy: Kernel,
    listeners: Vec<SocketAddr>,
    shed_key: [u64; 2],
    debts: HashMap<(IpAddr, Of), Debt>,
    new_sources: Debt,
    seeded_at_ns: HashMap<usize, u64>,
}

/// An ACK: both ends, its own number and the one it acknowledges.
pub type Returned = (SocketAddr, SocketAddr, u32, u32);

/// What a debt is of.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Of {
    Requests,
    Connections,
    Packets,
}

/// What is owed to a budget, in nanoseconds; time pays it off.
#[derive(Clone, Copy, Default)]
struct Debt {
    owed_ns: u64,
    at_ns: u64,
    refused_at_ns: Option<u64>,
}

impl Debt {
    fn charge(&mut self, cost_ns: u64, tolerance_ns: u64, now_ns: u64) -> bool {
        self.owed_ns = self.owed_ns.saturating_sub(now_ns - self.at_ns);
        self.at_ns = now_ns;
        let granted = self.owed_ns + cost_ns <= tolerance_ns;
        if granted {
            self.owed_ns += cost_ns;
        } else {
            self.refused_at_ns = Some(now_ns);
        }
        granted
    }
}

impl Model {
    pub fn new(entry: Entry, policy: &Kernel, listeners: &[SocketAddr]) -> Self {
        Self {
            now_ns: 0,
            penalties: HashMap::new(),
            known: HashMap::new(),
            can_arm_until_ns: 0,
            armed_until_ns: 0,
            taking_until_ns: 0,
            shed: [(0, 0, 0); 3],
            returns: HashSet::new(),
            entry,
            policy: policy.clone(),
            listeners: listeners.to_vec(),
            shed_key: [0; 2],
            debts: HashMap::new(),
            new_sources: Debt::default(),
            seeded_at_ns: HashMap::new(),
        }
    }

    pub fn with_key(self, shed_key: [u64; 2]) -> Self {
        Self { shed_key, ..self }
    }

    pub fn judge(&mut self, frame: &[u8]) -> (Verdict, Family) {
        match headers::read(frame) {
            Ok((segment, family)) => (self.admit(&segment), family),
            Err(found) => found,
        }
    }

    fn admit(&mut self, segment: &Segment) -> Verdict {
        let now = self.now_ns;
        let is_xdp = self.entry == Entry::Xdp;
        let shows_no_port = segment.kind == Kind::Fragment && segment.destination.port() == 0;
        let is_ours = |place: &&SocketAddr| {
            place.ip() == segment.destination.ip()
                && (place.port() == segment.destination.port() || shows_no_port)
        };
        let Some(listener) = self.listeners.iter().position(|place| is_ours(&place)) else {
            return Verdict::NotOurs;
        };
        let source = segment.source.ip();
        let exempt = match segment.kind {
            Kind::Request => Verdict::Allowed,
            Kind::Ack | Kind::Other => Verdict::NotOurs,
            Kind::Fragment => Verdict::Malformed,
        };
        let holds =
            |listed: &Listed| !listed.watched && now < listed.until_ns && listed.network.contains(&source);
        let policy = &self.policy;
        if policy.allow.iter().any(|network| network.contains(&source))
            || policy.allow_listed.iter().any(holds)
        {
            return exempt;
        }
        let denied = policy.deny.iter().any(|network| network.contains(&source));
        let opens = matches!(segment.kind, Kind::Request | Kind::Fragment);
        let denied = denied || policy.deny_listed.iter().any(holds);
        if opens && denied {
            return Verdict::Denied;
        }
        if policy.trusted.iter().any(|network| network.contains(&source)) {
            return exempt;
        }
        if segment.kind == Kind::Fragment {
            return if policy.strict_fragments { Verdict::Fragment } else { Verdict::Malformed };
        }
        let client = cut(source, policy.client_ipv6_prefix);
        let holder = cut(source, policy.ipv6_prefix);
        let penalty = self.penalties.get(&client).filter(|(_, until)| now < *until).map(|(level, _)| *level);
        if penalty == Some(2) {
            return Verdict::Penalised;
        }
        if let Some(ceiling) = policy.ceiling.filter(|_| is_xdp) {
            let costs = costs(ceiling.per_second, ceiling.burst);
            if self.charge(holder, Of::Packets, costs) == Some(false) {
                return Verdict::OverCeiling;
            }
        }
        let slowed = penalty.is_some();
        match segment.kind {
            Kind::Request => self.request(segment, listener, holder, client, slowed),
            Kind::Ack if is_xdp && self.is_to_come(self.taking_until_ns) => {
                self.ack(segment, holder, slowed, denied)
            }
            Kind::Ack | Kind::Other | Kind::Fragment => Verdict::NotOurs,
        }
    }

    fn request(
        &mut self,
        segment: &Segment,
        listener: usize,
        holder: IpAddr,
        client: IpAddr,
        slowed: bool,
    ) -> Verdict {
        let now = self.now_ns;
        let costs = self.connection_costs(slowed);
        let answers =
            self.entry == Entry::Xdp && self.policy.cookies && self.is_to_come(self.can_arm_until_ns);
        let known = self.known.get(&client).filter(|(_, until)| now < *until);
        let class = known.map_or(Class::Unknown, |(class, _)| *class);
        let charged = self.charge(holder, Of::Requests, costs);
        match charged {
            Some(true) | None => {}
            Some(false) if slowed => return Verdict::Penalised,
            Some(false) if !answers || class == Class::Unknown || self.is_overdrawn(holder) => {
                return Verdict::OverBudget;
            }
            Some(false) => {}
        }
        let (level, epoch, until) = self.shed[class as usize];
        if now >> 20 < until >> 20 && siphash(self.shed_key, client, epoch) < level {
            return Verdict::Shed;
        }
        if charged == Some(true) {
            return Verdict::Pass;
        }
        if !answers || !self.is_to_come(self.armed_until_ns) {
            return Verdict::Flooded;
        }
        let seeded = self.seeded_at_ns.get(&listener);
        if seeded.is_none_or(|at| now - at >= SECOND_NS) {
            self.seeded_at_ns.insert(listener, now);
            return Verdict::Seed;
        }
        let monitored = self.policy.monitored & Verdict::CookieSent.bit() != 0;
        if segment.can_be_answered || monitored { Verdict::CookieSent } else { Verdict::OverBudget }
    }

    fn ack(&mut self, segment: &Segment, holder: IpAddr, slowed: bool, denied: bool) -> Verdict {
        let Segment { source, destination, sequence, acknowledged, .. } = *segment;
        if !self.returns.contains(&(source, destination, sequence, acknowledged)) {
            return if self.is_overdrawn(holder) { Verdict::OverBudget } else { Verdict::NotOurs };
        }
        if denied {
            return Verdict::Denied;
        }
        let (cost, tolerance) = self.connection_costs(slowed);
        let debt = self.debts.entry((holder, Of::Connections)).or_default();
        if !debt.charge(cost, tolerance, self.now_ns) {
            return if slowed { Verdict::Penalised } else { Verdict::OverBudget };
        }
        let now = self.now_ns;
        self.debts.entry((holder, Of::Requests)).or_insert(Debt { at_ns: now, ..Debt::default() });
        Verdict::CookieAccepted
    }

    /// Whether connections of its own, which have answered cookies, were too many within a second.
    fn is_overdrawn(&self, holder: IpAddr) -> bool {
        let refused = self.debts.get(&(holder, Of::Connections)).and_then(|debt| debt.refused_at_ns);
        refused.is_some_and(|at| self.now_ns - at < SECOND_NS)
    }

    fn connection_costs(&self, slowed: bool) -> (u64, u64) {
        let (cost, tolerance) = costs(self.policy.connections_per_second, self.policy.connection_burst);
        if slowed { (cost * 10, tolerance.max(cost * 10)) } else { (cost, tolerance) }
    }

    /// Of an end that userspace has told, in the units that it is told in.
    fn is_to_come(&self, end_ns: u64) -> bool {
        self.now_ns >> 20 < end_ns >> 20
    }

    /// `None`: one that owes nothing yet, and too many such came.
    fn charge(&mut self, holder: IpAddr, of: Of, (cost, tolerance): (u64, u64)) -> Option<bool> {
        let now = self.now_ns;
        if !self.debts.contains_key(&(holder, of)) {
            let rate = self.policy.new_sources_per_second;
            let (cost, tolerance) = costs(rate, rate);
            if !self.new_sources.charge(cost, tolerance, now) {
                return None;
            }
        }
        let debt = self.debts.entry((holder, of)).or_insert(Debt { at_ns: now, ..Debt::default() });
        Some(debt.charge(cost, tolerance, now))
    }
}

fn costs(per_second: u32, burst: u32) -> (u64, u64) {
    let cost = SECOND_NS.div_ceil(per_second.into());
    (cost, cost * u64::from(burst))
}

fn cut(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let shift = 128 - u32::from(prefix);
            IpAddr::V6((address.to_bits().checked_shr(shift).unwrap_or(0) << shift).into())
        }
    }
}

/// The lowest 16 bits of SipHash-1-3.
fn siphash([first, second]: [u64; 2], source: IpAddr, epoch: u16) -> u16 {
    let mut hasher = SipHasher13::new_with_keys(first, second);
    match source {
        IpAddr::V4(address) => hasher.write(&address.octets()),
        IpAddr::V6(address) => hasher.write(&address.octets()),
    }
    hasher.write(&epoch.to_le_bytes());
    hasher.finish() as u16
}
