//! Addresses as both halves see them: 16 bytes in network order, IPv4 mapped into `::ffff:0:0/96`,
//! so that one map of each kind serves both families.

use core::net::{IpAddr, Ipv6Addr};

/// An IPv6 address, or an IPv4 one in its mapped form.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub [u8; 16]);

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
    /// The mapped form of an IPv4 address given in network order.
    #[inline(always)]
    pub const fn from_ipv4([a, b, c, d]: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// Whether this is an IPv4 address. On the wire no IPv6 packet may carry one (RFC 4291, 2.5.5.2).
    #[inline(always)]
    pub const fn is_mapped(&self) -> bool {
        let (high, low) = self.halves();
        high == 0 && u64::from_be(low) >> 32 == 0xffff
    }

    /// This address with only the bits of `mask` kept.
    #[inline(always)]
    pub const fn masked(&self, mask: &Self) -> Self {
        let ((high, low), (mask_high, mask_low)) = (self.halves(), mask.halves());
        Self::from_halves(high & mask_high, low & mask_low)
    }

    /// The mask that keeps the first `bits` bits; more than 128 keep all.
    pub const fn mask(bits: u8) -> Self {
        let kept = match bits {
            0 => 0,
            1..=127 => u128::MAX << (128 - bits),
            128..=255 => u128::MAX,
        };
        Self(kept.to_be_bytes())
    }

    /// The two words in memory order. Two words and not a `u128`, which BPF has no registers for.
    #[inline(always)]
    const fn halves(&self) -> (u64, u64) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        (u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p]))
    }

    #[inline(always)]
    const fn from_halves(high: u64, low: u64) -> Self {
        let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) = (high.to_ne_bytes(), low.to_ne_bytes());
        Self([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::from_ipv4(address.octets()),
            IpAddr::V6(address) => Self(address.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        Self::V6(Ipv6Addr::from(address.0)).to_canonical()
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
            let mask = u128::from_be_bytes(Address::mask(bits).0);
            assert_eq!((mask.leading_ones(), mask.count_ones()), (bits.into(), bits.into()));
        }
        let address = Address::from("2001:db8:1:2:3:4:5:6".parse::<IpAddr>().unwrap());
        assert_eq!(address.masked(&Address::mask(64)), "2001:db8:1:2::".parse::<IpAddr>().unwrap().into());
        assert_eq!(address.masked(&Address::mask(128)), address);
    }
}
