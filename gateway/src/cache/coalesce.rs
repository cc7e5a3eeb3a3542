//! Identical requests made one: the flights under way, and the keys for which that does not work.
//!
//! Process-wide. The first to ask for a key leads: its request is sent, by a fetch that does not end
//! with it. Whoever asks meanwhile follows. What turns out not to be for everybody marks its key, and
//! for a while requests of that key go upstream side by side.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use rustc_hash::FxBuildHasher;

use super::fanout::{Fanout, Inbox};
use super::flight::{Feed, Flight, NoRoom, Reader};
use super::key::Key;

/// How long a key is left alone whose response was not for everybody.
pub const UNSHARED_FOR: Duration = Duration::from_secs(120);
/// Keys remembered for that, in each shard.
const UNSHARED_KEYS: usize = 1024;
const SHARDS: usize = 64;

pub struct Flights {
    shards: Box<[Mutex<Shard>]>,
    inboxes: Arc<[Arc<Inbox>]>,
    collapsed: AtomicU64,
}

struct Shard {
    flying: HashMap<Key, Arc<Flight>, FxBuildHasher>,
    /// By the key's hash alone: to be wrong costs a request of its own.
    unshared: LruCache<u64, Instant, FxBuildHasher>,
}

/// What becomes of a request.
pub enum Part {
    /// Its fetch is to be started, with the feed.
    Lead(Feed, Reader),
    Follow(Reader),
    /// It goes upstream by itself.
    Alone,
    /// It has come too late: the answer is there.
    TooLate,
    /// Too many follow already.
    Full,
}

impl Flights {
    pub fn new(workers: usize) -> Arc<Self> {
        // Bounded where it is added to: a list with a bound of its own takes all its memory at once.
        let unshared = || LruCache::unbounded_with_hasher(FxBuildHasher);
        let shard = || Mutex::new(Shard { flying: HashMap::default(), unshared: unshared() });
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            inboxes: (0..workers).map(|_| Arc::default()).collect(),
            collapsed: AtomicU64::new(0),
        })
    }

    pub fn workers(&self) -> usize {
        self.inboxes.len()
    }

    pub fn inbox(&self, worker: usize) -> &Arc<Inbox> {
        &self.inboxes[worker]
    }

    /// `answered` is asked while nobody else can begin a flight for `key`: whether the answer has come
    /// since the caller looked for it.
    pub fn join(
        self: &Arc<Self>,
        key: Key,
        fanout: &Rc<Fanout>,
        max_bytes: usize,
        now: Instant,
        answered: impl FnOnce() -> bool,
    ) -> Part {
        let mut shard = self.shard(key.hash);
        if let Some(flight) = shard.flying.get(&key) {
            let followed = flight.follow(fanout);
            drop(shard);
            return match followed {
                Ok(reader) => {
                    self.collapsed.fetch_add(1, Relaxed);
                    Part::Follow(reader)
                }
                Err(NoRoom::TooLate) => Part::Alone,
                Err(NoRoom::Full) => Part::Full,
            };
        }
        if shard.unshared.peek(&key.hash).is_some_and(|until| now < *until) {
            return Part::Alone;
        }
        if answered() {
            return Part::TooLate;
        }
        let flight = Flight::new(self.clone(), Some(key.clone()), max_bytes);
        let (feed, reader) = flight.begin(fanout);
        shard.flying.insert(key, flight);
        Part::Lead(feed, reader)
    }

    /// A flight that nobody can join.
    pub fn alone(self: &Arc<Self>, fanout: &Rc<Fanout>, max_bytes: usize) -> (Feed, Reader) {
        Flight::new(self.clone(), None, max_bytes).begin(fanout)
    }

    /// Nobody joins `flight` from here on.
    pub(super) fn close(&self, flight: &Arc<Flight>) {
        let Some(key) = &flight.key else { return };
        let mut shard = self.shard(key.hash);
        if shard.flying.get(key).is_some_and(|flying| Arc::ptr_eq(flying, flight)) {
            shard.flying.remove(key);
        }
    }

    /// The key's response is not for everybody: leave its requests alone for a while.
    pub fn mark_unshared(&self, hash: u64, now: Instant) {
        let unshared = &mut self.shard(hash).unshared;
        unshared.put(hash, now + UNSHARED_FOR);
        if unshared.len() > UNSHARED_KEYS {
            unshared.pop_lru();
        }
    }

    /// It is for everybody again.
    pub fn unmark(&self, hash: u64) {
        self.shard(hash).unshared.pop(&hash);
    }

    /// Requests that followed another, since the start.
    pub fn collapsed(&self) -> u64 {
        self.collapsed.load(Relaxed)
    }

    /// Readers of flights that can be joined.
    pub fn waiters(&self) -> usize {
        let of = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.flying.values().map(|flight| flight.readers()).sum::<usize>()
        };
        self.shards.iter().map(of).sum()
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        self.shards[(hash >> 48) as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
