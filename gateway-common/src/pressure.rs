//! The words by which userspace tells the kernel half how it fares, each with an end: when userspace stalls
//! or dies, they end by themselves.
//!
//! `gw_state` holds them. All arithmetic of shedding is here; nothing reads a clock or a map.

use crate::addr::Address;
use crate::standing::Class;

/// Place of the set of `PENALTIES` and the others.
pub const ATTENTION: u32 = 0;
/// Place of the word that lets cookies be sent; its level says nothing, nor do those of the next two.
pub const ARMED: u32 = 1;
/// Place of the word that has what may be the answer to a cookie looked at.
pub const TAKING: u32 = 2;
/// Place of the word that says that cookies are armed when they are due: there is somebody to have the stack take them.
pub const CAN_ARM: u32 = 3;
/// Place of the word of the first class; the others follow.
pub const SHED: u32 = 4;
/// Words of the map.
pub const WORDS: usize = SHED as usize + Class::ALL.len();

/// For so long after a cookie was sent the stack may take the connection that comes of it (`TCP_SYNCOOKIE_VALID`).
pub const COOKIE_LIVES_NS: u64 = 120_000_000_000;

/// There are penalties.
pub const PENALTIES: u64 = 1;
/// There are penalties of level 2: packets of connections are looked at too.
pub const BLOCKING: u64 = 1 << 1;
/// Cookies may be out: what may be the answer to one is looked at.
pub const COOKIES: u64 = 1 << 2;
/// Some class is shed.
pub const SHEDDING: u64 = 1 << 3;

/// A level with its end and the epoch that decides whom it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Of 65,536 sources, how many are shed.
    pub level: u16,
    pub epoch: u16,
    /// In [`ticks`].
    until: u32,
}

/// What the words of all classes say together: how many of each are shed, and in which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shedding {
    levels: [u16; Class::ALL.len()],
    epoch: u16,
}

/// No word lives longer, in [`ticks`]: 73 minutes. An end that is further off has wrapped.
const LONGEST: i32 = 1 << 22;

/// Units of a word's end, 1.05 ms each: 32 bits of them are 52 days.
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
        if word != 0 && left > 0 && left <= LONGEST { Some(this) } else { None }
    }
}

impl Shedding {
    /// The words of the classes as the map holds them; `None`: none is in force. All in force are of one epoch, but
    /// for the microsecond in which userspace writes the next one's; then any of the two will do.
    #[inline(always)]
    pub fn read(words: [u64; Class::ALL.len()], now_ns: u64) -> Option<Self> {
        let mut found = None;
        let mut levels = [0; Class::ALL.len()];
        for (level, word) in levels.iter_mut().zip(words) {
            if let Some(word) = Word::read(word, now_ns) {
                (*level, found) = (word.level, Some(word.epoch));
            }
        }
        Some(Self { levels, epoch: found? })
    }

    /// A source's place among 65,536, the same for all of the epoch.
    #[inline(always)]
    pub fn place(&self, key: &[u64; 2], source: &Address) -> u16 {
        hash(key, source, self.epoch) as u16
    }

    /// Whether a source at that place is shed if it is of `class`.
    #[inline(always)]
    pub fn sheds(&self, class: Class, place: u16) -> bool {
        Class::ALL.iter().zip(self.levels).any(|(of, level)| *of == class && place < level)
    }

    /// Whether it is shed in any class: for most it is not, and theirs need not be looked up.
    #[inline(always)]
    pub fn sheds_in_some_class(&self, place: u16) -> bool {
        self.levels.iter().any(|level| place < *level)
    }
}

