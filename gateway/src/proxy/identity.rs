//! Who a request is from: the address that limits, penalties and logs are keyed by.
//!
//! Pure. A connection's `Client` keeps [`Identity::of_peer`]; the request's account asks for
//! [`Identity::behind`] where the peer is a trusted proxy. What anybody else says is not read here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// IPv4 where it is mapped into IPv6; other IPv6 cut to the configured prefix, since one client
    /// has all addresses behind it.
    pub address: IpAddr,
    /// The packets come from this address: no header of any kind told it. The kernel half sees
    /// nothing else, so whoever is not the peer is limited in userspace only.
    pub is_peer: bool,
}

impl Identity {
    /// `relayed`: a PROXY header named this peer, the packets are somebody else's.
    pub fn of_peer(peer: IpAddr, relayed: bool, ipv6_prefix: u8) -> Self {
        Self { address: network(peer.to_canonical(), ipv6_prefix), is_peer: !relayed }
    }

    /// The client that a trusted `peer` speaks for: the list is walked from the right, past trusted
    /// hops, to the first that is not; the leftmost where all are. A hop that is no address ends the
    /// walk at the one before it.
    ///
    /// `X-Forwarded-For` is asked first, and alone where it is there: proxies that know the field add
    /// to it, and pass a client's own `Forwarded` on as it came. Field lines of one name are one list.
    pub fn behind(peer: Self, headers: &HeaderMap, trusted: &[IpNet], ipv6_prefix: u8) -> Self {
        let lines = |name| headers.get_all(name).iter().rev().map(HeaderValue::as_bytes);
        let told = if headers.contains_key(X_FORWARDED_FOR) {
            walk(lines(X_FORWARDED_FOR).flat_map(|line| line.rsplit(|&byte| byte == b',')), node, trusted)
        } else {
            walk(lines(FORWARDED).flat_map(|line| parts_from_right(line, b',')), forwarded_for, trusted)
        };
        match told {
            Some(address) => Self { address: network(address, ipv6_prefix), is_peer: false },
            None => peer,
        }
    }
}

/// Whether `address` may tell who is behind it.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

fn walk<'a>(
    hops: impl Iterator<Item = &'a [u8]>,
    read: fn(&[u8]) -> Option<IpAddr>,
    trusted: &[IpNet],
) -> Option<IpAddr> {
    let mut reached = None;
    // Empty elements of a list count for nothing (RFC 9110 §5.6.1.2).
    for hop in hops.filter(|hop| !hop.trim_ascii().is_empty()) {
        let Some(address) = read(hop) else { break };
        reached = Some(address);
        if !is_trusted(address, trusted) {
            break;
        }
    }
    reached
}

/// `192.0.2.7`, `192.0.2.7:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`; the port may be
/// an obfuscated one (`_x`). `unknown` and obfuscated names are no address.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text.trim_ascii()).ok()?;
    let (address, port): (IpAddr, _) = if let Some(bracketed) = text.strip_prefix('[') {
        let (address, after) = bracketed.split_once(']')?;
        (address.parse::<Ipv6Addr>().ok()?.into(), after)
    } else if let Ok(address) = text.parse() {
        (address, "")
    } else {
        let (address, port) = text.split_at(text.find(':')?);
        (address.parse::<Ipv4Addr>().ok()?.into(), port)
    };
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then(|| address.to_canonical())
}

fn is_port(text: &str) -> bool {
    let obfuscated = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match text.strip_prefix('_') {
        Some(name) => !name.is_empty() && name.bytes().all(obfuscated),
        None => text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok(),
    }
}

/// The `for` of one element of `Forwarded` (RFC 7239 §4), which may stand in it once.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    for pair in parts_from_right(element, b';') {
        let equals = memchr::memchr(b'=', pair)?;
        let (name, value) = (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"for") && found.replace(value).is_some() {
            return None;
        }
    }
    let value = found?;
    // An address needs no escape, so a backslash is as wrong in it as a quote.
    let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    node(bare)
}

/// The parts between separators outside of quotes, last first. Quotes are paired from the right as
/// well: the end of the list is the trusted proxy's, and a quote that a client left open at the
/// beginning must not swallow it.
fn parts_from_right(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut quoted = false;
        for (at, &byte) in text.iter().enumerate().rev() {
            if byte == b'"' && !(quoted && is_escaped(&text[..at])) {
                quoted = !quoted;
            } else if byte == separator && !quoted {
                rest = Some(&text[..at]);
                return Some(&text[at + 1..]);
            }
        }
        rest = None;
        Some(text)
    })
}

/// Whether the byte after `before` is escaped.
fn is_escaped(before: &[u8]) -> bool {
    before.iter().rev().take_while(|&&byte| byte == b'\\').count() % 2 == 1
}

