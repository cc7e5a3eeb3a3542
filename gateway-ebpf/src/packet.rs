//! A packet: read once, header by header, into the little that a judgement needs.
//!
//! Called by `judge`. It follows Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension
//! headers, and TCP up to its flags. It checks only what it must to find those; lengths and checksums
//! are the stack's to check, after us.

use gateway_common::{Address, Family, Verdict};

/// The bytes of a packet, wherever the hook keeps them, and what the hook can do with it.
pub trait Frame {
    /// Whether this hook sees each packet as it was sent and can send it back: ceilings and cookies need that.
    const ANSWERS: bool;

    /// Copies `N` bytes from `offset` on; `None` when the frame ends before.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// The same for whole words, as they lie in memory. `offset` is even, as every header's is.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;
    /// Bytes of the frame.
    fn length(&self) -> u64;
    /// Turns a connection request into its answer with a cookie; `false` where that cannot be done.
    fn answer(&self, request: &Segment, segment_bytes: u16) -> bool;
    /// Whether the stack has a connection that the segment is part of.
    fn is_of_connection(&self, segment: &Segment) -> bool;
    /// Whether the segment brings back a cookie that was sent for it.
    fn has_cookie(&self, segment: &Segment) -> bool;
    /// Tells a developer what became of it.
    #[cfg(feature = "log")]
    fn log(&self, verdict: Verdict);
}

/// A TCP segment, or the fragment of one that should show its flags and does not.
pub struct Segment {
    pub family: Family,
    pub source: Address,
    pub destination: Address,
    /// As on the wire.
    pub source_port: u16,
    /// Host order; 0 where a fragment shows none.
    pub destination_port: u16,
    pub kind: Kind,
    /// Where the IP header begins.
    pub ip: usize,
    /// The TCP header stands right behind a plain IP header. Nothing else is answered: the verifier would follow
    /// every place it can be at through all that comes behind.
    pub is_plain: bool,
    /// The TCP header's own idea of its length, in words.
    pub tcp_words: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A connection request: SYN and no ACK.
    Request,
    /// ACK and neither SYN nor RST: of a connection, or the answer to a cookie.
    Ack,
    Other,
    /// A first fragment without TCP flags, or one that would overwrite them.
    Fragment,
}

/// A packet that is no TCP segment.
pub struct Unjudged {
    pub family: Family,
    pub verdict: Verdict,
}

/// Tags on a frame; 802.1ad allows two.
const MAX_VLAN_TAGS: usize = 2;
/// Extension headers we follow; the verifier wants a bound and honest hosts send none with a SYN.
const MAX_EXTENSIONS: usize = 8;

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
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
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What an IP header says about the fragment behind it.
#[derive(Clone, Copy)]
struct Fragment {
    /// In units of eight bytes.
    offset: u16,
    more: bool,
}

/// Reads a frame down to its TCP flags. `looks_closer`: whether segments of connections are judged at all; most
/// of the time they are not, and are let go here.
#[inline(always)]
pub fn parse(frame: &impl Frame, looks_closer: bool) -> Result<Segment, Unjudged> {
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
        ETHER_IPV4 => ipv4(frame, offset, looks_closer),
        ETHER_IPV6 => ipv6(frame, offset, looks_closer),
        _ => Err(unknown),
    }
}

