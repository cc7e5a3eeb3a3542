//! The token bucket of both halves: GCRA, virtual scheduling (ITU-T I.371), in one word.
//!
//! The word is the *theoretical arrival time*: the moment at which the bucket will be full again. The
//! kernel half keeps one per source of new connections and replaces it by compare-exchange, userspace
//! keeps one per key of a rule beside its window; nothing here reads a clock.

/// A rate and a burst. Rate = one per `cost_ns`; burst = `tolerance_ns / cost_ns`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Time that one connection or request takes to earn back.
    pub cost_ns: u64,
    /// How far ahead of the clock a source may be.
    pub tolerance_ns: u64,
}

const SECOND_NS: u64 = 1_000_000_000;

impl Budget {
    /// A budget of `per_second` with `burst` at once; zero of either counts as one.
    pub const fn new(per_second: u32, burst: u32) -> Self {
        Self::per(SECOND_NS, per_second, burst)
    }

    /// A budget of `count` in each `period_ns` with `burst` at once; zero of either count counts as one.
    ///
    /// `period_ns / count × burst` must stay below 2^63: any burst of a period of one second, or a burst
    /// that is no larger than `count`.
    pub const fn per(period_ns: u64, count: u32, burst: u32) -> Self {
        let count = if count == 0 { 1 } else { count as u64 };
        let burst = if burst == 0 { 1 } else { burst as u64 };
        // Rounded up, so that rounding never admits more than was asked for.
        let cost_ns = period_ns.div_ceil(count);
        Self { cost_ns, tolerance_ns: cost_ns * burst }
    }

    /// The same burst at most, refilled `by` times more slowly: a `by`th of rate and burst, but at least one.
    #[inline(always)]
    pub const fn slowed(&self, by: u64) -> Self {
        let cost_ns = self.cost_ns.wrapping_mul(by);
        let tolerance_ns = if cost_ns > self.tolerance_ns { cost_ns } else { self.tolerance_ns };
        Self { cost_ns, tolerance_ns }
    }

    /// The word a full bucket holds at `now_ns`.
    #[inline(always)]
    pub const fn full(now_ns: u64) -> u64 {
        now_ns
    }

    /// Takes one connection from a bucket: the word to store, or `None` when it has none left.
    ///
    /// Signed distance instead of comparison, so that a wrapping clock changes nothing. A clock that
    /// steps back finds the word further ahead and admits less, never more.
    #[inline(always)]
    pub const fn take(&self, word: u64, now_ns: u64) -> Option<u64> {
        let debt = self.debt_after(word, now_ns);
        if debt <= self.tolerance_ns { Some(now_ns.wrapping_add(debt)) } else { None }
    }

    /// Whether a bucket is not full. Then taking one adds the same to any word that it may hold.
    #[inline(always)]
    pub const fn is_charged(word: u64, now_ns: u64) -> bool {
        debt(word, now_ns) > 0
    }

    /// How long until one could be taken: 0 where it could be now.
    #[inline]
    pub const fn wait_ns(&self, word: u64, now_ns: u64) -> u64 {
        self.debt_after(word, now_ns).saturating_sub(self.tolerance_ns)
    }

    /// How many could be taken at once.
    #[inline]
    pub const fn left(&self, word: u64, now_ns: u64) -> u64 {
        self.tolerance_ns.saturating_sub(debt(word, now_ns)) / self.cost_ns
    }

    /// The debt once one more has been taken. Cannot wrap: a debt is below 2^63, a cost at most a day.
    #[inline(always)]
    const fn debt_after(&self, word: u64, now_ns: u64) -> u64 {
        debt(word, now_ns).wrapping_add(self.cost_ns)
    }
}

