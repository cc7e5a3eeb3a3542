//! One downstream connection as the proxy sees it: who is there, and what it waits for.
//!
//! The connection's I/O reads and sets the phase, the request's story moves it on. Knows no socket.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;

use super::forgotten;
use super::identity::{Identity, is_trusted};
use crate::access::Cached;
use crate::datapath::Served;
use crate::limit::connections::OfSource;
use crate::snapshot::Snapshot;
use crate::timer::{Timer, Wheel};

/// Where a connection is between two requests' ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing of the next request has come.
    Idle,
    /// The head has begun.
    Head,
    /// The request is being answered, its body is still coming.
    Receiving,
    /// The whole request is here: an end of input is not an abort.
    Received,
}

/// Heads framed twice that a connection's bodies may quote before its chunked requests are refused.
pub const MAX_QUOTED: usize = 64;

/// What a configuration makes of a peer.
#[derive(Clone, Copy)]
pub struct Standing {
    generation: u64,
    /// Its word about the client behind it is believed.
    pub trusted: bool,
    /// Who a request of it is from, unless it is trusted and says otherwise.
    pub identity: Identity,
}

/// What the request under way has met, for its line in the log.
#[derive(Clone, Copy, Default)]
pub struct Met {
    /// Endpoints chosen, and the last of them by its index in the snapshot.
    pub tries: u32,
    pub endpoint: usize,
    pub cached: Option<Cached>,
}

pub struct Client {
    /// The other end of the connection, or whom its PROXY header names.
    pub peer: SocketAddr,
    pub timer: Timer,
    pub phase: Cell<Phase>,
    /// The request answered last was not read to its end: its rest may still come.
    pub unread: Cell<bool>,
    /// How long a head may take; the snapshot in force sets it with each request.
    pub header_read: Cell<Duration>,
    /// Request lines of heads that gave their length twice (`Content-Length` and `Transfer-Encoding`),
    /// those that a body only quotes included.
    pub framed_twice: RefCell<Vec<Vec<u8>>>,
    /// Of a body whose length is known, what its reader has not had yet.
    pub body_left: Cell<u64>,
    /// The reader of the request's body has found nothing to read.
    pub starved: Cell<bool>,
    /// Requests whose heads have come.
    pub requests: Cell<u32>,
    pub met: Cell<Met>,
    /// A response has begun and not ended.
    pub answering: Cell<bool>,
    /// The connection ends because the upstream stopped amid its response.
    pub let_down: Cell<bool>,
    /// The request under way is of a version that knows interim responses (RFC 9110 §15.2).
    pub takes_interim: Cell<bool>,
    /// To be sent before anything else: interim responses, and what is left of a head that the socket took in part.
    pub first: RefCell<Vec<u8>>,
    /// Fields of the response that begins, as lines. They go out behind hyper's status line: hyper begins no response
    /// before it has handed over all of the last one.
    pub lines: RefCell<Vec<u8>>,
    /// A PROXY header named the peer: the packets are a load balancer's.
    pub relayed: Cell<bool>,
    /// Its place among the connections of its source, where these are bounded.
    pub of_source: OnceCell<OfSource>,
    /// Not trusted, and sends what only proxies send: many clients may be behind it.
    pub looks_like_forgotten_proxy: Cell<bool>,
    /// Until when a rate limit told it to wait, by the limits' clock.
    pub waits_until_ns: Cell<u64>,
    /// Of its requests, what has not been told yet.
    pub untold: Cell<Served>,
    /// Something of it has been told.
    pub is_told_of: Cell<bool>,
    /// By the configuration of the last request.
    standing: Cell<Standing>,
    forwarded_for: OnceCell<HeaderValue>,
}

