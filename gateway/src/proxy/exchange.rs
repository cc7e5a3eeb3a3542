//! The account of one request: when it began, how it ended. Recorded once, whatever happens.

use std::rc::Rc;
use std::time::{Duration, Instant};

use gateway_common::standing::Class;
use http::request::Parts;
use http::{HeaderMap, StatusCode};

use super::Local;
use super::client::{Client, Phase};
use super::headers::Seen;
use super::identity::Identity;
use super::rank::class_of;
use super::trace::Trace;
use crate::access::{Asked, Desk, Head, Line};
use crate::limit::concurrency::Permit;
use crate::metrics::Outcome;

/// Lives from the request's head to the end of its response's body. Dropped before either is
/// known, it is the client who left. Small, for it is handed on with the response.
pub struct Exchange {
    client: Rc<Client>,
    local: Rc<Local>,
    /// Who asks: the peer, until its headers are read.
    pub identity: Identity,
    /// `None`: the request belongs to no route.
    route: Option<u32>,
    /// It was let in because of who sends it.
    favoured: bool,
    started: Instant,
    /// Its places under limits of concurrency.
    permits: Vec<Permit>,
    status: StatusCode,
    outcome: Outcome,
    /// Of the response's body.
    bytes: u64,
    /// What only the log wants to know; `None`: there is none.
    noted: Option<Box<Noted>>,
}

#[derive(Default)]
struct Noted {
    head: Head,
    rule: Option<Box<str>>,
    queued: Duration,
    answered_in: Option<Duration>,
}

/// nginx's number for a client that closed before it was answered.
const CLIENT_CLOSED_REQUEST: u16 = 499;

impl Exchange {
    pub fn begin(client: &Rc<Client>, local: &Rc<Local>) -> Self {
        client.request_began();
        Self {
            client: client.clone(),
            local: local.clone(),
            identity: client.standing(&local.snapshot).identity,
            route: None,
            favoured: false,
            started: Instant::now(),
            permits: Vec::new(),
            status: StatusCode::from_u16(CLIENT_CLOSED_REQUEST).expect("three digits"),
            outcome: Outcome::ClientAbort,
            bytes: 0,
            noted: local.desk.is_some().then(Box::default),
        }
    }

    pub fn client(&self) -> &Rc<Client> {
        &self.client
    }

    /// Takes the word of a trusted peer for who asks.
    pub fn identify(&mut self, headers: &HeaderMap) {
        let config = &self.local.snapshot.config;
        let (trusted, prefix) = (&config.trusted_proxies, config.client_ipv6_prefix);
        self.identity = Identity::behind(self.identity, headers, trusted, prefix);
    }

    fn route(&self) -> Option<usize> {
        self.route.map(|route| route as usize)
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    /// Notes what is asked, where that is logged.
    pub fn note(&mut self, parts: &Parts, seen: &Seen, request_id: &[u8], trace: &Trace) {
        let (Some(noted), Some(desk)) = (&mut self.noted, &self.local.desk) else { return };
        noted.head = desk.head(&Asked {
            method: &parts.method,
            uri: &parts.uri,
            version: parts.version,
            host: seen.host.as_ref(),
            headers: &parts.headers,
            request_id,
            trace_id: trace.id(),
        });
    }

    /// The head of the upstream's answer is here; `sent`: since when it had its place there.
    pub fn answered(&mut self, sent: Instant) {
        if let Some(noted) = &mut self.noted {
            noted.queued = sent.saturating_duration_since(self.started);
            noted.answered_in = Some(sent.elapsed());
        }
    }

    /// A policy refuses it.
    pub fn refused_by(&mut self, rule: &str) {
        if let Some(noted) = &mut self.noted {
            noted.rule = Some(rule.into());
        }
    }

    pub fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    fn log(&self, noted: &Noted, desk: &Desk, took: Duration) {
        let (client, snapshot) = (&*self.client, &self.local.snapshot);
        let met = client.met.get();
        desk.log(&Line {
            started: self.started,
            took,
            client: self.identity.address,
            peer: client.peer.ip(),
            peer_text: client.forwarded_for().as_bytes(),
            relayed: client.relayed.get(),
            head: &noted.head,
            status: self.status,
            bytes: self.bytes,
            outcome: self.outcome,
            route: self.route().map(|route| snapshot.routes[route].label.as_str()),
            rule: noted.rule.as_deref(),
            cached: met.cached,
            upstream: (met.tries > 0).then(|| snapshot.endpoints[met.endpoint].name.as_str()),
            tries: met.tries,
            queued: noted.queued,
            answered_in: noted.answered_in,
        });
    }

    /// Keeps `permits` to the end of the response's body.
    pub fn hold(&mut self, permits: Vec<Permit>) {
        self.permits = permits;
    }

    /// Counts it as under way on its route; false: pressure leaves no room for it.
    pub fn routed(&mut self, route: usize) -> bool {
        self.route = Some(route as u32);
        self.local.under_way().add(1);
        self.local.snapshot.routes[route].gate.begin(self.local.worker)
    }

    /// Whether it stays all the same, because its peer is known.
    #[cold]
    pub fn is_favoured(&mut self, route: usize) -> bool {
        let (client, snapshot) = (&self.client, &self.local.snapshot);
        let class = match self.identity.is_peer {
            true => class_of(snapshot, client.peer.ip(), client.relayed.get()),
            false => Class::Unknown,
        };
        self.favoured = snapshot.routes[route].gate.favour(self.local.worker, class);
        self.favoured
    }

    /// The head that goes downstream; the outcome holds unless the body fails.
    pub fn answer(&mut self, status: StatusCode) {
        self.status = status;
        self.client.answering.set(true);
    }

    pub fn fail(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// The response has been handed over to its last byte.
    pub fn complete(&mut self) {
        if self.outcome == Outcome::ClientAbort {
            self.outcome = Outcome::Ok;
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        if let Some(route) = self.route() {
            self.local.under_way().sub(1);
            self.local.snapshot.routes[route].gate.end(self.local.worker, self.favoured);
        }
        self.client.answering.set(false);
        if self.outcome == Outcome::ClientAbort && self.client.let_down.get() {
            self.outcome = Outcome::Timeout;
        }
        self.local.cells(self.route()).record(self.status.as_u16(), self.outcome, took);
        if let Some(noted) = self.noted.take()
            && let Some(desk) = &self.local.desk
        {
            self.log(&noted, desk, took);
            desk.recycle(noted.head);
        }
        if self.identity.is_peer {
            self.local.hear(&self.client, self.outcome);
        }
        self.client.phase.set(Phase::Idle);
        let timer = &self.client.timer;
        timer.arm(timer.now().plus(self.local.snapshot.config.timeouts.idle));
    }
}
