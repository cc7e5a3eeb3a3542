//! The store: what is found, what goes, and what it takes.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use super::*;
use crate::cache::entry::Pieces;
use crate::cache::key::{Keys, Query, Scheme, Target};
use crate::cache::policy::{Control, Rules, Terms};
use crate::cache::select::{self, Selecting};

struct Rig {
    store: Store,
    keys: Keys,
    now: Instant,
}

fn rig(max_bytes: usize, shards: usize) -> Rig {
    let now = Instant::now();
    Rig { store: Store::new(max_bytes, shards, now), keys: Keys::default(), now }
}

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    fields.iter().map(pair).collect()
}

impl Rig {
    fn key(&self, path: &str) -> Key {
        let target = Target { scheme: Scheme::Http, authority: "a", path, query: None };
        self.keys.key(1, &target, &Query::default(), Vec::new())
    }

    fn put(&self, path: &str, request: &[(&str, &str)], response: &[(&str, &str)], body: &str) {
        self.put_entry(path, request, response, body, (self.store.begin(), self.now));
    }

    /// A response without fields, of a fetch that has `begun`, `received` so many seconds from now.
    fn put_of(&self, path: &str, begun: u64, received: u64, body: &str) {
        self.put_entry(path, &[], &[], body, (begun, self.now + Duration::from_secs(received)));
    }

    fn put_entry(
        &self,
        path: &str,
        request: &[(&str, &str)],
        response: &[(&str, &str)],
        body: &str,
        (begun, received): (u64, Instant),
    ) {
        let (request, response) = (headers(request), headers(response));
        let none: Arc<[Selector]> = Arc::new([]);
        let selecting = Selecting::new(select::selectors(&none, &response), &request);
        let control = Control::of(&response);
        let date = SystemTime::now();
        let (ok, rules) = (StatusCode::OK, Rules::default());
        let terms = Terms::of(ok, &response, &control, &rules, date, Duration::ZERO);
        let body = Pieces::new([Bytes::copy_from_slice(body.as_bytes())]);
        let entry = Entry::new(ok, &response, body, terms, selecting, (received, date), 0.5);
        self.store.insert(&self.key(path), &request, Arc::new(entry), begun, self.now);
    }

    /// The body found; "vary" where there are other variants only.
    fn get(&self, path: &str, request: &[(&str, &str)], second: u64) -> Option<String> {
        let now = self.now + Duration::from_secs(second);
        match self.store.find(&self.key(path), &headers(request), now) {
            Found::Entry(entry) => {
                let body = entry.body.get(0).map(|piece| piece.to_vec()).unwrap_or_default();
                Some(String::from_utf8(body).unwrap())
            }
            Found::OtherVariant(_) => Some("vary".to_owned()),
            Found::Nothing => None,
        }
    }
}

#[test]
fn variants_side_by_side() {
    let rig = rig(1 << 20, 1);
    let vary = [("vary", "foo")];
    rig.put("/", &[("foo", "1")], &vary, "one");
    rig.put("/", &[("foo", "2")], &vary, "two");
    let get = |foo| rig.get("/", &[("foo", foo)], 0).unwrap();
    assert_eq!((get("1"), get("2"), get("3")), ("one".to_owned(), "two".to_owned(), "vary".to_owned()));
    rig.put("/", &[("foo", "1")], &vary, "new");
    assert_eq!((get("1"), get("2")), ("new".to_owned(), "two".to_owned()));
    assert_eq!((rig.get("/x", &[], 0), rig.store.len()), (None, 1));
    let bytes = rig.store.bytes();
    for foo in 0..2 * MAX_VARIANTS {
        rig.put("/", &[("foo", &format!("v{foo}"))], &vary, "xyz");
    }
    assert_eq!(get("2"), "vary", "the oldest went");
    assert!(rig.store.bytes() < bytes / 2 * (MAX_VARIANTS + 1));
    assert!(rig.store.invalidate(&rig.key("/")));
    assert!(!rig.store.invalidate(&rig.key("/")));
    assert_eq!((rig.store.bytes(), rig.store.len()), (0, 0));
}

#[test]
fn what_was_forgotten_since_its_fetch_began_does_not_come_back() {
    let rig = rig(1 << 20, 1);
    let kept = |begun| {
        rig.put_of("/", begun, 0, "x");
        let kept = rig.get("/", &[], 0).is_some();
        rig.store.invalidate(&rig.key("/"));
        kept
    };
    let store = &rig.store;
    let begun = store.begin();
    let generation = store.generation(&rig.key("/"));
    store.invalidate(&rig.key("/other"));
    assert!(kept(begun));
    assert!(!kept(begun), "that has forgotten it");
    assert_ne!(store.generation(&rig.key("/")), generation);
    let begun = store.begin();
    store.purge(|key, _| key.ends_with(b"/other"));
    assert!(kept(begun));
    let begun = store.begin();
    store.purge(|_, entry| entry.headers.is_empty());
    store.purge(|key, _| key.ends_with(b"/other"));
    assert!(!kept(begun));
    let begun = store.begin();
    for _ in 0..1_000 {
        store.purge(|_, _| false);
    }
    assert!(!kept(begun), "nobody knows any more");
    assert!(kept(store.begin()));
}

