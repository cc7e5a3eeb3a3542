//! What rate limits decided, and how the store is that some of them are shared through.

use std::time::Duration;

use super::Cell;

/// One worker's decisions of one rate limit on one route.
#[derive(Default)]
#[repr(align(128))]
pub struct Limit {
    pub allowed: Cell,
    /// Allowed, with less than a tenth left.
    pub near: Cell,
    pub denied: Cell,
    /// Allowed, though the rule would have refused.
    pub shadow: Cell,
    /// Of the denied: those that came in spite of an earlier refusal.
    pub ignored: Cell,
}

/// Why a worker has no store that rate limits are shared through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Loss {
    Gone,
    Slow,
    Loading,
    /// A replica, or a primary that was made one.
    ReadOnly,
    Full,
    Password,
    /// Anything else that it answers.
    Refused,
}

impl Loss {
    pub const ALL: [Self; 7] =
        [Self::Gone, Self::Slow, Self::Loading, Self::ReadOnly, Self::Full, Self::Password, Self::Refused];

    pub fn label(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Slow => "slow",
            Self::Loading => "loading",
            Self::ReadOnly => "read_only",
            Self::Full => "full",
            Self::Password => "password",
            Self::Refused => "refused",
        }
    }
}

/// Upper bounds of the buckets of a step's time; the last bucket is unbounded.
pub const STEP_BOUNDS_US: [u64; 9] = [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000, 1_000_000];

/// One worker's side of the store that rate limits are shared through.
#[derive(Default)]
#[repr(align(128))]
pub struct Store {
    /// One while it is there.
    pub up: Cell,
    /// Why it is not: one more than the number of the loss.
    away: Cell,
    /// By the loss.
    pub losses: [Cell; Loss::ALL.len()],
    step_times: [Cell; STEP_BOUNDS_US.len() + 1],
    step_sum_us: Cell,
    /// Steps that were waited for in vain.
    pub late: Cell,
    /// Requests that may be admitted without asking, as of the last second.
    pub leased: Cell,
    /// Decisions of rules without it, by what they go by.
    pub alone: [Cell; 3],
}

impl Store {
    pub fn find(&self) {
        self.up.set(1);
        self.away.set(0);
    }

    /// It was lost, or is not there for this reason; the same one is counted once.
    pub fn lose(&self, loss: Loss) {
        if self.why_away() != Some(loss) {
            self.losses[loss as usize].add(1);
        }
        self.forget();
        self.away.set(loss as u64 + 1);
    }

    /// Nobody asks for it.
    pub fn forget(&self) {
        self.up.set(0);
        self.away.set(0);
        self.leased.set(0);
    }

    pub fn why_away(&self) -> Option<Loss> {
        let number = self.away.get().checked_sub(1)?;
        Loss::ALL.into_iter().find(|loss| *loss as u64 == number)
    }

    pub fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = STEP_BOUNDS_US.iter().position(|bound| us <= *bound);
        self.step_times[bucket.unwrap_or(STEP_BOUNDS_US.len())].add(1);
        self.step_sum_us.add(us);
    }

    /// How many steps took up to each bound and longer, and all of them together in microseconds.
    pub fn step_times(&self) -> ([u64; STEP_BOUNDS_US.len() + 1], u64) {
        (self.step_times.each_ref().map(Cell::get), self.step_sum_us.get())
    }
}
