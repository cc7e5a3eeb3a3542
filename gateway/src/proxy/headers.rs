//! The fields a proxy takes away, adds and replaces on the way up and on the way down.
//!
//! RFC 9110 §7.6.1 (hop-by-hop), §7.6.3 (Via). The values of a connection that never change are
//! made once; one pass over the names decides what there is to do.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH,
    CONTENT_TYPE, COOKIE, DATE, EXPECT, Entry, FORWARDED, GetAll, HOST, HeaderName, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, PRAGMA, RANGE, REFERER, TE,
    TRANSFER_ENCODING, UPGRADE, USER_AGENT, VIA,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Version};

use super::client::Client;
use super::request_id::RequestId;
use super::trace::{TRACEPARENT, Trace};
use crate::lines::{write, write_known, write_number};
use crate::upstream::hop::{ends_here, may_be_named};

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What begins so is the word of a proxy.
const X_FORWARDED: &str = "x-forwarded-";
static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The pseudonym in `Via`.
static PSEUDONYM_11: HeaderValue = HeaderValue::from_static("1.1 gateway");
static PSEUDONYM_10: HeaderValue = HeaderValue::from_static("1.0 gateway");

/// Which fields a message has that anything is decided on, found in one pass over them. Most
/// messages have few, and a look-up for one that is not there costs as much as a hit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The first `Host`, and how many there are.
    pub host: Option<HeaderValue>,
    pub hosts: usize,
    /// It is a name with an optional port, as far as its bytes tell.
    pub is_authority: bool,
    pub transfer_encoding: bool,
    /// An `Accept` that does not take everything.
    pub accept: bool,
    pub expect: bool,
    pub request_id: bool,
    /// A directive, a precondition, a range, or a credential: what a cache asks about.
    pub caching: bool,
    /// A field of W3C Trace Context.
    pub trace: bool,
    /// A secret hash of what a proxy says of the site that was asked for, besides its scheme; 0: nothing.
    pub site: u64,
    te: bool,
    hop_by_hop: bool,
    via: bool,
    content_length: bool,
    /// Besides hop-by-hop fields and `Via`: others that do not go upstream as they came.
    rewritten: bool,
    /// A field that only proxies send.
    pub proxy_field: Option<&'static str>,
}

impl Seen {
    pub fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            // Names of the standard's are numbers; only others are compared letter by letter.
            match *name {
                HOST => {
                    seen.hosts += 1;
                    let first = seen.host.get_or_insert_with(|| value.clone());
                    seen.is_authority = is_authority(first.as_bytes());
                }
                USER_AGENT | ACCEPT_ENCODING | ACCEPT_LANGUAGE | REFERER | CONTENT_TYPE => {}
                CACHE_CONTROL | PRAGMA | AUTHORIZATION | COOKIE | RANGE | IF_RANGE | IF_MATCH
                | IF_NONE_MATCH | IF_MODIFIED_SINCE | IF_UNMODIFIED_SINCE => seen.caching = true,
                ACCEPT => seen.accept |= value != "*/*",
                TE => (seen.te, seen.hop_by_hop) = (true, true),
                TRANSFER_ENCODING => (seen.transfer_encoding, seen.hop_by_hop) = (true, true),
                EXPECT => (seen.expect, seen.hop_by_hop) = (true, true),
                CONNECTION | UPGRADE => seen.hop_by_hop = true,
                VIA => (seen.via, seen.proxy_field) = (true, Some("Via")),
                FORWARDED => (seen.rewritten, seen.proxy_field) = (true, Some("Forwarded")),
                CONTENT_LENGTH => (seen.content_length, seen.rewritten) = (true, true),
                _ => seen.see_other(name.as_str(), value),
            }
        }
        seen
    }

    fn see_other(&mut self, name: &str, value: &HeaderValue) {
        match name {
            "x-api-key" => self.caching = true,
            "keep-alive" | "proxy-connection" => self.hop_by_hop = true,
            "traceparent" | "tracestate" => self.trace = true,
            "x-forwarded-for" => (self.rewritten, self.proxy_field) = (true, Some("X-Forwarded-For")),
            "x-request-id" => (self.request_id, self.rewritten) = (true, true),
            "x-real-ip" => self.rewritten = true,
            _ if name.starts_with(X_FORWARDED) => {
                self.rewritten = true;
                if !(name == X_FORWARDED_PROTO && is_scheme(value.as_bytes())) {
                    self.site = SECRET.hash_one((self.site, name, value.as_bytes()));
                }
            }
            _ => {}
        }
    }

    /// The routing authority: the `Host` field, empty for HTTP/1.0 without one. To be asked for once.
    pub fn authority(&self) -> &str {
        self.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default()
    }
}

/// What a cache's key tells apart without a hash.
fn is_scheme(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"http") || value.eq_ignore_ascii_case(b"https")
}

