//! What a worker holds of the store's counts: requests that it may admit without asking, and what was refused.
//!
//! A lease is charged in the window in which it was granted and ends with it, so whatever is used of it was counted
//! in time: never too much is admitted. What is not used by then is lost. How much is asked for grows with what the
//! key has used in the window, so who comes seldom loses little. Pure: `mod` calls it with the time.

use rustc_hash::FxHashMap;
use tokio::sync::oneshot;

use super::step::Word;
use crate::limit::quota::{Part, Refused};

/// Keys that one worker remembers; requests of others are asked for one by one.
const MOST_KEYS: usize = 16_384;
/// How long a refusal is taken for granted: a limit may be raised, a store flushed or lost meanwhile.
const BELIEVED_NS: u64 = 1_000_000_000;

#[derive(Default)]
pub struct Leases {
    by_name: FxHashMap<Box<[u8]>, Lease>,
}

#[derive(Default)]
struct Lease {
    /// The window that what follows was granted in.
    window: u64,
    /// Its end, not later than the store sees it.
    ends_ns: u64,
    /// Requests that may be admitted before that.
    held: u32,
    /// All that were granted.
    granted: u32,
    /// What the store had left.
    left: u32,
    over: Option<Over>,
    asking: bool,
    /// Woken when the store has answered: by letting go of them.
    waiting: Vec<oneshot::Sender<()>>,
    /// How many more have waited for the last answer than it granted: they ask again.
    short: u32,
}

/// A refusal of the store's.
#[derive(Clone, Copy)]
struct Over {
    part: Part,
    asked_ns: u64,
    /// Before that nobody can be admitted: others can only make it later.
    until_ns: u64,
}

/// How a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    Held,
    /// The store has refused, just now.
    Over(Refused),
    /// The store is being asked.
    Asking,
    Unknown,
}

/// One request taken from a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Of the rule's limit, as far as this worker knows.
    pub left: u32,
    pub ends_in_us: u64,
    /// So many should be asked for, ahead of need.
    pub top_up: Option<u32>,
}

impl Leases {
    pub fn stand(&self, name: &[u8], now_ns: u64) -> Stand {
        let Some(lease) = self.by_name.get(name) else { return Stand::Unknown };
        if lease.held_at(now_ns) > 0 {
            return Stand::Held;
        }
        match lease.over {
            Some(over) if over.holds(now_ns) => {
                Stand::Over(Refused { part: over.part, wait_ns: over.until_ns - now_ns })
            }
            Some(_) | None if lease.asking => Stand::Asking,
            Some(_) | None => Stand::Unknown,
        }
    }

    /// Takes one request of what [`Stand::Held`] was said of; `most` is the rule's lease.
    pub fn take(&mut self, name: &[u8], most: u32, now_ns: u64) -> Taken {
        let lease = self.by_name.get_mut(name).expect("it is held");
        lease.held -= 1;
        let level = lease.granted.min(most);
        let low = !lease.asking && lease.held < level / 2;
        Taken {
            left: lease.left.saturating_add(lease.held),
            ends_in_us: lease.ends_ns.saturating_sub(now_ns) / 1_000,
            top_up: low.then(|| level - lease.held),
        }
    }

    /// Notes that the store is being asked for `name`; says for how much, or that there is no room to remember.
    pub fn ask(&mut self, name: &[u8], most: u32, now_ns: u64) -> Option<u32> {
        let lease = self.lease(name)?;
        lease.asking = true;
        let granted = if lease.ends_ns > now_ns { lease.granted } else { 0 };
        Some(granted.clamp(1, most).max(std::mem::take(&mut lease.short)))
    }

