//! Refusals that were ignored: who came back before the time that his 429 said, though he had heard of it.
//!
//! The proxy reports each refusal of a TCP peer by a rule whose key is the client alone, and every other
//! request of a source that was refused lately. A source with [`MANY`] ignored refusals in ten seconds, one more for
//! each request that was served, of whose requests nine in ten were refused, is a suspect; parallel requests that
//! end with their 429s make none, nor does an abuser whose neighbours behind the same address are served. What is
//! done about suspects is decided elsewhere.
//!
//! A source that asks again and again over connections that were told to wait floods. It is told to stay away longer,
//! all of it until the same time, and its connections end: `told` says for how long, and what is ignored.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::{FxBuildHasher, FxHashMap};

use super::lately::{Lately, SECOND_NS, are_refused};
use super::told::Told;

/// Ignored refusals in that time that make a suspect.
const MANY: u32 = 50;
/// Refusals within a second, over connections that were told to wait, that make a flood: no client that waits has one,
/// unless it shares connections among so many.
const FLOOD: u32 = 100;
/// Routes of which it is kept what a source was told there. Whoever waits for one may ask another meanwhile.
const ROUTES: usize = 4;
const SHARDS: usize = 16;
/// Sources that a shard watches; where all were refused in the last ten seconds, others are not watched.
const WATCHED: usize = 256;

#[derive(Default)]
pub struct Refusals {
    hasher: FxBuildHasher,
    shards: [Mutex<Sources>; SHARDS],
    /// Sources watched.
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
    told: [Told; ROUTES],
    lately: Lately<Second>,
}

/// What happened within one second of the clock.
#[derive(Clone, Copy, Default)]
struct Second {
    requests: u32,
    refused: u32,
    ignored: u32,
    /// Refused on connections that had been told to wait.
    again: u32,
}

/// A refusal by a rule whose key is the client alone.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    pub source: IpAddr,
    pub route: u64,
    pub rule: u32,
    /// After which it would be admitted.
    pub wait_s: u32,
    /// Its connection was told to wait for longer than until now.
    pub again: bool,
}

/// What becomes of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consequence {
    /// What the source is told.
    pub wait_s: u32,
    /// It should have waited already.
    pub ignored: bool,
    /// The source floods, and this request is none of one that waits as it was told.
    pub is_of_flood: bool,
    /// What the source is suspected of, if this makes it a suspect, or one once more after as many again.
    pub suspect: Option<Suspect>,
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
    pub fn refused(&self, refusal: Refusal, now_ns: u64) -> Consequence {
        let mut sources = self.shard(&refusal.source);
        let before = sources.by_address.len();
        let consequence = match sources.watch(refusal.source, now_ns) {
            Some(entry) => entry.refused(refusal, now_ns),
            None => Consequence { wait_s: refusal.wait_s, ignored: false, is_of_flood: false, suspect: None },
        };
        self.count(before, sources.by_address.len());
        consequence
    }

    /// Whether any source is watched: nobody looks for his while there are none.
    #[inline]
    pub fn are_watched(&self) -> bool {
        self.watched.load(Relaxed) > 0
    }

    /// A request of `source` that was served, or `refused` for a reason that is not its own.
    #[inline]
    pub fn other(&self, source: IpAddr, refused: bool, now_ns: u64) {
        if !self.are_watched() {
            return;
        }
        if let Some(entry) = self.shard(&source).by_address.get_mut(&source) {
            let second = entry.lately.now(now_ns);
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
            self.by_address.retain(|_, source| source.lately.recent(now_ns).any(|second| second.refused > 0));
        }
    }
}

impl Source {
    fn refused(&mut self, refusal: Refusal, now_ns: u64) -> Consequence {
        let Refusal { source, route, rule, wait_s, again } = refusal;
        self.rule = rule;
        let ignored = self.told(route).is_ignored(now_ns);
        let second = self.lately.now(now_ns);
        second.requests += 1;
        second.refused += 1;
        second.ignored += u32::from(ignored);
        second.again += u32::from(again);
        let floods = second.floods();
        let told = self.told(route);
        let wait_s = told.tell(wait_s, floods, now_ns);
        let is_of_flood = (again || ignored) && (floods || told.is_away(now_ns));
        self.since_named += u32::from(ignored);
        let mut suspect = None;
        if ignored && self.since_named >= MANY {
            suspect = Some(self.account(source, now_ns)).filter(Suspect::is_one);
            if suspect.is_some() {
                self.since_named = 0;
            }
        }
        Consequence { wait_s, ignored, is_of_flood, suspect }
    }

    /// What it was told on `route`; of the others, the one where its last wait is over first is forgotten.
    fn told(&mut self, route: u64) -> &mut Told {
        let known = self.told.iter().position(|told| told.route == route);
        let place = known.unwrap_or_else(|| {
            let first = (0..ROUTES).min_by_key(|place| self.told[*place].last_ns()).unwrap_or_default();
            self.told[first] = Told::on(route);
            first
        });
        &mut self.told[place]
    }

    fn account(&self, address: IpAddr, now_ns: u64) -> Suspect {
        let none = Suspect { address, rule: self.rule, requests: 0, refused: 0, ignored: 0 };
        self.lately.recent(now_ns).fold(none, |sum, second| Suspect {
            requests: sum.requests + second.requests,
            refused: sum.refused + second.refused,
            ignored: sum.ignored + second.ignored,
            ..sum
        })
    }
}

