//! A connection request as it goes over the wire: IPv4 and TCP header, right in every checksum.
//!
//! The SYN flood writes its packets with this; nothing else about TCP is known here.

use std::net::SocketAddrV4;

/// IPv4 header, TCP header and the one option that every client sends, its segment size.
pub const SYN_BYTES: usize = 44;
const IP_BYTES: usize = 20;
const SEGMENT_BYTES: u16 = 1460;

/// A SYN from `source` to `target`.
pub fn syn(source: SocketAddrV4, target: SocketAddrV4, sequence: u32) -> [u8; SYN_BYTES] {
    let mut packet = [0; SYN_BYTES];
    let (ip, tcp) = packet.split_at_mut(IP_BYTES);
    // Version 4, five words; do not fragment; 64 hops; TCP.
    ip[..2].copy_from_slice(&[0x45, 0]);
    ip[2..4].copy_from_slice(&(SYN_BYTES as u16).to_be_bytes());
    ip[6..10].copy_from_slice(&[0x40, 0, 64, 6]);
    ip[12..16].copy_from_slice(&source.ip().octets());
    ip[16..].copy_from_slice(&target.ip().octets());
    let sum = checksum(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    tcp[..2].copy_from_slice(&source.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&target.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    // Six words; SYN; a full window.
    tcp[12..16].copy_from_slice(&[0x60, 0x02, 0xff, 0xff]);
    tcp[20..22].copy_from_slice(&[2, 4]);
    tcp[22..].copy_from_slice(&SEGMENT_BYTES.to_be_bytes());
    let mut pseudo = [0; 12 + SYN_BYTES - IP_BYTES];
    pseudo[..8].copy_from_slice(&ip[12..]);
    pseudo[9] = 6;
    pseudo[10..12].copy_from_slice(&(tcp.len() as u16).to_be_bytes());
    pseudo[12..].copy_from_slice(tcp);
    tcp[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    packet
}

/// The Internet checksum of an even number of bytes (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn checksums_of_published_examples() {
        // RFC 1071, section 3: the sum is ddf2.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        // The IPv4 header that textbooks use, its own checksum (b861) left out.
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0x00, 0x01, 0xc0,
            0xa8, 0x00, 0xc7,
        ];
        assert_eq!(checksum(&header), 0xb861);
    }

    #[test]
    fn a_syn_holds_what_it_should_and_sums_to_nothing() {
        for (source, port, sequence) in
            [([100, 64, 0, 1], 1024, 0), ([100, 127, 255, 255], 65535, u32::MAX), ([10, 0, 0, 1], 40_000, 7)]
        {
            let source = SocketAddrV4::new(Ipv4Addr::from(source), port);
            let target = SocketAddrV4::new(Ipv4Addr::new(10, 78, 2, 1), 8080);
            let packet = syn(source, target, sequence);
            assert_eq!(checksum(&packet[..20]), 0, "the IP header's");
            let pseudo = [&packet[12..20], &[0, 6, 0, 24], &packet[20..]].concat();
            assert_eq!(checksum(&pseudo), 0, "the TCP header's");
            assert_eq!(packet[12..16], source.ip().octets());
            assert_eq!(packet[16..20], target.ip().octets());
            assert_eq!(packet[20..24], [source.port().to_be_bytes(), 8080_u16.to_be_bytes()].concat());
            assert_eq!(packet[24..28], sequence.to_be_bytes());
            assert_eq!(packet[33], 0x02, "SYN and nothing else");
        }
    }
}
