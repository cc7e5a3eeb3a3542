//! A crowd: the sockets that a client holds open, each with what it is up to.
//!
//! The good client and the attacks over whole connections share this. It knows nothing of HTTP, and its sockets
//! belong to the namespace in which the thread is when they are made.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, set_tcp_nodelay};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

use crate::poll::{Events, Interest, Poll, Ready};

const SCRATCH_BYTES: usize = 64 * 1024;

/// How a client ends a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    Polite,
    /// With a reset: no port waits for the end of a connection that nobody remembers.
    Rude,
}

pub struct Crowd<T> {
    target: SocketAddrV4,
    manners: Manners,
    poll: Poll,
    events: Events,
    scratch: Vec<u8>,
    members: Vec<Option<Member<T>>>,
    free: Vec<usize>,
}

struct Member<T> {
    socket: OwnedFd,
    state: T,
}

impl<T> Crowd<T> {
    pub fn new(target: SocketAddrV4, manners: Manners) -> io::Result<Crowd<T>> {
        Ok(Crowd {
            target,
            manners,
            poll: Poll::new()?,
            events: Events::with_capacity(256),
            scratch: vec![0; SCRATCH_BYTES],
            members: Vec::new(),
            free: Vec::new(),
        })
    }

    /// Begins a connection and names it.
    pub fn connect(&mut self, state: T) -> io::Result<usize> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        set_tcp_nodelay(&socket, true)?;
        if self.manners == Manners::Rude {
            set_socket_linger(&socket, Some(Duration::ZERO))?;
        }
        match connect(&socket, &self.target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let token = self.free.pop().unwrap_or_else(|| {
            self.members.push(None);
            self.members.len() - 1
        });
        self.poll.add(&socket, token, Interest::ReadWrite)?;
        self.members[token] = Some(Member { socket, state });
        Ok(token)
    }

    /// How many there are, connected or on the way.
    pub fn len(&self) -> usize {
        self.members.len() - self.free.len()
    }

    /// Who has something to do; a new connection is writable once it stands.
    pub fn ready(&mut self) -> io::Result<Vec<Ready>> {
        self.poll.wait(&mut self.events, Duration::ZERO)?;
        Ok(self.events.iter().collect())
    }

    pub fn state(&mut self, token: usize) -> Option<&mut T> {
        Some(&mut self.members.get_mut(token)?.as_mut()?.state)
    }

    pub fn states(&self) -> impl Iterator<Item = &T> {
        self.members.iter().flatten().map(|member| &member.state)
    }

    /// From now on only what arrives is of interest.
    pub fn only_read(&self, token: usize) -> io::Result<()> {
        match &self.members[token] {
            Some(member) => self.poll.change(&member.socket, token, Interest::Read),
            None => Ok(()),
        }
    }

    /// Sends the little that an attack sends; `false` when the connection is broken. A socket that takes nothing
    /// more has a victim that is busy, which is no reason to give it up.
    pub fn send(&self, token: usize, bytes: &[u8]) -> bool {
        let Some(member) = &self.members[token] else { return false };
        matches!(send(&member.socket, bytes, SendFlags::NOSIGNAL), Ok(_) | Err(Errno::AGAIN | Errno::INTR))
    }

    /// What has arrived; `None` when the connection has ended.
    pub fn receive(&mut self, token: usize) -> Option<(&mut T, &[u8])> {
        let member = self.members.get_mut(token)?.as_mut()?;
        match recv(&member.socket, &mut self.scratch[..], RecvFlags::empty()) {
            Ok((0, _)) => None,
            Ok((bytes, _)) => Some((&mut member.state, &self.scratch[..bytes])),
            Err(Errno::AGAIN | Errno::INTR) => Some((&mut member.state, &[])),
            Err(_) => None,
        }
    }

    pub fn close(&mut self, token: usize) {
        if self.members[token].take().is_some() {
            self.free.push(token);
        }
    }
}