/// How long the bucket takes to be full again.
#[inline(always)]
const fn debt(word: u64, now_ns: u64) -> u64 {
    let ahead = word.wrapping_sub(now_ns) as i64;
    if ahead > 0 { ahead as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*; a seed prints with every failure.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
        }
    }

    fn budget(random: &mut Random) -> Budget {
        Budget::new(1 + random.below(10_000) as u32, 1 + random.below(100) as u32)
    }

    /// Tries at the given distances from `start`, wherever the clock wraps; returns how many passed.
    fn admitted(budget: Budget, start: u64, offsets: &[u64]) -> u64 {
        let mut word = Budget::full(start);
        let mut count = 0;
        for offset in offsets {
            if let Some(next) = budget.take(word, start.wrapping_add(*offset)) {
                word = next;
                count += 1;
            }
        }
        count
    }

    #[test]
    fn never_admits_more_than_rate_times_time_plus_burst() {
        for seed in 1..=2_000 {
            let mut random = Random(seed);
            let budget = budget(&mut random);
            let mut now = 0;
            let offsets: [u64; 500] = core::array::from_fn(|_| {
                now += random.below(budget.cost_ns);
                now
            });
            // Also with the clock about to wrap in the middle of it.
            for start in [0, 1 << 40, u64::MAX - now / 2] {
                let bound = (now + budget.tolerance_ns) / budget.cost_ns;
                let count = admitted(budget, start, &offsets);
                assert!(count <= bound, "seed {seed}, start {start}: {count} > {bound}");
            }
        }
    }

    #[test]
    fn a_clock_that_steps_back_admits_no_more() {
        for seed in 1..=2_000 {
            let mut random = Random(seed);
            let budget = budget(&mut random);
            let span = 1 + random.below(100 * budget.cost_ns);
            let offsets: [u64; 500] = core::array::from_fn(|_| random.below(span));
            for start in [0, 1 << 40, u64::MAX - span / 2] {
                let bound = (span + budget.tolerance_ns) / budget.cost_ns;
                let count = admitted(budget, start, &offsets);
                assert!(count <= bound, "seed {seed}, start {start}: {count} > {bound}");
            }
        }
    }

    #[test]
    fn a_source_below_its_rate_is_never_refused() {
        for seed in 1..=500 {
            let mut random = Random(seed);
            let budget = budget(&mut random);
            let offsets: [u64; 500] = core::array::from_fn(|i| i as u64 * budget.cost_ns);
            assert_eq!(admitted(budget, u64::MAX - 250 * budget.cost_ns, &offsets), 500, "seed {seed}");
        }
    }

    #[test]
    fn a_burst_is_served_at_once_and_earned_back_one_by_one() {
        let budget = Budget::new(10, 3);
        assert_eq!(admitted(budget, 77, &[0; 10]), 3);
        assert_eq!(admitted(budget, 77, &[0, 0, 0, 0, SECOND_NS / 10, SECOND_NS / 10]), 4);
        assert_eq!(admitted(budget, 77, &[0, 0, 0, 0, SECOND_NS, SECOND_NS, SECOND_NS, SECOND_NS]), 6);
    }

    #[test]
    fn a_slowed_budget_is_a_tenth_and_never_nothing() {
        assert_eq!(admitted(Budget::new(100, 50).slowed(10), 77, &[0; 60]), 5);
        assert_eq!(admitted(Budget::new(100, 5).slowed(10), 77, &[0; 60]), 1);
        let second: [u64; 1_000] = core::array::from_fn(|n| n as u64 * SECOND_NS / 1_000);
        assert_eq!(admitted(Budget::new(100, 1).slowed(10), 77, &second), 10);
    }

    /// As a rule of userspace sees it: any period, and the answer to "when, and how many".
    #[test]
    fn who_waits_as_told_is_admitted_and_not_a_nanosecond_sooner() {
        for seed in 1..=2_000 {
            let mut random = Random(seed);
            let period = SECOND_NS * [1, 60, 3_600, 86_400][random.below(4) as usize];
            let count = 1 + random.below(10_000) as u32;
            let budget = Budget::per(period, count, 1 + random.below(count.into()) as u32);
            let mut now = u64::MAX - random.below(period);
            let mut word = Budget::full(now);
            for _ in 0..200 {
                now = now.wrapping_add(random.below(2 * budget.cost_ns));
                let mut left = budget.left(word, now);
                while let Some(next) = budget.take(word, now) {
                    assert_eq!((budget.left(word, now), budget.wait_ns(word, now)), (left, 0), "seed {seed}");
                    (word, left) = (next, left - 1);
                }
                assert_eq!(left, 0, "seed {seed}");
                now = now.wrapping_add(budget.wait_ns(word, now));
                assert_eq!(budget.take(word, now.wrapping_sub(1)), None, "seed {seed}");
                word = budget.take(word, now).unwrap();
            }
        }
    }

    #[test]
    fn a_rate_that_does_not_divide_a_second_is_rounded_down() {
        assert_eq!(Budget::new(3, 1).cost_ns, 333_333_334);
        assert_eq!(Budget::new(0, 0), Budget::new(1, 1));
        let most = Budget::new(1, u32::MAX);
        assert!(most.tolerance_ns < 1 << 63, "the signed distance must hold the longest tolerance");
    }
}