/// SipHash-1-3 (Aumasson, Bernstein; the variant that Linux and Rust's own maps have) over a source's octets and an
/// epoch: keyed, for a client can choose its address.
#[inline(always)]
pub fn hash(key: &[u64; 2], source: &Address, epoch: u16) -> u64 {
    let [first, second] = source.halves();
    let mut state = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let mut take = |word: u64| {
        state[3] ^= word;
        round(&mut state);
        state[0] ^= word;
    };
    // The number of octets stands in the last word's last.
    if source.is_mapped() {
        take(second >> 32 | u64::from(epoch) << 32 | 6 << 56);
    } else {
        take(first);
        take(second);
        take(u64::from(epoch) | 18 << 56);
    }
    state[2] ^= 0xff;
    for _ in 0..3 {
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
    use core::net::IpAddr;

    use super::*;

    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    fn source(n: u32) -> Address {
        Address::from_ipv4(n.to_be())
    }

    /// Beside the `siphasher` crate's.
    #[test]
    fn it_is_siphash() {
        use core::hash::Hasher;
        use siphasher::sip::SipHasher13;
        let held = |address: IpAddr, octets: &[u8], epoch: u16| {
            let mut theirs = SipHasher13::new_with_keys(KEY[0], KEY[1]);
            theirs.write(octets);
            theirs.write(&epoch.to_le_bytes());
            assert_eq!(hash(&KEY, &Address::from(address), epoch), theirs.finish(), "{address}");
        };
        for first in 0..=255 {
            let octets: [u8; 16] = core::array::from_fn(|place| first ^ place as u8);
            let epoch = u16::from_le_bytes([first, !first]);
            held(octets.into(), &octets, epoch);
            let [_, octets @ .., _] = [first, 7, first, !first, 9, first];
            held(octets.into(), &octets, epoch);
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

    /// The one of a gateway that was killed with its pins kept, weeks ago.
    #[test]
    fn a_word_does_not_come_back() {
        const DAY_NS: u64 = 86_400_000_000_000;
        let word = Word::new(7, 3, 5_000_000_000).pack();
        let back = (0..52).find(|day| Word::read(word, 6_000_000_000 + day * DAY_NS).is_some());
        assert_eq!(back, None);
    }

    fn shedding(levels: [u16; 3], epoch: u16) -> Shedding {
        Shedding::read(levels.map(|level| Word::new(level, epoch, 1 << 40).pack()), 0).unwrap()
    }

    fn sheds(shedding: Shedding, key: &[u64; 2], class: Class, n: u32) -> bool {
        shedding.sheds(class, shedding.place(key, &source(n)))
    }

    /// In each epoch the share that the level says, and others in the next.
    #[test]
    fn a_level_sheds_its_share_and_no_source_for_long() {
        const SOURCES: u32 = 20_000;
        for level in [0, 6_554, 32_768, u16::MAX] {
            let shed = |epoch, n| sheds(shedding([0, level, 0], epoch), &KEY, Class::Known, n);
            let count = (0..SOURCES).filter(|n| shed(1, *n)).count() as f64;
            let share = f64::from(level) / 65_536.0;
            assert!((count / f64::from(SOURCES) - share).abs() < 0.015, "{count} at {level}");
            let twice = (0..SOURCES).filter(|n| shed(1, *n) && shed(2, *n)).count() as f64;
            assert!((twice / f64::from(SOURCES) - share * share).abs() < 0.015, "{twice} at {level}");
        }
    }

    #[test]
    fn each_class_has_its_own_level() {
        let shedding = shedding([300, 200, 100], 7);
        for (place, of_classes) in [
            (99, [true, true, true]),
            (100, [true, true, false]),
            (200, [true, false, false]),
            (299, [true, false, false]),
            (300, [false, false, false]),
        ] {
            assert_eq!(Class::ALL.map(|class| shedding.sheds(class, place)), of_classes, "{place}");
            assert_eq!(shedding.sheds_in_some_class(place), of_classes.contains(&true), "{place}");
        }
    }

    #[test]
    fn what_has_ended_sheds_nobody() {
        let [past, future] = [1 << 30, 1 << 40].map(|until| Word::new(9, 3, until).pack());
        assert_eq!(Shedding::read([0; 3], 1 << 35), None);
        assert_eq!(Shedding::read([past; 3], 1 << 35), None);
        let only_known = Shedding { levels: [0, 9, 0], epoch: 3 };
        assert_eq!(Shedding::read([past, future, 0], 1 << 35), Some(only_known));
    }

    #[test]
    fn another_key_sheds_others() {
        let shedding = shedding([32_768; 3], 1);
        let shed = |key, n| sheds(shedding, key, Class::Unknown, n);
        let same = (0..1_000).filter(|n| shed(&KEY, *n) == shed(&[1, 2], *n));
        assert!((350..650).contains(&same.count()));
    }
}
