//! A pace: how many of something fall due by an instant, so many a second, and how many were done.
//!
//! The attacks ask it at each turn. What falls due while nobody asks is made up for only within [`SLACK`]:
//! a pause must not end in a burst that no attack was meant to have.

use std::time::{Duration, Instant};

/// How much of the schedule may be caught up with at once.
const SLACK: Duration = Duration::from_millis(5);

pub struct Pace {
    start: Instant,
    per_second: f64,
    /// Of the schedule so far: done or given up.
    settled: u64,
    done: u64,
}

impl Pace {
    pub fn new(start: Instant, per_second: f64) -> Pace {
        Pace { start, per_second, settled: 0, done: 0 }
    }

    /// How many are due at `now`.
    pub fn due(&mut self, now: Instant) -> usize {
        let elapsed = now.saturating_duration_since(self.start).as_secs_f64();
        let scheduled = (elapsed * self.per_second) as u64;
        let slack = ((SLACK.as_secs_f64() * self.per_second) as u64).max(1);
        self.settled = self.settled.max(scheduled.saturating_sub(slack));
        (scheduled - self.settled) as usize
    }

    /// Takes `count` of what was due as done.
    pub fn did(&mut self, count: usize) {
        self.settled += count as u64;
        self.done += count as u64;
    }

    /// How many were done since the start.
    pub fn done(&self) -> u64 {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks every `step`, does at most `most` at a time, and says how many were done after a second.
    fn after_a_second(per_second: f64, step: Duration, most: usize) -> u64 {
        let start = Instant::now();
        let mut pace = Pace::new(start, per_second);
        let mut at = Duration::ZERO;
        while at <= Duration::from_secs(1) {
            let due = pace.due(start + at);
            pace.did(due.min(most));
            at += step;
        }
        pace.done()
    }

    #[test]
    fn who_keeps_up_has_done_what_the_rate_says() {
        for (per_second, step_micros) in [(300_000.0, 100), (10_000.0, 50), (200.0, 1_000), (3.0, 4_000)] {
            let done = after_a_second(per_second, Duration::from_micros(step_micros), usize::MAX);
            assert_eq!(done, per_second as u64, "{per_second}/s asked every {step_micros} µs");
        }
    }

    #[test]
    fn who_does_not_keep_up_has_done_what_he_could() {
        assert_eq!(after_a_second(10_000.0, Duration::from_millis(1), 4), 4_000);
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let start = Instant::now();
        let mut pace = Pace::new(start, 1_000.0);
        assert_eq!(pace.due(start + Duration::from_millis(2)), 2);
        pace.did(2);
        assert_eq!(pace.due(start + Duration::from_millis(502)), 5, "no more than the slack holds");
        pace.did(5);
        assert_eq!(pace.due(start + Duration::from_millis(503)), 1);
        assert_eq!(pace.done(), 7);
    }

    #[test]
    fn time_that_goes_backwards_brings_nothing() {
        let start = Instant::now();
        let mut pace = Pace::new(start + Duration::from_secs(1), 1_000.0);
        assert_eq!(pace.due(start), 0);
    }
}
