//! One downstream connection as the proxy sees it: who is there, and what it waits for.
//!
//! The connection's I/O reads and sets the phase, the request's story moves it on. Knows no socket.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use http::HeaderValue;
use ipnet::IpNet;

use crate::mute::Mute;
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

pub struct Client {
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub timer: Timer,
    /// The connection's task, for what is polled inside it.
    pub mute: Mute,
    pub phase: Cell<Phase>,
    /// The request answered last was not read to its end: its rest may still come.
    pub unread: Cell<bool>,
    /// How long a head may take; the snapshot in force sets it with each request.
    pub header_read: Cell<Duration>,
    /// Request lines of heads that gave their length twice (`Content-Length` and `Transfer-Encoding`),
    /// those that a body only quotes included.
    pub framed_twice: RefCell<Vec<Vec<u8>>>,
    /// The reader of the request's body has found nothing to read.
    pub starved: Cell<bool>,
    /// The request under way is of a version that knows interim responses (RFC 9110 §15.2).
    pub takes_interim: Cell<bool>,
    /// Interim responses to be sent before the final one.
    pub interim: RefCell<Vec<u8>>,
    forwarded_for: OnceCell<HeaderValue>,
}

impl Client {
    pub fn new(
        peer: SocketAddr,
        local: SocketAddr,
        wheel: &Rc<Wheel>,
        header_read: Duration,
        task: &Waker,
    ) -> Rc<Self> {
        let timer = Timer::new(wheel);
        timer.register(task);
        Rc::new(Self {
            peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
            local: SocketAddr::new(local.ip().to_canonical(), local.port()),
            timer,
            mute: Mute::new(task.clone()),
            phase: Cell::new(Phase::Idle),
            unread: Cell::new(false),
            header_read: Cell::new(header_read),
            framed_twice: RefCell::default(),
            starved: Cell::new(false),
            takes_interim: Cell::new(false),
            interim: RefCell::default(),
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

    /// Whether the peer's word about the client behind it is believed.
    pub fn is_trusted(&self, trusted: &[IpNet]) -> bool {
        trusted.iter().any(|net| net.contains(&self.peer.ip()))
    }

    /// The peer's address as a field value.
    pub fn forwarded_for(&self) -> &HeaderValue {
        self.forwarded_for.get_or_init(|| {
            HeaderValue::try_from(self.peer.ip().to_string()).expect("an address is visible ASCII")
        })
    }
}
