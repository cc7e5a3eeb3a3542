//! One client connection: a socket, how much of the request has left, and how much of the answer is there.
//!
//! The generator drives it and decides what to do next; it never waits.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_nodelay;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

use super::Fault;
use super::response::{Answer, Reader};
use crate::poll::{Interest, Poll};

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Has no socket.
    Closed,
    /// Open, nothing asked.
    Idle,
    /// A request is on its way or its answer awaited.
    Asking,
    /// The answer is complete; the server is about to close.
    Ending,
}

/// What a readable socket brought, answers aside.
pub enum Received {
    /// Not everything that was asked for yet.
    Part,
    /// The last of the answers.
    All,
    /// The peer closed although nothing was asked, or after the answer.
    End,
    Fault(Fault),
}

pub struct Connection {
    token: usize,
    socket: Option<OwnedFd>,
    pub phase: Phase,
    reader: Reader,
    sent: usize,
    /// Answers that are still to come.
    awaited: usize,
    wants_write: bool,
    /// When the request in flight should have left; latency counts from here.
    pub due: Instant,
    /// When it did leave; the timeout counts from here.
    pub asked: Instant,
}

impl Connection {
    pub fn new(token: usize, now: Instant) -> Connection {
        Connection {
            token,
            socket: None,
            phase: Phase::Closed,
            reader: Reader::default(),
            sent: 0,
            awaited: 0,
            wants_write: false,
            due: now,
            asked: now,
        }
    }

    /// Sends `count` requests at once, over a new socket when there is none.
    pub fn ask(
        &mut self,
        requests: &[u8],
        count: usize,
        target: SocketAddr,
        poll: &Poll,
    ) -> Result<(), Fault> {
        if self.phase == Phase::Closed {
            self.open(target, poll).map_err(|_| Fault::Connect)?;
        }
        self.phase = Phase::Asking;
        self.awaited = count;
        self.sent = 0;
        self.flush(requests, poll)
    }

    fn open(&mut self, target: SocketAddr, poll: &Poll) -> io::Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        set_tcp_nodelay(&socket, true)?;
        match connect(&socket, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        poll.add(&socket, self.token, Interest::Read)?;
        self.wants_write = false;
        self.reader.reset();
        self.socket = Some(socket);
        Ok(())
    }

    /// Sends what is left of the request, as far as the socket takes it.
    pub fn flush(&mut self, request: &[u8], poll: &Poll) -> Result<(), Fault> {
        let Some(socket) = &self.socket else { return Ok(()) };
        while self.sent < request.len() {
            // On loopback a connection is usually there as soon as it is asked for, so this is tried at once;
            // while it is not, the socket says AGAIN.
            match send(socket, &request[self.sent..], SendFlags::NOSIGNAL) {
                Ok(bytes) => self.sent += bytes,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) if self.sent == 0 && self.is_unconnected() => return Err(Fault::Connect),
                Err(_) => return Err(Fault::Reset),
            }
        }
        let wants_write = self.sent < request.len();
        if wants_write != self.wants_write {
            self.wants_write = wants_write;
            let interest = if wants_write { Interest::ReadWrite } else { Interest::Read };
            poll.change(socket, self.token, interest).map_err(|_| Fault::Reset)?;
        }
        Ok(())
    }

    /// Reads once and follows the answers; those that are complete are put into `answers`.
    pub fn receive(&mut self, scratch: &mut [u8], answers: &mut Vec<Answer>) -> Received {
        let Some(socket) = &self.socket else { return Received::Part };
        let bytes = match recv(socket, &mut *scratch, RecvFlags::empty()) {
            Ok((0, _)) => return self.ended(answers),
            Ok((bytes, _)) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Received::Part,
            Err(Errno::CONNREFUSED) => return Received::Fault(Fault::Connect),
            Err(_) if self.phase == Phase::Ending => return Received::End,
            Err(_) => return self.broken(),
        };
        let mut input = &scratch[..bytes];
        if self.phase != Phase::Asking {
            return Received::Fault(Fault::Reset);
        }
        while self.awaited > 0 {
            match self.reader.feed(&mut input) {
                Ok(Some(answer)) => answers.push(answer),
                Ok(None) => return Received::Part,
                Err(_) => return Received::Fault(Fault::Reset),
            }
            self.awaited -= 1;
        }
        // Bytes after the last answer that nobody asked for are as bad as bytes that are no answer.
        if input.is_empty() { Received::All } else { Received::Fault(Fault::Reset) }
    }

    fn ended(&mut self, answers: &mut Vec<Answer>) -> Received {
        match self.phase {
            Phase::Closed | Phase::Idle | Phase::Ending => Received::End,
            Phase::Asking => match self.reader.end() {
                Some(answer) if self.awaited == 1 => {
                    answers.push(answer);
                    Received::All
                }
                Some(_) | None => self.broken(),
            },
        }
    }

    fn broken(&self) -> Received {
        Received::Fault(if self.reader.is_fresh() { Fault::Reset } else { Fault::Short })
    }

    fn is_unconnected(&self) -> bool {
        self.socket.as_ref().is_none_or(|socket| rustix::net::getpeername(socket).is_err())
    }

    pub fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    /// Gives the socket up.
    pub fn close(&mut self) {
        self.socket = None;
        self.phase = Phase::Closed;
    }
}
