//! Failures and calls of the last seconds, in buckets of time.
//!
//! Pure. Successes are counted elsewhere, by cells that nobody else writes: a bucket remembers where
//! their sum stood when it began, so that a success costs nothing here.

use std::time::{Duration, Instant};

const BUCKETS: usize = 10;

#[derive(Clone, Debug)]
pub struct Window {
    bucket: Duration,
    /// When the newest bucket began.
    began: Instant,
    /// The oldest first.
    buckets: [Bucket; BUCKETS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    failures: u64,
    /// The sum of successes when it began.
    successes_before: u64,
}

impl Window {
    /// Covers `span`. `successes`: their sum so far.
    pub fn new(span: Duration, now: Instant, successes: u64) -> Self {
        let empty = Bucket { failures: 0, successes_before: successes };
        Self { bucket: span / BUCKETS as u32, began: now, buckets: [empty; BUCKETS] }
    }

    /// Moves on to `now`. Called at least once in a bucket's time, or a bucket counts for longer.
    pub fn roll(&mut self, now: Instant, successes: u64) {
        let passed = now.saturating_duration_since(self.began).as_nanos() / self.bucket.as_nanos().max(1);
        let steps = usize::try_from(passed).unwrap_or(BUCKETS).min(BUCKETS);
        if steps == 0 {
            return;
        }
        self.buckets.rotate_left(steps);
        self.buckets[BUCKETS - steps..].fill(Bucket { failures: 0, successes_before: successes });
        let whole = u32::try_from(passed).unwrap_or(u32::MAX);
        self.began = self.began.checked_add(self.bucket.saturating_mul(whole)).unwrap_or(now);
    }

    pub fn fail(&mut self) {
        self.buckets[BUCKETS - 1].failures += 1;
    }

    /// Failures, and calls altogether.
    pub fn sums(&self, successes: u64) -> (u64, u64) {
        let failures = self.buckets.iter().map(|bucket| bucket.failures).sum();
        (failures, failures + successes.saturating_sub(self.buckets[0].successes_before))
    }

    /// Forgets everything.
    pub fn restart(&mut self, now: Instant, successes: u64) {
        *self = Self::new(self.bucket * BUCKETS as u32, now, successes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a list of everything that happened, for spans that are whole numbers of buckets.
    #[test]
    fn sums_are_those_of_the_last_span() {
        const SPAN: Duration = Duration::from_secs(10);
        let start = Instant::now();
        let mut window = Window::new(SPAN, start, 0);
        let mut events: Vec<(u64, bool)> = Vec::new();
        let dice = super::super::dice::Dice::seeded(7);
        let mut successes = 0;
        for second in 0..200 {
            window.roll(start + Duration::from_secs(second), successes);
            // Quiet stretches longer than the window come up too.
            let busy = (second / 20) % 3 != 1;
            for _ in 0..if busy { dice.below(5) } else { 0 } {
                let failed = dice.below(2) == 0;
                events.push((second, failed));
                match failed {
                    true => window.fail(),
                    false => successes += 1,
                }
            }
            let recent = events.iter().filter(|(at, _)| at + 10 > second);
            let (failures, calls) =
                recent.fold((0, 0), |(f, c), (_, failed)| (f + u64::from(*failed), c + 1));
            assert_eq!(window.sums(successes), (failures, calls), "second {second}");
        }
    }

    #[test]
    fn a_long_pause_empties_it_and_a_restart_too() {
        let start = Instant::now();
        let mut window = Window::new(Duration::from_secs(1), start, 5);
        window.fail();
        assert_eq!(window.sums(9), (1, 5));
        window.roll(start + Duration::from_secs(86_400), 20);
        assert_eq!(window.sums(21), (0, 1));
        window.fail();
        window.restart(start + Duration::from_secs(86_401), 30);
        assert_eq!(window.sums(30), (0, 0));
    }
}
