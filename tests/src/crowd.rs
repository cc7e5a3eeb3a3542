//! Thousands of clients in one thread: each sends one request, all responses are read as they come.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::client::reset;
use crate::{Message, PATIENCE};

/// A process has descriptors for one large crowd at a time.
static LARGE: Mutex<()> = Mutex::new(());
const LARGE_CROWD: usize = 500;

pub struct Crowd {
    _alone: Option<MutexGuard<'static, ()>>,
    epoll: OwnedFd,
    members: BTreeMap<u64, Member>,
}

struct Member {
    stream: TcpStream,
    received: Vec<u8>,
}

/// How one client fared.
#[derive(Debug)]
pub enum Fate {
    Response(Message),
    /// The gateway closed before a whole response.
    Broken(Vec<u8>),
}

impl Crowd {
    /// `count` connections, from which nothing has been sent yet.
    #[track_caller]
    pub fn connect(to: SocketAddr, count: usize) -> Self {
        let alone = (count >= LARGE_CROWD).then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner));
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        setrlimit(Resource::Nofile, raised).expect("the soft limit may rise to the hard one");
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("there is a descriptor left");
        let mut members = BTreeMap::new();
        for id in 0..count as u64 {
            let stream = TcpStream::connect_timeout(&to, PATIENCE).expect("the gateway listens");
            stream.set_nodelay(true).expect("it is a TCP socket");
            epoll::add(&epoll, &stream, EventData::new_u64(id), EventFlags::IN).expect("it is a socket");
            members.insert(id, Member { stream, received: Vec::new() });
        }
        Self { _alone: alone, epoll, members }
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Everybody sends; `request` makes a client's from its number.
    #[track_caller]
    pub fn send(&mut self, request: impl Fn(usize) -> String) -> &mut Self {
        for (id, member) in &mut self.members {
            member.stream.write_all(request(*id as usize).as_bytes()).expect("the gateway reads");
            member.stream.set_nonblocking(true).expect("it is a socket");
        }
        self
    }

    /// The client with this number leaves with a reset.
    pub fn reset(&mut self, number: usize) {
        let member = self.members.remove(&(number as u64)).expect("it is still there");
        reset(member.stream);
    }

    /// The client with this number reads for itself from now on.
    pub fn take(&mut self, number: usize) -> TcpStream {
        let member = self.members.remove(&(number as u64)).expect("it is still there");
        epoll::delete(&self.epoll, &member.stream).expect("it was added");
        member.stream.set_nonblocking(false).expect("it is a socket");
        member.stream.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
        member.stream
    }

    /// Reads until everybody has a whole response, or was cut off; by number.
    #[track_caller]
    pub fn responses(mut self) -> BTreeMap<usize, Fate> {
        let mut fates = BTreeMap::new();
        let mut events = [const { Event { flags: EventFlags::empty(), data: EventData::new_u64(0) } }; 256];
        let started = Instant::now();
        while !self.members.is_empty() {
            assert!(started.elapsed() < PATIENCE, "{} still wait", self.members.len());
            let second = Timespec { tv_sec: 1, tv_nsec: 0 };
            let ready = epoll::wait(&self.epoll, &mut events[..], Some(&second)).expect("it is an epoll");
            for event in &events[..ready] {
                let id = event.data.u64();
                let Some(member) = self.members.get_mut(&id) else { continue };
                if let Some(fate) = member.read() {
                    self.members.remove(&id);
                    fates.insert(id as usize, fate);
                }
            }
        }
        fates
    }
}

impl Member {
    fn read(&mut self) -> Option<Fate> {
        let mut piece = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Some(self.whole().unwrap_or_else(|| self.broken())),
                Ok(n) => self.received.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Some(self.broken()),
            }
        }
        self.whole()
    }

    fn whole(&self) -> Option<Fate> {
        let mut from = &self.received[..];
        Message::read_response(&mut from, "GET").ok().map(Fate::Response)
    }

    fn broken(&mut self) -> Fate {
        Fate::Broken(std::mem::take(&mut self.received))
    }
}
