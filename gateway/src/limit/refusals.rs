//! Refusals that were ignored: who came back at least a second after a 429 and before it said.
//!
//! The proxy reports each refusal of a TCP peer by a rule whose key is the client alone, and every other
//! request of a source that was refused lately. A source with [`MANY`] ignored refusals in ten seconds, of
//! whose requests nine in ten were refused, is a suspect; parallel requests that end with their 429s make
//! none, nor does an abuser whose neighbours behind the same address are served. What is done about
//! suspects is decided elsewhere.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::{FxBuildHasher, FxHashMap};

/// Seconds that are looked back on.
const SECONDS: u64 = 10;
/// Ignored refusals in that time that make a suspect.
const MANY: u32 = 50;
const SHARDS: usize = 16;
/// Sources that a shard watches; where all were refused in the last ten seconds, others are not watched.
const WATCHED: usize = 256;
const SECOND_NS: u64 = 1_000_000_000;

#[derive(Default)]
pub struct Refusals {
    hasher: FxBuildHasher,
    shards: [Mutex<Sources>; SHARDS],
    /// Sources watched, so that nobody looks for his while there are none.
    watched: AtomicUsize,
}

#[derive(Default)]
struct Sources {
    by_address: FxHashMap<IpAddr, Source>,
    /// The second in which those of long ago were last let go.
    cleared: u64,
}

#[derive(Default)]
struct Source {
    /// The rule that refused last.
    rule: u32,
    /// Ignored refusals since it was last named as a suspect.
    since_named: u32,
    seconds: [Second; SECONDS as usize],
}

/// What happened within one second of the clock.
#[derive(Clone, Copy, Default)]
struct Second {
    number: u64,
    requests: u32,
    refused: u32,
    ignored: u32,
    /// When the last of its 429s let the source come again.
    until_ns: u64,
}

/// A source that does not heed its refusals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    pub address: IpAddr,
    pub rule: u32,
    /// Of the last ten seconds.
    pub requests: u32,
    pub refused: u32,
    pub ignored: u32,
}

impl Refusals {
    /// `source` was refused by `rule` and told to wait for `wait_s`; whether it should have waited already,
    /// and what it is suspected of, if that makes it a suspect, or one once more after as many again.
    pub fn refused(&self, source: IpAddr, rule: u32, wait_s: u32, now_ns: u64) -> (bool, Option<Suspect>) {
        let mut sources = self.shard(&source);
        let before = sources.by_address.len();
        let Some(entry) = sources.watch(source, now_ns) else {
            self.count(before, sources.by_address.len());
            return (false, None);
        };
        entry.rule = rule;
        let ignored = entry.should_wait(now_ns);
        let second = entry.second(now_ns);
        second.requests += 1;
        second.refused += 1;
        second.ignored += u32::from(ignored);
        second.until_ns = second.until_ns.max(now_ns + u64::from(wait_s) * SECOND_NS);
        entry.since_named += u32::from(ignored);
        let mut suspect = None;
        if ignored && entry.since_named >= MANY {
            suspect = Some(entry.account(source, now_ns)).filter(Suspect::is_one);
            if suspect.is_some() {
                entry.since_named = 0;
            }
        }
        self.count(before, sources.by_address.len());
        (ignored, suspect)
    }

    /// A request of `source` that was served, or `refused` for a reason that is not its own.
    #[inline]
    pub fn other(&self, source: IpAddr, refused: bool, now_ns: u64) {
        if self.watched.load(Relaxed) == 0 {
            return;
        }
        if let Some(entry) = self.shard(&source).by_address.get_mut(&source) {
            let second = entry.second(now_ns);
            second.requests += 1;
            second.refused += u32::from(refused);
        }
    }

    /// What one source did in the last ten seconds; `None`: it was not refused lately.
    pub fn of(&self, source: IpAddr, now_ns: u64) -> Option<Suspect> {
        self.shard(&source).by_address.get(&source).map(|entry| entry.account(source, now_ns))
    }

    pub fn suspects(&self, now_ns: u64) -> Vec<Suspect> {
        let mut suspects = Vec::new();
        for shard in &self.shards {
            let mut sources = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let before = sources.by_address.len();
            sources.clear(now_ns);
            self.count(before, sources.by_address.len());
            let all = sources.by_address.iter().map(|(address, source)| source.account(*address, now_ns));
            suspects.extend(all.filter(Suspect::is_one));
        }
        suspects
    }

    fn shard(&self, source: &IpAddr) -> MutexGuard<'_, Sources> {
        let shard = &self.shards[self.hasher.hash_one(source) as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shard has come to hold so many sources; the sum is written only when it changes.
    fn count(&self, before: usize, after: usize) {
        if after != before {
            self.watched.fetch_add(after.wrapping_sub(before), Relaxed);
        }
    }
}

impl Sources {
    /// The account of `source`, a new one if there is room for it.
    fn watch(&mut self, source: IpAddr, now_ns: u64) -> Option<&mut Source> {
        if self.by_address.len() >= WATCHED && !self.by_address.contains_key(&source) {
            self.clear(now_ns);
            if self.by_address.len() >= WATCHED {
                return None;
            }
        }
        Some(self.by_address.entry(source).or_default())
    }

    /// Lets go of sources without a refusal in the last ten seconds; looks once a second at most.
    fn clear(&mut self, now_ns: u64) {
        let now = now_ns / SECOND_NS;
        if std::mem::replace(&mut self.cleared, now) != now {
            self.by_address.retain(|_, source| source.recent(now_ns).any(|second| second.refused > 0));
        }
    }
}

impl Source {
    fn recent(&self, now_ns: u64) -> impl Iterator<Item = &Second> {
        let now = now_ns / SECOND_NS;
        self.seconds.iter().filter(move |second| second.number + SECONDS > now)
    }

