//! Sources that have been served: for how long they are known, and which of them are proven.
//!
//! Workers enter completed requests here, and ask where room is short. The heartbeat, where there is one, tells the
//! kernel half what changed. Pure.

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
/// A search of a full table makes room for so many. It takes a worker some milliseconds, so one that does not is followed
/// by none for a while.
const ROOM: usize = MAX_KNOWN / 8;
const SEARCHED_EVERY_NS: u64 = 10 * SECOND_NS;

/// Requests of a source that were completed, and that were refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    pub completed: u32,
    pub refused: u32,
}

#[derive(Default)]
pub struct Acquaintances {
    by_source: FxHashMap<IpAddr, Account>,
    /// Since somebody who follows last asked; `None`: nobody does.
    changed: Option<FxHashSet<IpAddr>>,
    /// When a search found too little.
    searched_ns: Option<u64>,
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
    /// Enters what became of requests of `source`. Where all that are held are proven, strangers stay strangers.
    pub fn enter(&mut self, source: IpAddr, served: Served, now_ns: u64) {
        if self.by_source.len() >= MAX_KNOWN && !self.by_source.contains_key(&source) {
            self.make_room(now_ns);
            if self.by_source.len() >= MAX_KNOWN {
                return;
            }
        }
        let new = || Account { half: now_ns / HALF_NS, ..Account::default() };
        self.by_source.entry(source).or_insert_with(new).enter(served, now_ns);
        self.changed.as_mut().map(|changed| changed.insert(source));
    }

    /// How well `source` is known.
    pub fn class(&self, source: IpAddr, now_ns: u64) -> Class {
        let standing = self.by_source.get(&source).and_then(Account::standing);
        standing.filter(|(_, until_ns)| now_ns < *until_ns).map_or(Class::Unknown, |(class, _)| class)
    }

    /// Drops those who are strangers again and, as far as that is too few, those of the known who were served longest ago;
    /// never the proven.
    fn make_room(&mut self, now_ns: u64) {
        if self.searched_ns.is_some_and(|at_ns| now_ns < at_ns + SEARCHED_EVERY_NS) {
            return;
        }
        let standing = |account: &Account| account.standing().filter(|(_, until_ns)| now_ns < *until_ns);
        self.by_source.retain(|_, account| standing(account).is_some());
        let wanted = self.by_source.len().saturating_sub(MAX_KNOWN - ROOM);
        let mut known: Vec<(u64, IpAddr)> = Vec::new();
        if wanted > 0 {
            let of_class = |account: &Account, class| standing(account).is_some_and(|(is, _)| is == class);
            let accounts = self.by_source.iter().filter(|(_, account)| of_class(account, Class::Known));
            known.extend(accounts.map(|(source, account)| (account.seen_ns, *source)));
        }
        if wanted < known.len() {
            known.select_nth_unstable(wanted);
            known.truncate(wanted);
        }
        for (_, source) in &known {
            self.by_source.remove(source);
        }
        if let Some(changed) = &mut self.changed {
            changed.retain(|source| self.by_source.contains_key(source));
        }
        self.searched_ns = (known.len() < wanted).then_some(now_ns);
    }

    /// From now on somebody asks what has changed, or nobody does.
    pub fn follow(&mut self, followed: bool) {
        self.changed = followed.then(FxHashSet::default);
    }

