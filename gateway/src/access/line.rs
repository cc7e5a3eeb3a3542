//! One request's line, in either format. Pure.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::header::{REFERER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};

use super::clock::Clock;
use super::escape;
use crate::metrics::Outcome;
use crate::text::push_number;

/// What a request asked, as it came.
pub struct Asked<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub version: Version,
    pub host: Option<&'a HeaderValue>,
    pub headers: &'a HeaderMap,
    pub request_id: &'a [u8],
    /// 32 hexadecimal digits.
    pub trace_id: Option<[u8; 32]>,
}

/// The part of a line that says what was asked, made while the request is at hand. Empty where the head could not be
/// read.
#[derive(Default)]
pub struct Head {
    pub(super) bytes: Vec<u8>,
    /// Where in the bytes begins what stands at the line's end.
    split: usize,
}

/// What the cache did for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    Hit,
    Stale,
    Miss,
    Collapsed,
    Bypass,
}

/// What a request was and how it ended.
pub struct Line<'a> {
    pub started: Instant,
    pub took: Duration,
    /// What limits go by.
    pub client: IpAddr,
    /// The other end of the connection, the second time as text.
    pub peer: IpAddr,
    pub peer_text: &'a [u8],
    /// A PROXY header named the peer.
    pub relayed: bool,
    pub head: &'a Head,
    pub status: StatusCode,
    /// Of the response's body, that were handed over.
    pub bytes: u64,
    pub outcome: Outcome,
    pub route: Option<&'a str>,
    /// The policy that refused it.
    pub rule: Option<&'a str>,
    pub cached: Option<Cached>,
    /// The endpoint asked last.
    pub upstream: Option<&'a str>,
    pub tries: u32,
    /// How long it waited for its place before the upstream, and then for the head of the answer.
    pub queued: Duration,
    pub answered_in: Option<Duration>,
}

impl Cached {
    pub fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Miss => "miss",
            Self::Collapsed => "collapsed",
            Self::Bypass => "bypass",
        }
    }
}

impl Line<'_> {
    /// `sample`: it stands for so many.
    pub fn json(&self, clock: &mut Clock, sample: Option<u32>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"time\":\"");
        clock.iso(self.started, out);
        out.extend_from_slice(b"\",\"client\":\"");
        self.push_client(out);
        out.extend_from_slice(b"\",\"peer\":\"");
        out.extend_from_slice(self.peer_text);
        out.push(b'"');
        if self.relayed {
            out.extend_from_slice(b",\"relayed\":true");
        }
        out.extend_from_slice(&self.head.bytes);
        out.extend_from_slice(b",\"status\":");
        out.extend_from_slice(self.status.as_str().as_bytes());
        out.extend_from_slice(b",\"bytes\":");
        push_number(self.bytes, out);
        out.extend_from_slice(b",\"duration\":");
        push_seconds(self.took, out);
        string(b",\"outcome\":\"", self.outcome.label(), out);
        if let Some(route) = self.route {
            out.extend_from_slice(b",\"route\":\"");
            escape::json(route.as_bytes(), out);
            out.push(b'"');
        }
        if let Some(rule) = self.rule {
            string(b",\"rule\":\"", rule, out);
        }
        if let Some(cached) = self.cached {
            string(b",\"cache\":\"", cached.label(), out);
        }
        if let Some(upstream) = self.upstream {
            string(b",\"upstream\":\"", upstream, out);
            out.extend_from_slice(b",\"tries\":");
            push_number(self.tries.into(), out);
        }
        if self.queued != Duration::ZERO {
            out.extend_from_slice(b",\"queued\":");
            push_seconds(self.queued, out);
        }
        if let Some(answered_in) = self.answered_in {
            out.extend_from_slice(b",\"upstream_duration\":");
            push_seconds(answered_in, out);
        }
        if let Some(sample) = sample {
            out.extend_from_slice(b",\"sample\":");
            push_number(sample.into(), out);
        }
        out.extend_from_slice(b"}\n");
    }

    pub fn combined(&self, clock: &mut Clock, out: &mut Vec<u8>) {
        // Of an IPv6 client that is there itself, the whole address.
        match self.client == self.peer || matches!((self.client, self.peer), (IpAddr::V6(_), IpAddr::V6(_))) {
            true => out.extend_from_slice(self.peer_text),
            false => push_address(self.client, out),
        }
        out.extend_from_slice(b" - - [");
        clock.common(self.started, out);
        out.extend_from_slice(b"] \"");
        let (request, fields) = self.head.bytes.split_at(self.head.split);
        out.extend_from_slice(if request.is_empty() { b"-" } else { request });
        out.extend_from_slice(b"\" ");
        out.extend_from_slice(self.status.as_str().as_bytes());
        out.push(b' ');
        push_number(self.bytes, out);
        out.extend_from_slice(if fields.is_empty() { b" \"-\" \"-\"" } else { fields });
        out.push(b'\n');
    }

    fn push_client(&self, out: &mut Vec<u8>) {
        match self.client == self.peer {
            true => out.extend_from_slice(self.peer_text),
            false => push_address(self.client, out),
        }
    }
}

