//! An answer with a SYN cookie, taken apart: is it what a client takes for one?

use std::net::{IpAddr, SocketAddr};

use gateway_tests::kernel::packet::{ACK, Packet, SYN};

use crate::model::Returned;

pub struct Reply {
    frame: Vec<u8>,
    /// Where the TCP header begins.
    tcp: usize,
    source: SocketAddr,
    destination: SocketAddr,
}

impl Reply {
    pub fn read(frame: &[u8]) -> Result<Self, String> {
        let (ip, ethertype) = behind_tags(frame);
        let is_ipv4 = ethertype == [0x08, 0x00];
        let tcp = ip + if is_ipv4 { 20 } else { 40 };
        if frame.len() != tcp + 24 {
            return Err(format!("{} bytes", frame.len()));
        }
        let (source, destination) = ends(frame, ip, is_ipv4);
        let port = |from: usize| u16::from_be_bytes([frame[from], frame[from + 1]]);
        let (source, destination) =
            (SocketAddr::new(source, port(tcp)), SocketAddr::new(destination, port(tcp + 2)));
        Ok(Self { frame: frame.to_vec(), tcp, source, destination })
    }

    /// Against the request that it answers.
    pub fn check(&self, request: &[u8]) -> Result<(), String> {
        let (ip, ethertype) = behind_tags(request);
        let is_ipv4 = ethertype == [0x08, 0x00];
        let tcp = ip + if is_ipv4 { 20 } else { 40 };
        let reply = &self.frame;
        let word = |frame: &[u8], from: usize| {
            u32::from_be_bytes([frame[from], frame[from + 1], frame[from + 2], frame[from + 3]])
        };
        let (source, destination) = ends(request, ip, is_ipv4);
        let sum = |bytes: &[u8]| {
            let halves = bytes.chunks(2).map(|half| u32::from(half[0]) << 8 | u32::from(half[1]));
            let sum: u32 = halves.sum();
            (sum & 0xffff) + (sum >> 16)
        };
        let pseudo = if is_ipv4 { &reply[ip + 12..tcp] } else { &reply[ip + 8..tcp] };
        let tcp_sum = sum(&[pseudo, &[0, 6, 0, 24], &reply[tcp..]].concat());
        let segment_bytes = u16::from_be_bytes([reply[tcp + 22], reply[tcp + 23]]);
        let facts = [
            ("link", reply[..6] == request[6..12] && reply[6..12] == request[..6]),
            ("tags", reply[12..ip] == request[12..ip]),
            ("source", self.source.ip() == destination),
            ("destination", self.destination.ip() == source),
            ("ports", reply[tcp..tcp + 2] == request[tcp + 2..tcp + 4]),
            ("ports", reply[tcp + 2..tcp + 4] == request[tcp..tcp + 2]),
            ("acknowledgement", word(reply, tcp + 8) == word(request, tcp + 4).wrapping_add(1)),
            ("flags", reply[tcp + 13] == SYN | ACK),
            ("length", reply[tcp + 12] == 0x60),
            ("window", reply[tcp + 14..tcp + 16] == [255, 255]),
            ("segment size", reply[tcp + 20..tcp + 22] == [2, 4]),
            ("segment size", segment_bytes == if is_ipv4 { 1460 } else { 1440 }),
            ("TCP checksum", tcp_sum == 0xffff),
            ("IP checksum", !is_ipv4 || sum(&reply[ip..tcp]) == 0xffff),
            ("IP length", !is_ipv4 || reply[ip + 2..ip + 4] == [0, 44]),
            ("IP length", is_ipv4 || reply[ip + 4..ip + 8] == [0, 24, 6, 64]),
            ("IP protocol", !is_ipv4 || reply[ip + 8..ip + 10] == [64, 6]),
            ("IP version", reply[ip] == if is_ipv4 { 0x45 } else { 0x60 }),
        ];
        match facts.iter().find(|(_, holds)| !holds) {
            Some((what, _)) => Err(format!("wrong {what}")),
            None => Ok(()),
        }
    }

    /// The ACK that takes the connection up.
    pub fn returned(&self) -> Returned {
        let word = |from: usize| {
            let bytes = &self.frame[from..from + 4];
            u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        (self.destination, self.source, word(self.tcp + 8), word(self.tcp + 4).wrapping_add(1))
    }

    /// The same as a packet, without tags.
    pub fn ack(&self) -> Packet {
        let (source, destination, sequence, acknowledged) = self.returned();
        Packet {
            source_port: source.port(),
            sequence,
            acknowledged,
            flags: ACK,
            ..Packet::syn(source.ip(), destination.ip(), destination.port())
        }
    }
}

/// Where the IP header begins, and what it is.
fn behind_tags(frame: &[u8]) -> (usize, [u8; 2]) {
    let mut at = 12;
    while matches!(frame[at..at + 2], [0x81, 0x00] | [0x88, 0xa8]) {
        at += 4;
    }
    (at + 2, [frame[at], frame[at + 1]])
}

fn ends(frame: &[u8], ip: usize, is_ipv4: bool) -> (IpAddr, IpAddr) {
    let address = |from: usize| match is_ipv4 {
        true => IpAddr::from(<[u8; 4]>::try_from(&frame[from..from + 4]).unwrap()),
        false => IpAddr::from(<[u8; 16]>::try_from(&frame[from..from + 16]).unwrap()),
    };
    if is_ipv4 { (address(ip + 12), address(ip + 16)) } else { (address(ip + 8), address(ip + 24)) }
}