impl Second {
    fn floods(&self) -> bool {
        self.again >= FLOOD && are_refused(self.refused, self.requests)
    }
}

impl Suspect {
    /// Who was served may have heard of no wait, and is excused once.
    fn is_one(&self) -> bool {
        let served = self.requests - self.refused;
        self.ignored >= MANY.saturating_add(served) && are_refused(self.refused, self.requests)
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

    /// Refused by a rule that would have it wait so long, over a connection that was not told yet.
    fn refusal(n: u32, wait_s: u32) -> Refusal {
        Refusal { source: address(n), route: 1, rule: 7, wait_s, again: false }
    }

    /// Requests a second of: refused by the client's own rule, refused otherwise, served.
    fn suspects(seconds: u64, own: u64, otherwise: u64, served: u64) -> Vec<Suspect> {
        let refusals = Refusals::default();
        for second in 0..seconds {
            let now = (START_MS + second * 1_000) * MS;
            for n in 0..own {
                refusals.refused(refusal(1, 30), now + n * MS);
            }
            (0..otherwise).for_each(|_| refusals.other(address(1), true, now));
            (0..served).for_each(|_| refusals.other(address(1), false, now));
        }
        refusals.suspects((START_MS + seconds * 1_000 - 1) * MS)
    }

    #[test]
    fn a_suspect_ignores_often_and_is_hardly_served() {
        let found = suspects(10, 10, 0, 0);
        let want = Suspect { address: address(1), rule: 7, requests: 100, refused: 100, ignored: 90 };
        assert_eq!(found, [want]);
        for (what, found) in [
            ("not often", suspects(10, 5, 0, 0)),
            ("parallel requests of an obedient client", suspects(1, 640, 0, 0)),
            ("neighbours are served", suspects(10, 80, 0, 10)),
        ] {
            assert_eq!(found, [], "{what}");
        }
        assert_eq!(suspects(10, 50, 40, 10).len(), 1, "nine in ten were refused");
        assert_eq!(suspects(3, 60, 0, 0).len(), 1, "within three seconds");
    }

    /// Two hundred refusals within a second, one in `every` of them on a connection that was told before: which of
    /// them were told to stay away, and which end their connections.
    fn flood(every: u64, served: u64) -> (u64, u64) {
        let refusals = Refusals::default();
        refusals.refused(refusal(1, 1), START_MS * MS);
        (0..served).for_each(|_| refusals.other(address(1), false, START_MS * MS));
        (1..200).fold((0, 0), |(told, ended), n| {
            let again = Refusal { again: n % every == 0, ..refusal(1, 1) };
            let consequence = refusals.refused(again, (START_MS + n) * MS);
            (told + u64::from(consequence.wait_s > 1), ended + u64::from(consequence.is_of_flood))
        })
    }

    #[test]
    fn a_flood_is_told_to_stay_away_and_its_connections_end() {
        assert_eq!(flood(1, 0), (100, 100));
        assert_eq!(flood(1, 20), (21, 21), "once nine in ten are refused");
        assert_eq!(flood(1, 40), (0, 0), "its neighbours are served");
        assert_eq!(flood(2, 0), (0, 0), "99 of them");
        let refusals = Refusals::default();
        let parallel = |n: u64| refusals.refused(refusal(1, 1), START_MS * MS + n).wait_s;
        assert_eq!((0..10_000).map(parallel).max(), Some(1), "a connection each");
    }

    /// Whoever alternates between routes is not forgiven, and who obeys each of them is not blamed.
    #[test]
    fn routes_are_told_apart() {
        let refusals = Refusals::default();
        let on = |route, wait_s, ms| {
            refusals.refused(Refusal { route, ..refusal(1, wait_s) }, (START_MS + ms) * MS).ignored
        };
        assert!(!on(7, 60, 0) && !on(8, 3, 1_500), "told on another");
        assert!(on(7, 58, 2_000) && on(8, 2, 2_500));
        assert!(!on(9, 9, 2_600) && !on(10, 9, 2_700) && !on(11, 9, 2_800));
        assert!(on(7, 57, 3_000), "of five the one where the wait is over first is forgotten");
    }

    /// At the refusal that decides, and again after as many more.
    #[test]
    fn a_suspect_is_named_once_for_every_fifty() {
        let refusals = Refusals::default();
        let mut named = Vec::new();
        for n in 0..170 {
            let now = (START_MS + 2_000 * u64::from(n > 0) + n) * MS;
            let suspect = refusals.refused(refusal(1, 60), now).suspect;
            named.extend(suspect.map(|suspect| (n, suspect.ignored)));
        }
        assert_eq!(named, [(50, 50), (100, 100), (150, 150)]);
    }

    #[test]
    fn what_is_long_past_is_forgotten() {
        let refusals = Refusals::default();
        for n in 0..100 {
            refusals.refused(refusal(1, 60), (START_MS + n * 100) * MS);
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
            refusals.refused(refusal(n, 60), START_MS * MS);
        }
        assert_eq!(held(), SHARDS * WATCHED);
        let later = (START_MS + 20_000) * MS;
        let newcomer = |refusals: &Refusals, now| {
            refusals.refused(refusal(50_000, 60), now);
            refusals.refused(refusal(50_000, 57), now + 3_000 * MS).ignored
        };
        assert!(newcomer(&refusals, later));
        assert!(held() < SHARDS * WATCHED);
    }
}
