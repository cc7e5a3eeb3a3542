//! What was forgotten of late at somebody's wish, so that a fetch begun before does not bring it back.
//!
//! Invalidations are counted, and a fetch notes how many there were when it began. The store asks here before it keeps
//! what comes of it; coalescing, whether a request may still join it. To be wrong costs a fetch, never an old answer.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

use super::entry::Entry;

/// Whether what is stored under a key's bytes goes.
pub type Goes = Box<dyn Fn(&[u8], &Entry) -> bool + Send + Sync>;

/// Places for keys, by their hash; those that share one share its count.
const PLACES: usize = 8192;
/// Purges whose conditions are remembered.
const PURGES: usize = 256;

pub struct Invalidated {
    count: AtomicU64,
    /// The count at the last invalidation of a key that has this place.
    keys: Box<[AtomicU64]>,
    /// The count at the last purge.
    last_purge: AtomicU64,
    purges: Mutex<Purges>,
}

#[derive(Default)]
struct Purges {
    /// The count at the last purge that is not remembered any more.
    dropped: u64,
    held: VecDeque<(u64, Goes)>,
}

impl Default for Invalidated {
    fn default() -> Self {
        let keys = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Self { count: AtomicU64::new(0), keys, last_purge: AtomicU64::new(0), purges: Mutex::default() }
    }
}

impl Invalidated {
    /// How many there were by now.
    pub fn count(&self) -> u64 {
        self.count.load(SeqCst)
    }

    /// The count at the last one that may concern the key with this hash.
    pub fn last(&self, hash: u64) -> u64 {
        self.place(hash).load(SeqCst).max(self.last_purge.load(SeqCst))
    }

    pub fn note_key(&self, hash: u64) {
        let count = self.count.fetch_add(1, SeqCst) + 1;
        self.place(hash).fetch_max(count, SeqCst);
    }

    pub fn note_purge(&self, goes: Goes) {
        let mut purges = self.purges.lock().unwrap_or_else(PoisonError::into_inner);
        let count = self.count.fetch_add(1, SeqCst) + 1;
        purges.held.push_back((count, goes));
        if purges.held.len() > PURGES
            && let Some((dropped, _)) = purges.held.pop_front()
        {
            purges.dropped = dropped;
        }
        self.last_purge.store(count, SeqCst);
    }

    /// Whether what a fetch brought is old news: it began when there were `begun`.
    pub fn concerns(&self, begun: u64, hash: u64, key: &[u8], entry: &Entry) -> bool {
        if self.place(hash).load(SeqCst) > begun {
            return true;
        }
        if self.last_purge.load(SeqCst) <= begun {
            return false;
        }
        let purges = self.purges.lock().unwrap_or_else(PoisonError::into_inner);
        let later = purges.held.iter().rev().take_while(|(count, _)| *count > begun);
        purges.dropped > begun || later.into_iter().any(|(_, goes)| goes(key, entry))
    }

    fn place(&self, hash: u64) -> &AtomicU64 {
        &self.keys[hash as usize % PLACES]
    }
}