impl Client {
    pub fn new(peer: SocketAddr, wheel: &Rc<Wheel>, header_read: Duration, task: &Waker) -> Rc<Self> {
        let timer = Timer::new(wheel);
        timer.register(task);
        let nobody = Identity { address: Ipv4Addr::UNSPECIFIED.into(), is_peer: false };
        Rc::new(Self {
            peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
            timer,
            phase: Cell::new(Phase::Idle),
            unread: Cell::new(false),
            header_read: Cell::new(header_read),
            framed_twice: RefCell::default(),
            body_left: Cell::new(0),
            starved: Cell::new(false),
            requests: Cell::new(0),
            met: Cell::default(),
            answering: Cell::new(false),
            let_down: Cell::new(false),
            takes_interim: Cell::new(false),
            first: RefCell::default(),
            lines: RefCell::default(),
            relayed: Cell::new(false),
            of_source: OnceCell::new(),
            looks_like_forgotten_proxy: Cell::new(false),
            waits_until_ns: Cell::new(0),
            untold: Cell::default(),
            is_told_of: Cell::new(false),
            // No snapshot has this generation.
            standing: Cell::new(Standing { generation: 0, trusted: false, identity: nobody }),
            forwarded_for: OnceCell::new(),
        })
    }

    /// The first bytes of a request have come: its head is due.
    pub fn head_began(&self) {
        self.phase.set(Phase::Head);
        self.timer.arm(self.timer.now().plus(self.header_read.get()));
    }

    /// A request's head has come.
    pub fn request_began(&self) {
        self.phase.set(Phase::Receiving);
        self.unread.set(true);
        self.met.set(Met::default());
        self.requests.set(self.requests.get().wrapping_add(1));
    }

    /// The request has come to its end.
    pub fn request_ended(&self) {
        if self.phase.get() == Phase::Receiving {
            self.phase.set(Phase::Received);
        }
        self.unread.set(false);
    }

    /// Whether a request is being answered.
    pub fn is_busy(&self) -> bool {
        matches!(self.phase.get(), Phase::Receiving | Phase::Received)
    }

    /// The cache has answered, or was asked in vain.
    pub fn met_cache(&self, cached: Cached) {
        self.met.set(Met { cached: Some(cached), ..self.met.get() });
    }

    /// Found out once for each configuration that the connection lives through.
    #[inline]
    pub fn standing(&self, snapshot: &Snapshot) -> Standing {
        let known = self.standing.get();
        if known.generation == snapshot.generation {
            return known;
        }
        self.find_standing(snapshot)
    }

    #[cold]
    fn find_standing(&self, snapshot: &Snapshot) -> Standing {
        let (peer, config) = (self.peer.ip(), &snapshot.config);
        let standing = Standing {
            generation: snapshot.generation,
            trusted: is_trusted(peer, &config.trusted_proxies),
            identity: Identity::of_peer(peer, self.relayed.get(), config.client_ipv6_prefix),
        };
        self.standing.set(standing);
        standing
    }

    /// Notes that the peer, which is not trusted, has sent `field` as proxies do.
    pub fn spoke_like_a_proxy(&self, field: &str) {
        if !self.looks_like_forgotten_proxy.replace(true) {
            forgotten::warn(self.peer.ip(), field);
        }
    }

    /// The peer's address as a field value.
    pub fn forwarded_for(&self) -> &HeaderValue {
        self.forwarded_for.get_or_init(|| {
            HeaderValue::from_maybe_shared(text(self.peer.ip())).expect("an address is visible ASCII")
        })
    }
}

/// IPv4 by hand: the standard library's way takes three per cent of a new connection's instructions.
fn text(address: IpAddr) -> Bytes {
    let IpAddr::V4(address) = address else { return address.to_string().into() };
    let mut text = Vec::with_capacity("255.255.255.255.".len());
    for octet in address.octets() {
        for (unit, digit) in [(100, octet / 100), (10, octet / 10 % 10), (1, octet % 10)] {
            if octet >= unit || unit == 1 {
                text.push(b'0' + digit);
            }
        }
        text.push(b'.');
    }
    text.pop();
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_the_standard_library_writes_them() {
        for octet in 0..=255 {
            let address = IpAddr::from([octet, 255 - octet, octet / 3, 7]);
            assert_eq!(text(address), address.to_string());
        }
        for address in ["::1", "2001:db8::7"] {
            assert_eq!(text(address.parse().unwrap()), address);
        }
    }
}
