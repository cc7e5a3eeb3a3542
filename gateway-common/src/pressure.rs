//! The words by which userspace tells the kernel half how it fares, each with an end: when userspace stalls
//! or dies, they end by themselves.
//!
//! `gw_state` holds them. All arithmetic of shedding is here; nothing reads a clock or a map.

use crate::addr::Address;
use crate::standing::Class;

/// Place of the set of `PENALTIES` and the others.
pub const ATTENTION: u32 = 0;
/// Place of the word that lets cookies be sent; its level says nothing.
pub const ARMED: u32 = 1;
/// Place of the word of the first class; the others follow.
pub const SHED: u32 = 2;
/// Words of the map.
pub const WORDS: usize = SHED as usize + Class::ALL.len();

/// There are penalties.
pub const PENALTIES: u64 = 1;
/// There are penalties of level 2: packets of connections are looked at too.
pub const BLOCKING: u64 = 1 << 1;
/// Cookies are armed: what may be the answer to one is looked at.
pub const COOKIES: u64 = 1 << 2;
/// Some class is shed.
pub const SHEDDING: u64 = 1 << 3;
/// Cookies are armed when they are due: there is somebody to have the stack take them.
pub const MAY_ARM: u64 = 1 << 4;

/// A level with its end and the epoch that decides whom it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Of 65,536 sources, how many are shed.
    pub level: u16,
    pub epoch: u16,
    /// In [`ticks`].
    until: u32,
}

/// Units of a word's end, 1.05 ms each: 32 bits of them are 52 days, far more than any word lives.
#[inline(always)]
pub const fn ticks(now_ns: u64) -> u32 {
    (now_ns >> 20) as u32
}

impl Word {
    pub const fn new(level: u16, epoch: u16, until_ns: u64) -> Self {
        Self { level, epoch, until: ticks(until_ns) }
    }

    pub const fn pack(self) -> u64 {
        self.level as u64 | (self.epoch as u64) << 16 | (self.until as u64) << 32
    }

    /// The word as the map holds it, unless it has ended; 0 has always ended.
    #[inline(always)]
    pub const fn read(word: u64, now_ns: u64) -> Option<Self> {
        let this = Self { level: word as u16, epoch: (word >> 16) as u16, until: (word >> 32) as u32 };
        let left = this.until.wrapping_sub(ticks(now_ns)) as i32;
        if word != 0 && left > 0 { Some(this) } else { None }
    }

    /// Whether a source is among those that this level sheds in this epoch: the same answer for all of it.
    #[inline(always)]
    pub fn sheds(&self, key: &[u64; 2], source: &Address) -> bool {
        self.level > 0 && (hash(key, source, self.epoch.into()) as u16) < self.level
    }
}

/// SipHash-2-4 (Aumasson, Bernstein) over a source and an epoch: keyed, for a client can choose its address.
#[inline(always)]
pub fn hash(key: &[u64; 2], source: &Address, epoch: u64) -> u64 {
    let [first, second] = source.halves();
    let mut state = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    const BYTES: u64 = 24 << 56;
    for word in [first, second, epoch, BYTES] {
        state[3] ^= word;
        round(&mut state);
        round(&mut state);
        state[0] ^= word;
    }
    state[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut state);
    }
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

#[inline(always)]
fn round(state: &mut [u64; 4]) {
    let [mut a, mut b, mut c, mut d] = *state;
    a = a.wrapping_add(b);
    c = c.wrapping_add(d);
    b = b.rotate_left(13) ^ a;
    d = d.rotate_left(16) ^ c;
    a = a.rotate_left(32);
    c = c.wrapping_add(b);
    a = a.wrapping_add(d);
    b = b.rotate_left(17) ^ c;
    d = d.rotate_left(21) ^ a;
    c = c.rotate_left(32);
    *state = [a, b, c, d];
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    fn source(n: u32) -> Address {
        Address::from_ipv4(n.to_be())
    }

    /// Beside the standard library's, which gives what the paper's appendix A gives.
    #[test]
    #[allow(deprecated, reason = "it is deprecated for hash tables, and is the function that we mean")]
    fn it_is_siphash() {
        use std::hash::{Hasher, SipHasher};
        let theirs = |bytes: &[u8]| {
            let mut hasher = SipHasher::new_with_keys(KEY[0], KEY[1]);
            hasher.write(bytes);
            hasher.finish()
        };
        assert_eq!(theirs(&core::array::from_fn::<u8, 15, _>(|place| place as u8)), 0xa129_ca61_49be_45e5);
        for first in 0..=255 {
            let bytes: [u8; 24] = core::array::from_fn(|place| first ^ place as u8);
            let (octets, epoch) = bytes.split_at(16);
            let source = Address { octets: octets.try_into().unwrap() };
            let epoch = u64::from_le_bytes(epoch.try_into().unwrap());
            assert_eq!(hash(&KEY, &source, epoch), theirs(&bytes));
        }
    }

    #[test]
    fn a_word_ends_by_itself() {
        const MS: u64 = 1_000_000;
        for start in [1 << 40, (u32::MAX as u64) << 20] {
            let word = Word::new(7, 3, start + 1_000 * MS);
            assert_eq!(Word::read(word.pack(), start), Some(word));
            assert_eq!(Word::read(word.pack(), start + 990 * MS), Some(word));
            assert_eq!(Word::read(word.pack(), start + 1_010 * MS), None);
        }
        assert_eq!(Word::read(0, 1 << 63), None);
    }

    /// In each epoch the share that the level says, and others in the next.
    #[test]
    fn a_level_sheds_its_share_and_no_source_for_long() {
        const SOURCES: u32 = 20_000;
        for level in [0, 6_554, 32_768, u16::MAX] {
            let shed = |epoch, n| Word::new(level, epoch, 1 << 40).sheds(&KEY, &source(n));
            let count = (0..SOURCES).filter(|n| shed(1, *n)).count() as f64;
            let share = f64::from(level) / 65_536.0;
            assert!((count / f64::from(SOURCES) - share).abs() < 0.015, "{count} at {level}");
            let twice = (0..SOURCES).filter(|n| shed(1, *n) && shed(2, *n)).count() as f64;
            assert!((twice / f64::from(SOURCES) - share * share).abs() < 0.015, "{twice} at {level}");
        }
    }

    #[test]
    fn another_key_sheds_others() {
        let word = Word::new(32_768, 1, 1 << 40);
        let same = (0..1_000).filter(|n| word.sheds(&KEY, &source(*n)) == word.sheds(&[1, 2], &source(*n)));
        assert!((350..650).contains(&same.count()));
    }
}
