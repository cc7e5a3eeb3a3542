//! The PROXY protocol, versions 1 and 2: a load balancer's word, before the first byte of a
//! connection, on who opened it (haproxy.org, doc/proxy-protocol.txt).
//!
//! Called for a new connection on a listener that asks for it, before there is anything of HTTP.
//! Whether the sender may be believed is the caller's business.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

const V1: &[u8] = b"PROXY ";
/// With the line's end.
const V1_MAX_BYTES: usize = 107;
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED_BYTES: usize = 16;
/// As nginx has it. The addresses take 216 bytes at most, the rest is for extensions.
const V2_MAX_BYTES: usize = 4096;
const READ_BYTES: usize = 512;
const TLV_CRC32C: u8 = 3;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who opened the connection. `None`: the sender itself, as for its health checks, or somebody
    /// without an IP address.
    pub source: Option<SocketAddr>,
    /// In bytes; what follows belongs to HTTP.
    pub length: usize,
}

/// Reads the header `bytes` begin with; `None`: there is more of it to come. The error says what is
/// wrong, as soon as it shows.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, &'static str> {
    if begins(bytes, V1) {
        parse_v1(bytes)
    } else if begins(bytes, V2) {
        parse_v2(bytes)
    } else {
        Err("no PROXY header")
    }
}

/// Whether `bytes` and `signature` agree as far as both go.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    let both = bytes.len().min(signature.len());
    bytes[..both] == signature[..both]
}

/// `PROXY TCP4 <source> <destination> <source port> <destination port>`, and CRLF.
fn parse_v1(bytes: &[u8]) -> Result<Option<Header>, &'static str> {
    // Where CR must stand at the latest, for LF to find room.
    let window = &bytes[..bytes.len().min(V1_MAX_BYTES - 1)];
    let Some(end) = memchr::memchr2(b'\r', b'\n', window) else {
        return if window.len() < V1_MAX_BYTES - 1 { Ok(None) } else { Err("the line is too long") };
    };
    match bytes.get(end..end + 2) {
        Some(b"\r\n") => {}
        None if bytes[end] == b'\r' => return Ok(None),
        Some(_) | None => return Err("the line does not end with CRLF"),
    }
    let line = str::from_utf8(&bytes[V1.len()..end]).map_err(|_| "the line is not ASCII")?;
    let source = match line.split_once(' ') {
        Some(("TCP4", rest)) => Some(addresses::<Ipv4Addr>(rest).ok_or("no two IPv4 addresses and ports")?),
        Some(("TCP6", rest)) => Some(addresses::<Ipv6Addr>(rest).ok_or("no two IPv6 addresses and ports")?),
        Some(("UNKNOWN", _)) => None,
        None if line == "UNKNOWN" => None,
        Some(_) | None => return Err("neither TCP4, TCP6 nor UNKNOWN"),
    };
    Ok(Some(Header { source, length: end + 2 }))
}

/// The source out of `<source> <destination> <source port> <destination port>`.
fn addresses<A: std::str::FromStr + Into<IpAddr>>(text: &str) -> Option<SocketAddr> {
    let mut words = text.split(' ');
    let (source, destination) = (words.next()?.parse::<A>().ok()?, words.next()?.parse::<A>());
    let (port, other_port) = (port(words.next()?)?, port(words.next()?));
    let whole = destination.is_ok() && other_port.is_some() && words.next().is_none();
    whole.then(|| SocketAddr::new(source.into(), port))
}

fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, &'static str> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<V2_FIXED_BYTES>() else { return Ok(None) };
    let [.., version_command, family_transport, high, low] = *fixed;
    let block_length = usize::from(u16::from_be_bytes([high, low]));
    let length = V2_FIXED_BYTES + block_length;
    if version_command >> 4 != 2 {
        return Err("a version other than 2");
    }
    if length > V2_MAX_BYTES {
        return Err("the header is too long");
    }
    let Some(block) = rest.get(..block_length) else { return Ok(None) };
    let header = |source| Ok(Some(Header { source, length }));
    match version_command & 0xf {
        // LOCAL: whatever else the header says is void.
        0 => return header(None),
        1 => {}
        _ => return Err("a command that is neither LOCAL nor PROXY"),
    }
    let (source, extensions) = match (family_transport >> 4, family_transport & 0xf) {
        (1, 1) => {
            let (block, extensions) = block.split_first_chunk::<12>().ok_or("too short for IPv4")?;
            let [a, b, c, d, _, _, _, _, port @ .., _, _] = *block;
            (SocketAddr::from(([a, b, c, d], u16::from_be_bytes(port))), extensions)
        }
        (2, 1) => {
            let (block, extensions) = block.split_first_chunk::<36>().ok_or("too short for IPv6")?;
            let (&address, ports) = block.split_first_chunk::<16>().expect("36 is more than 16");
            // The destination's 16 bytes lie between.
            let port = u16::from_be_bytes([ports[16], ports[17]]);
            (SocketAddr::from((address, port)), extensions)
        }
        // Unspecified, Unix and datagram sockets have no address that a TCP peer could have.
        (0..=3, 0..=2) => return header(None),
        _ => return Err("an address family or transport that does not exist"),
    };
    check_extensions(&bytes[..length], extensions)?;
    header(Some(source))
}

/// The type-length-value vectors at the end of `header` fill it, and its checksum is right where
/// it has one.
fn check_extensions(header: &[u8], mut extensions: &[u8]) -> Result<(), &'static str> {
    while let [kind, rest @ ..] = extensions {
        let (length, rest) = rest.split_first_chunk().ok_or("an extension is cut short")?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (value, rest) = rest.split_at_checked(length).ok_or("an extension is cut short")?;
        if *kind == TLV_CRC32C {
            let claimed = value.try_into().map_err(|_| "the checksum has not 4 bytes")?;
            let at = header.len() - rest.len() - 4;
            if crc32c(&[&header[..at], &[0; 4], rest]) != u32::from_be_bytes(claimed) {
                return Err("the checksum is wrong");
            }
        }
        extensions = rest;
    }
    Ok(())
}