fn is_authority(host: &[u8]) -> bool {
    host.iter().all(|&byte| IN_AUTHORITY[usize::from(byte)])
}

/// The bytes that a host and its port are written with.
static IN_AUTHORITY: [bool; 256] = {
    let mut of = [false; 256];
    let (mut byte, marks) = (0, b"-._~[]:%!$&'()*+,;=");
    while byte < of.len() {
        of[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut mark = 0;
    while mark < marks.len() {
        of[marks[mark] as usize] = true;
        mark += 1;
    }
    of
};

/// How a request says where its body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    Nothing,
    Length(u64),
    Chunked,
}

/// What is said upstream besides what the client said.
pub struct Upward<'a> {
    pub client: &'a Client,
    /// The client's word about who is behind it is passed on.
    pub trusted: bool,
    /// In place of the client's `Host`, unless that is preserved.
    pub host: Option<&'a HeaderValue>,
    pub request_id: &'a [u8],
    pub trace: &'a Trace,
    pub body: Announced,
}

/// The request's head as it goes upstream, its blank line included.
pub fn write_upstream(parts: &Parts, seen: &Seen, to: &Upward<'_>) -> Vec<u8> {
    /// Enough for most heads: a second allocation costs more than the room.
    const USUAL_BYTES: usize = 640;
    let headers = &parts.headers;
    let mut out = Vec::with_capacity(USUAL_BYTES);
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(host) = to.host {
        write_known(&mut out, b"host: ", host.as_bytes());
    }
    let carry = Carry::of(headers, seen, to);
    for (name, value) in headers {
        if carry.takes(name) {
            write(&mut out, name, value.as_bytes());
        }
    }
    if seen.te && headers.get(TE).is_some_and(|te| accepts_trailers(te.as_bytes())) {
        out.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
    }
    out.extend_from_slice(b"via: ");
    write_list(&mut out, seen.via.then(|| headers.get_all(VIA)), pseudonym(parts.version));
    out.extend_from_slice(b"x-forwarded-for: ");
    let before = to.trusted.then(|| headers.get_all(X_FORWARDED_FOR));
    write_list(&mut out, before, to.client.forwarded_for());
    if !(to.trusted && headers.contains_key(X_FORWARDED_PROTO)) {
        out.extend_from_slice(b"x-forwarded-proto: http\r\n");
    }
    if let Some(host) = &seen.host
        && !(to.trusted && headers.contains_key(X_FORWARDED_HOST))
    {
        write_known(&mut out, b"x-forwarded-host: ", host.as_bytes());
    }
    write_known(&mut out, b"x-request-id: ", to.request_id);
    if let Some(parent) = to.trace.parent() {
        write(&mut out, &TRACEPARENT, parent);
    }
    match to.body {
        // RFC 9110 §8.6: a method that usually has a body says that it has none.
        Announced::Nothing if seen.content_length || has_body(&parts.method) => {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        Announced::Nothing => {}
        Announced::Length(length) => write_number(&mut out, &CONTENT_LENGTH, length),
        Announced::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Which of a request's fields go upstream as they came.
enum Carry {
    All,
    Some {
        /// `Connection` declares them hop-by-hop.
        named: Vec<HeaderName>,
        trusted: bool,
        host: bool,
        trace: Trace,
    },
}

impl Carry {
    fn of(headers: &HeaderMap, seen: &Seen, to: &Upward<'_>) -> Self {
        let traced = seen.trace && !to.trace.keeps_parent();
        if !(seen.hop_by_hop || seen.via || seen.rewritten || to.host.is_some() || traced) {
            return Self::All;
        }
        let named = if seen.hop_by_hop { named_by_connection(headers) } else { Vec::new() };
        Self::Some { named, trusted: to.trusted, host: to.host.is_none(), trace: *to.trace }
    }

    fn takes(&self, name: &HeaderName) -> bool {
        match self {
            Self::All => true,
            Self::Some { named, trusted, host, trace } => match name.as_str() {
                "host" => *host,
                "traceparent" => trace.keeps_parent(),
                "tracestate" => trace.keeps_state(),
                "content-length" | "via" | "x-forwarded-for" | "x-request-id" => false,
                "forwarded" | "x-real-ip" => *trusted,
                name if name.starts_with(X_FORWARDED) && !*trusted => false,
                _ => !ends_here(name.as_str()) && !named.contains(name),
            },
        }
    }
}

/// A list's value: `last` behind what was there `before`.
fn write_list(out: &mut Vec<u8>, before: Option<GetAll<'_, HeaderValue>>, last: &HeaderValue) {
    for value in before.into_iter().flatten() {
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(last.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn has_body(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}

/// Adds to the upstream's fields what the client is told besides. `date`: now.
pub fn toward_downstream(headers: &mut HeaderMap, version: Version, id: &RequestId, date: &HeaderValue) {
    toward_anybody(headers, version, date);
    headers.insert(X_REQUEST_ID, id.value());
}

/// `Via`, `Date` and an identifier of our own.
const OWN_LINES_BYTES: usize = 128;

/// The same, with what need not be among the upstream's fields as lines: a map takes several times as long to be put
/// into and written.
pub fn write_downstream(
    headers: &mut HeaderMap,
    lines: &mut Vec<u8>,
    version: Version,
    id: &RequestId,
    date: &HeaderValue,
) {
    // On a connection's first request at once, and not by doubling.
    lines.reserve(OWN_LINES_BYTES);
    let (mut has_via, mut has_date, mut has_id) = (false, false, false);
    for name in headers.keys() {
        match *name {
            VIA => has_via = true,
            DATE => has_date = true,
            _ => has_id |= *name == X_REQUEST_ID,
        }
    }
    match has_via {
        true => add_via(headers, version),
        false => write_known(lines, b"via: ", pseudonym(version).as_bytes()),
    }
    if !has_date {
        write_known(lines, b"date: ", date.as_bytes());
    }
    if has_id {
        headers.remove(X_REQUEST_ID);
    }
    write_id(lines, id);
}

pub fn write_id(lines: &mut Vec<u8>, id: &RequestId) {
    write_known(lines, b"x-request-id: ", id.as_bytes());
}

/// The same without what belongs to one request: as a response is kept for several.
pub fn toward_anybody(headers: &mut HeaderMap, version: Version, date: &HeaderValue) {
    add_via(headers, version);
    headers.remove(X_REQUEST_ID);
    // RFC 9110 §6.6.1: a response that came without a date gets one.
    headers.entry(DATE).or_insert_with(|| date.clone());
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .filter(|name| may_be_named(name.as_str()))
        .collect()
}

fn add_via(headers: &mut HeaderMap, version: Version) {
    match headers.entry(VIA) {
        Entry::Vacant(entry) => {
            entry.insert(pseudonym(version).clone());
        }
        Entry::Occupied(mut entry) => {
            let mut list: Vec<&[u8]> = entry.iter().map(HeaderValue::as_bytes).collect();
            let pseudonym = pseudonym(version);
            list.push(pseudonym.as_bytes());
            let joined = list.join(&b", "[..]);
            entry.insert(HeaderValue::from_bytes(&joined).expect("field values joined by a comma are one"));
        }
    }
}

fn pseudonym(version: Version) -> &'static HeaderValue {
    if version == Version::HTTP_10 { &PSEUDONYM_10 } else { &PSEUDONYM_11 }
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

    /// `fields` as `name: value` lines through `write_upstream`, sorted.
    fn up(fields: &str, trusted: bool) -> String {
        let peer = "192.0.2.7:4000".parse().unwrap();
        let client = Client::new(peer, &Wheel::new(Instant::now()), Duration::ZERO, Waker::noop());
        let mut request = http::Request::get("/x?y").body(()).unwrap();
        for line in fields.lines() {
            let (name, value) = line.split_once(": ").unwrap();
            let headers = request.headers_mut();
            headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
        }
        let (parts, ()) = request.into_parts();
        let seen = Seen::of(&parts.headers);
        let request_id = b"7";
        let body = Announced::Nothing;
        let to = Upward { client: &client, trusted, host: None, request_id, trace: &Trace::Kept(None), body };
        let head = String::from_utf8(write_upstream(&parts, &seen, &to)).unwrap();
        let fields = head.strip_prefix("GET /x?y HTTP/1.1\r\n").unwrap().strip_suffix("\r\n\r\n").unwrap();
        let mut lines: Vec<String> = fields.split("\r\n").map(|line| format!("{line}\n")).collect();
        lines.sort();
        lines.concat()
    }

    const ADDED: &str = "via: 1.1 gateway\nx-forwarded-for: 192.0.2.7\nx-forwarded-host: a\nx-forwarded-proto: http\nx-request-id: 7\n";

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
            ("host: a\nx-real-ip: 6.6.6.6", false, format!("host: a\n{ADDED}")),
            ("host: a\nx-forwarded-prefix: /evil", false, format!("host: a\n{ADDED}")),
            (
                "host: a\nconnection: host, content-length, x-forwarded-for\ncontent-length: 3",
                false,
                format!("content-length: 0\nhost: a\n{ADDED}"),
            ),
            (
                "host: a\nx-forwarded-for: 10.0.0.1\nx-forwarded-for: 10.0.0.2\nx-forwarded-proto: https",
                true,
                "host: a\nvia: 1.1 gateway\nx-forwarded-for: 10.0.0.1, 10.0.0.2, 192.0.2.7\n\
                 x-forwarded-host: a\nx-forwarded-proto: https\nx-request-id: 7\n"
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
