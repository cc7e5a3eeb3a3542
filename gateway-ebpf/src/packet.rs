//! A packet: read once, header by header, into the little that a judgement needs, and let go as soon as it is
//! clear that it needs none.
//!
//! Called by `judge_frame`. It follows Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension
//! headers, and TCP up to its flags. It checks only what it must to find those; lengths and checksums
//! are the stack's to check, after us.

use gateway_common::policy::Port;
use gateway_common::{Address, Family, Verdict};

/// The bytes of a packet, wherever the hook keeps them, and what the hook can do with it.
pub trait Frame {
    /// Whether this hook sees each packet as it was sent and can send it back: ceilings and cookies need that.
    const ANSWERS: bool;

    /// Copies `N` words from `offset` on, as they lie in memory; `None` when the frame ends before. `offset` is even, as
    /// every header's is.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;
    /// Bytes of the frame.
    fn length(&self) -> u64;
    /// Turns a connection request into its answer with a cookie. `may_have_socket`: whether to look for one first.
    fn answer(&self, request: &Segment, segment_bytes: u16, may_have_socket: bool) -> Answer;
    /// Whether the stack has a connection that the segment is part of.
    fn is_of_connection(&self, segment: &Segment) -> bool;
    /// Whether the segment brings back a cookie that was sent for it.
    fn has_cookie(&self, segment: &Segment) -> bool;
    /// Tells a developer what became of it.
    #[cfg(feature = "log")]
    fn log(&self, verdict: Verdict);
}

/// Who judges segments, and is asked about each while it is read: most are let go before all of it is.
pub trait Judge {
    /// Whether segments of connections are judged at all.
    fn looks_closer(&self) -> bool;
    /// What listens at a port, whatever the address.
    fn listens(&self, port: u16) -> Option<Port>;
    fn judge(&self, segment: &Segment) -> Verdict;
}

/// What became of a request that was to be answered with a cookie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Sent,
    /// The stack has a connection from that port, or what is left of one.
    Unwanted,
    /// It has IP options or extension headers, or the frame cannot be changed.
    Impossible,
}

