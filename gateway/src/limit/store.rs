//! One shard of the keys that owe something: a table of fixed size, behind one lock.
//!
//! `mod` picks the shard and holds its lock for one decision. All memory is reserved at the start and
//! touched as keys come, so that no insertion ever moves the table. An operation looks at a bounded
//! number of places ([`PROBES`] and [`SWEPT`]), whether keys are new, known, evicted or forgotten.
//!
//! Never evicted is a key that owes something: it would come back with a full quota. Where there is no
//! room, newcomers of a rule share one state.

use rustc_hash::FxHashMap;

use super::quota::State;
use super::window::Counts;

/// Places from a hash's own one on that an entry may stand at.
const PROBES: usize = 32;
/// Entries that each insertion looks at on behalf of the forgotten ones: more than it adds.
const SWEPT: usize = 4;
/// As many where the shard is full.
const SWEPT_FULL: usize = 32;
/// Bytes of a key that fit into its entry.
const SHORT_BYTES: usize = 22;
/// What longer keys may take on the heap, per entry of the shard's capacity.
const LONG_BYTES_PER_ENTRY: usize = 64;
/// The rule of an entry that is not in use.
const NOBODY: u32 = u32::MAX;

pub struct Shard {
    /// By the hash: its upper half and the entry's number plus one; 0 is a free place.
    index: Vec<u64>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    capacity: usize,
    long_bytes: usize,
    /// The next entry to be looked at by a sweep.
    hand: usize,
    /// By the rule: as many as have lacked room lately.
    shared: FxHashMap<u32, Shared>,
    tally: Tally,
    #[cfg(test)]
    pub steps: usize,
}

/// Sixty-four bytes: a cache line.
struct Entry {
    hash: u64,
    /// From then on the key owes nothing.
    forgotten_at_ns: u64,
    full_at_ns: u64,
    rule: u32,
    counts: Counts,
    key: Key,
}

const _: () = assert!(size_of::<Entry>() == 64);

enum Key {
    Short(u8, [u8; SHORT_BYTES]),
    Long(Box<[u8]>),
}

#[derive(Default)]
struct Shared {
    forgotten_at_ns: u64,
    state: State,
}

/// Where a key's state is; holds until the shard's lock is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Own(u32),
    /// The state that newcomers of a rule share.
    Shared(u32),
}

/// What has become of the keys of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Held now.
    pub keys: u64,
    /// Let go because a newcomer needed the place; they owed nothing.
    pub evicted: u64,
    /// Let go because their time had passed.
    pub expired: u64,
    /// Decisions over newcomers for which there was no place.
    pub overflowed: u64,
}

impl Shard {
    pub fn new(capacity: usize) -> Self {
        Self {
            // Twice the entries, so that nearly every hash finds a place near its own.
            index: vec![0; (2 * capacity).next_power_of_two().max(PROBES)],
            entries: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            capacity,
            long_bytes: 0,
            hand: 0,
            shared: FxHashMap::default(),
            tally: Tally::default(),
            #[cfg(test)]
            steps: 0,
        }
    }

    /// States that are shared now.
    #[cfg(test)]
    pub fn shared(&self) -> usize {
        self.shared.len()
    }

    /// Bytes that its tables take, used or not, and the keys that do not fit into them.
    #[cfg(test)]
    pub fn reserved(&self) -> usize {
        let tables = self.index.capacity() * size_of::<u64>() + self.entries.capacity() * size_of::<Entry>();
        tables + self.free.capacity() * size_of::<u32>() + self.long_bytes
    }

    pub fn tally(&self) -> Tally {
        Tally { keys: (self.entries.len() - self.free.len()) as u64, ..self.tally }
    }

    /// The place of `rule`'s state for `key`; makes one if there is none. What it returned before in the
    /// same decision, with the same `now_ns`, stays valid.
    pub fn place(&mut self, hash: u64, rule: u32, key: &[u8], now_ns: u64) -> Place {
        match self.find(hash, rule, key) {
            Some(number) => {
                let entry = &mut self.entries[number as usize];
                // Not swept away between here and `set`.
                entry.forgotten_at_ns = entry.forgotten_at_ns.max(now_ns + 1);
                Place::Own(number)
            }
            None => match self.insert(hash, rule, key, now_ns) {
                Some(number) => Place::Own(number),
                None => {
                    self.share(rule, now_ns);
                    Place::Shared(rule)
                }
            },
        }
    }

    /// The place of `rule`'s state for `key`, if it has one of its own.
    pub fn look(&mut self, hash: u64, rule: u32, key: &[u8]) -> Option<Place> {
        self.find(hash, rule, key).map(Place::Own)
    }

    pub fn get(&self, place: Place) -> State {
        match place {
            Place::Own(number) => {
                let Entry { counts, full_at_ns, .. } = self.entries[number as usize];
                State { counts, full_at_ns }
            }
            Place::Shared(rule) => self.shared[&rule].state,
        }
    }