#[test]
fn what_came_later_stays() {
    let rig = rig(1 << 20, 1);
    let begun = rig.store.begin();
    for (received, body, want) in [(5, "a", "a"), (4, "b", "a"), (5, "c", "c"), (6, "d", "d")] {
        rig.put_of("/", begun, received, body);
        assert_eq!(rig.get("/", &[], 0).as_deref(), Some(want));
    }
}

#[test]
fn the_one_used_last_stays() {
    let rig = rig(8 << 10, 1);
    let body = "x".repeat(2_000);
    rig.put("/kept", &[], &[], &body);
    for n in 0..20 {
        rig.put(&format!("/{n}"), &[], &[], &body);
        assert!(rig.get("/kept", &[], n + 1).is_some(), "after {n}");
    }
    assert_eq!(rig.get("/0", &[], 99), None);
    assert!(rig.store.evictions() > 10);
}

#[test]
fn a_key_with_the_same_hash_is_another() {
    let rig = rig(1 << 20, 1);
    rig.put("/", &[], &[], "one");
    let forged = Key { hash: rig.key("/").hash, bytes: b"other".to_vec() };
    let found = rig.store.find(&forged, &HeaderMap::new(), rig.now);
    assert!(matches!(found, Found::Nothing));
    assert!(!rig.store.invalidate(&forged));
    assert!(rig.get("/", &[], 0).is_some());
}

#[test]
fn what_is_larger_than_a_shard_is_not_kept() {
    let rig = rig(4 << 10, 1);
    rig.put("/", &[], &[], &"x".repeat(5_000));
    assert_eq!((rig.get("/", &[], 0), rig.store.bytes()), (None, 0));
}

#[test]
fn purge_takes_what_is_meant() {
    let rig = rig(1 << 20, 4);
    rig.put("/a", &[], &[("cache-tag", "x, y")], "a");
    rig.put("/b", &[("foo", "1")], &[("vary", "foo"), ("surrogate-key", "y z")], "b");
    rig.put("/b", &[("foo", "2")], &[("vary", "foo")], "c");
    assert_eq!(rig.store.purge(|_, entry| entry.has_tag(b"y")), 2);
    assert_eq!(rig.get("/b", &[("foo", "2")], 0).as_deref(), Some("c"));
    assert_eq!(rig.store.purge(|key, _| key.ends_with(b"/b")), 1);
    assert_eq!((rig.store.len(), rig.store.bytes()), (0, 0));
}

/// Bytes the process has in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A million distinct responses of mixed sizes: neither what is counted nor what the process takes is
/// more than a tenth off the bound.
#[test]
fn bounded_by_bytes_after_a_million_inserts() {
    const MAX_BYTES: usize = 192 << 20;
    let before = resident();
    let rig = rig(MAX_BYTES, 16);
    let body = "x".repeat(16 << 10);
    let length = |n: usize| match n % 10 {
        0..7 => 100 + n.wrapping_mul(2_654_435_761) % 1_900,
        7..9 => 2_000 + n.wrapping_mul(40_503) % 6_000,
        _ => 8_000 + n.wrapping_mul(9_973) % 8_000,
    };
    let response = [
        ("cache-control", "max-age=60"),
        ("content-type", "text/plain"),
        ("etag", "\"abc\""),
        ("x-own", "1"),
    ];
    for n in 0..1_000_000 {
        rig.put(&format!("/some/path/{n}"), &[], &response, &body[..length(n)]);
    }
    let counted = rig.store.bytes();
    assert!((MAX_BYTES * 9 / 10..=MAX_BYTES).contains(&counted), "{counted} bytes counted");
    let grown = resident() - before;
    assert!((MAX_BYTES * 9 / 10..=MAX_BYTES * 11 / 10).contains(&grown), "{grown} of {MAX_BYTES} bytes");
}

#[test]
fn a_smaller_capacity_lets_go_at_once() {
    let rig = rig(1 << 20, 4);
    for n in 0..64 {
        rig.put(&format!("/{n}"), &[], &[("cache-control", "max-age=60")], &"x".repeat(4096));
    }
    let before = rig.store.bytes();
    assert!(before > 64 * 4096);
    rig.store.resize(before / 2);
    assert_eq!(rig.store.bytes(), before);
    rig.store.evict_excess();
    assert!(rig.store.bytes() <= before / 2 && rig.store.bytes() > before / 4, "{}", rig.store.bytes());
    rig.store.resize(0);
    rig.store.evict_excess();
    assert_eq!((rig.store.bytes(), rig.store.len()), (0, 0));
}
