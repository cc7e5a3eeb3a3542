//! The judgement once more, in plain safe Rust over slices: what the differential test holds against the
//! kernel half. It shares with it the verdicts and nothing else.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use gateway::config::Kernel;
use gateway_common::{Family, Verdict};

/// A kernel half in which no time passes.
pub struct Model {
    policy: Kernel,
    listeners: Vec<SocketAddr>,
    spent: HashMap<IpAddr, u32>,
}

/// A connection request.
struct Request {
    source: IpAddr,
    destination: SocketAddr,
}

impl Model {
    pub fn new(policy: &Kernel, listeners: &[SocketAddr]) -> Self {
        Self { policy: policy.clone(), listeners: listeners.to_vec(), spent: HashMap::new() }
    }

    pub fn judge(&mut self, frame: &[u8]) -> (Verdict, Family) {
        match read(frame) {
            Ok((request, family)) => (self.admit(&request), family),
            Err(found) => found,
        }
    }

    fn admit(&mut self, request: &Request) -> Verdict {
        if !self.listeners.contains(&request.destination) {
            return Verdict::NotOurs;
        }
        if self.policy.allow.iter().any(|network| network.contains(&request.source)) {
            return Verdict::Allowed;
        }
        if self.policy.deny.iter().any(|network| network.contains(&request.source)) {
            return Verdict::Denied;
        }
        let holder = match request.source {
            IpAddr::V4(_) => request.source,
            IpAddr::V6(address) => {
                let shift = 128 - u32::from(self.policy.ipv6_prefix);
                IpAddr::V6((address.to_bits() >> shift << shift).into())
            }
        };
        let spent = self.spent.entry(holder).or_default();
        if *spent == self.policy.connection_burst {
            return Verdict::OverBudget;
        }
        *spent += 1;
        Verdict::Pass
    }
}

fn read(frame: &[u8]) -> Result<(Request, Family), (Verdict, Family)> {
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

fn ipv4(packet: &[u8]) -> Result<(Request, Family), (Verdict, Family)> {
    let malformed = (Verdict::Malformed, Family::Ipv4);
    let not_ours = (Verdict::NotOurs, Family::Ipv4);
    let header = packet.get(..20).ok_or(malformed)?;
    let length = usize::from(header[0] % 16) * 4;
    if header[0] / 16 != 4 || length < 20 {
        return Err(malformed);
    }
    if header[9] != 6 {
        return Err(not_ours);
    }
    match (u16::from(header[6]) << 8 | u16::from(header[7])) & 0x1fff {
        0 => {}
        1 => return Err(malformed),
        _ => return Err(not_ours),
    }
    let address = |from: usize| {
        IpAddr::V4(Ipv4Addr::new(header[from], header[from + 1], header[from + 2], header[from + 3]))
    };
    tcp(packet.get(length..).unwrap_or_default(), Family::Ipv4, address(12), address(16))
}

fn ipv6(packet: &[u8]) -> Result<(Request, Family), (Verdict, Family)> {
    let malformed = (Verdict::Malformed, Family::Ipv6);
    let not_ours = (Verdict::NotOurs, Family::Ipv6);
    let (header, mut rest) = packet.split_at_checked(40).ok_or(malformed)?;
    let address = |from: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&header[from..from + 16]).unwrap());
    let (source, destination) = (address(8), address(24));
    let mapped = source.to_ipv4_mapped().or(destination.to_ipv4_mapped()).is_some();
    if header[0] / 16 != 6 || mapped {
        return Err(malformed);
    }
    let mut next = header[6];
    let mut chain = 0;
    loop {
        if next == 6 {
            return tcp(rest, Family::Ipv6, source.into(), destination.into());
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
            match ((u16::from(start[2]) << 8 | u16::from(start[3])) / 8, start[0]) {
                (0, _) => {}
                (1, 6) => return Err(malformed),
                (_, _) => return Err(not_ours),
            }
        }
        next = start[0];
        rest = rest.get(length..).unwrap_or_default();
        chain += 1;
    }
}

fn tcp(
    segment: &[u8],
    family: Family,
    source: IpAddr,
    destination: IpAddr,
) -> Result<(Request, Family), (Verdict, Family)> {
    let header = segment.get(..20).ok_or((Verdict::Malformed, family))?;
    if header[12] / 16 < 5 {
        return Err((Verdict::Malformed, family));
    }
    let (syn, ack) = (header[13] & 2 != 0, header[13] & 16 != 0);
    if !syn || ack {
        return Err((Verdict::NotOurs, family));
    }
    let port = u16::from(header[2]) << 8 | u16::from(header[3]);
    Ok((Request { source, destination: SocketAddr::new(destination, port) }, family))
}
