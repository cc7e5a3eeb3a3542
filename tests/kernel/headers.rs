//! A frame's headers, read by the model: plain safe Rust over slices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use gateway_common::{Family, Verdict};

/// A TCP segment, or a fragment that should be one.
#[derive(Clone, Copy)]
pub struct Segment {
    pub source: SocketAddr,
    /// Port 0 where a fragment shows none.
    pub destination: SocketAddr,
    pub kind: Kind,
    pub sequence: u32,
    pub acknowledged: u32,
    /// Its TCP header is whole and stands right behind a plain IP header.
    pub can_be_answered: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Request,
    Ack,
    Other,
    Fragment,
}

type Read = Result<(Segment, Family), (Verdict, Family)>;

/// Where a segment comes from and how it is cut up.
struct Packet {
    family: Family,
    source: IpAddr,
    destination: IpAddr,
    /// Of the fragment, in units of eight bytes.
    offset: u16,
    more: bool,
    plain: bool,
}

pub fn read(frame: &[u8]) -> Read {
    let mut rest = &frame[12..];
    for tags in 0.. {
        match (rest, tags) {
            ([0x08, 0x00, packet @ ..], _) => return ipv4(packet),
            ([0x86, 0xdd, packet @ ..], _) => return ipv6(packet),
            ([0x81, 0x00, _, _, inner @ ..] | [0x88, 0xa8, _, _, inner @ ..], 0 | 1) if inner.len() >= 2 => {
                rest = inner;
            }
            ([0x81, 0x00, ..] | [0x88, 0xa8, ..], 0 | 1) => return Err((Verdict::Malformed, Family::Other)),
            _ => break,
        }
    }
    Err((Verdict::NotOurs, Family::Other))
}

fn ipv4(packet: &[u8]) -> Read {
    let malformed = (Verdict::Malformed, Family::Ipv4);
    let header = packet.get(..20).ok_or(malformed)?;
    let length = usize::from(header[0] % 16) * 4;
    if header[0] / 16 != 4 || length < 20 {
        return Err(malformed);
    }
    if header[9] != 6 {
        return Err((Verdict::NotOurs, Family::Ipv4));
    }
    let address = |from: usize| {
        IpAddr::V4(Ipv4Addr::new(header[from], header[from + 1], header[from + 2], header[from + 3]))
    };
    let flags = u16::from(header[6]) << 8 | u16::from(header[7]);
    let of = Packet {
        family: Family::Ipv4,
        source: address(12),
        destination: address(16),
        offset: flags & 0x1fff,
        more: flags & 0x2000 != 0,
        plain: length == 20,
    };
    tcp(packet.get(length..).unwrap_or_default(), &of)
}

fn ipv6(packet: &[u8]) -> Read {
    let malformed = (Verdict::Malformed, Family::Ipv6);
    let not_ours = (Verdict::NotOurs, Family::Ipv6);
    let (header, mut rest) = packet.split_at_checked(40).ok_or(malformed)?;
    let address = |from: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&header[from..from + 16]).unwrap());
    let (source, destination) = (address(8), address(24));
    let mapped = source.to_ipv4_mapped().or(destination.to_ipv4_mapped()).is_some();
    if header[0] / 16 != 6 || mapped {
        return Err(malformed);
    }
    let (source, destination) = (source.into(), destination.into());
    let mut of = Packet { family: Family::Ipv6, source, destination, offset: 0, more: false, plain: true };
    let mut next = header[6];
    let mut chain = 0;
    loop {
        if next == 6 {
            of.plain = chain == 0;
            return tcp(rest, &of);
        }
        if chain == 8 {
            return Err(malformed);
        }
        if ![0, 43, 44, 51, 60].contains(&next) {
            return Err(not_ours);
        }
        let start = rest.get(..4).ok_or(malformed)?;
        let length = match next {
            44 => 8,
            51 => usize::from(start[1]) * 4 + 8,
            _ => usize::from(start[1]) * 8 + 8,
        };
        if next == 44 {
            let word = u16::from(start[2]) << 8 | u16::from(start[3]);
            (of.offset, of.more) = (word / 8, word % 2 == 1);
        }
        if of.offset > 0 && start[0] != 6 {
            return Err(not_ours);
        }
        next = start[0];
        rest = rest.get(length..).unwrap_or_default();
        chain += 1;
    }
}

fn tcp(segment: &[u8], of: &Packet) -> Read {
    let found = |ports: (u16, u16), kind, numbers: (u32, u32), can_be_answered| {
        let segment = Segment {
            source: SocketAddr::new(of.source, ports.0),
            destination: SocketAddr::new(of.destination, ports.1),
            kind,
            sequence: numbers.0,
            acknowledged: numbers.1,
            can_be_answered,
        };
        Ok((segment, of.family))
    };
    let half = |bytes: &[u8]| u16::from(bytes[0]) << 8 | u16::from(bytes[1]);
    match of.offset {
        0 => {}
        1 => return found((0, 0), Kind::Fragment, (0, 0), false),
        _ => return Err((Verdict::LaterFragment, of.family)),
    }
    let Some(header) = segment.get(..20) else {
        if !of.more {
            return Err((Verdict::Malformed, of.family));
        }
        let port = segment.get(2..4).map_or(0, half);
        return found((0, port), Kind::Fragment, (0, 0), false);
    };
    let length = usize::from(header[12] / 16) * 4;
    if length < 20 {
        return Err((Verdict::Malformed, of.family));
    }
    let has = |flag: u8| header[13] & flag != 0;
    let kind = match (has(0x02), has(0x10), has(0x04)) {
        (true, false, _) => Kind::Request,
        (false, true, false) => Kind::Ack,
        (true, true, _) | (false, _, _) => Kind::Other,
    };
    let word = |from: usize| u32::from(half(&header[from..])) << 16 | u32::from(half(&header[from + 2..]));
    let whole = of.plain && segment.len() >= length;
    found((half(header), half(&header[2..])), kind, (word(4), word(8)), whole)
}
