//! How many connections each source has, for the whole process; and who goes on opening more than it may.
//!
//! The listener asks for a place at each accept, and says what a connection has been good for: requests that came
//! whole, or a body that flows. A source *pushes* if, within ten seconds and in no less than three of them, [`MANY`] of
//! its connections were refused; nine for each request that it brought meanwhile; and of the connections that it holds
//! not one in ten was ever good for anything. So an address does not that many share and use, however many of them find
//! no place, nor does a rush of clients that come back all at once. What is done about it is decided elsewhere.

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::lately::{Lately, are_refused};

/// Refused connections in ten seconds that make a source one that pushes.
const MANY: u32 = 50;
/// Seconds of these in which some were: a rush is over sooner.
const LASTING: usize = 3;
/// Of so many connections one that is good for something makes a source one that is served.
const USED_OF: u32 = 10;
const SHARDS: usize = 16;

#[derive(Default)]
pub struct Connections {
    hasher: RandomState,
    shards: [Mutex<HashMap<IpAddr, Source>>; SHARDS],
    /// Sources of which something was refused lately: while there are none, no request is counted.
    watched: AtomicUsize,
}

/// One connection among those of its source, until it is dropped.
pub struct OfSource {
    connections: Arc<Connections>,
    source: IpAddr,
    /// What has been told of it.
    requests: Cell<u32>,
    is_used: Cell<bool>,
}

/// A source has as many connections as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// So many were refused within ten seconds, if this makes it one that pushes, or one once more after as many again.
    pub pushed: Option<u32>,
}

/// A source that pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pusher {
    pub address: IpAddr,
    pub held: u32,
    /// Those of them that have been good for something.
    pub used: u32,
    /// In the last ten seconds.
    pub refused: u32,
}

/// A source that holds connections.
#[derive(Default)]
struct Source {
    held: u32,
    /// Those of them that have been good for something.
    used: u32,
    /// Once one was refused.
    lately: Option<Box<Lately<Second>>>,
    /// Refused since it was last named.
    since_named: u32,
}

#[derive(Clone, Copy, Default)]
struct Second {
    refused: u32,
    requests: u32,
}

impl Connections {
    /// A place for one more of `source`, which may have `most`.
    pub fn enter(self: &Arc<Self>, source: IpAddr, most: u32, now_ns: u64) -> Result<OfSource, Full> {
        let mut shard = self.shard(&source);
        let entered = self.watching(shard.entry(source).or_default(), |source| source.enter(most, now_ns));
        entered.map(|()| OfSource {
            connections: self.clone(),
            source,
            requests: Cell::default(),
            is_used: Cell::default(),
        })
    }