#[inline(always)]
fn ipv4(frame: &impl Frame, ip: usize, looks_closer: bool) -> Result<Segment, Unjudged> {
    let family = Family::Ipv4;
    let Some([start, middle, protocol, source, destination]) = frame.words(ip) else {
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
    let offset = u16::from_be_bytes([flags_high & 0x1f, fragment_low]);
    let fragment = Fragment { offset, more: flags_high & 0x20 != 0 };
    let (source, destination) = (Address::from_ipv4(source), Address::from_ipv4(destination));
    tcp(frame, ip, ip + words as usize * 4, fragment, family, source, destination, looks_closer)
}

#[inline(always)]
fn ipv6(frame: &impl Frame, ip: usize, looks_closer: bool) -> Result<Segment, Unjudged> {
    let family = Family::Ipv6;
    let Some([start, middle, s0, s1, s2, s3, d0, d1, d2, d3]) = frame.words(ip) else {
        return Err(family.malformed());
    };
    let ([version, ..], [_, _, mut next, _]) = (start.to_ne_bytes(), middle.to_ne_bytes());
    let (source, destination) =
        (Address::from_words([s0, s1, s2, s3]), Address::from_words([d0, d1, d2, d3]));
    // A mapped address on the wire would pose as an IPv4 source; the stack drops it.
    if version >> 4 != 6 || source.is_mapped() || destination.is_mapped() {
        return Err(family.malformed());
    }
    let mut offset = ip + IPV6_BYTES;
    let mut fragment = Fragment { offset: 0, more: false };
    for _ in 0..MAX_EXTENSIONS {
        let bytes = match next {
            PROTOCOL_TCP => {
                return tcp(frame, ip, offset, fragment, family, source, destination, looks_closer);
            }
            HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT | AUTHENTICATION => {
                let Some([following, length, high, low]) = frame.read::<4>(offset) else {
                    return Err(family.malformed());
                };
                let bytes = match next {
                    FRAGMENT => {
                        let word = u16::from_be_bytes([high, low]);
                        fragment = Fragment { offset: word >> 3, more: word & 1 != 0 };
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
        if fragment.offset > 0 && next != PROTOCOL_TCP {
            // What follows the header of a later fragment is payload, whatever it looks like.
            return Err(family.not_ours());
        }
        offset += bytes;
    }
    if next == PROTOCOL_TCP {
        return tcp(frame, ip, offset, fragment, family, source, destination, looks_closer);
    }
    Err(family.malformed())
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn tcp(
    frame: &impl Frame,
    ip: usize,
    tcp: usize,
    fragment: Fragment,
    family: Family,
    source: Address,
    destination: Address,
    looks_closer: bool,
) -> Result<Segment, Unjudged> {
    let segment = |source_port, destination_port, kind, tcp_words| Segment {
        family,
        source,
        destination,
        source_port,
        destination_port,
        kind,
        ip,
        is_plain: tcp == ip + plain_bytes(family),
        tcp_words,
    };
    match fragment.offset {
        0 => {}
        // Would overwrite the flags of the fragment before it (RFC 1858, 3).
        1 => return Ok(segment(0, 0, Kind::Fragment, 0)),
        _ => return Err(Unjudged { family, verdict: Verdict::LaterFragment }),
    }
    let Some(header) = frame.read::<{ TCP_BYTES as usize }>(tcp) else {
        if !fragment.more {
            return Err(family.malformed());
        }
        let port = match frame.read::<4>(tcp) {
            Some([_, _, high, low]) => u16::from_be_bytes([high, low]),
            None => 0,
        };
        return Ok(segment(0, port, Kind::Fragment, 0));
    };
    let [source_high, source_low, high, low, _, _, _, _, _, _, _, _, length, flags, ..] = header;
    if (length >> 4) * 4 < TCP_BYTES {
        return Err(family.malformed());
    }
    let kind = match flags & (SYN | ACK | RST) {
        // A SYN with a reset is the stack's to understand; it is charged all the same.
        flags if flags & (SYN | ACK) == SYN => Kind::Request,
        ACK => Kind::Ack,
        _ => Kind::Other,
    };
    if !looks_closer && kind != Kind::Request {
        return Err(family.not_ours());
    }
    let port = u16::from_ne_bytes([source_high, source_low]);
    Ok(segment(port, u16::from_be_bytes([high, low]), kind, length >> 4))
}

/// Bytes of an IP header without options or extensions.
#[inline(always)]
pub const fn plain_bytes(family: Family) -> usize {
    match family {
        Family::Ipv4 => IPV4_BYTES,
        Family::Ipv6 => IPV6_BYTES,
        Family::Other => 0,
    }
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
