//! Packets, built field by field. Made to be wrong as easily as right: no length or checksum is derived
//! from the rest unless it says so.

use std::net::IpAddr;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// An IPv6 extension header.
#[derive(Clone, Debug)]
pub enum Extension {
    HopByHop,
    Routing,
    Destination,
    Authentication,
    /// Offset in units of eight bytes, and whether more follow.
    Fragment(u16, bool),
    /// Any protocol number with eight bytes of body.
    Unknown(u8),
}

/// A frame from its Ethernet header to the end of its TCP header.
#[derive(Clone, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub port: u16,
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    /// Of TCP, in whole words.
    pub tcp_options: Vec<u8>,
    /// Tag protocols, outermost first: 0x8100, 0x88a8.
    pub vlans: Vec<u16>,
    /// Of IPv4, in words of four bytes.
    pub option_words: u8,
    pub extensions: Vec<Extension>,
    /// IPv4: flags and offset as on the wire.
    pub fragment: u16,
    pub protocol: u8,
    pub version: u8,
    /// The TCP header's own idea of its length without options, in words of four bytes.
    pub tcp_words: u8,
    /// Of IPv4: header length in words; `None`: what it is.
    pub ip_words: Option<u8>,
    /// `None`: what it is.
    pub ethertype: Option<u16>,
}

impl Packet {
    /// A SYN without anything special.
    pub fn syn(source: IpAddr, destination: IpAddr, port: u16) -> Self {
        let version = if source.is_ipv4() { 4 } else { 6 };
        Self {
            source,
            destination,
            source_port: 40_000,
            port,
            sequence: 1,
            acknowledged: 0,
            flags: SYN,
            tcp_options: Vec::new(),
            vlans: Vec::new(),
            option_words: 0,
            extensions: Vec::new(),
            fragment: 0,
            protocol: TCP,
            version,
            tcp_words: 5,
            ip_words: None,
            ethertype: None,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let inner = self.ethertype.unwrap_or(if self.source.is_ipv4() { 0x0800 } else { 0x86dd });
        for tag in &self.vlans {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 7]);
        }
        frame.extend(inner.to_be_bytes());
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let words = 5 + self.option_words;
                frame.push(self.version << 4 | self.ip_words.unwrap_or(words));
                frame.push(0);
                frame.extend((u16::from(words) * 4 + 20 + self.tcp_options.len() as u16).to_be_bytes());
                frame.extend([0, 1]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([64, self.protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(std::iter::repeat_n([1, 1, 1, 1], self.option_words.into()).flatten());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let chain = self.chain();
                let numbers: Vec<u8> = self.extensions.iter().map(Extension::number).collect();
                frame.extend([self.version << 4, 0, 0, 0]);
                frame.extend((chain.len() as u16 + 20 + self.tcp_options.len() as u16).to_be_bytes());
                frame.extend([numbers.first().copied().unwrap_or(self.protocol), 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(chain);
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("a packet is of one family")
            }
        }
        frame.extend(self.source_port.to_be_bytes());
        frame.extend(self.port.to_be_bytes());
        frame.extend(self.sequence.to_be_bytes());
        frame.extend(self.acknowledged.to_be_bytes());
        let words = self.tcp_words + (self.tcp_options.len() / 4) as u8;
        frame.extend([words << 4, self.flags, 255, 255, 0, 0, 0, 0]);
        frame.extend(&self.tcp_options);
        frame
    }

    /// The packet without its Ethernet header, plain and right in every checksum: for a raw socket.
    pub fn raw(&self) -> Vec<u8> {
        let mut packet = self.bytes().split_off(14);
        let (ip, addresses) = if self.source.is_ipv4() { (20, 12) } else { (40, 8) };
        let length = (packet.len() - ip) as u16;
        let pseudo = [&packet[addresses..ip], &[0, TCP], &length.to_be_bytes()].concat();
        let sum = checksum(&[&pseudo[..], &packet[ip..]].concat());
        packet[ip + 16..ip + 18].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn chain(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (place, extension) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(place + 1).map_or(self.protocol, Extension::number);
            match extension {
                Extension::Fragment(offset, more) => {
                    let [high, low] = (offset << 3 | u16::from(*more)).to_be_bytes();
                    bytes.extend([next, 0, high, low, 0, 0, 0, 9]);
                }
                // Its length counts words of four bytes, less two.
                Extension::Authentication => {
                    bytes.extend([[next, 4], [0; 2]].concat().into_iter().chain([0; 20]))
                }
                // Length 1: sixteen bytes.
                Extension::Destination => bytes.extend([[next, 1, 1, 12], [0; 4], [0; 4], [0; 4]].concat()),
                Extension::HopByHop | Extension::Routing | Extension::Unknown(_) => {
                    bytes.extend([next, 0, 1, 4, 0, 0, 0, 0]);
                }
            }
        }
        bytes
    }
}

/// The Internet checksum of an even number of bytes (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

impl Extension {
    fn number(&self) -> u8 {
        match self {
            Self::HopByHop => 0,
            Self::Routing => 43,
            Self::Fragment(..) => 44,
            Self::Authentication => 51,
            Self::Destination => 60,
            Self::Unknown(number) => *number,
        }
    }
}

/// A reproducible source of choices: xorshift64*.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not begin alike, and zero must not stay zero.
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    pub fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}
