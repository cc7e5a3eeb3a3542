//! A packet: read once, header by header, into the little that a judgement needs.
//!
//! Called by `judge`. It follows Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension
//! headers, and TCP up to its flags. It checks only what it must to find those; lengths and checksums
//! are the stack's to check, after us.

use gateway_common::{Address, Family, Verdict};

/// The bytes of a packet, wherever the hook keeps them.
pub trait Frame {
    /// Copies `N` bytes from `offset` on; `None` when the frame ends before.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// The same for whole words, as they lie in memory. `offset` is even, as every header's is.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;
    /// Bytes of the frame.
    fn length(&self) -> u64;
    /// Tells a developer what became of it.
    #[cfg(feature = "log")]
    fn log(&self, verdict: Verdict);
}

/// A connection request: a TCP segment with SYN and without ACK.
pub struct Request {
    pub family: Family,
    pub source: Address,
    pub destination: Address,
    /// Host order.
    pub destination_port: u16,
}

/// A packet that is no connection request.
pub struct Unjudged {
    pub family: Family,
    pub verdict: Verdict,
}

/// Tags on a frame; 802.1ad allows two.
const MAX_VLAN_TAGS: usize = 2;
/// Extension headers we follow; the verifier wants a bound and honest hosts send none with a SYN.
const MAX_EXTENSIONS: usize = 8;

const ETHERNET_BYTES: usize = 14;
const IPV6_BYTES: usize = 40;
const TCP_BYTES: u8 = 20;

const ETHER_IPV4: u16 = 0x0800;
const ETHER_IPV6: u16 = 0x86dd;
const ETHER_VLAN: u16 = 0x8100;
const ETHER_QINQ: u16 = 0x88a8;

const PROTOCOL_TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Reads a frame down to its TCP flags.
#[inline(always)]
pub fn parse(frame: &impl Frame) -> Result<Request, Unjudged> {
    let unknown = Family::Other.not_ours();
    let Some([high, low]) = frame.read::<2>(ETHERNET_BYTES - 2) else { return Err(unknown) };
    let mut ethertype = u16::from_be_bytes([high, low]);
    let mut offset = ETHERNET_BYTES;
    for _ in 0..MAX_VLAN_TAGS {
        if ethertype == ETHER_VLAN || ethertype == ETHER_QINQ {
            let Some([_, _, high, low]) = frame.read::<4>(offset) else {
                return Err(Family::Other.malformed());
            };
            ethertype = u16::from_be_bytes([high, low]);
            offset += 4;
        }
    }
    match ethertype {
        ETHER_IPV4 => ipv4(frame, offset),
        ETHER_IPV6 => ipv6(frame, offset),
        _ => Err(unknown),
    }
}

#[inline(always)]
fn ipv4(frame: &impl Frame, offset: usize) -> Result<Request, Unjudged> {
    let family = Family::Ipv4;
    let Some([start, middle, protocol, source, destination]) = frame.words(offset) else {
        return Err(family.malformed());
    };
    let ([version_length, ..], [_, protocol, ..]) = (start.to_ne_bytes(), protocol.to_ne_bytes());
    let [_, _, flags_high, fragment_low] = middle.to_ne_bytes();
    let words = version_length & 0x0f;
    if version_length >> 4 != 4 || words < 5 {
        return Err(family.malformed());
    }
    if protocol != PROTOCOL_TCP {
        return Err(family.not_ours());
    }
    let fragment = u16::from_be_bytes([flags_high & 0x1f, fragment_low]);
    let (source, destination) = (Address::from_ipv4(source), Address::from_ipv4(destination));
    tcp(frame, offset + words as usize * 4, fragment, family, source, destination)
}

#[inline(always)]
fn ipv6(frame: &impl Frame, offset: usize) -> Result<Request, Unjudged> {
    let family = Family::Ipv6;
    let Some([start, middle, s0, s1, s2, s3, d0, d1, d2, d3]) = frame.words(offset) else {
        return Err(family.malformed());
    };
    let ([version, ..], [_, _, mut next, _]) = (start.to_ne_bytes(), middle.to_ne_bytes());
    let (source, destination) =
        (Address::from_words([s0, s1, s2, s3]), Address::from_words([d0, d1, d2, d3]));
    // A mapped address on the wire would pose as an IPv4 source; the stack drops it.
    if version >> 4 != 6 || source.is_mapped() || destination.is_mapped() {
        return Err(family.malformed());
    }
    let mut offset = offset + IPV6_BYTES;
    let mut fragment = 0;
    for _ in 0..MAX_EXTENSIONS {
        let bytes = match next {
            PROTOCOL_TCP => return tcp(frame, offset, fragment, family, source, destination),
            HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT | AUTHENTICATION => {
                let Some([following, length, high, low]) = frame.read::<4>(offset) else {
                    return Err(family.malformed());
                };
                let bytes = match next {
                    FRAGMENT => {
                        fragment = u16::from_be_bytes([high, low]) >> 3;
                        8
                    }
                    AUTHENTICATION => (length as usize + 2) * 4,
                    _ => (length as usize + 1) * 8,
                };
                next = following;
                bytes
            }
            _ => return Err(family.not_ours()),
        };
        if fragment > 0 && next != PROTOCOL_TCP {
            // What follows the header of a later fragment is payload, whatever it looks like.
            return Err(family.not_ours());
        }
        offset += bytes;
    }
    if next == PROTOCOL_TCP {
        return tcp(frame, offset, fragment, family, source, destination);
    }
    Err(family.malformed())
}

#[inline(always)]
fn tcp(
    frame: &impl Frame,
    offset: usize,
    fragment: u16,
    family: Family,
    source: Address,
    destination: Address,
) -> Result<Request, Unjudged> {
    match fragment {
        0 => {}
        // Would overwrite the flags of the fragment before it (RFC 1858, 3).
        1 => return Err(family.malformed()),
        _ => return Err(family.not_ours()),
    }
    let Some(header) = frame.read::<{ TCP_BYTES as usize }>(offset) else { return Err(family.malformed()) };
    let [_, _, port_high, port_low, _, _, _, _, _, _, _, _, length, flags, ..] = header;
    if (length >> 4) * 4 < TCP_BYTES {
        return Err(family.malformed());
    }
    if flags & (SYN | ACK) != SYN {
        return Err(family.not_ours());
    }
    Ok(Request { family, source, destination, destination_port: u16::from_be_bytes([port_high, port_low]) })
}

trait Outcome: Sized {
    fn not_ours(self) -> Unjudged;
    fn malformed(self) -> Unjudged;
}

impl Outcome for Family {
    #[inline(always)]
    fn not_ours(self) -> Unjudged {
        Unjudged { family: self, verdict: Verdict::NotOurs }
    }

    #[inline(always)]
    fn malformed(self) -> Unjudged {
        Unjudged { family: self, verdict: Verdict::Malformed }
    }
}
