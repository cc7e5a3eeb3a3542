//! The policy in force, and the keys of the maps that hold its lists.
//!
//! There are two slots of everything. The selector names the one in force; userspace writes the other
//! and flips. A packet reads the selector once, so it is judged by one policy from end to end.

use crate::Verdict;
use crate::addr::{Address, Family, Mask};
use crate::limit::Budget;

/// Number of slots.
pub const SLOTS: usize = 2;

/// The slot's allow list has entries; an empty one is not looked up.
pub const HAS_ALLOW: u32 = 1;
/// The slot's deny list has entries.
pub const HAS_DENY: u32 = 1 << 1;
/// Fragments to us that hide their TCP flags are dropped.
pub const STRICT_FRAGMENTS: u32 = 1 << 2;
/// There is a ceiling on the packets of a source.
pub const HAS_CEILING: u32 = 1 << 3;
/// Cookies may be sent, while they are armed.
pub const MAY_SEND_COOKIES: u32 = 1 << 4;

/// Addresses that a policy holds itself: a packet to us is told from others without a look-up.
pub const IPV4_HOSTS: usize = 8;

/// What listens at a port, in one slot: nothing, or its place in the list of listeners plus one.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port(pub u32);

/// What one slot says besides its lists.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Counts the policies of this process, from 1; 0 is a slot never written.
    pub generation: u64,
    /// New connections of one source.
    pub budget: Budget,
    /// Connection requests of all sources without a bucket together, on each CPU.
    pub new_sources: Budget,
    /// Packets of one source, where the flag says so.
    pub ceiling: Budget,
    /// Of the hash by which sources are shed; the same for the life of a process.
    pub shed_key: [u64; 2],
    /// The bits of an IPv6 address that tell sources apart.
    pub source_mask: Mask,
    /// The bits of an IPv6 address that tell clients of userspace apart: penalties and known sources.
    pub client_mask: Mask,
    /// `HAS_ALLOW` and the others.
    pub flags: u32,
    /// The set of verdicts that are counted and do nothing.
    pub monitored: u32,
    /// Counts the budgets of this process: a new one starts every source with a full bucket.
    pub epoch: u32,
    /// IPv4 addresses that listen, as they lie in memory; 0 stands for none. More are in the map alone.
    pub ipv4_hosts: [u32; IPV4_HOSTS],
    /// The segment size that an answer with a cookie announces, for IPv4 and IPv6.
    pub segment_bytes: [u16; 2],
}

/// A place where the gateway listens, in one slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Listener {
    pub slot: u32,
    pub address: Address,
    /// Host order; 0 stands for the address with any port, for fragments that show none.
    pub port: u16,
    /// An IP protocol number.
    pub protocol: u16,
}

/// What an allow or deny trie is searched by: slot and family, then the address.
///
/// A trie compares a key from its beginning in each node on its way, eight bytes in one step. So an IPv4 address is not
/// mapped here: with its scope it is eight bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    pub slot: u16,
    /// So that no network takes in addresses of the other family.
    family: u16,
    /// An IPv4 address in its first four octets.
    address: Address,
    /// The kernel puts the value behind the key, and wants it aligned.
    unused: u32,
}

/// Which lists have a network in a block of 65,536 IPv4 addresses, for each: most sources are in no such block, and no
/// list is searched for them. Two bits each, `HAS_ALLOW` and `HAS_DENY`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks([u64; Blocks::COUNT / Blocks::OF_A_WORD]);

/// What a listed network says about itself.
///
/// A trie finds only the longest network, so userspace gives each the longest life of all that cover it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its place in the list.
    pub index: u32,
    /// `TRUSTED`, in the allow list.
    pub flags: u32,
    /// In force before this, in monotonic nanoseconds; 0: never, [`FOREVER`]: always.
    pub until_ns: u64,
    /// Packets that met it are counted before this, and judged on.
    pub watched_until_ns: u64,
    /// Packets that met it.
    pub hits: u64,
}

/// Of a [`Rule`]: a proxy whose word about its clients is believed. It may be denied, but is neither limited,
/// nor penalised, nor shed.
pub const TRUSTED: u32 = 1;
/// An end that never comes.
pub const FOREVER: u64 = u64::MAX;

/// Whose bucket it is, and of what.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// An IPv4 address, or an IPv6 one cut to the policy's mask.
    pub address: Address,
    /// Epoch and kind. What a source owes under one budget says nothing under the next: after a change the
    /// old entries are simply never asked for again.
    scope: u32,
}

/// So long after a refusal of its own connections, which have answered cookies, a source gets no more of them: it is
/// no claim that it wants too much. Short, for whoever forges its address meanwhile locks it out.
const OVERDRAWN_NS: u64 = 1_000_000_000;

/// What a bucket is charged with.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charged {
    /// Connection requests, whose source is a claim.
    Requests = 0,
    /// Connections that answered a cookie, whose source is true. Apart from the claims, so that nobody's can
    /// be used up by somebody who forges his address.
    Connections = 1,
    Packets = 2,
}

