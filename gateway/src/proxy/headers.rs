//! The fields a proxy takes away, adds and replaces on the way up and on the way down.
//!
//! RFC 9110 §7.6.1 (hop-by-hop), §7.6.3 (Via). The values of a connection that never change are
//! made once; one pass over the names decides what there is to do.

use http::header::{
    ACCEPT, CONNECTION, DATE, EXPECT, Entry, FORWARDED, HOST, HeaderName, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE, VIA,
};
use http::{HeaderMap, HeaderValue, Version};

use super::client::Client;

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

const HOP_BY_HOP: [HeaderName; 7] =
    [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE, EXPECT];

/// The pseudonym in `Via`.
const PSEUDONYM_11: HeaderValue = HeaderValue::from_static("1.1 gateway");
const PSEUDONYM_10: HeaderValue = HeaderValue::from_static("1.0 gateway");

/// Which fields a message has that anything is decided on, found in one pass over them. Most
/// messages have few, and a look-up for one that is not there costs as much as a hit.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The first `Host`, and how many there are.
    pub host: Option<HeaderValue>,
    pub hosts: usize,
    pub transfer_encoding: bool,
    pub accept: bool,
    pub expect: bool,
    pub request_id: bool,
    te: bool,
    hop_by_hop: bool,
    via: bool,
    forwarded: bool,
    date: bool,
}

impl Seen {
    pub fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            match *name {
                HOST => {
                    seen.hosts += 1;
                    seen.host.get_or_insert_with(|| value.clone());
                }
                ACCEPT => seen.accept = true,
                DATE => seen.date = true,
                TE => (seen.te, seen.hop_by_hop) = (true, true),
                TRANSFER_ENCODING => (seen.transfer_encoding, seen.hop_by_hop) = (true, true),
                EXPECT => (seen.expect, seen.hop_by_hop) = (true, true),
                CONNECTION | UPGRADE => seen.hop_by_hop = true,
                VIA => seen.via = true,
                FORWARDED => seen.forwarded = true,
                _ if *name == KEEP_ALIVE || *name == PROXY_CONNECTION => seen.hop_by_hop = true,
                _ if *name == X_REQUEST_ID => seen.request_id = true,
                _ => {}
            }
        }
        seen
    }

    /// The routing authority: the `Host` field, empty for HTTP/1.0 without one.
    pub fn authority(&self) -> &str {
        self.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default()
    }
}

