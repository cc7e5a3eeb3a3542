//! What a source has been told on one route: when to come again, and from when on it may be expected to know.
//!
//! Many who know nothing of each other may be behind one source, each waiting for the end that its own 429 named. A
//! request is *ignored* only if it can come from none of them: before the end that is in force, and a second after
//! every end that was named before that one. Pure.

/// A 429 needs so long to arrive, and he whose time has come to set out.
const GRACE_NS: u64 = SECOND_NS;
/// How long a source that floods is told to stay away, at least.
const AWAY_NS: u64 = 5 * SECOND_NS;
const SECOND_NS: u64 = 1_000_000_000;

#[derive(Clone, Copy, Default)]
pub struct Told {
    pub route: u64,
    /// In force is an end, `until_ns`; requests from `from_ns` until then ignore it.
    from_ns: u64,
    until_ns: u64,
    /// The latest end that was named.
    last_ns: u64,
    /// It floods: nobody is told to come before this, so that all are told the same.
    away_ns: u64,
}

impl Told {
    pub fn on(route: u64) -> Self {
        Self { route, ..Self::default() }
    }

    pub fn last_ns(&self) -> u64 {
        self.last_ns
    }

    pub fn is_ignored(&self, now_ns: u64) -> bool {
        self.from_ns <= now_ns && now_ns < self.until_ns
    }

    /// Whether the source is told to stay away longer than its limit would have it.
    pub fn is_away(&self, now_ns: u64) -> bool {
        now_ns < self.away_ns
    }

    /// The source would have to wait for `wait_s` by its limit; for how long it is told to. If it floods, all who are
    /// behind it are told to come at one time from now on.
    pub fn tell(&mut self, wait_s: u32, floods: bool, now_ns: u64) -> u32 {
        if floods && !self.is_away(now_ns) && u64::from(wait_s) * SECOND_NS < AWAY_NS {
            self.away_ns = now_ns + AWAY_NS;
            self.enforce(self.away_ns, now_ns);
        }
        let away_s = self.away_ns.saturating_sub(now_ns).div_ceil(SECOND_NS);
        let wait_s = wait_s.max(away_s as u32);
        let end_ns = now_ns + u64::from(wait_s) * SECOND_NS;
        if self.until_ns <= now_ns {
            self.enforce(end_ns, now_ns);
        }
        // The limiter's last word counts, if it is the better one.
        self.until_ns = self.until_ns.min(end_ns);
        self.last_ns = self.last_ns.max(end_ns);
        wait_s
    }

    fn enforce(&mut self, end_ns: u64, now_ns: u64) {
        self.from_ns = self.last_ns.max(now_ns) + GRACE_NS;
        self.until_ns = end_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const START_MS: u64 = 100_000;

    /// Whether each request is ignored: of one source, by when it comes, how long its limit would have it wait, and
    /// whether it floods by then.
    fn ignored(requests: &[(u64, u32, bool)]) -> Vec<bool> {
        let mut told = Told::on(7);
        let ask = |(at_ms, wait_s, floods): &(u64, u32, bool)| {
            let now = (START_MS + at_ms) * MS;
            let ignored = told.is_ignored(now);
            told.tell(*wait_s, *floods, now);
            ignored
        };
        requests.iter().map(ask).collect()
    }

    #[test]
    fn only_who_was_told_and_had_time_to_hear_it_ignores() {
        for (requests, want) in [
            (&[(0, 30), (10, 30), (900, 30)][..], &[false, false, false][..]),
            (&[(0, 30), (2_000, 28), (9_000, 21), (29_999, 1)], &[false, true, true, true]),
            // It came when it was told to.
            (&[(0, 5), (5_000, 5)], &[false, false]),
            (&[(0, 5), (4_999, 1)], &[false, true]),
            (&[(0, 1), (1_000, 1), (2_000, 1), (3_000, 1)], &[false; 4]),
            // Told to wait for 2.5 s, rounded up, each comes in his time; another had the token.
            (&[(0, 3), (400, 3), (3_000, 3), (3_400, 3), (4_100, 2)], &[false; 5]),
            (&[(0, 3), (400, 3), (3_000, 3), (4_401, 2)], &[false, false, false, true]),
            // The limit has become a better one: the earlier word is void.
            (&[(0, 60), (500, 2), (2_500, 2), (2_600, 2)], &[false; 4]),
        ] {
            let of_quiet: Vec<_> = requests.iter().map(|(at_ms, wait_s)| (*at_ms, *wait_s, false)).collect();
            assert_eq!(ignored(&of_quiet), want, "{requests:?}");
        }
    }

    #[test]
    fn who_is_sent_away_is_expected_to_know_once_all_earlier_waits_are_over() {
        for (at_ms, want) in
            [(1_000, false), (1_300, false), (1_999, false), (2_000, true), (5_299, true), (5_300, false)]
        {
            // Told a second at 0, away from 300 to 5,300.
            assert_eq!(ignored(&[(0, 1, false), (300, 1, true), (at_ms, 1, true)])[2], want, "{at_ms}");
        }
        // Where the limit has it wait longer than that, nothing changes.
        assert_eq!(ignored(&[(0, 60, false), (300, 60, true), (1_000, 59, true)]), [false, false, true]);
    }

    #[test]
    fn all_are_sent_away_until_the_same_time_and_never_for_less_than_the_limit_says() {
        let mut told = Told::on(7);
        let waits = [
            (0, 1, true, 5),
            (1, 1, true, 5),
            (1_000, 1, false, 4),
            (1_001, 60, false, 60),
            (4_001, 1, true, 1),
            (4_999, 2, false, 2),
            (5_000, 1, false, 1),
            (5_001, 1, true, 5),
        ];
        for (at_ms, wait_s, floods, want) in waits {
            assert_eq!(told.tell(wait_s, floods, (START_MS + at_ms) * MS), want, "{at_ms}");
        }
    }
}
