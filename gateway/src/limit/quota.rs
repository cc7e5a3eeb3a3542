//! What a rule grants one key: a sliding window and, where a burst is set, a token bucket beside it.
//!
//! A request must pass both and takes from both or from neither. Pure; `mod` calls it under a shard's
//! lock and stores what it returns.

use gateway_common::limit::Budget;

use super::window::{self, Counts, Window};

const SECOND_NS: u64 = 1_000_000_000;
/// What newcomers share where a shard has no room for them, in limits of one key.
const OVERFLOW_SHARE: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    period_s: u32,
    window: Window,
    bucket: Option<Bucket>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    budget: Budget,
    burst: u32,
}

/// One key's state; the default is a key that never came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub counts: Counts,
    /// The bucket's word.
    pub full_at_ns: u64,
}

/// Which of the two speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Window,
    Burst,
}

/// What a key has left, of the tighter of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub part: Part,
    pub count: u32,
    /// Of either, less than a tenth.
    pub near: bool,
    /// Within this time no more than `count` can be had.
    pub reset_s: u32,
}

/// A request that is refused, by whichever of the two has it wait longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub part: Part,
    pub wait_ns: u64,
}

impl Quota {
    /// `limit` per `period_s`, of which `burst` may come at once. A burst of the limit or more never
    /// binds, for the window admits no faster: it is left out.
    pub fn new(limit: u32, period_s: u32, burst: Option<u32>) -> Self {
        let period_ns = u64::from(period_s) * SECOND_NS;
        let bucket = burst
            .filter(|burst| *burst < limit)
            .map(|burst| Bucket { budget: Budget::per(period_ns, limit, burst), burst });
        Self { period_s, window: Window::new(limit, period_ns), bucket }
    }

    /// What newcomers without a place of their own share.
    pub fn shared(&self) -> Self {
        let times = |count: u32| count.saturating_mul(OVERFLOW_SHARE);
        Self::new(times(self.limit()), self.period_s, self.burst().map(times))
    }

    pub fn limit(&self) -> u32 {
        self.window.limit()
    }

    pub fn period_s(&self) -> u32 {
        self.period_s
    }

    /// `None`: the window decides alone.
    pub fn burst(&self) -> Option<u32> {
        self.bucket.map(|bucket| bucket.burst)
    }

    /// Seconds in which an empty bucket is full again.
    pub fn burst_period_s(&self) -> Option<u32> {
        self.bucket.map(|bucket| seconds(bucket.budget.tolerance_ns))
    }

    /// After this time without a request a key owes nothing, and is as good as new.
    pub fn forgotten_after_ns(&self) -> u64 {
        2 * u64::from(self.period_s) * SECOND_NS
    }

    /// Judges one request: what to store where it is admitted.
    #[inline]
    pub fn take(&self, state: State, now_ns: u64) -> Result<State, Refused> {
        let window = self.window.at(state.counts, now_ns);
        let left = self.window.left(&window);
        let full_at_ns = match &self.bucket {
            None => Some(state.full_at_ns),
            Some(bucket) => bucket.budget.take(state.full_at_ns, now_ns),
        };
        match full_at_ns {
            Some(full_at_ns) if left > 0 => Ok(State { counts: window.taken(), full_at_ns }),
            Some(_) | None => Err(self.refuse(state, &window, now_ns)),
        }
    }

    #[cold]
    fn refuse(&self, state: State, window: &window::Now, now_ns: u64) -> Refused {
        let bucket = self.bucket.map(|bucket| bucket.budget.wait_ns(state.full_at_ns, now_ns));
        let window = match self.window.left(window) {
            0 => self.window.wait_ns(window, now_ns),
            _ => 0,
        };
        match bucket {
            Some(wait_ns) if wait_ns > window => Refused { part: Part::Burst, wait_ns },
            Some(_) | None => Refused { part: Part::Window, wait_ns: window },
        }
    }

    /// The part of a whole that one of `gateways` grants; never nothing.
    pub fn share(&self, gateways: u32) -> Self {
        let share = |count: u32| (count / gateways).max(1);
        Self::new(share(self.limit()), self.period_s, self.burst().map(share))
    }

    /// How many requests `part` has.
    pub fn of(&self, part: Part) -> u32 {
        match (part, self.burst()) {
            (Part::Burst, Some(burst)) => burst,
            (Part::Burst, None) | (Part::Window, _) => self.limit(),
        }
    }

    /// What is left where somebody else counts: `count` of `part` for the next `pause_us`.
    pub fn told(&self, part: Part, count: u32, pause_us: u64) -> Left {
        Left {
            part,
            count,
            near: is_near(count, self.of(part)),
            reset_s: seconds(pause_us.saturating_mul(1_000)),
        }
    }

    /// What is left of `state`.
    #[inline]
    pub fn left(&self, state: State, now_ns: u64) -> Left {
        let window = self.window.at(state.counts, now_ns);
        let count = self.window.left(&window);
        let near = is_near(count, self.limit());
        if let Some(Bucket { budget, burst }) = &self.bucket {
            let held = u32::try_from(budget.left(state.full_at_ns, now_ns)).unwrap_or(u32::MAX);
            let near = near || is_near(held, *burst);
            if held < count {
                let reset_s = seconds(state.full_at_ns.saturating_sub(now_ns));
                return Left { part: Part::Burst, count: held, near, reset_s };
            }
        }
        Left { part: Part::Window, count, near, reset_s: self.window.ends_in_s(&window, self.period_s) }
    }
}

fn is_near(left: u32, of: u32) -> bool {
    u64::from(left) * 10 < u64::from(of)
}

/// Rounded up, at least one.
pub fn seconds(ns: u64) -> u32 {
    u32::try_from(ns.div_ceil(SECOND_NS)).unwrap_or(u32::MAX).max(1)
}
