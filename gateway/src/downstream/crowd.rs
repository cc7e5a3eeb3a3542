//! A worker's connections: how many there may be, and which one makes room for another.
//!
//! The listener asks for a [`Seat`] for each connection it accepts. Where all are taken, by the process as a whole or
//! because memory or descriptors are short, the connection goes that has been without an answered request for
//! longest and has none under way: one that never asked for anything before one that is idle between requests. So
//! whoever holds connections without using them loses them to whoever does.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::atomic::Ordering::Relaxed;

use rustix::process::{Resource, getrlimit};

use super::io::Io;
use crate::config::Config;
use crate::metrics;
use crate::overload::Cause;
use crate::overload::distress::Distress;
use crate::proxy::Proxy;

/// Connections above the bound for a moment, while another worker makes room.
const SPARE: u64 = 16;
/// Descriptors of the process that are no connections, and of each worker.
const OWN_DESCRIPTORS: u64 = 48 + SPARE;
const OWN_DESCRIPTORS_OF_WORKER: u64 = 8;
/// Connections looked at for one that can go, so that accepting has a bounded cost.
const LOOKED_AT: usize = 128;

pub struct Crowd {
    proxy: Rc<Proxy>,
    /// Connections there are descriptors for.
    affordable: u64,
    /// By when they were last found in use.
    members: RefCell<BTreeMap<u64, Weak<Io>>>,
    next: Cell<u64>,
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
            next: Cell::new(0),
        })
    }

    /// A place for one more, for which another may have to go; `None`: all are in use.
    pub fn admit(self: &Rc<Self>) -> Option<Seat> {
        let over = self.over();
        let snapshot = &self.proxy.local().snapshot;
        let full = over.is_some() || is_short(&snapshot.distress, &snapshot.config);
        if full && !self.evict() && !over.is_some_and(|over| self.ask_others() && over < SPARE) {
            return None;
        }
        self.cells().open.add(1);
        Some(Seat { crowd: self.clone(), io: RefCell::default() })
    }

    /// Lets as many go as there are too many, where other workers have asked for it; they found none of their own.
    pub fn make_room(&self) {
        let wanted = &self.cells().room_wanted;
        if wanted.swap(false, Relaxed) {
            while self.over().is_some() {
                if !self.evict() {
                    // All are in use now; the next look may find one that is not.
                    return wanted.store(true, Relaxed);
                }
            }
        }
    }

    /// By how many the next connection would be too many, less one; `None`: there is a place.
    fn over(&self) -> Option<u64> {
        let workers = self.proxy.registry.workers.iter();
        let staying: u64 = workers.map(|cells| cells.open.get().saturating_sub(cells.leaving.get())).sum();
        let most = self.proxy.local().snapshot.config.connections.max.map_or(self.affordable, u64::from);
        staying.checked_sub(most)
    }

    /// False: there are none.
    fn ask_others(&self) -> bool {
        let workers = self.proxy.registry.workers.iter().enumerate();
        let mut others = workers.filter(|(worker, _)| *worker != self.proxy.worker).peekable();
        let any = others.peek().is_some();
        for (_, cells) in others {
            cells.room_wanted.store(true, Relaxed);
        }
        any
    }

    fn cells(&self) -> &metrics::Worker {
        &self.proxy.registry.workers[self.proxy.worker]
    }

    /// Asks a connection that is not in use to go; false: none was found.
    pub fn evict(&self) -> bool {
        let mut members = self.members.borrow_mut();
        // Each has a second chance.
        for _ in 0..LOOKED_AT.min(2 * members.len()) {
            let Some((_, member)) = members.pop_first() else { return false };
            let Some(io) = member.upgrade() else { continue };
            let client = &io.client;
            let served = client.requests.get() != io.requests_seen.replace(client.requests.get());
            if served || client.is_busy() || io.blocked.get() {
                self.insert(&mut members, &io);
                continue;
            }
            io.evicted.set(true);
            client.timer.wake();
            self.cells().leaving.add(1);
            self.cells().ended.evicted.add(1);
            return true;
        }
        false
    }

    fn insert(&self, members: &mut BTreeMap<u64, Weak<Io>>, io: &Rc<Io>) {
        let number = self.next.get();
        self.next.set(number + 1);
        io.number.set(number);
        members.insert(number, Rc::downgrade(io));
    }
}

impl Seat {
    /// From now on the connection may be asked to go.
    pub fn take(&self, io: &Rc<Io>) {
        self.crowd.insert(&mut self.crowd.members.borrow_mut(), io);
        *self.io.borrow_mut() = Some(io.clone());
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let crowd = &self.crowd;
        if let Some(io) = self.io.take() {
            crowd.members.borrow_mut().remove(&io.number.get());
            if io.evicted.get() {
                crowd.cells().leaving.sub(1);
            }
        }
        crowd.cells().open.sub(1);
    }
}

/// Connections there are descriptors for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affordable {
    pub clients: u64,
    /// To upstreams: not every client that is connected asks for something, or for something that is not here.
    pub upstream: u64,
}

impl Affordable {
    /// By the limit on open files.
    pub fn with(workers: usize) -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let own = OWN_DESCRIPTORS + OWN_DESCRIPTORS_OF_WORKER * workers as u64;
        let free = descriptors.saturating_sub(own).max(4);
        Self { clients: free / 4 * 3, upstream: free / 4 }
    }
}

/// Whether a connection more would be one too many, however many there are.
fn is_short(distress: &Distress, config: &Config) -> bool {
    let state = distress.read();
    let by_connections = matches!(state.cause, Cause::Memory | Cause::Descriptors);
    config.overload.enabled && state.permille >= 1000 && by_connections
}