    /// Who pushes now.
    pub fn pushing(&self, now_ns: u64) -> Vec<Pusher> {
        let mut pushing = Vec::new();
        if self.watched.load(Relaxed) == 0 {
            return pushing;
        }
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            pushing.extend(shard.iter().filter_map(|(address, source)| {
                let Source { held, used, .. } = *source;
                Some(Pusher { address: *address, held, used, refused: source.pushed(now_ns)? })
            }));
        }
        pushing
    }

    fn leave(&self, of: &OfSource) {
        if let Entry::Occupied(mut entry) = self.shard(&of.source).entry(of.source) {
            let source = entry.get_mut();
            source.held -= 1;
            source.used -= u32::from(of.is_used.get());
            if source.held == 0 {
                self.watching(source, |source| source.lately = None);
                entry.remove();
            }
        }
    }

    /// Does `what` to a source, and counts it among the watched while it is.
    fn watching<T>(&self, source: &mut Source, what: impl FnOnce(&mut Source) -> T) -> T {
        let before = source.lately.is_some();
        let result = what(source);
        match (before, source.lately.is_some()) {
            (false, true) => self.watched.fetch_add(1, Relaxed),
            (true, false) => self.watched.fetch_sub(1, Relaxed),
            _ => 0,
        };
        result
    }

    fn shard(&self, source: &IpAddr) -> MutexGuard<'_, HashMap<IpAddr, Source>> {
        let shard = &self.shards[self.hasher.hash_one(source) as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OfSource {
    /// The connection has brought so many `requests` whole by now; `is_used`: it has been good for something.
    #[inline]
    pub fn note(&self, requests: u32, is_used: bool, now_ns: impl FnOnce() -> u64) {
        if requests != self.requests.get() || is_used && !self.is_used.get() {
            self.tell(requests, is_used, now_ns);
        }
    }

    fn tell(&self, requests: u32, is_used: bool, now_ns: impl FnOnce() -> u64) {
        let more = requests.wrapping_sub(self.requests.replace(requests));
        let first = is_used && !self.is_used.replace(true);
        let connections = &*self.connections;
        if !first && connections.watched.load(Relaxed) == 0 {
            return;
        }
        if let Some(source) = connections.shard(&self.source).get_mut(&self.source) {
            source.used += u32::from(first);
            connections.watching(source, |source| source.read(more, now_ns));
        }
    }
}

impl Drop for OfSource {
    fn drop(&mut self) {
        self.connections.leave(self);
    }
}

impl Source {
    fn enter(&mut self, most: u32, now_ns: u64) -> Result<(), Full> {
        if self.held < most {
            self.held += 1;
            return Ok(());
        }
        let lately = self.lately.get_or_insert_default();
        lately.now(now_ns).refused += 1;
        self.since_named += 1;
        let pushed = if self.since_named >= MANY { self.pushed(now_ns) } else { None };
        if pushed.is_some() {
            self.since_named = 0;
        }
        Err(Full { pushed })
    }

    /// Requests have come whole; where nothing was refused lately, they are not counted any more.
    fn read(&mut self, requests: u32, now_ns: impl FnOnce() -> u64) {
        let Some(lately) = &mut self.lately else { return };
        let now_ns = now_ns();
        if lately.recent(now_ns).all(|second| second.refused == 0) {
            self.lately = None;
        } else {
            lately.now(now_ns).requests += requests;
        }
    }

    /// Connections refused in the last ten seconds, of a source that pushes.
    fn pushed(&self, now_ns: u64) -> Option<u32> {
        let lately = self.lately.as_ref()?;
        let (mut refused, mut requests, mut lasted) = (0_u32, 0_u32, 0);
        for second in lately.recent(now_ns) {
            refused += second.refused;
            requests += second.requests;
            lasted += usize::from(second.refused > 0);
        }
        let pushes = refused >= MANY
            && lasted >= LASTING
            && are_refused(refused, refused.saturating_add(requests))
            && self.used * USED_OF < self.held;
        pushes.then_some(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::super::lately::SECOND_NS;
    use super::*;

    const MOST: u32 = 100;
    const START_NS: u64 = 100 * SECOND_NS;

    fn source(held: u32, used: u32) -> Source {
        Source { held, used, ..Source::default() }
    }

    /// So many seconds in which a source, which holds all it may and uses some, opens more and brings requests, each
    /// second so many of either: the second in which it is first named, and for how many refused connections.
    fn named(used: u32, seconds: u64, opened: u64, requests: u32) -> Option<(u64, u32)> {
        let mut source = source(MOST, used);
        for second in 0..seconds {
            let now = START_NS + second * SECOND_NS;
            source.read(requests, || now);
            for _ in 0..opened {
                let full = source.enter(MOST, now).expect_err("it has no place");
                if let Some(refused) = full.pushed {
                    return Some((second, refused));
                }
            }
        }
        None
    }

    #[test]
    fn who_pushes() {
        for (what, used, seconds, opened, requests, want) in [
            ("nobody is served, and it goes on", 0, 10, 100, 0, Some((2, 201))),
            ("just often enough", 0, 10, 5, 0, Some((9, 50))),
            ("not often", 0, 100, 4, 0, None),
            ("a rush", 0, 2, 10_000, 0, None),
            ("few of its connections are used", 9, 10, 100, 0, Some((2, 201))),
            ("one in ten is used", 10, 1_000, 1_000, 0, None),
            ("all are used", MOST, 1_000, 1_000, 0, None),
            ("a request for ten that are refused", 0, 10, 100, 10, Some((2, 201))),
            ("a request for nine", 0, 10, 100, 15, Some((2, 270))),
            ("more requests", 0, 1_000, 100, 20, None),
        ] {
            assert_eq!(named(used, seconds, opened, requests), want, "{what}");
        }
    }

    #[test]
    fn it_is_named_once_for_every_fifty() {
        let mut source = source(MOST, 0);
        let mut push = |second: u64, times: u32| -> Vec<u32> {
            let now = START_NS + second * SECOND_NS;
            let times = (0..times).map(|_| source.enter(MOST, now).expect_err("it has no place"));
            times.filter_map(|full| full.pushed).collect()
        };
        assert_eq!(push(0, 100), [0; 0]);
        assert_eq!(push(1, 100), [0; 0]);
        assert_eq!(push(2, 101), [201, 251, 301]);
        assert_eq!(push(20, 49), [0; 0], "what is long past does not count");
        assert_eq!(push(21, 1), [0; 0]);
        assert_eq!(push(22, 1), [51]);
    }

    #[test]
    fn a_place_given_back_can_be_taken_again() {
        let connections = Arc::new(Connections::default());
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let enter = |source, most| connections.enter(source, most, START_NS);
        let mut held: Vec<_> = (0..2).map(|_| enter(one, 2).unwrap()).collect();
        assert!(enter(one, 2).is_err());
        assert!(enter(one, 3).is_ok(), "a raised bound counts those there are");
        assert!(enter(other, 2).is_ok());
        held.pop();
        held.push(enter(one, 2).unwrap());
        drop(held);
        assert!(
            connections.shards.iter().all(|shard| shard.lock().unwrap().is_empty()),
            "nothing stays behind"
        );
        assert_eq!(connections.watched.load(Relaxed), 0);
    }

    #[test]
    fn requests_are_counted_while_connections_are_refused() {
        let connections = Arc::new(Connections::default());
        let address = IpAddr::from([192, 0, 2, 1]);
        let of = |what: fn(&Source) -> (u32, u32)| what(&connections.shard(&address)[&address]);
        let counted = || {
            of(|source| {
                let recent = source.lately.iter().flat_map(|lately| lately.recent(START_NS));
                (source.used, recent.map(|second| second.requests).sum())
            })
        };
        let [one, other] = [(); 2].map(|()| connections.enter(address, 2, START_NS).unwrap());
        one.note(1, true, || START_NS);
        one.note(2, true, || unreachable!("nobody is watched"));
        assert_eq!(counted(), (1, 0));
        assert!(connections.enter(address, 2, START_NS).is_err());
        one.note(5, true, || START_NS);
        other.note(0, true, || START_NS);
        assert_eq!(counted(), (2, 3));
        drop(other);
        assert_eq!(counted(), (1, 3));
        one.note(6, true, || START_NS + 20 * SECOND_NS);
        assert_eq!((counted(), connections.watched.load(Relaxed)), ((1, 0), 0));
    }
}
