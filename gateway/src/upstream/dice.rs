//! Random choices of a worker: which endpoints to compare, how long to wait.
//!
//! Not unpredictable: SplitMix64 (Steele, Lea, Flood 2014).

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

pub struct Dice(Cell<u64>);

impl Default for Dice {
    fn default() -> Self {
        Self::seeded(RandomState::new().hash_one(0))
    }
}

impl Dice {
    pub fn seeded(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        mix(state)
    }

    /// Below `bound`, which is not 0; even as far as 2³² divides by it.
    pub fn below(&self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }

    /// In [0, 1).
    pub fn fraction(&self) -> f64 {
        self.next() as f64 / (u64::MAX as f64 + 1.0)
    }
}

/// Spreads what differs in few bits over all of them.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
