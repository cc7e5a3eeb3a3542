//! The stored responses: shards of a least-recently-used list, bounded by bytes.
//!
//! A look-up takes a shard's lock for reading; a found slot moves to the front at most once a second,
//! and only when the lock for writing is free at that moment. What an entry costs, its slot included,
//! counts against the shard's share of the bytes.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Instant;

use http::HeaderMap;
use lru::LruCache;
use rustc_hash::FxBuildHasher;

use super::entry::Entry;
use super::invalidated::Invalidated;
use super::key::Key;
use super::select::{Matcher, Selector};

/// Variants kept under one key; the oldest goes.
pub const MAX_VARIANTS: usize = 64;
/// A slot's place in the list and in the map over it.
const SLOT_BYTES: usize = 160;

pub struct Store {
    shards: Box<[Shard]>,
    /// A shard's share.
    capacity_bytes: AtomicUsize,
    epoch: Instant,
    evictions: AtomicU64,
    invalidated: Invalidated,
}

#[derive(Default)]
#[repr(align(128))]
struct Shard {
    slots: RwLock<Slots>,
    bytes: AtomicUsize,
}

struct Slots(LruCache<u64, Slot, FxBuildHasher>);

struct Slot {
    key: Box<[u8]>,
    /// Newest first.
    variants: Vec<Arc<Entry>>,
    bytes: usize,
    /// Second since the epoch when it came to the front.
    promoted: AtomicU32,
}

/// What is there for a request.
pub enum Found {
    Entry(Arc<Entry>),
    /// Only for requests with other values of these.
    OtherVariant(Arc<[Selector]>),
    Nothing,
}

impl Store {
    /// `shards`: a power of two.
    pub fn new(max_bytes: usize, shards: usize, epoch: Instant) -> Self {
        let shards: Box<[Shard]> = (0..shards).map(|_| Shard::default()).collect();
        let capacity_bytes = AtomicUsize::new(max_bytes / shards.len());
        let (evictions, invalidated) = Default::default();
        Self { shards, capacity_bytes, epoch, evictions, invalidated }
    }

    /// Takes effect at each shard's next insert, or with [`Self::evict_excess`].
    pub fn resize(&self, max_bytes: usize) {
        self.capacity_bytes.store(max_bytes / self.shards.len(), Relaxed);
    }

    pub fn find(&self, key: &Key, request: &HeaderMap, now: Instant) -> Found {
        let shard = self.shard(key.hash);
        let slots = shard.slots.read().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = slots.0.peek(&key.hash).filter(|slot| *slot.key == *key.bytes) else {
            return Found::Nothing;
        };
        let mut matcher = Matcher::new(request);
        let Some(entry) = slot.variants.iter().find(|entry| matcher.matches(&entry.selecting)) else {
            return slot
                .variants
                .first()
                .map_or(Found::Nothing, |newest| Found::OtherVariant(newest.selecting.selectors().clone()));
        };
        let entry = entry.clone();
        let second = self.second(now);
        let due = slot.promoted.load(Relaxed) != second;
        drop(slots);
        if due && let Ok(mut slots) = shard.slots.try_write() {
            // Marked here and not before: who finds the lock taken leaves it to the next.
            if let Some(slot) = slots.0.get(&key.hash) {
                slot.promoted.store(second, Relaxed);
            }
        }
        Found::Entry(entry)
    }

    /// For what is fetched from here on, see [`Self::insert`].
    pub fn begin(&self) -> u64 {
        self.invalidated.count()
    }

    /// Changes with what may have been forgotten under `key`.
    pub fn generation(&self, key: &Key) -> u64 {
        self.invalidated.last(key.hash)
    }

    /// Keeps `entry`, in place of what answered the same requests before; unless it is older than that, or was forgotten
    /// since its fetch has `begun`.
    pub fn insert(&self, key: &Key, request: &HeaderMap, entry: Arc<Entry>, begun: u64, now: Instant) {
        let capacity = self.capacity_bytes.load(Relaxed);
        let bytes = entry.bytes();
        let shard = self.shard(key.hash);
        // Freed when the lock is: that takes longer than all the rest.
        let mut gone: Vec<Slot> = Vec::new();
        let mut replaced: Vec<Arc<Entry>> = Vec::new();
        let mut slots = shard.write();
        // Under the lock: who forgets notes it first, and takes the lock then.
        if self.invalidated.concerns(begun, key.hash, &key.bytes, &entry) {
            return;
        }
        if slots.0.peek(&key.hash).is_some_and(|slot| *slot.key != *key.bytes) {
            gone.extend(self.remove(shard, &mut slots, key.hash));
        }
        let slot = slots.0.get_or_insert_mut(key.hash, || {
            let bytes = SLOT_BYTES + key.bytes.len();
            shard.bytes.fetch_add(bytes, Relaxed);
            let promoted = AtomicU32::new(self.second(now));
            Slot { key: key.bytes.as_slice().into(), variants: Vec::new(), bytes, promoted }
        });
        let before = slot.bytes;
        let same =
            |held: &mut Arc<Entry>| held.selecting == entry.selecting || held.selecting.matches(request);
        if slot.variants.iter_mut().any(|held| same(held) && held.received > entry.received) {
            return;
        }
        replaced.extend(slot.variants.extract_if(.., same));
        slot.variants.insert(0, entry.clone());
        slot.bytes += bytes;
        slot.bytes -= replaced.iter().map(|entry| entry.bytes()).sum::<usize>();
        while slot.variants.len() > 1 && (slot.variants.len() > MAX_VARIANTS || slot.bytes > capacity / 2) {
            let oldest = slot.variants.pop().expect("there are two at least");
            slot.bytes -= oldest.bytes();
            replaced.push(oldest);
            self.evictions.fetch_add(1, Relaxed);
        }
        let after = slot.bytes;
        shard.bytes.fetch_add(after, Relaxed);
        shard.bytes.fetch_sub(before, Relaxed);
        self.evict(shard, &mut slots, capacity, &mut gone);
        drop(slots);
    }