    /// Ends when the store has answered about `name`, which it is being asked for.
    pub fn wait(&mut self, name: &[u8]) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        // Where it is not there any more, the sender is dropped and nobody waits.
        if let Some(lease) = self.by_name.get_mut(name) {
            lease.waiting.push(sender);
        }
        receiver
    }

    /// What the store says, of a question put at `asked_ns`; `None`: it does not say.
    pub fn answer(&mut self, name: &[u8], word: Option<&Word>, asked_ns: u64) {
        let Some(lease) = self.by_name.get_mut(name) else { return };
        lease.asking = false;
        let waited = u32::try_from(std::mem::take(&mut lease.waiting).len()).unwrap_or(u32::MAX);
        let Some(word) = word else { return };
        // Where nothing is left they are refused, and ask for nothing.
        lease.short = waited.saturating_sub(word.granted).min(word.left);
        // Counted from before the question, so that it ends here no later than there.
        let ends_ns = asked_ns + word.ends_us * 1_000;
        if lease.window == word.window {
            lease.ends_ns = lease.ends_ns.max(ends_ns);
        } else {
            (lease.window, lease.ends_ns, lease.held, lease.granted) = (word.window, ends_ns, 0, 0);
        }
        lease.held = lease.held.saturating_add(word.granted);
        lease.granted = lease.granted.saturating_add(word.granted);
        lease.left = word.left;
        lease.over = Over::of(word, asked_ns);
    }

    /// Remembers that the store has refused `name`, which it was asked for out of turn.
    pub fn refuse(&mut self, name: &[u8], word: &Word, asked_ns: u64) {
        if let (Some(over), Some(lease)) = (Over::of(word, asked_ns), self.lease(name)) {
            lease.over = Some(over);
        }
    }

    /// Forgets keys of which nothing is left to remember; says how many requests are held.
    pub fn sweep(&mut self, now_ns: u64) -> u64 {
        let (mut held, crowded) = (0, self.by_name.len() > MOST_KEYS / 2);
        self.by_name.retain(|_, lease| {
            let holds = lease.held_at(now_ns);
            held += u64::from(holds);
            let over = lease.over.is_some_and(|over| over.holds(now_ns));
            // How much a key has used is worth a place where there are places.
            lease.asking || over || holds > 0 || lease.ends_ns > now_ns && !crowded
        });
        held
    }

    /// Forgets everything; who waits is woken.
    pub fn clear(&mut self) {
        self.by_name.clear();
    }

    fn lease(&mut self, name: &[u8]) -> Option<&mut Lease> {
        if !self.by_name.contains_key(name) {
            if self.by_name.len() >= MOST_KEYS {
                return None;
            }
            self.by_name.insert(name.into(), Lease::default());
        }
        self.by_name.get_mut(name)
    }
}

impl Lease {
    fn held_at(&self, now_ns: u64) -> u32 {
        if self.ends_ns > now_ns { self.held } else { 0 }
    }
}

impl Over {
    fn of(word: &Word, asked_ns: u64) -> Option<Self> {
        let refused = word.granted == 0 && word.left == 0;
        refused.then(|| Self { part: word.part, asked_ns, until_ns: asked_ns + word.pause_us * 1_000 })
    }