/// Turns the client's fields into those sent upstream. `host` replaces `Host` unless preserved.
pub fn toward_upstream(
    headers: &mut HeaderMap,
    seen: Seen,
    client: &Client,
    trusted: bool,
    version: Version,
    host: Option<&HeaderValue>,
) {
    let trailers = seen.te && headers.get(TE).is_some_and(|te| accepts_trailers(te.as_bytes()));
    if seen.hop_by_hop {
        remove_hop_by_hop(headers);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    add_via(headers, seen.via, version);
    if trusted {
        append_list(headers, X_FORWARDED_FOR, client.forwarded_for());
    } else {
        headers.insert(X_FORWARDED_FOR, client.forwarded_for().clone());
        if seen.forwarded {
            headers.remove(FORWARDED);
        }
    }
    if !(trusted && headers.contains_key(X_FORWARDED_PROTO)) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !(trusted && headers.contains_key(X_FORWARDED_HOST)) {
        match seen.host {
            Some(host) => headers.insert(X_FORWARDED_HOST, host),
            None => headers.remove(X_FORWARDED_HOST),
        };
    }
    if let Some(host) = host {
        headers.insert(HOST, host.clone());
    }
}

/// Turns the upstream's fields into those the client gets. `date`: now.
pub fn toward_downstream(
    headers: &mut HeaderMap,
    version: Version,
    request_id: HeaderValue,
    date: &HeaderValue,
) {
    let seen = Seen::of(headers);
    if seen.hop_by_hop {
        remove_hop_by_hop(headers);
    }
    add_via(headers, seen.via, version);
    headers.insert(X_REQUEST_ID, request_id);
    // RFC 9110 §6.6.1: a response that came without a date gets one.
    if !seen.date {
        headers.insert(DATE, date.clone());
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .collect();
    for name in named.iter().filter(|name| may_be_named(name)).chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Fields that `Connection` cannot take away: without them the message would mean something else,
/// or a client could hide what the gateway vouches for.
fn may_be_named(name: &HeaderName) -> bool {
    use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, COOKIE};
    let end_to_end = [HOST, CONTENT_LENGTH, VIA, AUTHORIZATION, COOKIE, CACHE_CONTROL, TRAILER];
    let vouched = [FORWARDED, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST, X_REQUEST_ID];
    !end_to_end.contains(name) && !vouched.contains(name)
}

fn add_via(headers: &mut HeaderMap, there: bool, version: Version) {
    let pseudonym = if version == Version::HTTP_10 { PSEUDONYM_10 } else { PSEUDONYM_11 };
    if there {
        append_list(headers, VIA, &pseudonym);
    } else {
        headers.insert(VIA, pseudonym);
    }
}

/// Appends to a list field, on one line.
fn append_list(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(entry) => {
            entry.insert(value.clone());
        }
        Entry::Occupied(mut entry) => {
            let mut list: Vec<&[u8]> = entry.iter().map(HeaderValue::as_bytes).collect();
            list.push(value.as_bytes());
            let joined = list.join(&b", "[..]);
            entry.insert(HeaderValue::from_bytes(&joined).expect("field values joined by a comma are one"));
        }
    }
}

fn accepts_trailers(te: &[u8]) -> bool {
    te.split(|&byte| byte == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timer::Wheel;
    use std::task::Waker;
    use std::time::{Duration, Instant};

    /// `fields` as `name: value` lines through `toward_upstream`, sorted.
    fn up(fields: &str, trusted: bool) -> String {
        let peer = "192.0.2.7:4000".parse().unwrap();
        let client = Client::new(peer, peer, &Wheel::new(Instant::now()), Duration::ZERO, Waker::noop());
        let mut headers = HeaderMap::new();
        for line in fields.lines() {
            let (name, value) = line.split_once(": ").unwrap();
            headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
        }
        let seen = Seen::of(&headers);
        toward_upstream(&mut headers, seen, &client, trusted, Version::HTTP_11, None);
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect();
        lines.sort();
        lines.concat()
    }

    const ADDED: &str =
        "via: 1.1 gateway\nx-forwarded-for: 192.0.2.7\nx-forwarded-host: a\nx-forwarded-proto: http\n";

    #[test]
    fn what_goes_upstream() {
        for (fields, trusted, want) in [
            ("host: a", false, format!("host: a\n{ADDED}")),
            (
                "host: a\nconnection: close, X-Hop\nx-hop: 1\nkeep-alive: 5",
                false,
                format!("host: a\n{ADDED}"),
            ),
            ("host: a\nexpect: 100-continue\nupgrade: h2c", false, format!("host: a\n{ADDED}")),
            ("host: a\nte: gzip, trailers", false, format!("connection: te\nhost: a\nte: trailers\n{ADDED}")),
            ("host: a\nx-forwarded-for: 6.6.6.6\nforwarded: for=6.6.6.6", false, format!("host: a\n{ADDED}")),
            ("host: a\nx-forwarded-proto: https\nx-forwarded-host: evil", false, format!("host: a\n{ADDED}")),
            (
                "host: a\nconnection: host, content-length, x-forwarded-for\ncontent-length: 3",
                false,
                format!("content-length: 3\nhost: a\n{ADDED}"),
            ),
            (
                "host: a\nx-forwarded-for: 10.0.0.1\nx-forwarded-for: 10.0.0.2\nx-forwarded-proto: https",
                true,
                "host: a\nvia: 1.1 gateway\nx-forwarded-for: 10.0.0.1, 10.0.0.2, 192.0.2.7\n\
                 x-forwarded-host: a\nx-forwarded-proto: https\n"
                    .to_owned(),
            ),
            (
                "host: a\nvia: 1.0 cache",
                false,
                format!("host: a\n{ADDED}").replace("via: 1.1", "via: 1.0 cache, 1.1"),
            ),
        ] {
            assert_eq!(up(fields, trusted), want, "{fields}");
        }
    }
}