/// A TCP segment to a port that is listened at, or the fragment of one that should show its flags and does not.
pub struct Segment {
    pub family: Family,
    pub source: Address,
    pub destination: Address,
    /// As on the wire.
    pub source_port: u16,
    /// Host order; 0 where a fragment shows none.
    pub destination_port: u16,
    /// What listens at that port.
    pub port: Port,
    pub kind: Kind,
    /// Where the IP header begins.
    pub ip: usize,
    /// The TCP header stands right behind a plain IP header. No other request is answered: the verifier would follow
    /// every place it can be at through all that comes behind.
    pub is_plain: bool,
    /// The TCP header's own idea of its length, in words.
    pub tcp_words: u8,
    /// Of an ACK, as on the wire: its own number and the one that it acknowledges.
    pub numbers: [u32; 2],
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

/// Reads a frame down to its TCP flags and has the segment judged. A family's packets are judged in code of its own:
/// what is known of an IPv4 address then, three words of four, is neither kept nor copied.
#[inline(always)]
pub fn judge(frame: &impl Frame, judge: &impl Judge) -> (Verdict, Family) {
    let Some([word]) = frame.words(ETHERNET_BYTES - 4) else { return (Verdict::NotOurs, Family::Other) };
    let mut ethertype = second_half(word);
    let mut offset = ETHERNET_BYTES;
    for _ in 0..MAX_VLAN_TAGS {
        if ethertype == ETHER_VLAN || ethertype == ETHER_QINQ {
            let Some([tag]) = frame.words(offset) else { return (Verdict::Malformed, Family::Other) };
            ethertype = second_half(tag);
            offset += 4;
        }
    }
    match ethertype {
        ETHER_IPV4 => (ipv4(frame, offset, judge), Family::Ipv4),
        ETHER_IPV6 => (ipv6(frame, offset, judge), Family::Ipv6),
        _ => (Verdict::NotOurs, Family::Other),
    }
}

#[inline(always)]
fn ipv4(frame: &impl Frame, ip: usize, judge: &impl Judge) -> Verdict {
    let Some([start, middle, protocol, source, destination]) = frame.words(ip) else {
        return Verdict::Malformed;
    };
    let ([version_length, ..], [_, protocol, ..]) = (start.to_ne_bytes(), protocol.to_ne_bytes());
    let [_, _, flags_high, fragment_low] = middle.to_ne_bytes();
    let words = version_length & 0x0f;
    if version_length >> 4 != 4 || words < 5 {
        return Verdict::Malformed;
    }
    if protocol != PROTOCOL_TCP {
        return Verdict::NotOurs;
    }
    let offset = u16::from_be_bytes([flags_high & 0x1f, fragment_low]);
    let fragment = Fragment { offset, more: flags_high & 0x20 != 0 };
    let found = match tcp(frame, ip + words as usize * 4, fragment, judge) {
        Ok(found) => found,
        Err(verdict) => return verdict,
    };
    let (source, destination) = (Address::from_ipv4(source), Address::from_ipv4(destination));
    judge.judge(&found.segment(Family::Ipv4, source, destination, ip, usize::from(words) * 4 == IPV4_BYTES))
}

#[inline(always)]
fn ipv6(frame: &impl Frame, ip: usize, judge: &impl Judge) -> Verdict {
    let Some([start, middle, s0, s1, s2, s3, d0, d1, d2, d3]) = frame.words(ip) else {
        return Verdict::Malformed;
    };
    let ([version, ..], [_, _, mut next, _]) = (start.to_ne_bytes(), middle.to_ne_bytes());
    let (source, destination) =
        (Address::from_words([s0, s1, s2, s3]), Address::from_words([d0, d1, d2, d3]));
    // A mapped address on the wire would pose as an IPv4 source; the stack drops it.
    if version >> 4 != 6 || source.is_mapped() || destination.is_mapped() {
        return Verdict::Malformed;
    }
    let mut offset = ip + IPV6_BYTES;
    let mut fragment = Fragment { offset: 0, more: false };
    // Not told from `offset` in the end: the verifier would follow each that there can be.
    let mut is_plain = true;
    for _ in 0..MAX_EXTENSIONS {
        let bytes = match next {
            PROTOCOL_TCP => break,
            HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT | AUTHENTICATION => {
                let Some([word]) = frame.words(offset) else { return Verdict::Malformed };
                let [following, length, high, low] = word.to_ne_bytes();
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
            _ => return Verdict::NotOurs,
        };
        if fragment.offset > 0 && next != PROTOCOL_TCP {
            // What follows the header of a later fragment is payload, whatever it looks like.
            return Verdict::NotOurs;
        }
        offset += bytes;
        is_plain = false;
    }
    if next != PROTOCOL_TCP {
        return Verdict::Malformed;
    }
    let found = match tcp(frame, offset, fragment, judge) {
        Ok(found) => found,
        Err(verdict) => return verdict,
    };
    judge.judge(&found.segment(Family::Ipv6, source, destination, ip, is_plain))
}

/// What a TCP header says, and what listens there.
struct Found {
    source_port: u16,
    destination_port: u16,
    port: Port,
    kind: Kind,
    tcp_words: u8,
    numbers: [u32; 2],
}

impl Found {
    #[inline(always)]
    fn segment(
        self,
        family: Family,
        source: Address,
        destination: Address,
        ip: usize,
        is_plain: bool,
    ) -> Segment {
        let Self { source_port, destination_port, port, kind, tcp_words, numbers } = self;
        Segment {
            family,
            source,
            destination,
            source_port,
            destination_port,
            port,
            kind,
            ip,
            is_plain,
            tcp_words,
            numbers,
        }
    }
}

#[inline(always)]
fn tcp(frame: &impl Frame, tcp: usize, fragment: Fragment, judge: &impl Judge) -> Result<Found, Verdict> {
    let hidden = |destination_port| {
        let port = if destination_port == 0 { Some(Port::ANY) } else { judge.listens(destination_port) };
        let port = port.ok_or(Verdict::NotOurs)?;
        let (kind, numbers) = (Kind::Fragment, [0; 2]);
        Ok(Found { source_port: 0, destination_port, port, kind, tcp_words: 0, numbers })
    };
    match fragment.offset {
        0 => {}
        // Would overwrite the flags of the fragment before it (RFC 1858, 3).
        1 => return hidden(0),
        _ => return Err(Verdict::LaterFragment),
    }
    let Some([ports, sequence, acknowledged, flags, _]) = frame.words(tcp) else {
        if !fragment.more {
            return Err(Verdict::Malformed);
        }
        return hidden(frame.words(tcp).map_or(0, |[ports]| second_half(ports)));
    };
    let [length, flags, ..] = flags.to_ne_bytes();
    if (length >> 4) * 4 < TCP_BYTES {
        return Err(Verdict::Malformed);
    }
    let kind = match flags & (SYN | ACK | RST) {
        // A SYN with a reset is the stack's to understand; it is charged all the same.
        flags if flags & (SYN | ACK) == SYN => Kind::Request,
        ACK => Kind::Ack,
        _ => Kind::Other,
    };
    if kind != Kind::Request && !judge.looks_closer() {
        return Err(Verdict::NotOurs);
    }
    let [source_high, source_low, ..] = ports.to_ne_bytes();
    let source_port = u16::from_ne_bytes([source_high, source_low]);
    let destination_port = second_half(ports);
    let port = judge.listens(destination_port).ok_or(Verdict::NotOurs)?;
    let numbers = if kind == Kind::Ack { [sequence, acknowledged] } else { [0; 2] };
    Ok(Found { source_port, destination_port, port, kind, tcp_words: length >> 4, numbers })
}

/// Of a word as it lies in memory, the last two bytes as a number.
#[inline(always)]
fn second_half(word: u32) -> u16 {
    let [_, _, high, low] = word.to_ne_bytes();
    u16::from_be_bytes([high, low])
}
