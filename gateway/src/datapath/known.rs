//! Sources that have been served: for how long they are known, and which of them are proven.
//!
//! Workers tell of completed requests, the heartbeat enters them here and writes what changed, at most once a
//! second. Pure.

use std::net::IpAddr;

use gateway_common::maps::MAX_KNOWN;
use gateway_common::standing::Class;
use rustc_hash::{FxHashMap, FxHashSet};

const SECOND_NS: u64 = 1_000_000_000;
const HOUR_NS: u64 = 3_600 * SECOND_NS;
/// A day is looked back on by halves: what counts is the half under way and the one before.
const HALF_NS: u64 = 12 * HOUR_NS;
/// Requests in a day that make a source proven, if less than a hundredth of as many was refused.
const MANY: u64 = 100;
const KNOWN_FOR_NS: u64 = HOUR_NS;
const PROVEN_FOR_NS: u64 = 24 * HOUR_NS;
/// Written in one go: a batch of some milliseconds.
const BATCH: usize = 8_192;

/// Requests of a source that were completed, and that were refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    pub completed: u32,
    pub refused: u32,
}

#[derive(Default)]
pub struct Acquaintances {
    by_source: FxHashMap<IpAddr, Account>,
    changed: FxHashSet<IpAddr>,
}

#[derive(Clone, Copy, Default)]
struct Account {
    halves: [Served; 2],
    /// Number of the half day that `halves[0]` is of.
    half: u64,
    seen_ns: u64,
}

impl Account {
    fn enter(&mut self, served: Served, now_ns: u64) {
        let half = now_ns / HALF_NS;
        match half - self.half {
            0 => {}
            1 => self.halves = [Served::default(), self.halves[0]],
            _ => self.halves = [Served::default(); 2],
        }
        self.half = half;
        let now = &mut self.halves[0];
        now.completed = now.completed.saturating_add(served.completed);
        now.refused = now.refused.saturating_add(served.refused);
        if served.completed > 0 {
            self.seen_ns = now_ns;
        }
    }

    /// How well it is known, and until when.
    fn standing(&self) -> Option<(Class, u64)> {
        if self.seen_ns == 0 {
            return None;
        }
        let sum = |of: fn(&Served) -> u32| self.halves.iter().map(|half| u64::from(of(half))).sum::<u64>();
        let (completed, refused) = (sum(|half| half.completed), sum(|half| half.refused));
        Some(if completed >= MANY && refused * 100 < completed + refused {
            (Class::Proven, self.seen_ns + PROVEN_FOR_NS)
        } else {
            (Class::Known, self.seen_ns + KNOWN_FOR_NS)
        })
    }
}

impl Acquaintances {
    /// Enters what became of requests of `source`. Where there is no room left, strangers stay strangers.
    pub fn enter(&mut self, source: IpAddr, served: Served, now_ns: u64) {
        if self.by_source.len() >= MAX_KNOWN && !self.by_source.contains_key(&source) {
            self.by_source.retain(|_, account| now_ns < account.seen_ns + KNOWN_FOR_NS);
            if self.by_source.len() >= MAX_KNOWN {
                return;
            }
        }
        let new = || Account { half: now_ns / HALF_NS, ..Account::default() };
        self.by_source.entry(source).or_insert_with(new).enter(served, now_ns);
        self.changed.insert(source);
    }

    /// What has changed since it was last asked, a batch of it.
    pub fn changed(&mut self) -> Vec<(IpAddr, Class, u64)> {
        let batch: Vec<IpAddr> = self.changed.iter().take(BATCH).copied().collect();
        for source in &batch {
            self.changed.remove(source);
        }
        let standing = |source: IpAddr| {
            let (class, until) = self.by_source.get(&source)?.standing()?;
            Some((source, class, until))
        };
        batch.into_iter().filter_map(standing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 100 * HALF_NS;

    fn source(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    /// Completed and refused at these hours: the class in the end, and for how many hours more.
    fn standing(entries: &[(u64, u32, u32)]) -> Option<(Class, u64)> {
        let mut all = Acquaintances::default();
        let mut last = START;
        for (hour, completed, refused) in entries {
            last = START + hour * HOUR_NS;
            all.enter(source(1), Served { completed: *completed, refused: *refused }, last);
        }
        let changed = all.changed();
        assert_eq!(all.changed(), []);
        changed.first().map(|(_, class, until)| (*class, (until - last) / HOUR_NS))
    }

    #[test]
    fn one_request_makes_known_and_a_hundred_good_ones_proven() {
        let (known, proven) = (Some((Class::Known, 1)), Some((Class::Proven, 24)));
        for (entries, want) in [
            (&[(0, 0, 5)][..], None),
            (&[(0, 1, 0)], known),
            (&[(0, 99, 0)], known),
            (&[(0, 100, 0)], proven),
            (&[(0, 100, 1)], proven),
            (&[(0, 100, 2)], known),
            (&[(0, 1_000, 10)], proven),
            (&[(0, 60, 0), (11, 40, 0)], proven),
            (&[(0, 60, 0), (13, 40, 0)], proven),
            (&[(0, 60, 0), (25, 40, 0)], known),
            // What was refused a day ago is past.
            (&[(0, 0, 100), (25, 100, 0)], proven),
        ] {
            assert_eq!(standing(entries), want, "{entries:?}");
        }
    }

    #[test]
    fn a_refusal_makes_nobody_known_for_longer() {
        let mut all = Acquaintances::default();
        all.enter(source(1), Served { completed: 1, refused: 0 }, START);
        all.enter(source(1), Served { completed: 0, refused: 1 }, START + HOUR_NS / 2);
        assert_eq!(all.changed(), [(source(1), Class::Known, START + HOUR_NS)]);
    }

    #[test]
    fn it_is_bounded_and_makes_room_for_others() {
        let mut all = Acquaintances::default();
        let one = Served { completed: 1, refused: 0 };
        for n in 0..MAX_KNOWN as u32 + 10 {
            all.enter(source(n), one, START);
        }
        assert_eq!(all.by_source.len(), MAX_KNOWN);
        let batches = std::iter::from_fn(|| Some(all.changed().len()).filter(|count| *count > 0));
        let batches: Vec<usize> = batches.collect();
        assert_eq!((batches.iter().sum::<usize>(), batches[0]), (MAX_KNOWN, BATCH));
        all.enter(source(u32::MAX), one, START + HOUR_NS);
        assert_eq!(all.changed().len(), 1);
        assert!(all.by_source.len() < MAX_KNOWN);
    }
}
