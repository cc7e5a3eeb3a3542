//! One stored response: its head as it goes downstream, its body in shared pieces, its terms.
//!
//! Made once, never changed: a 304 makes a new one that shares the body. What it costs is counted
//! when it is made. The head is copied into memory of its own, so that no buffer of a connection
//! stays alive for the sake of a few fields.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{AGE, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::memory::{copied, size_class};
use super::policy::Terms;
use super::select::Selecting;
use crate::lines;

/// Memory of an allocation besides what was asked for.
const ALLOCATION_BYTES: usize = 16;
/// What `HeaderMap` holds for each field it has room for, and for each place of its index.
const FIELD_BYTES: usize = 104;
const INDEX_BYTES: usize = 4;
/// A shared piece of a body, beyond its bytes.
const PIECE_BYTES: usize = size_of::<Bytes>() + 56 + 2 * ALLOCATION_BYTES;
/// Bodies up to this many bytes are kept in one piece.
const ONE_PIECE_BYTES: usize = 64 * 1024;
/// Hits that make an entry one to be refreshed before its time.
const HOT: u32 = 16;

pub struct Entry {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The fields as they go out, but for those that each answer says anew: `Age` and `Content-Length`.
    pub lines: Bytes,
    pub body: Pieces,
    pub terms: Terms,
    pub selecting: Selecting,
    /// When the head came, for ages; and the same by the calendar.
    pub received: Instant,
    pub date: SystemTime,
    /// Age from which a hot entry is fetched anew.
    refresh_from: Duration,
    hits: AtomicU32,
    refreshing: AtomicBool,
}

/// A body in pieces that are shared, not copied.
#[derive(Clone, Debug, Default)]
pub struct Pieces {
    pieces: Arc<[Bytes]>,
    length: u64,
}

impl Pieces {
    pub fn new(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let pieces: Vec<Bytes> = pieces.into_iter().collect();
        let length = pieces.iter().map(Bytes::len).sum::<usize>();
        let pieces = match pieces.len() {
            2.. if length <= ONE_PIECE_BYTES => [copied(&pieces.concat())].into(),
            _ => pieces.into(),
        };
        Self { pieces, length: length as u64 }
    }

    pub fn len(&self) -> u64 {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub fn get(&self, index: usize) -> Option<&Bytes> {
        self.pieces.get(index)
    }

    fn bytes(&self) -> usize {
        let of = |piece: &Bytes| size_class(piece.len()) + PIECE_BYTES;
        self.pieces.iter().map(of).sum::<usize>() + ALLOCATION_BYTES
    }
}

impl Entry {
    /// `spread` in 0..1 tells entries apart that came at once: they are refreshed at different times.
    pub fn new(
        status: StatusCode,
        headers: &HeaderMap,
        body: Pieces,
        terms: Terms,
        selecting: Selecting,
        (received, date): (Instant, SystemTime),
        spread: f64,
    ) -> Self {
        /// A hot entry is refreshed in the last part of its life, of this share.
        const LAST_SHARE: f64 = 0.2;
        let refresh_from = terms.lifetime.mul_f64(1.0 - LAST_SHARE * spread.clamp(0.1, 1.0));
        let (hits, refreshing) = Default::default();
        let (headers, lines) = lined(headers);
        Self {
            status,
            headers,
            lines,
            body,
            terms,
            selecting,
            received,
            date,
            refresh_from,
            hits,
            refreshing,
        }
    }

    /// RFC 9111 §4.2.3.
    pub fn age(&self, now: Instant) -> Duration {
        self.terms.initial_age.saturating_add(now.saturating_duration_since(self.received))
    }

    /// Seconds of freshness left at `age`, below 0 when stale.
    pub fn ttl(&self, age: Duration) -> i64 {
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        seconds(self.terms.lifetime) - seconds(age)
    }

    /// Counts a fresh hit; true for the one hit that is to have the entry fetched anew before its time.
    pub fn hit(&self, age: Duration) -> bool {
        let hits = self.hits.load(Relaxed);
        if hits < HOT {
            // A count lost to another worker's is no harm.
            self.hits.store(hits + 1, Relaxed);
            return false;
        }
        age >= self.refresh_from && self.begin_refresh()
    }

    /// True for the first who asks.
    pub fn begin_refresh(&self) -> bool {
        !self.refreshing.load(Relaxed) && !self.refreshing.swap(true, Relaxed)
    }

    /// The refresh came to nothing: somebody may try again.
    pub fn end_refresh(&self) {
        self.refreshing.store(false, Relaxed);
    }

    /// Memory it takes, shared pieces included.
    pub fn bytes(&self) -> usize {
        let fields = self.headers.capacity() * (FIELD_BYTES + INDEX_BYTES * 4 / 3);
        let names: usize = self.headers.keys().map(|name| name.as_str().len() + ALLOCATION_BYTES).sum();
        let lines: usize =
            self.headers.iter().map(|(name, value)| lines::bytes(name, value.as_bytes())).sum();
        let head = fields + size_class(lines) + PIECE_BYTES + names + 3 * ALLOCATION_BYTES;
        size_of::<Self>() + 2 * ALLOCATION_BYTES + head + self.body.bytes() + self.selecting.bytes()
    }

    /// Whether it carries the tag, in `Cache-Tag` (commas) or `Surrogate-Key` (spaces).
    pub fn has_tag(&self, tag: &[u8]) -> bool {
        ["cache-tag", "surrogate-key"].iter().any(|name| {
            let mut lines = self.headers.get_all(*name).into_iter();
            lines
                .any(|line| line.as_bytes().split(|&byte| byte == b',' || byte == b' ').any(|own| own == tag))
        })
    }
}

/// The same fields in memory of their own, and as lines, in which the values lie.
fn lined(headers: &HeaderMap) -> (HeaderMap, Bytes) {
    let is_said_anew = |name: &HeaderName| *name == AGE || *name == CONTENT_LENGTH;
    let mut fields: Vec<_> = headers.iter().collect();
    fields.sort_by_key(|(name, _)| is_said_anew(name));
    let (mut text, mut kept) = (Vec::new(), 0);
    for (name, value) in &fields {
        lines::write(&mut text, name, value.as_bytes());
        kept = if is_said_anew(name) { kept } else { text.len() };
    }
    let block = copied(&text);
    let (mut copy, mut end) = (HeaderMap::with_capacity(headers.len()), 0);
    for (name, value) in fields {
        end += lines::bytes(name, value.as_bytes());
        let last = end - lines::END.len();
        let value = HeaderValue::from_maybe_shared(block.slice(last - value.len()..last));
        copy.append(owned(name), value.expect("it is a value already"));
    }
    (copy, block.slice(..kept))
}

fn owned(name: &HeaderName) -> HeaderName {
    HeaderName::from_bytes(name.as_str().as_bytes()).expect("it is a name already")
}

/// The same fields in memory of their own, all values in one block.
pub fn compact(headers: &HeaderMap) -> HeaderMap {
    let values: Vec<&[u8]> = headers.values().map(HeaderValue::as_bytes).collect();
    let mut block = copied(&values.concat());
    let mut copy = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let value =
            HeaderValue::from_maybe_shared(block.split_to(value.len())).expect("it is a value already");
        copy.append(owned(name), value);
    }
    copy
}