impl Head {
    pub fn json(&mut self, asked: &Asked<'_>) {
        asked.json(&mut self.bytes);
    }

    pub fn combined(&mut self, asked: &Asked<'_>) {
        asked.request_line(&mut self.bytes);
        self.split = self.bytes.len();
        for name in [REFERER, USER_AGENT] {
            self.bytes.extend_from_slice(b" \"");
            match asked.headers.get(name) {
                Some(value) => escape::combined(value.as_bytes(), &mut self.bytes),
                None => self.bytes.push(b'-'),
            }
            self.bytes.push(b'"');
        }
    }
}

impl Asked<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"method\":\"");
        // A token has neither quotes nor backslashes.
        out.extend_from_slice(self.method.as_str().as_bytes());
        if let Some(host) = self.host {
            out.extend_from_slice(b"\",\"host\":\"");
            escape::json(host.as_bytes(), out);
        }
        if let Some(agent) = self.headers.get(USER_AGENT) {
            out.extend_from_slice(b"\",\"user_agent\":\"");
            escape::json(agent.as_bytes(), out);
        }
        out.extend_from_slice(b"\",\"path\":\"");
        escape::json(self.uri.path().as_bytes(), out);
        if let Some(query) = self.uri.query() {
            out.extend_from_slice(b"\",\"query\":\"");
            escape::json(query.as_bytes(), out);
        }
        out.extend_from_slice(b"\",\"protocol\":\"");
        out.extend_from_slice(protocol(self.version));
        out.extend_from_slice(b"\",\"request_id\":\"");
        // Its own, or one that was found to be plain.
        out.extend_from_slice(self.request_id);
        if let Some(trace_id) = &self.trace_id {
            out.extend_from_slice(b"\",\"trace_id\":\"");
            out.extend_from_slice(trace_id);
        }
        out.push(b'"');
    }

    fn request_line(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.method.as_str().as_bytes());
        out.push(b' ');
        escape::combined(self.uri.path().as_bytes(), out);
        if let Some(query) = self.uri.query() {
            out.push(b'?');
            escape::combined(query.as_bytes(), out);
        }
        out.push(b' ');
        out.extend_from_slice(protocol(self.version));
    }
}

fn protocol(version: Version) -> &'static [u8] {
    match version {
        Version::HTTP_10 => b"HTTP/1.0",
        Version::HTTP_2 => b"HTTP/2.0",
        _ => b"HTTP/1.1",
    }
}

/// A key with the value's opening quote, and a value that needs no escape.
fn string(key: &[u8], value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(key);
    out.extend_from_slice(value.as_bytes());
    out.push(b'"');
}

fn push_address(address: IpAddr, out: &mut Vec<u8>) {
    write!(out, "{address}").expect("memory takes every byte");
}

/// With six places behind the point.
fn push_seconds(time: Duration, out: &mut Vec<u8>) {
    push_number(time.as_secs(), out);
    let mut micros = time.subsec_micros();
    let mut places = *b".000000";
    for place in places[1..].iter_mut().rev() {
        *place = b'0' + (micros % 10) as u8;
        micros /= 10;
    }
    out.extend_from_slice(&places);
}