/// A source's word of [`Budget`], and what it was refused; an absent one is a full bucket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    pub full_at_ns: u64,
    pub refused: u64,
    pub refused_at_ns: u64,
}

impl Bucket {
    /// Whether its source was refused within [`OVERDRAWN_NS`].
    #[inline(always)]
    pub const fn is_overdrawn(&self, now_ns: u64) -> bool {
        self.refused != 0 && now_ns.wrapping_sub(self.refused_at_ns) < OVERDRAWN_NS
    }
}

impl Policy {
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether the verdict is only counted.
    #[inline(always)]
    pub const fn monitors(&self, verdict: Verdict) -> bool {
        self.monitored & verdict.bit() != 0
    }
}

impl Port {
    /// Ports of one slot.
    pub const COUNT: usize = 1 << 16;
    /// What a packet that shows no port may be for: only the map of listeners knows.
    pub const ANY: Self = Self::new(0, false);
    /// The policy's `ipv4_hosts` are all that listen at it with IPv4.
    const AT_THE_HOSTS: u32 = 1 << 31;

    pub const fn new(listener: u32, at_the_hosts: bool) -> Self {
        Self((listener + 1) | if at_the_hosts { Self::AT_THE_HOSTS } else { 0 })
    }

    /// The place of the slot's port in the map.
    #[inline(always)]
    pub const fn place(slot: u32, port: u16) -> u32 {
        slot << 16 | port as u32
    }

    #[inline(always)]
    pub const fn is_closed(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    pub const fn is_at_the_hosts(self) -> bool {
        self.0 & Self::AT_THE_HOSTS != 0
    }

    #[inline(always)]
    pub const fn listener(self) -> u32 {
        (self.0 & !Self::AT_THE_HOSTS).wrapping_sub(1)
    }
}

impl Source {
    /// Bits of a key before the address.
    const SCOPE_BITS: u32 = 32;

    #[inline(always)]
    pub fn new(slot: u32, family: Family, address: Address) -> Self {
        let address = match (family, address.words()) {
            (Family::Ipv4, [_, _, _, host]) => Address::from_words([host, 0, 0, 0]),
            (Family::Ipv6 | Family::Other, _) => address,
        };
        Self { slot: slot as u16, family: family as u16, address, unused: 0 }
    }

    /// Bits of the key of a network with `length` bits in its own notation.
    #[inline(always)]
    pub const fn bits(length: u32) -> u32 {
        Self::SCOPE_BITS + length
    }

    /// Bits of a key that names one address and not a network.
    #[inline(always)]
    pub const fn host_bits(&self) -> u32 {
        Self::bits(if self.is_ipv4() { 32 } else { 128 })
    }

    /// The address, IPv4 in its mapped form again.
    pub fn address(&self) -> Address {
        let [first, ..] = self.address.words();
        if self.is_ipv4() { Address::from_ipv4(first) } else { self.address }
    }

    #[inline(always)]
    const fn is_ipv4(&self) -> bool {
        self.family == Family::Ipv4 as u16
    }
}

impl Blocks {
    const COUNT: usize = 1 << 16;
    const OF_A_WORD: usize = 32;

    /// No list has any network.
    pub const NONE: Self = Self([0; Self::COUNT / Self::OF_A_WORD]);

    /// Says that a list has a network in the block of an address, which is given as it lies in memory.
    pub fn mark(&mut self, address: u32, list: u32) {
        let (word, bit) = Self::place(address);
        self.0[word] |= u64::from(list) << bit;
    }

    /// The lists that may hold an address, which is given as it lies in memory.
    #[inline(always)]
    pub fn lists(&self, address: u32) -> u32 {
        let (word, bit) = Self::place(address);
        (self.0[word] >> bit) as u32 & (HAS_ALLOW | HAS_DENY)
    }

    #[inline(always)]
    fn place(address: u32) -> (usize, usize) {
        let [first, second, ..] = address.to_ne_bytes();
        let block = usize::from(u16::from_le_bytes([first, second]));
        (block / Self::OF_A_WORD, block % Self::OF_A_WORD * 2)
    }
}

impl Holder {
    #[inline(always)]
    pub const fn new(address: Address, epoch: u32, charged: Charged) -> Self {
        Self { address, scope: epoch << 2 | charged as u32 }
    }
}

// Map keys are compared as bytes: a layout with holes would compare noise.
const _: () = assert!(size_of::<Policy>() == 8 + 4 * 16 + 2 * 16 + 3 * 4 + IPV4_HOSTS * 4 + 4);
const _: () = assert!(size_of::<Listener>() == 4 + 16 + 2 + 2);
const _: () = assert!(size_of::<Rule>() == 4 + 4 + 3 * 8);
const _: () = assert!(size_of::<Holder>() == 16 + 4);
const _: () = assert!(size_of::<Source>() == 2 + 2 + 16 + 4);