/// RFC 9260, appendix A, bit by bit: a header is short, and few carry one.
fn crc32c(parts: &[&[u8]]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |crc: u32, _| crc >> 1 ^ (REVERSED_POLYNOMIAL & (crc & 1).wrapping_neg());
    !parts.iter().copied().flatten().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

/// Reads the header from `stream`: what it says, and the bytes that came behind it. `None`: the
/// peer left without a byte, as connection checks do. The error says what is wrong.
pub async fn receive(
    stream: &TcpStream,
    patient: impl Fn() -> bool,
) -> Result<Option<(Header, Bytes)>, &'static str> {
    let mut read = BytesMut::new();
    loop {
        let ready = poll_fn(|cx| match stream.poll_read_ready(cx) {
            Poll::Pending if !patient() => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            polled => polled,
        });
        ready.await.map_err(|_| "not there in time")?;
        read.reserve(READ_BYTES);
        match stream.try_read_buf(&mut read) {
            Ok(0) if read.is_empty() => return Ok(None),
            Ok(0) => return Err("the input ends in it"),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) if read.is_empty() => return Ok(None),
            Err(_) => return Err("the connection failed in it"),
        }
        if let Some(header) = parse(&read)? {
            let behind = read.split_off(header.length);
            return Ok(Some((header, if behind.is_empty() { Bytes::new() } else { behind.freeze() })));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Result<Option<&str>, &str> = Ok(None);

    /// A version 2 header with these two bytes and this block behind the signature.
    fn v2(version_command: u8, family_transport: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [V2, &[version_command, family_transport], &length, block].concat()
    }

    fn ipv4(extensions: &[u8]) -> Vec<u8> {
        let block = [&[203, 0, 113, 7, 10, 0, 0, 1, 0xdc, 0x04, 0x01, 0xbb], extensions].concat();
        v2(0x21, 0x11, &block)
    }

    fn ipv6(source: &str) -> Vec<u8> {
        let address: Ipv6Addr = source.parse().unwrap();
        let block = [&address.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[0xdc, 0x04, 0x01, 0xbb]];
        v2(0x21, 0x21, &block.concat())
    }

    /// With a checksum that is right before `change` is added to it.
    fn checked(before: &[u8], behind: &[u8], change: u32) -> Vec<u8> {
        let mut header = ipv4(&[before, &[TLV_CRC32C, 0, 4, 0, 0, 0, 0], behind].concat());
        let at = header.len() - behind.len() - 4;
        let checksum = crc32c(&[&header]).wrapping_add(change);
        header[at..at + 4].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    /// What comes of `header` when it arrives whole with a request behind it, and byte by byte.
    #[track_caller]
    fn check(header: &[u8], want: Result<Option<&str>, &str>) {
        let what = header.escape_ascii();
        let stream = [header, b"GET / HTTP/1.1\r\n\r\n"].concat();
        let source = |header: Header| header.source.map(|source| source.to_string());
        let whole = parse(&stream);
        match (whole, want) {
            (Ok(Some(found)), Ok(wanted)) => {
                assert_eq!(source(found).as_deref(), wanted, "{what}");
                assert_eq!(found.length, header.len(), "{what}");
                for end in 0..header.len() {
                    assert_eq!(parse(&header[..end]), Ok(None), "{what} cut after {end}");
                }
                assert_eq!(parse(header), whole, "{what} alone");
            }
            (Err(found), Err(wanted)) => {
                assert_eq!(found, wanted, "{what}");
                let first = (0..=stream.len()).find_map(|end| parse(&stream[..end]).transpose());
                assert_eq!(first, Some(Err(wanted)), "{what} byte by byte");
            }
            (found, _) => panic!("{what}: {found:?}, not {want:?}"),
        }
    }

    #[test]
    fn version_1() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_MAX_BYTES - 16));
        let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_MAX_BYTES - 15));
        let (end, address) = ("the line does not end with CRLF", "no two IPv4 addresses and ports");
        for (header, want) in [
            ("PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\r\n", Ok(Some("203.0.113.7:56324"))),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Ok(Some("255.255.255.255:65535"))),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 0 0\r\n", Ok(Some("203.0.113.7:0"))),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n", Ok(Some("[2001:db8::7]:56324"))),
            (
                "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
                Ok(Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")),
            ),
            ("PROXY TCP6 ::ffff:203.0.113.7 ::1 1 2\r\n", Ok(Some("[::ffff:203.0.113.7]:1"))),
            ("PROXY UNKNOWN\r\n", OWN),
            ("PROXY UNKNOWN \r\n", OWN),
            ("PROXY UNKNOWN 6.6.6.6 10.0.0.1 1 2\r\n", OWN),
            (&long, OWN),
            (&too_long, Err("the line is too long")),
            ("PROXY UNKNOWN \u{e9}\r\n", OWN),
            // Other ends, and lines that go on behind theirs.
            ("PROXY TCP4 203.0.113.7 10.0.0.1 1 2\n", Err(end)),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 1 2\r", Err(end)),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 1 2\rX\n", Err(end)),
            ("PROXY \r\n", Err("neither TCP4, TCP6 nor UNKNOWN")),
            ("PROXY UNKNOWNS\r\n", Err("neither TCP4, TCP6 nor UNKNOWN")),
            ("PROXY UDP4 203.0.113.7 10.0.0.1 1 2\r\n", Err("neither TCP4, TCP6 nor UNKNOWN")),
            ("PROXY tcp4 203.0.113.7 10.0.0.1 1 2\r\n", Err("neither TCP4, TCP6 nor UNKNOWN")),
            ("PROXY  TCP4 203.0.113.7 10.0.0.1 1 2\r\n", Err("neither TCP4, TCP6 nor UNKNOWN")),
            ("PROXY TCP4\r\n", Err("neither TCP4, TCP6 nor UNKNOWN")),
            ("PROXY TCP4 \r\n", Err(address)),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 1\r\n", Err(address)),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 1 \r\n", Err(address)),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 1 2 \r\n", Err(address)),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 1 2 3\r\n", Err(address)),
            ("PROXY TCP4 203.0.113.7  10.0.0.1 1 2\r\n", Err(address)),
            ("PROXY TCP4 203.0.113.7\t10.0.0.1 1 2\r\n", Err(address)),
            ("PROXY TCP4 203.0.113.7\0 10.0.0.1 1 2\r\n", Err(address)),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 65536 2\r\n", Err(address)),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 1 65536\r\n", Err(address)),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 +1 2\r\n", Err(address)),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 -1 2\r\n", Err(address)),
            ("PROXY TCP4 203.0.113.7 10.0.0.1 01 2\r\n", Err(address)),
            ("PROXY TCP4 203.0.113.007 10.0.0.1 1 2\r\n", Err(address)),
            ("PROXY TCP4 203.0.113 10.0.0.1 1 2\r\n", Err(address)),
            ("PROXY TCP4 203.0.113.7 nobody 1 2\r\n", Err(address)),
            ("PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n", Err(address)),
            ("PROXY TCP6 203.0.113.7 10.0.0.1 1 2\r\n", Err("no two IPv6 addresses and ports")),
            ("PROXY TCP6 fe80::1%1 ::1 1 2\r\n", Err("no two IPv6 addresses and ports")),
            // No header at all.
            ("GET / HTTP/1.1\r\n", Err("no PROXY header")),
            ("PROXYTCP4 203.0.113.7 10.0.0.1 1 2\r\n", Err("no PROXY header")),
            ("proxy TCP4 203.0.113.7 10.0.0.1 1 2\r\n", Err("no PROXY header")),
            (" PROXY UNKNOWN\r\n", Err("no PROXY header")),
            ("\r\nPROXY UNKNOWN\r\n", Err("no PROXY header")),
            ("\x16\x03\x01\x02\0", Err("no PROXY header")),
        ] {
            check(header.as_bytes(), want);
        }
        check(b"PROXY UNKNOWN \xff\r\n", Err("the line is not ASCII"));
    }

    #[test]
    fn version_2() {
        let client = Ok(Some("203.0.113.7:56324"));
        let nowhere = Err("an address family or transport that does not exist");
        let cut_short = Err("an extension is cut short");
        let fill = V2_MAX_BYTES - V2_FIXED_BYTES;
        for (header, want) in [
            (ipv4(b""), client),
            (ipv6("2001:db8::7"), Ok(Some("[2001:db8::7]:56324"))),
            (ipv6("::ffff:203.0.113.7"), Ok(Some("[::ffff:203.0.113.7]:56324"))),
            // LOCAL: the rest is void, however wrong.
            (v2(0x20, 0x00, b""), OWN),
            (v2(0x20, 0x11, &ipv4(b"")[V2_FIXED_BYTES..]), OWN),
            (v2(0x20, 0x11, b"short"), OWN),
            (v2(0x20, 0xff, &[0xff; 300]), OWN),
            // Addresses that are none of a TCP peer.
            (v2(0x21, 0x00, b""), OWN),
            (v2(0x21, 0x00, &[1; 36]), OWN),
            (v2(0x21, 0x10, &[1; 12]), OWN),
            (v2(0x21, 0x01, &[1; 12]), OWN),
            (v2(0x21, 0x12, &[1; 12]), OWN),
            (v2(0x21, 0x22, &[1; 36]), OWN),
            (v2(0x21, 0x31, &[b'/'; 216]), OWN),
            (v2(0x21, 0x32, &[b'/'; 216]), OWN),
            // Versions, commands, families and transports that do not exist.
            (v2(0x01, 0x11, &[1; 12]), Err("a version other than 2")),
            (v2(0x11, 0x11, &[1; 12]), Err("a version other than 2")),
            (v2(0x31, 0x11, &[1; 12]), Err("a version other than 2")),
            (v2(0x22, 0x11, &[1; 12]), Err("a command that is neither LOCAL nor PROXY")),
            (v2(0x2f, 0x11, &[1; 12]), Err("a command that is neither LOCAL nor PROXY")),
            (v2(0x21, 0x41, &[1; 12]), nowhere),
            (v2(0x21, 0xf1, &[1; 12]), nowhere),
            (v2(0x21, 0x13, &[1; 12]), nowhere),
            // Lengths.
            (v2(0x21, 0x11, b""), Err("too short for IPv4")),
            (v2(0x21, 0x11, &[1; 11]), Err("too short for IPv4")),
            (v2(0x21, 0x21, &[1; 12]), Err("too short for IPv6")),
            (v2(0x21, 0x21, &[1; 35]), Err("too short for IPv6")),
            (v2(0x20, 0x00, &vec![1; fill]), OWN),
            (v2(0x20, 0x00, &vec![1; fill + 1]), Err("the header is too long")),
            (v2(0x21, 0x11, &[1; u16::MAX as usize]), Err("the header is too long")),
            // Extensions.
            (ipv4(&[4, 0, 0]), client),
            (ipv4(&[4, 0, 2, 9, 9, 0xea, 0, 1, 9]), client),
            (ipv4(&[4]), cut_short),
            (ipv4(&[4, 0]), cut_short),
            (ipv4(&[4, 0, 1]), cut_short),
            (ipv4(&[4, 0xff, 0xff, 9]), cut_short),
            (ipv4(&[4, 0, 0, 4, 0, 3, 1, 1]), cut_short),
            (checked(b"", b"", 0), client),
            (checked(&[4, 0, 1, 7], &[4, 0, 2, 8, 9], 0), client),
            (checked(b"", b"", 1), Err("the checksum is wrong")),
            (checked(&[4, 0, 1, 7], &[4, 0, 2, 8, 9], 0x0100_0000), Err("the checksum is wrong")),
            (ipv4(&[TLV_CRC32C, 0, 3, 0, 0, 0]), Err("the checksum has not 4 bytes")),
            (ipv4(&[TLV_CRC32C, 0, 0]), Err("the checksum has not 4 bytes")),
            (ipv4(&[TLV_CRC32C, 0, 4, 0, 0, 0]), cut_short),
        ] {
            check(&header, want);
        }
        let mut tampered = checked(b"", b"", 0);
        tampered[V2_FIXED_BYTES] = 6;
        check(&tampered, Err("the checksum is wrong"));
        let mut garbled = ipv4(b"");
        garbled[V2.len() - 1] = b'\r';
        check(&garbled, Err("no PROXY header"));
    }

    /// The check value that the catalogues of checksums give.
    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(crc32c(&[b"123456789"]), 0xe306_9283);
        assert_eq!(crc32c(&[b"1234", b"", b"56789"]), 0xe306_9283);
    }

    /// What a second header behind the first one is: HTTP's business.
    #[test]
    fn one_header_is_read() {
        let two = [ipv4(b""), b"PROXY TCP4 6.6.6.6 10.0.0.1 1 2\r\n".to_vec()].concat();
        assert_eq!(parse(&two).unwrap().unwrap().length, ipv4(b"").len());
    }

    /// Valid headers with bytes changed, cut and added: never a panic, never a byte beyond the end, and
    /// the answer stays what it was when more comes.
    #[test]
    fn whatever_comes() {
        let mut state = 0x9e37_79b9_u32;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as usize
        };
        let valid = [
            b"PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\r\n".to_vec(),
            b"PROXY UNKNOWN\r\n".to_vec(),
            checked(&[4, 0, 1, 7], &[4, 0, 2, 8, 9], 0),
            ipv6("2001:db8::7"),
        ];
        let (mut accepted, mut refused) = (0, 0);
        for round in 0..40_000 {
            let mut bytes = valid[round % valid.len()].clone();
            for _ in 0..random() % 3 {
                let at = random() % bytes.len();
                bytes[at] = random() as u8;
            }
            bytes.truncate(bytes.len() - (random() % bytes.len()) * (random() % 2));
            bytes.extend((0..random() % 20).map(|_| random() as u8));
            let outcome = parse(&bytes);
            match outcome {
                Ok(Some(header)) => assert!(header.length <= bytes.len(), "{}", bytes.escape_ascii()),
                Ok(None) => {
                    assert!(bytes.len() < V2_MAX_BYTES);
                    continue;
                }
                Err(_) => {}
            }
            bytes.push(random() as u8);
            assert_eq!(parse(&bytes), outcome, "{}", bytes.escape_ascii());
            accepted += usize::from(outcome.is_ok());
            refused += usize::from(outcome.is_err());
        }
        assert!(accepted > 1000 && refused > 1000, "{accepted} accepted, {refused} refused");
    }
}
