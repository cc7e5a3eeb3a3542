//! A worker's connections: how many there may be, and which one makes room for another.
//!
//! The listener asks for a [`Seat`] for each connection it accepts. Where all are taken, or memory or descriptors are
//! short, one has to go that has no request under way: a stranger's before a known source's, a proven one's last
//! ([`Ranks`]), and among these the one that has been without an answered request for longest. So whoever holds
//! connections without using them loses them to whoever does, and a source that has been served for long is the last
//! to be turned away.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use gateway_common::standing::Class;
use rustix::process::{Resource, getrlimit};

use super::admission::{Otherwise, Room, SPARE, Terms};
use super::io::Io;
use super::ranks::{Member, Place, Ranks};
use crate::config::Config;
use crate::metrics;
use crate::overload::Cause;
use crate::overload::distress::Distress;
use crate::proxy::Proxy;
use crate::proxy::rank::class_of;
use crate::snapshot::Snapshot;

/// Descriptors of the process that are no connections, and of each worker.
const OWN_DESCRIPTORS: u64 = 48 + SPARE;
const OWN_DESCRIPTORS_OF_WORKER: u64 = 8;
/// Of so many descriptors beyond this, a pipe for large bodies; of each worker no more than that.
const PIPES_OF: u64 = 32;
const AMPLE_DESCRIPTORS: u64 = 1024;
const MAX_PIPES: u64 = 64;

pub struct Crowd {
    proxy: Rc<Proxy>,
    /// Connections there are descriptors for.
    affordable: u64,
    members: RefCell<Ranks<Weak<Io>>>,
}

/// A connection's place, from accept to close.
pub struct Seat {
    crowd: Rc<Crowd>,
    io: RefCell<Option<Rc<Io>>>,
}

impl Crowd {
    pub fn new(proxy: &Rc<Proxy>) -> Rc<Self> {
        Rc::new(Self {
            proxy: proxy.clone(),
            affordable: Affordable::with(proxy.registry.workers.len()).clients,
            members: RefCell::default(),
        })
    }

    /// A place for one more, from `peer`, for which another may have to go; `None`: there is none for it.
    pub fn admit(self: &Rc<Self>, peer: IpAddr) -> Option<Seat> {
        let snapshot = &self.proxy.local().snapshot;
        let room = self.room(snapshot);
        if !room.is_ample() && !self.squeezes_in(&room, newcomer(snapshot, peer)) {
            return None;
        }
        self.cells().open.add(1);
        Some(Seat { crowd: self.clone(), io: RefCell::default() })
    }

    fn squeezes_in(&self, room: &Room, class: Class) -> bool {
        match room.terms(class) {
            Terms::Free => true,
            Terms::ForAnother(best, otherwise) => {
                self.evict(best)
                    || match otherwise {
                        Otherwise::Refused => false,
                        Otherwise::Admitted => true,
                        Otherwise::Asked => self.ask_others(room.places(class)),
                    }
            }
        }
    }

    /// Lets as many go as there are too many, where other workers have asked for it; they found none of their own.
    pub fn make_room(&self) {
        let wanted = &self.cells().room_wanted;
        let places = wanted.swap(0, Relaxed);
        if places == 0 {
            return;
        }
        while self.staying() >= places {
            if !self.evict(Class::Proven) {
                // All are in use now; the next look may find one that is not.
                return wanted.store(places, Relaxed);
            }
        }
    }

    fn room(&self, snapshot: &Snapshot) -> Room {
        let config = &snapshot.config;
        Room {
            open: self.staying(),
            most: config.connections.max.map_or(self.affordable, u64::from),
            short: is_short(&snapshot.distress, config),
            // Behind a PROXY header nobody is told from anybody at this point.
            all_alike: config.proxy_protocol,
        }
    }

    /// Connections of all workers that have not been asked to go.
    fn staying(&self) -> u64 {
        let workers = self.proxy.registry.workers.iter();
        workers.map(|cells| cells.open.get().saturating_sub(cells.leaving.get())).sum()
    }

    /// Asks the other workers to have less than `places` connections left; false: there are none.
    fn ask_others(&self, places: u64) -> bool {
        let workers = self.proxy.registry.workers.iter().enumerate();
        let mut others = workers.filter(|(worker, _)| *worker != self.proxy.worker).peekable();
        let any = others.peek().is_some();
        for (_, cells) in others {
            cells.room_wanted.store(places, Relaxed);
        }
        any
    }

    fn cells(&self) -> &metrics::Worker {
        &self.proxy.registry.workers[self.proxy.worker]
    }

    /// Asks a connection to go that is not in use, and of `best` class at most; false: none was found.
    pub fn evict(&self, best: Class) -> bool {
        let snapshot = &self.proxy.local().snapshot;
        let class = |io: &Weak<Io>| {
            let client = &io.upgrade()?.client;
            Some(class_of(snapshot, client.peer.ip(), client.relayed.get()))
        };
        let given_up = self.members.borrow_mut().give_up(best, class);
        let Some(io) = given_up.and_then(|io| io.upgrade()) else { return false };
        io.evicted.set(true);
        io.client.timer.wake();
        self.cells().leaving.add(1);
        self.cells().ended.evicted.add(1);
        true
    }
}

impl Member for Weak<Io> {
    fn stands(&self, place: Place) {
        self.upgrade().inspect(|io| io.place.set(place));
    }

    fn can_go(&self) -> bool {
        self.upgrade().is_some_and(|io| {
            let requests = io.client.requests.get();
            let served = requests != io.requests_seen.replace(requests);
            !served && !io.client.is_busy() && !io.blocked.get()
        })
    }
}

impl Seat {
    /// From now on the connection may be asked to go.
    pub fn take(&self, io: &Rc<Io>) {
        self.crowd.members.borrow_mut().add(Rc::downgrade(io));
        *self.io.borrow_mut() = Some(io.clone());
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let crowd = &self.crowd;
        if let Some(io) = self.io.take() {
            crowd.members.borrow_mut().remove(io.place.get());
            if io.evicted.get() {
                crowd.cells().leaving.sub(1);
            }
        }
        crowd.cells().open.sub(1);
    }
}

/// How well whoever is at the other end of a new connection is known.
fn newcomer(snapshot: &Snapshot, peer: IpAddr) -> Class {
    if snapshot.config.proxy_protocol { Class::Unknown } else { class_of(snapshot, peer, false) }
}

/// Connections there are descriptors for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affordable {
    pub clients: u64,
    /// To upstreams: not every client that is connected asks for something, or for something that is not here.
    pub upstream: u64,
    /// Pipes of each worker, of two descriptors each: none where descriptors are few.
    pub pipes: usize,
}

impl Affordable {
    /// By the limit on open files.
    pub fn with(workers: usize) -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let workers = workers as u64;
        let pipes = (descriptors.saturating_sub(AMPLE_DESCRIPTORS) / PIPES_OF / workers).min(MAX_PIPES);
        let own = OWN_DESCRIPTORS + (OWN_DESCRIPTORS_OF_WORKER + 2 * pipes) * workers;
        let free = descriptors.saturating_sub(own).max(4);
        Self { clients: free / 4 * 3, upstream: free / 4, pipes: pipes as usize }
    }
}

/// Whether a connection more would be one too many, however many there are.
fn is_short(distress: &Distress, config: &Config) -> bool {
    let state = distress.read(Instant::now());
    let by_connections = matches!(state.cause, Cause::Memory | Cause::Descriptors);
    config.overload.enabled && state.permille >= 1000 && by_connections
}
