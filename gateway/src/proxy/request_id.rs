//! Request identifiers: 32 hexadecimal digits, unique with overwhelming probability.
//!
//! Not a secret and not unpredictable: SplitMix64 (Steele, Lea, Flood 2014) over a counter that
//! starts at a random value for each worker.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

use http::HeaderValue;

/// What a request is called.
pub enum RequestId {
    Made([u8; 32]),
    /// By a trusted proxy; [`is_plain`].
    Told(HeaderValue),
}

impl RequestId {
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Made(digits) => digits,
            Self::Told(id) => id.as_bytes(),
        }
    }

    pub fn as_str(&self) -> &str {
        str::from_utf8(self.as_bytes()).expect("it is visible ASCII")
    }

    pub fn value(&self) -> HeaderValue {
        match self {
            Self::Made(digits) => HeaderValue::from_bytes(digits).expect("digits are visible ASCII"),
            Self::Told(id) => id.clone(),
        }
    }
}

pub struct Ids {
    next: Cell<u64>,
    worker: u64,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Ids {
    pub fn new() -> Self {
        let random = RandomState::new();
        Self { next: Cell::new(random.hash_one(0)), worker: random.hash_one(1) }
    }

    pub fn next(&self) -> RequestId {
        RequestId::Made(self.digits())
    }

    pub fn digits(&self) -> [u8; 32] {
        let state = self.next.get().wrapping_add(GOLDEN);
        self.next.set(state);
        let mut digits = [0; 32];
        hex(mix(state), &mut digits[..16]);
        hex(mix(state ^ self.worker), &mut digits[16..]);
        digits
    }
}

/// Whether a proxy's identifier may go into pages, problems and logs as it is. Proxies pass on what their
/// clients wrote, so what could end a string or open an element is none.
pub fn is_plain(id: &HeaderValue) -> bool {
    const LONGEST_BYTES: usize = 128;
    let plain = |byte: &u8| byte.is_ascii_graphic() && !b"\"'\\<>&".contains(byte);
    (1..=LONGEST_BYTES).contains(&id.len()) && id.as_bytes().iter().all(plain)
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn hex(value: u64, out: &mut [u8]) {
    for (pair, byte) in out.chunks_exact_mut(2).zip(value.to_be_bytes()) {
        pair.copy_from_slice(&PAIRS[usize::from(byte)]);
    }
}

/// Each byte's two digits.
static PAIRS: [[u8; 2]; 256] = {
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < pairs.len() {
        pairs[byte] = [b"0123456789abcdef"[byte >> 4], b"0123456789abcdef"[byte & 15]];
        byte += 1;
    }
    pairs
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hexadecimal_and_differ() {
        let (a, b) = (Ids::new(), Ids::new());
        let mut seen = std::collections::HashSet::new();
        for id in (0..10_000).flat_map(|_| [a.next(), b.next()]) {
            let id = id.as_str();
            assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
            assert!(seen.insert(id.to_owned()), "{id} twice");
        }
    }
}