fn network(address: IpAddr, ipv6_prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let cut = 128_u32.saturating_sub(ipv6_prefix.into());
            Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(cut).unwrap_or(0)).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "10.0.0.1";

    /// Who a trusted 10.0.0.1 speaks for when it sends `fields`, as `name: value` lines.
    fn behind(fields: &str) -> Identity {
        let trusted = ["10.0.0.0/8", "192.168.0.9/32", "2001:db8:aaaa::/48"].map(|net| net.parse().unwrap());
        let mut headers = HeaderMap::new();
        for line in fields.lines() {
            let (name, value) = line.split_once(':').unwrap();
            let value = HeaderValue::from_bytes(value.trim_ascii().as_bytes()).unwrap();
            headers.append(HeaderName::try_from(name).unwrap(), value);
        }
        Identity::behind(Identity::of_peer(PEER.parse().unwrap(), false, 64), &headers, &trusted, 64)
    }

    #[track_caller]
    fn check(table: &[(&str, &str)]) {
        for (fields, want) in table {
            let found = behind(fields);
            assert_eq!(found.address.to_string(), *want, "{fields}");
            assert_eq!(found.is_peer, *want == PEER, "{fields}");
        }
    }

    #[test]
    fn x_forwarded_for() {
        check(&[
            ("", PEER),
            ("X-Forwarded-For:", PEER),
            ("X-Forwarded-For: , ,", PEER),
            ("X-Forwarded-For: 203.0.113.7", "203.0.113.7"),
            // Spoofed: what the client wrote stands to the left of what the proxy saw.
            ("X-Forwarded-For: 6.6.6.6, 203.0.113.7", "203.0.113.7"),
            ("X-Forwarded-For: 10.6.6.6, 203.0.113.7", "203.0.113.7"),
            ("X-Forwarded-For: 6.6.6.6, 10.6.6.6, 203.0.113.7, 10.0.0.2, 192.168.0.9", "203.0.113.7"),
            ("X-Forwarded-For: 6.6.6.6\nX-Forwarded-For: 203.0.113.7", "203.0.113.7"),
            (
                "X-Forwarded-For: 6.6.6.6, 203.0.113.7\nX-Forwarded-For: 10.0.0.2\nX-Forwarded-For:",
                "203.0.113.7",
            ),
            // All of them trusted: the leftmost.
            ("X-Forwarded-For: 10.0.0.3, 10.0.0.2", "10.0.0.3"),
            // Unparsable hops stop the walk at the last good one.
            ("X-Forwarded-For: unknown", PEER),
            ("X-Forwarded-For: 6.6.6.6, unknown", PEER),
            ("X-Forwarded-For: 6.6.6.6, unknown, 10.0.0.2", "10.0.0.2"),
            ("X-Forwarded-For: 6.6.6.6, _hidden, 10.0.0.2", "10.0.0.2"),
            ("X-Forwarded-For: 6.6.6.6 10.0.0.2", PEER),
            ("X-Forwarded-For: 6.6.6.6;10.0.0.2", PEER),
            ("X-Forwarded-For: 256.0.0.1", PEER),
            ("X-Forwarded-For: 010.0.0.3", PEER),
            ("X-Forwarded-For: 0x7f.1", PEER),
            ("X-Forwarded-For: 2130706433", PEER),
            ("X-Forwarded-For: 6.6.6.6/8", PEER),
            ("X-Forwarded-For: \u{ff11}.1.1.1", PEER),
            ("X-Forwarded-For: \"203.0.113.7\"", PEER),
            ("X-Forwarded-For: fe80::1%eth0", PEER),
            ("X-Forwarded-For: localhost", PEER),
            ("X-Forwarded-For: unix:", PEER),
            // Ports and brackets.
            ("X-Forwarded-For: 203.0.113.7:4711", "203.0.113.7"),
            ("X-Forwarded-For: 203.0.113.7:", PEER),
            ("X-Forwarded-For: 203.0.113.7:65536", PEER),
            ("X-Forwarded-For: 203.0.113.7:+80", PEER),
            ("X-Forwarded-For: [2001:db8:1:2:3::4]:4711", "2001:db8:1:2::"),
            ("X-Forwarded-For: [2001:db8:1:2:3::4]", "2001:db8:1:2::"),
            ("X-Forwarded-For: [2001:db8:1:2:3::4]x", PEER),
            ("X-Forwarded-For: [2001:db8:1:2:3::4", PEER),
            ("X-Forwarded-For: [203.0.113.7]", PEER),
            // Addresses of one client that look different.
            ("X-Forwarded-For: 2001:db8:1:2:3::4", "2001:db8:1:2::"),
            ("X-Forwarded-For: ::ffff:203.0.113.7", "203.0.113.7"),
            ("X-Forwarded-For: [::ffff:cb00:7107]:80", "203.0.113.7"),
            ("X-Forwarded-For: 6.6.6.6, 203.0.113.7, ::ffff:10.0.0.2, 2001:db8:aaaa::1", "203.0.113.7"),
        ]);
    }

    #[test]
    fn forwarded() {
        check(&[
            ("Forwarded: for=203.0.113.7", "203.0.113.7"),
            ("Forwarded: FOR=203.0.113.7;Proto=https;by=10.0.0.1", "203.0.113.7"),
            ("Forwarded: proto=https ; for=\"203.0.113.7:80\" ; by=_x", "203.0.113.7"),
            ("Forwarded: for=\"[2001:db8:1:2:3::4]:4711\"", "2001:db8:1:2::"),
            ("Forwarded: for=\"[2001:db8:1:2:3::4]:_port\"", "2001:db8:1:2::"),
            ("Forwarded: for=\"[::ffff:203.0.113.7]\"", "203.0.113.7"),
            ("Forwarded: for=6.6.6.6, for=203.0.113.7, for=10.0.0.2", "203.0.113.7"),
            ("Forwarded: for=6.6.6.6, for=203.0.113.7\nForwarded: for=10.0.0.2", "203.0.113.7"),
            ("Forwarded: for=10.0.0.3,for=10.0.0.2", "10.0.0.3"),
            ("Forwarded: for=unknown", PEER),
            ("Forwarded: for=6.6.6.6, for=_hidden, for=10.0.0.2", "10.0.0.2"),
            ("Forwarded: for=6.6.6.6, proto=http", PEER),
            ("Forwarded: 6.6.6.6", PEER),
            ("Forwarded: for=6.6.6.6;garbage", PEER),
            ("Forwarded: for=6.6.6.6;for=7.7.7.7", PEER),
            ("Forwarded: for=", PEER),
            ("Forwarded: for=\"\"", PEER),
            ("Forwarded: for=\"", PEER),
            ("Forwarded: for=\"6.6.6.6", PEER),
            ("Forwarded: for=\"6\\.6.6.6\"", PEER),
            ("Forwarded: x for=6.6.6.6", PEER),
            // Quotes that a client left open, and commas and quotes it put into quotes.
            ("Forwarded: for=\", for=203.0.113.7", "203.0.113.7"),
            ("Forwarded: for=6.6.6.6;host=\", for=10.0.0.2", "10.0.0.2"),
            (
                "Forwarded: for=\"\\\", for=203.0.113.7;host=\"a\\\", for=6.6.6.6\\\"\", for=10.0.0.2",
                "203.0.113.7",
            ),
            ("Forwarded: for=203.0.113.7;host=\"x, for=6.6.6.6;y\"", "203.0.113.7"),
            ("Forwarded: for=203.0.113.7;host=\"x\\\\\", for=10.0.0.2", "203.0.113.7"),
            // Both: the field that proxies add to, whatever the other says.
            ("Forwarded: for=6.6.6.6\nX-Forwarded-For: 203.0.113.7", "203.0.113.7"),
            ("Forwarded: for=6.6.6.6\nX-Forwarded-For: unknown", PEER),
        ]);
    }

    #[test]
    fn one_client_has_one_address() {
        for (peer, prefix, want) in [
            ("::ffff:192.0.2.7", 64, "192.0.2.7"),
            ("192.0.2.7", 1, "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::"),
            ("2001:db8:1:2:3:4:5:6", 128, "2001:db8:1:2:3:4:5:6"),
            ("2001:db8:1:2ff:3:4:5:6", 56, "2001:db8:1:200::"),
            ("ffff::", 1, "8000::"),
        ] {
            let found = Identity::of_peer(peer.parse().unwrap(), false, prefix);
            assert_eq!(found, Identity { address: want.parse().unwrap(), is_peer: true }, "{peer}/{prefix}");
        }
        assert!(!Identity::of_peer("192.0.2.7".parse().unwrap(), true, 64).is_peer);
    }

    /// Whatever a client sends, what the proxy adds behind it decides.
    #[test]
    fn nothing_to_the_left_matters() {
        const ALPHABET: &[u8] = b"for=\"\\,;:. []_10aF\t\xff";
        let mut state = 0x9e37_79b9_u32;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as usize
        };
        for _ in 0..20_000 {
            let length = random() % 40;
            let junk: Vec<u8> = (0..length).map(|_| ALPHABET[random() % ALPHABET.len()]).collect();
            for (name, added) in
                [(X_FORWARDED_FOR, "203.0.113.7"), (FORWARDED, "for=\"203.0.113.7:1\";host=\"a\\\"b\"")]
            {
                let line = [junk.as_slice(), b",", added.as_bytes()].concat();
                let mut headers = HeaderMap::new();
                headers.insert(name, HeaderValue::from_bytes(&line).unwrap());
                let peer = Identity::of_peer(PEER.parse().unwrap(), false, 64);
                let trusted = ["10.0.0.0/8".parse().unwrap()];
                let found = Identity::behind(peer, &headers, &trusted, 64);
                assert_eq!(found.address.to_string(), "203.0.113.7", "{}", line.escape_ascii());
            }
        }
    }
}
