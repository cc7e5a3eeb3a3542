//! The policy in force, and the keys of the maps that hold its lists.
//!
//! There are two slots of everything. The selector names the one in force; userspace writes the other
//! and flips. A packet reads the selector once, so it is judged by one policy from end to end.

use crate::addr::{Address, Family, Mask};
use crate::limit::Budget;

/// Number of slots.
pub const SLOTS: usize = 2;

/// Judge and count, drop nothing.
pub const MONITOR: u32 = 1;
/// The slot's allow list has entries; an empty one is not looked up.
pub const HAS_ALLOW: u32 = 1 << 1;
/// The slot's deny list has entries.
pub const HAS_DENY: u32 = 1 << 2;

/// What one slot says besides its lists.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Counts the policies of this process, from 1; 0 is a slot never written.
    pub generation: u64,
    /// New connections of one source.
    pub budget: Budget,
    /// The bits of an IPv6 address that tell sources apart.
    pub ipv6_mask: Mask,
    /// `MONITOR`, `HAS_ALLOW`, `HAS_DENY`.
    pub flags: u32,
    /// Counts the budgets of this process: a new one starts every source with a full bucket.
    pub epoch: u32,
}

/// A place where the gateway listens, in one slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Listener {
    pub slot: u32,
    pub address: Address,
    /// Host order.
    pub port: u16,
    /// An IP protocol number.
    pub protocol: u16,
}

/// What an allow or deny trie is searched by: the scope word, then the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Slot and family, so that `::/0` does not take in the mapped IPv4 addresses.
    pub scope: u32,
    pub address: Address,
}

/// What a listed network says about itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its place in the configuration's list.
    pub index: u32,
}

/// Whose bucket it is. What a source owes under one budget says nothing under the next, so the epoch is
/// part of the key: after a change the old entries are simply never asked for again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// An IPv4 address, or an IPv6 one cut to the policy's mask.
    pub address: Address,
    pub epoch: u32,
}

/// A source's word of [`Budget`]; an absent one is a full bucket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub full_at_ns: u64,
}

impl Policy {
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

impl Source {
    /// Bits of a key that names one address and not a network.
    pub const BITS: u32 = 160;

    #[inline(always)]
    pub const fn new(slot: u32, family: Family, address: Address) -> Self {
        Self { scope: slot << 8 | family as u32, address }
    }

    /// Bits of the key of a network with `length` bits in its own notation.
    pub const fn prefix_bits(family: Family, length: u8) -> u32 {
        match family {
            Family::Ipv4 => 32 + 96 + length as u32,
            Family::Ipv6 | Family::Other => 32 + length as u32,
        }
    }
}

// Map keys are compared as bytes: a layout with holes would compare noise.
const _: () = assert!(size_of::<Policy>() == 8 + 16 + 16 + 4 + 4);
const _: () = assert!(size_of::<Listener>() == 4 + 16 + 2 + 2);
const _: () = assert!(size_of::<Holder>() == 16 + 4);
const _: () = assert!(size_of::<Source>() * 8 == Source::BITS as usize);
