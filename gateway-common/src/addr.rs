//! Addresses as both halves see them: 16 bytes in network order, IPv4 mapped into `::ffff:0:0/96`,
//! so that one map of each kind serves both families.

use core::net::{IpAddr, Ipv6Addr};

/// An IPv6 address, or an IPv4 one in its mapped form. Aligned so that it is copied by words.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    pub octets: [u8; 16],
}

/// Which bits of an address count, by its words as they lie in memory.
pub type Mask = [u32; 4];

/// The third word of every mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

/// What a frame carries; the second dimension of the counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Ipv4 = 0,
    Ipv6 = 1,
    /// Neither: ARP and whatever else an interface brings.
    Other = 2,
}

impl Family {
    pub const ALL: [Self; 3] = [Self::Ipv4, Self::Ipv6, Self::Other];

    /// The family's name in metrics and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Other => "other",
        }
    }
}

impl Address {
    /// An address from its four words as they lie in memory.
    ///
    /// The kernel half handles addresses by words: BPF code that touches their bytes one by one waits
    /// for each of them (25 ns of a judgement of 120).
    #[inline(always)]
    pub fn from_words(words: [u32; 4]) -> Self {
        let mut octets = [0; 16];
        for (chunk, word) in octets.as_chunks_mut().0.iter_mut().zip(words) {
            *chunk = word.to_ne_bytes();
        }
        Self { octets }
    }

    /// The mapped form of an IPv4 address, given as it lies in memory.
    #[inline(always)]
    pub fn from_ipv4(word: u32) -> Self {
        Self::from_words([0, 0, MAPPED, word])
    }

    /// Whether this is an IPv4 address. On the wire no IPv6 packet may carry one (RFC 4291, 2.5.5.2).
    #[inline(always)]
    pub fn is_mapped(&self) -> bool {
        let [first, second, third, _] = self.words();
        first == 0 && second == 0 && third == MAPPED
    }

    /// This address with only the bits of `mask` kept.
    #[inline(always)]
    pub fn masked(&self, mask: &Mask) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.words(), mask);
        Self::from_words([a & e, b & f, c & g, d & h])
    }

    /// The address in two words, its first octet lowest, as a hash takes it.
    #[inline(always)]
    pub fn halves(&self) -> [u64; 2] {
        let [a, b, c, d] = self.words().map(|word| u64::from(u32::from_le(word)));
        [a | b << 32, c | d << 32]
    }

    /// The address in four words as they lie in memory.
    #[inline(always)]
    pub fn words(&self) -> [u32; 4] {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(self.octets.as_chunks().0) {
            *word = u32::from_ne_bytes(*chunk);
        }
        words
    }
}

/// The mask that keeps the first `bits` bits; more than 128 keep all.
pub fn mask(bits: u8) -> Mask {
    let kept = match bits {
        0 => 0,
        1..=127 => u128::MAX << (128 - bits),
        128..=255 => u128::MAX,
    };
    Address { octets: kept.to_be_bytes() }.words()
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::from_ipv4(u32::from_ne_bytes(address.octets())),
            IpAddr::V6(address) => Self { octets: address.octets() },
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        Self::V6(Ipv6Addr::from(address.octets)).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_way_there_and_back() {
        for text in ["192.0.2.7", "0.0.0.0", "255.255.255.255", "2001:db8::1", "::", "::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
            assert_eq!(Address::from(address).is_mapped(), address.is_ipv4(), "{text}");
        }
    }

    #[test]
    fn a_mask_keeps_its_bits_and_no_more() {
        for bits in 0..=128u8 {
            let mask = u128::from_be_bytes(Address::from_words(mask(bits)).octets);
            assert_eq!((mask.leading_ones(), mask.count_ones()), (bits.into(), bits.into()));
        }
        let address = Address::from("2001:db8:1:2:3:4:5:6".parse::<IpAddr>().unwrap());
        assert_eq!(address.masked(&mask(64)), "2001:db8:1:2::".parse::<IpAddr>().unwrap().into());
        assert_eq!(address.masked(&mask(128)), address);
    }
}