    /// What has changed since it was last asked, a batch of it.
    pub fn changed(&mut self) -> Vec<(IpAddr, Class, u64)> {
        let Some(changed) = &mut self.changed else { return Vec::new() };
        let batch: Vec<IpAddr> = changed.iter().take(BATCH).copied().collect();
        for source in &batch {
            changed.remove(source);
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
    use std::ops::Range;

    use super::*;

    const START: u64 = 100 * HALF_NS;

    fn source(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    fn followed() -> Acquaintances {
        let mut all = Acquaintances::default();
        all.follow(true);
        all
    }

    /// Completed and refused at these hours: the class in the end, and for how many hours more.
    fn standing(entries: &[(u64, u32, u32)]) -> Option<(Class, u64)> {
        let mut all = followed();
        let mut last = START;
        for (hour, completed, refused) in entries {
            last = START + hour * HOUR_NS;
            all.enter(source(1), Served { completed: *completed, refused: *refused }, last);
        }
        let changed = all.changed();
        assert_eq!(all.changed(), []);
        // What is written is what is answered, for as long as it says.
        for (source, class, until) in &changed {
            let later = [last, until - 1, *until].map(|now_ns| all.class(*source, now_ns));
            assert_eq!(later, [*class, *class, Class::Unknown], "{entries:?}");
        }
        assert_eq!(all.class(source(2), last), Class::Unknown);
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
        let mut all = followed();
        all.enter(source(1), Served { completed: 1, refused: 0 }, START);
        all.enter(source(1), Served { completed: 0, refused: 1 }, START + HOUR_NS / 2);
        assert_eq!(all.changed(), [(source(1), Class::Known, START + HOUR_NS)]);
    }

    const ONE: Served = Served { completed: 1, refused: 0 };

    /// Enters sources one after the other, a nanosecond each, with what became of their requests.
    fn enter(all: &mut Acquaintances, sources: Range<u32>, served: Served) {
        for n in sources {
            all.enter(source(n), served, START + u64::from(n));
        }
    }

    fn classes<const N: usize>(all: &Acquaintances, sources: [u32; N], now_ns: u64) -> [Class; N] {
        sources.map(|n| all.class(source(n), now_ns))
    }

    #[test]
    fn it_is_bounded_and_forgets_first_who_is_a_stranger_again() {
        const MOST: u32 = MAX_KNOWN as u32;
        let mut all = followed();
        enter(&mut all, 0..MOST, ONE);
        assert_eq!(all.by_source.len(), MAX_KNOWN);
        let batches = std::iter::from_fn(|| Some(all.changed().len()).filter(|count| *count > 0));
        let batches: Vec<usize> = batches.collect();
        assert_eq!((batches.iter().sum::<usize>(), batches[0]), (MAX_KNOWN, BATCH));
        // Whoever is proven is not forgotten with those who came once.
        all.enter(source(1), Served { completed: 100, refused: 0 }, START);
        let later = START + HOUR_NS + u64::from(MOST);
        all.enter(source(u32::MAX), ONE, later);
        let found = classes(&all, [1, 2, u32::MAX], later);
        assert_eq!(found, [Class::Proven, Class::Unknown, Class::Known]);
        assert_eq!(all.by_source.len(), 2);
    }

    /// However many come once, each is known, and those who come again stay it; the proven are not touched.
    #[test]
    fn a_flood_of_newcomers_pushes_out_who_was_served_longest_ago() {
        const MOST: u32 = MAX_KNOWN as u32;
        const PROVEN: u32 = 10;
        let mut all = followed();
        enter(&mut all, 0..PROVEN, Served { completed: MANY as u32, refused: 0 });
        for n in PROVEN..3 * MOST {
            enter(&mut all, n..n + 1, ONE);
            if n % (MOST / 2) == 0 {
                all.enter(source(PROVEN), ONE, START + u64::from(n));
            }
            assert!(all.by_source.len() <= MAX_KNOWN);
            assert!(all.changed.as_ref().is_some_and(|changed| changed.len() <= MAX_KNOWN));
        }
        let kept = MOST - ROOM as u32 - PROVEN - 1;
        let last = 3 * MOST - 1;
        let sources = [0, PROVEN - 1, PROVEN, PROVEN + 1, last - kept, last];
        assert_eq!(
            classes(&all, sources, START + u64::from(last)),
            [Class::Proven, Class::Proven, Class::Known, Class::Unknown, Class::Known, Class::Known]
        );
    }

    /// A source that is only refused takes no place from one that is served.
    #[test]
    fn who_was_never_served_goes_first() {
        const MOST: u32 = MAX_KNOWN as u32;
        let mut all = Acquaintances::default();
        enter(&mut all, 0..10, ONE);
        enter(&mut all, 10..3 * MOST, Served { completed: 0, refused: 1 });
        assert_eq!(
            classes(&all, [0, 9, 10], START + u64::from(3 * MOST)),
            [Class::Known, Class::Known, Class::Unknown]
        );
    }

    #[test]
    fn a_table_of_the_proven_is_not_searched_for_each_stranger() {
        const MOST: u32 = MAX_KNOWN as u32;
        let mut all = Acquaintances::default();
        enter(&mut all, 0..MOST, Served { completed: MANY as u32, refused: 0 });
        let over = START + PROVEN_FOR_NS;
        for (n, now_ns, want) in [
            // The search finds nobody, and none follows it at once.
            (0, over - 1, Class::Unknown),
            (1, over + u64::from(MOST), Class::Unknown),
            (2, over - 1 + SEARCHED_EVERY_NS, Class::Known),
        ] {
            let stranger = source(u32::MAX - n);
            all.enter(stranger, ONE, now_ns);
            assert_eq!(all.class(stranger, now_ns), want, "{n}");
        }
    }

    #[test]
    fn what_nobody_asks_for_is_not_kept() {
        let mut all = followed();
        all.enter(source(1), Served { completed: 1, refused: 0 }, START);
        all.follow(false);
        all.enter(source(2), Served { completed: 1, refused: 0 }, START);
        assert_eq!(all.changed(), []);
        assert_eq!(all.class(source(2), START), Class::Known);
    }
}