    /// Lets go of what is over the capacity, for one that has become smaller.
    pub fn evict_excess(&self) {
        for shard in &self.shards {
            let mut gone = Vec::new();
            self.evict(shard, &mut shard.write(), self.capacity_bytes.load(Relaxed), &mut gone);
        }
    }

    fn evict(&self, shard: &Shard, slots: &mut Slots, capacity: usize, gone: &mut Vec<Slot>) {
        while shard.bytes.load(Relaxed) > capacity
            && let Some((_, slot)) = slots.0.pop_lru()
        {
            shard.bytes.fetch_sub(slot.bytes, Relaxed);
            self.evictions.fetch_add(slot.variants.len() as u64, Relaxed);
            gone.push(slot);
        }
    }

    /// Forgets every variant of `key`; true if there was one.
    pub fn invalidate(&self, key: &Key) -> bool {
        self.invalidated.note_key(key.hash);
        let shard = self.shard(key.hash);
        let mut slots = shard.write();
        let same = slots.0.peek(&key.hash).is_some_and(|slot| *slot.key == *key.bytes);
        let gone = same.then(|| self.remove(shard, &mut slots, key.hash)).flatten();
        drop(slots);
        gone.is_some()
    }

    /// Forgets the variants for which `goes` holds; tells how many.
    pub fn purge(&self, goes: impl Fn(&[u8], &Entry) -> bool + Clone + Send + Sync + 'static) -> usize {
        self.invalidated.note_purge(Box::new(goes.clone()));
        let mut purged = 0;
        for shard in &self.shards {
            // Looked for under the lock for reading, so that requests are answered meanwhile.
            let slots = shard.slots.read().unwrap_or_else(PoisonError::into_inner);
            let hit = |slot: &Slot| slot.variants.iter().any(|entry| goes(&slot.key, entry));
            let hashes: Vec<u64> =
                slots.0.iter().filter(|(_, slot)| hit(slot)).map(|(hash, _)| *hash).collect();
            drop(slots);
            for hash in hashes {
                let mut slots = shard.write();
                let Some(slot) = slots.0.peek_mut(&hash) else { continue };
                let Slot { key, variants, .. } = slot;
                let gone: Vec<Arc<Entry>> = variants.extract_if(.., |entry| goes(key, entry)).collect();
                let freed: usize = gone.iter().map(|entry| entry.bytes()).sum();
                slot.bytes -= freed;
                shard.bytes.fetch_sub(freed, Relaxed);
                let empty = slot.variants.is_empty();
                let slot = empty.then(|| self.remove(shard, &mut slots, hash));
                drop(slots);
                drop(slot);
                purged += gone.len();
            }
        }
        purged
    }

    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.bytes.load(Relaxed)).sum()
    }

    pub fn evictions(&self) -> u64 {
        self.evictions.load(Relaxed)
    }

    /// Keys held.
    pub fn len(&self) -> usize {
        let count = |shard: &Shard| shard.slots.read().unwrap_or_else(PoisonError::into_inner).0.len();
        self.shards.iter().map(count).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn remove(&self, shard: &Shard, slots: &mut Slots, hash: u64) -> Option<Slot> {
        let slot = slots.0.pop(&hash)?;
        shard.bytes.fetch_sub(slot.bytes, Relaxed);
        Some(slot)
    }

    fn shard(&self, hash: u64) -> &Shard {
        // The map inside takes the low bits.
        &self.shards[(hash >> 48) as usize & (self.shards.len() - 1)]
    }

    fn second(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.epoch).as_secs()).unwrap_or(u32::MAX)
    }
}

impl Shard {
    fn write(&self) -> RwLockWriteGuard<'_, Slots> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self(LruCache::unbounded_with_hasher(FxBuildHasher))
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