    pub fn set(&mut self, place: Place, state: State, forgotten_at_ns: u64) {
        match place {
            Place::Own(number) => {
                let entry = &mut self.entries[number as usize];
                (entry.counts, entry.full_at_ns) = (state.counts, state.full_at_ns);
                entry.forgotten_at_ns = forgotten_at_ns;
            }
            Place::Shared(rule) => {
                let shared = self.shared.get_mut(&rule).expect("made by `place`");
                *shared = Shared { state, forgotten_at_ns };
            }
        }
    }

    /// Lets go of the forgotten among the next `count` entries.
    pub fn sweep(&mut self, count: usize, now_ns: u64) {
        for _ in 0..count.min(self.entries.len()) {
            self.step();
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let number = self.hand;
            self.hand += 1;
            if self.is_forgotten(number, now_ns) {
                self.remove(number);
                self.tally.expired += 1;
            }
        }
    }

    fn find(&mut self, hash: u64, rule: u32, key: &[u8]) -> Option<u32> {
        for probe in 0..PROBES {
            self.step();
            let word = self.index[self.slot(hash, probe)];
            if word >> 32 == hash >> 32 && word as u32 != 0 {
                let number = word as u32 - 1;
                let entry = &self.entries[number as usize];
                if entry.hash == hash && entry.rule == rule && entry.key.bytes() == key {
                    return Some(number);
                }
            }
        }
        None
    }

    fn insert(&mut self, hash: u64, rule: u32, key: &[u8], now_ns: u64) -> Option<u32> {
        let full = |shard: &Self| shard.free.is_empty() && shard.entries.len() == shard.capacity;
        let long = |shard: &Self| {
            key.len() > SHORT_BYTES && shard.long_bytes + key.len() > shard.capacity * LONG_BYTES_PER_ENTRY
        };
        self.sweep(SWEPT, now_ns);
        if full(self) || long(self) {
            self.sweep(SWEPT_FULL, now_ns);
        }
        let slot = self.free_slot(hash, now_ns)?;
        if full(self) || long(self) {
            return None;
        }
        let key = Key::new(key);
        self.long_bytes += key.heap_bytes();
        let entry =
            Entry { hash, forgotten_at_ns: now_ns + 1, full_at_ns: 0, rule, counts: Counts::default(), key };
        let number = match self.free.pop() {
            Some(number) => {
                self.entries[number as usize] = entry;
                number
            }
            None => {
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
        };
        self.index[slot] = hash >> 32 << 32 | u64::from(number + 1);
        Some(number)
    }

    /// A free place for `hash`, or one whose entry owes nothing.
    fn free_slot(&mut self, hash: u64, now_ns: u64) -> Option<usize> {
        for probe in 0..PROBES {
            self.step();
            let slot = self.slot(hash, probe);
            if self.index[slot] == 0 {
                return Some(slot);
            }
        }
        for probe in 0..PROBES {
            self.step();
            let slot = self.slot(hash, probe);
            let number = (self.index[slot] as u32 - 1) as usize;
            if self.is_forgotten(number, now_ns) {
                self.remove(number);
                self.tally.evicted += 1;
                return Some(slot);
            }
        }
        None
    }

    fn is_forgotten(&self, number: usize, now_ns: u64) -> bool {
        let entry = &self.entries[number];
        entry.rule != NOBODY && entry.forgotten_at_ns <= now_ns
    }

    fn remove(&mut self, number: usize) {
        let word = number as u32 + 1;
        let hash = self.entries[number].hash;
        for probe in 0..PROBES {
            self.step();
            let slot = self.slot(hash, probe);
            if self.index[slot] as u32 == word {
                self.index[slot] = 0;
                break;
            }
        }
        let entry = &mut self.entries[number];
        self.long_bytes -= entry.key.heap_bytes();
        (entry.rule, entry.key) = (NOBODY, Key::new(&[]));
        self.free.push(number as u32);
    }

    fn share(&mut self, rule: u32, now_ns: u64) {
        self.tally.overflowed += 1;
        if !self.shared.contains_key(&rule) && self.shared.len() == self.shared.capacity() {
            // Before it grows; then there is room for as many again before the next look at all.
            self.shared.retain(|_, shared| shared.forgotten_at_ns > now_ns);
            self.shared.reserve(self.shared.len().max(1));
        }
        let shared = self.shared.entry(rule).or_default();
        shared.forgotten_at_ns = shared.forgotten_at_ns.max(now_ns + 1);
    }

    fn slot(&self, hash: u64, probe: usize) -> usize {
        (hash as usize + probe) & (self.index.len() - 1)
    }

    #[inline]
    fn step(&mut self) {
        #[cfg(test)]
        {
            self.steps += 1;
        }
    }
}

impl Key {
    fn new(bytes: &[u8]) -> Self {
        let mut short = [0; SHORT_BYTES];
        match short.get_mut(..bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                Self::Short(bytes.len() as u8, short)
            }
            None => Self::Long(bytes.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short(length, bytes) => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::Short(..) => 0,
            Self::Long(bytes) => bytes.len(),
        }
    }
}
