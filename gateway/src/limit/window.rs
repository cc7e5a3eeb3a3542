//! The sliding window: two counters a key, and an estimate between them.
//!
//! Time is cut into windows of one period. What was admitted in the window before is assumed to have
//! come evenly, so `previous × (1 − f) + current` estimates the period that ends now, `f` being the
//! elapsed fraction of the current window (HAProxy's `freq_ctr`, Pingora's `Rate`). Pure: a rule calls it
//! with the time, and keeps the counters.
//!
//! Error: over any stretch of `t ≤ period` at most `limit × (1 + t / period)` are admitted, whatever the
//! schedule; at once never more than `limit`, and a steady demand gets exactly the limit.

/// One window as a fixed-point number of windows; the low half of a position is the elapsed fraction.
const ONE: u64 = 1 << 32;
/// Bits by which a scale is finer than a position: the largest for which one second fits.
const SCALE_BITS: u32 = 61;

/// A limit and its period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    limit: u32,
    /// Windows per nanosecond: multiplying is cheaper than dividing by the period.
    scale: u64,
}

/// A key's counters; all zero is a key that never came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The window that `current` belongs to, counted from the clock's zero.
    pub number: u32,
    pub current: u32,
    pub previous: u32,
}

/// Counters moved on to the present.
#[derive(Clone, Copy)]
pub struct Now {
    counts: Counts,
    /// What of the current window is still to come, of [`ONE`].
    to_come: u64,
}

impl Window {
    /// `limit` per `period_ns`, which is a second at least.
    pub fn new(limit: u32, period_ns: u64) -> Self {
        let scale = (1u128 << (32 + SCALE_BITS)) / u128::from(period_ns);
        Self { limit, scale: u64::try_from(scale).expect("a period is a second or longer") }
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    fn position(&self, now_ns: u64) -> u64 {
        ((u128::from(now_ns) * u128::from(self.scale)) >> SCALE_BITS) as u64
    }

    /// A clock read before another thread's, and used after it, stands still at the window's start.
    #[inline]
    pub fn at(&self, counts: Counts, now_ns: u64) -> Now {
        let position = self.position(now_ns).max(u64::from(counts.number) << 32);
        let number = (position >> 32) as u32;
        let counts = match number - counts.number {
            0 => counts,
            1 => Counts { number, current: 0, previous: counts.current },
            _ => Counts { number, ..Counts::default() },
        };
        Now { counts, to_come: ONE - position % ONE }
    }

    /// How many more are admitted at once.
    #[inline]
    pub fn left(&self, now: &Now) -> u32 {
        let spent = now.spent();
        u32::try_from(u64::from(self.limit).saturating_sub(spent)).expect("no more than the limit")
    }

    /// How long until one is admitted; only to be asked where none is left.
    ///
    /// The estimate falls as the window passes and goes on falling through the next one, where the
    /// current counter has become the previous: the first position at which it leaves room for one.
    pub fn wait_ns(&self, now: &Now, now_ns: u64) -> u64 {
        let (limit, counts) = (u64::from(self.limit), now.counts);
        let start = u64::from(counts.number) << 32;
        let (window_end, room, falling) = match (limit - 1).checked_sub(u64::from(counts.current)) {
            Some(room) => (start + ONE, room, counts.previous),
            None => (start + 2 * ONE, limit - 1, counts.current),
        };
        // What falls is more than the room, else one would be left: no zero, and less than a window.
        let position = window_end - (room << 32) / u64::from(falling);
        let at_ns = (u128::from(position) << SCALE_BITS).div_ceil(u128::from(self.scale));
        u64::try_from(at_ns).expect("a time of this clock").saturating_sub(now_ns)
    }

    /// Seconds to the window's end, rounded up: then more is surely left, if nobody takes it.
    pub fn ends_in_s(&self, now: &Now, period_s: u32) -> u32 {
        u32::try_from((now.to_come * u64::from(period_s)).div_ceil(ONE)).expect("no more than the period")
    }
}

impl Now {
    /// The estimate, rounded up: a whole number has room for another exactly where the estimate has.
    fn spent(&self) -> u64 {
        let counts = &self.counts;
        u64::from(counts.current) + (u64::from(counts.previous) * self.to_come).div_ceil(ONE)
    }

    /// The counters with one more taken.
    #[inline]
    pub fn taken(&self) -> Counts {
        Counts { current: self.counts.current + 1, ..self.counts }
    }
}