    fn holds(&self, now_ns: u64) -> bool {
        now_ns < self.until_ns.min(self.asked_ns + BELIEVED_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn word(granted: u32, left: u32, ends_us: u64, window: u64) -> Word {
        Word { granted, left, part: Part::Window, pause_us: ends_us, ends_us, window }
    }

    #[test]
    fn what_is_asked_for_grows_with_use_up_to_the_lease() {
        let (mut leases, now) = (Leases::default(), SECOND_NS);
        let mut wanted = Vec::new();
        for _ in 0..6 {
            let want = leases.ask(b"a", 10, now).unwrap();
            leases.answer(b"a", Some(&word(want, 1_000, 5_000_000, 7)), now);
            wanted.push(want);
            while leases.stand(b"a", now) == Stand::Held {
                leases.take(b"a", 10, now);
            }
        }
        assert_eq!(wanted, [1, 1, 2, 4, 8, 10]);
        assert_eq!(leases.ask(b"a", 10, now + 6 * SECOND_NS), Some(1), "another window begins small");
    }

    #[test]
    fn more_is_asked_for_before_the_last_is_used() {
        let (mut leases, now) = (Leases::default(), SECOND_NS);
        leases.ask(b"a", 10, now);
        leases.answer(b"a", Some(&word(10, 90, 5_000_000, 7)), now);
        let topped: Vec<_> = (0..7).map(|_| leases.take(b"a", 10, now).top_up).collect();
        assert_eq!(topped, [None, None, None, None, None, Some(6), Some(7)]);
        assert_eq!(leases.ask(b"a", 7, now), Some(7));
        assert_eq!(leases.take(b"a", 10, now), Taken { left: 92, ends_in_us: 5_000_000, top_up: None });
    }

    #[test]
    fn a_lease_ends_with_its_window_as_the_asker_sees_it() {
        let (mut leases, asked) = (Leases::default(), SECOND_NS);
        leases.ask(b"a", 10, asked);
        leases.answer(b"a", Some(&word(10, 0, 1_000, 7)), asked);
        assert_eq!(leases.stand(b"a", asked + 999_999), Stand::Held);
        assert_eq!(leases.stand(b"a", asked + 1_000_000), Stand::Unknown);
        // The same window again gives it no longer life than the store sees.
        leases.answer(b"a", Some(&word(1, 0, 400, 7)), asked + 500_000);
        assert_eq!(leases.stand(b"a", asked + 1_000_000), Stand::Unknown);
        leases.answer(b"a", Some(&word(2, 0, 5_000, 8)), asked + 2_000_000);
        leases.take(b"a", 10, asked + 2_000_000);
        leases.take(b"a", 10, asked + 2_000_000);
        assert_eq!(
            leases.stand(b"a", asked + 2_000_000),
            Stand::Unknown,
            "what was left of the last is lost"
        );
    }

    #[test]
    fn a_refusal_is_remembered_as_long_as_it_holds_but_not_for_long() {
        let (mut leases, asked) = (Leases::default(), SECOND_NS);
        leases.refuse(b"a", &word(0, 0, 3_000_000, 7), asked);
        let over = Refused { part: Part::Window, wait_ns: 3 * SECOND_NS - SECOND_NS / 2 };
        assert_eq!(leases.stand(b"a", asked + SECOND_NS / 2), Stand::Over(over));
        assert_eq!(leases.stand(b"a", asked + SECOND_NS), Stand::Unknown);
        leases.refuse(b"a", &word(0, 0, 1_000, 7), asked);
        assert_eq!(leases.stand(b"a", asked + 1_000_000), Stand::Unknown);
        // Not refused was who asked together with another that was.
        leases.refuse(b"b", &word(0, 5, 3_000_000, 7), asked);
        assert_eq!(leases.stand(b"b", asked), Stand::Unknown);
        assert_eq!(leases.sweep(asked + 3 * SECOND_NS), 0);
        assert!(leases.by_name.is_empty());
    }

    #[test]
    fn who_waits_is_woken_by_any_end_and_asked_for() {
        let (mut leases, now) = (Leases::default(), SECOND_NS);
        leases.ask(b"a", 1, now);
        let mut waiting: Vec<_> = (0..3).map(|_| leases.wait(b"a")).collect();
        assert_eq!(leases.stand(b"a", now), Stand::Asking);
        assert!(waiting[0].try_recv() == Err(oneshot::error::TryRecvError::Empty));
        leases.answer(b"a", Some(&word(1, 9, 5_000_000, 7)), now);
        leases.take(b"a", 1, now);
        assert_eq!(leases.ask(b"a", 1, now), Some(2), "as much as was waited for and not granted");
        leases.answer(b"a", None, now);
        assert_eq!(leases.ask(b"a", 1, now), Some(1));
        leases.answer(b"a", None, now);
        assert!(waiting.iter_mut().all(|wait| wait.try_recv() == Err(oneshot::error::TryRecvError::Closed)));
        assert_eq!(leases.stand(b"a", now), Stand::Unknown);
        leases.ask(b"a", 1, now);
        let mut wait = leases.wait(b"a");
        leases.clear();
        assert_eq!(wait.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn keys_beyond_the_most_are_not_remembered() {
        let (mut leases, now) = (Leases::default(), SECOND_NS);
        let name = |n: usize| n.to_le_bytes();
        for n in 0..MOST_KEYS {
            assert!(leases.ask(&name(n), 1, now).is_some());
            leases.answer(&name(n), Some(&word(1, 0, 1_000_000, 7)), now);
        }
        assert_eq!(leases.ask(&name(MOST_KEYS), 1, now), None);
        assert_eq!(leases.sweep(now), MOST_KEYS as u64);
        leases.take(&name(0), 1, now);
        assert_eq!(leases.sweep(now), MOST_KEYS as u64 - 1, "what holds nothing makes room");
        assert_eq!(leases.ask(&name(MOST_KEYS), 1, now), Some(1));
    }
}
