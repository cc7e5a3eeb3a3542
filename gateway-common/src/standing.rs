//! What userspace has found out about sources, for the kernel half to judge by: penalties and known sources.

use crate::Address;

/// A source that ignored its refusals, or went on opening connections that were refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Penalty {
    /// Over from here on, in monotonic nanoseconds.
    pub until_ns: u64,
    pub since_ns: u64,
    /// Packets it cost the source; the kernel half counts them.
    pub hits: u64,
    /// The number of the rule whose refusals were ignored, or [`OF_CONNECTIONS`].
    pub rule: u32,
    /// [`SLOWED`] or [`BLOCKED`].
    pub level: u32,
    /// Refusals that led to it, of the last ten seconds.
    pub refused: u32,
    /// Those of them that it ignored; of connections, none.
    pub ignored: u32,
}

/// No rule's number: the bound on the connections of a source refused them.
pub const OF_CONNECTIONS: u32 = u32::MAX;

/// Level 1: a [`SLOWED_BY`]th of the budget.
pub const SLOWED: u32 = 1;
/// Level 2: every TCP packet to our listeners is dropped.
pub const BLOCKED: u32 = 2;
pub const SLOWED_BY: u64 = 10;

/// The place of a source in the set of those that may have a penalty, so that all others are spared the look-up. Some
/// sources share one, which costs them what the set saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u16);

impl Mark {
    /// Words of the set.
    pub const WORDS: usize = (1 << u16::BITS) / u64::BITS as usize;

    /// By multiplication (Knuth, The Art of Computer Programming 3, 6.4): without a key, since whoever has an address
    /// that shares its mark gains nothing.
    #[inline(always)]
    pub fn of(source: &Address) -> Self {
        /// 2^64 divided by the golden ratio.
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let [first, second] = source.halves();
        Self(((first.wrapping_mul(FACTOR) ^ second).wrapping_mul(FACTOR) >> 48) as u16)
    }

    /// The place of its word in the set.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0 as u32 / u64::BITS
    }

    /// Its bit of that word.
    #[inline(always)]
    pub const fn bit(self) -> u64 {
        1 << (self.0 as u32 % u64::BITS)
    }
}

/// A source that has been served.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Forgotten from here on, in monotonic nanoseconds.
    pub until_ns: u64,
    /// A [`Class`].
    pub class: u32,
    pub reserved: u32,
}

/// How well a source is known; the better, the later it is shed.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    Unknown = 0,
    /// It completed a request in the last hour.
    Known = 1,
    /// It completed a hundred in a day, and less than one in a hundred was refused.
    Proven = 2,
}

impl Class {
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Known, Self::Proven];

    /// The class's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Known => "known",
            Self::Proven => "proven",
        }
    }
}

const _: () = assert!(size_of::<Penalty>() == 3 * 8 + 4 * 4);
const _: () = assert!(size_of::<Known>() == 8 + 4 + 4);

#[cfg(test)]
mod tests {
    extern crate std;

    use core::net::{IpAddr, Ipv6Addr};
    use std::collections::HashSet;

    use super::*;

    /// However like each other sources are, they are spread over the set: of so many, as many marks are told apart as
    /// chance would have it.
    #[test]
    fn neighbours_have_marks_of_their_own() {
        const SOURCES: u32 = 4_096;
        type Nth = fn(u32) -> IpAddr;
        let kinds: [(&str, Nth); 4] = [
            ("a network", |n| IpAddr::from((0xc000_0000 + n).to_be_bytes())),
            ("one of each network", |n| IpAddr::from((n << 16 | 7).to_be_bytes())),
            ("IPv6 networks", |n| Ipv6Addr::from((0x2001_0db8_u128 << 32 | u128::from(n)) << 64).into()),
            ("IPv6 hosts", |n| Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(n)).into()),
        ];
        for (kind, nth) in kinds {
            let marks: HashSet<_> = (0..SOURCES).map(|n| Mark::of(&Address::from(nth(n))).0).collect();
            // Chance leaves 3,971 of them.
            assert!(marks.len() > 3_900, "{kind}: {}", marks.len());
        }
    }

    #[test]
    fn each_mark_has_a_bit_of_its_own() {
        let places: HashSet<_> = (0..=u16::MAX).map(|mark| (Mark(mark).word(), Mark(mark).bit())).collect();
        assert_eq!(places.len(), 1 << 16);
        assert!(places.iter().all(|(word, bit)| (*word as usize) < Mark::WORDS && bit.count_ones() == 1));
    }
}