    fn second(&mut self, now_ns: u64) -> &mut Second {
        let number = now_ns / SECOND_NS;
        let second = &mut self.seconds[(number % SECONDS) as usize];
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        second
    }

    /// Whether a 429 that is a second old, or older, forbade a request at `now_ns`. A 429 is as old as the
    /// end of its second of the clock, which errs on the source's side.
    fn should_wait(&self, now_ns: u64) -> bool {
        self.recent(now_ns)
            .any(|second| (second.number + 2) * SECOND_NS <= now_ns && now_ns < second.until_ns)
    }

    fn account(&self, address: IpAddr, now_ns: u64) -> Suspect {
        let none = Suspect { address, rule: self.rule, requests: 0, refused: 0, ignored: 0 };
        self.recent(now_ns).fold(none, |sum, second| Suspect {
            requests: sum.requests + second.requests,
            refused: sum.refused + second.refused,
            ignored: sum.ignored + second.ignored,
            ..sum
        })
    }
}

impl Suspect {
    fn is_one(&self) -> bool {
        self.ignored >= MANY && u64::from(self.refused) * 10 >= u64::from(self.requests) * 9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const START_MS: u64 = 100_000;

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    /// One source's 429s, each telling it to wait for `wait_s`, at `times` after the start.
    fn ignored(wait_s: u32, times_ms: impl IntoIterator<Item = u64>) -> Vec<bool> {
        let refusals = Refusals::default();
        let refused = |ms| refusals.refused(address(1), 7, wait_s, (START_MS + ms) * MS).0;
        times_ms.into_iter().map(refused).collect()
    }

    #[test]
    fn only_who_was_told_and_had_time_to_hear_it_ignores() {
        for (wait_s, times_ms, want) in [
            (30, &[0, 10, 900][..], &[false, false, false][..]),
            (30, &[0, 2_000, 9_000], &[false, true, true]),
            // It came when it was told to.
            (5, &[0, 5_000], &[false, false]),
            (5, &[0, 4_999], &[false, true]),
            (1, &[0, 1_000, 2_000, 3_000], &[false; 4]),
            // Told once, long ago.
            (30, &[0, 10_000], &[false, false]),
        ] {
            assert_eq!(ignored(wait_s, times_ms.iter().copied()), want, "{wait_s} s, {times_ms:?}");
        }
    }

    /// Requests a second of: refused by the client's own rule, refused otherwise, served.
    fn suspects(seconds: u64, own: u64, otherwise: u64, served: u64) -> Vec<Suspect> {
        let refusals = Refusals::default();
        for second in 0..seconds {
            let now = (START_MS + second * 1_000) * MS;
            for n in 0..own {
                refusals.refused(address(1), 7, 30, now + n * MS);
            }
            (0..otherwise).for_each(|_| refusals.other(address(1), true, now));
            (0..served).for_each(|_| refusals.other(address(1), false, now));
        }
        refusals.suspects((START_MS + seconds * 1_000 - 1) * MS)
    }

    #[test]
    fn a_suspect_ignores_often_and_is_hardly_served() {
        let found = suspects(10, 10, 0, 0);
        let want = Suspect { address: address(1), rule: 7, requests: 100, refused: 100, ignored: 80 };
        assert_eq!(found, [want]);
        for (what, found) in [
            ("not often", suspects(10, 6, 0, 0)),
            ("parallel requests of an obedient client", suspects(1, 640, 0, 0)),
            ("neighbours are served", suspects(10, 80, 0, 10)),
        ] {
            assert_eq!(found, [], "{what}");
        }
        assert_eq!(suspects(10, 50, 40, 10).len(), 1, "nine in ten were refused");
        assert_eq!(suspects(3, 60, 0, 0).len(), 1, "within three seconds");
    }

    /// At the refusal that decides, and again after as many more.
    #[test]
    fn a_suspect_is_named_once_for_every_fifty() {
        let refusals = Refusals::default();
        let mut named = Vec::new();
        for n in 0..170 {
            let now = (START_MS + 2_000 * u64::from(n > 0) + n) * MS;
            named.extend(refusals.refused(address(1), 7, 60, now).1.map(|suspect| (n, suspect.ignored)));
        }
        assert_eq!(named, [(50, 50), (100, 100), (150, 150)]);
    }

    #[test]
    fn what_is_long_past_is_forgotten() {
        let refusals = Refusals::default();
        for n in 0..100 {
            refusals.refused(address(1), 7, 60, (START_MS + n * 100) * MS);
        }
        let end = START_MS + 10_000;
        assert_eq!(refusals.suspects(end * MS).len(), 1);
        assert_eq!(refusals.suspects((end + 5_000) * MS).len(), 0);
        assert_eq!(refusals.suspects((end + 11_000) * MS).len(), 0);
        assert_eq!(refusals.watched.load(Relaxed), 0);
    }

    #[test]
    fn the_table_is_bounded_and_makes_room_for_new_sources() {
        let refusals = Refusals::default();
        let held = || refusals.watched.load(Relaxed);
        for n in 0..20_000 {
            refusals.refused(address(n), 7, 60, START_MS * MS);
        }
        assert_eq!(held(), SHARDS * WATCHED);
        let later = (START_MS + 20_000) * MS;
        let newcomer = |refusals: &Refusals, now| {
            refusals.refused(address(50_000), 7, 60, now);
            refusals.refused(address(50_000), 7, 60, now + 3_000 * MS).0
        };
        assert!(newcomer(&refusals, later));
        assert!(held() < SHARDS * WATCHED);
    }
}
