//! What an endpoint's word says as things happen to it.

use super::*;
use crate::upstream::outlier::Why;

fn rules(breaker: bool) -> Rules {
    let text = r#"{ "routes": [ { "path": "/", "backend": "http://a" } ], "circuit_breaker": {} }"#;
    let config = crate::config::parse(text, "x").expect("it is valid");
    let rules = Rules::of(&config);
    Rules { breaker: rules.breaker.filter(|_| breaker), ..rules }
}

/// With what it has counted as successes.
struct Rig {
    health: Health,
    successes: std::cell::Cell<u64>,
}

fn rig(breaker: bool, joined: bool) -> (Rig, Instant) {
    let now = Instant::now();
    let health = Health::new("a:80".to_owned(), rules(breaker), now, 0, joined);
    (Rig { health, successes: 0.into() }, now)
}

impl Rig {
    fn request(&self, verdict: Verdict) -> bool {
        let Ok(ticket) = self.health.admit(Duration::from_secs(1), true, || self.successes.get()) else {
            return false;
        };
        self.successes.set(self.successes.get() + u64::from(verdict == Verdict::Success));
        self.health.settle(ticket, verdict, || self.successes.get(), 0.0);
        true
    }

    fn share(&self) -> u32 {
        self.health.word().share()
    }
}

#[test]
fn a_success_of_an_endpoint_that_is_well_takes_no_lock() {
    let (rig, _) = rig(true, false);
    let held = rig.health.lock();
    for _ in 0..1_000 {
        let asked_for = || unreachable!("nobody needs the sum of successes");
        let ticket = rig.health.admit(Duration::from_secs(1), true, asked_for).unwrap();
        for verdict in [Verdict::Success, Verdict::Neutral, Verdict::Unknown] {
            rig.health.settle(ticket, verdict, asked_for, 0.0);
        }
    }
    drop(held);
    assert_eq!(rig.share(), WHOLE);
}

#[test]
fn a_drained_one_has_no_share_and_rises_slowly_afterwards() {
    for breaker in [false, true] {
        let (rig, now) = rig(breaker, false);
        let under_way = rig.health.admit(Duration::from_secs(1), true, || 0).unwrap();
        assert!(rig.health.drain(true, now));
        assert!(rig.health.word().is_drained() && rig.share() == 0);
        assert!(!rig.request(Verdict::Success));
        rig.health.settle(under_way, Verdict::Success, || 1, 0.0);
        // Nothing else that happens to it brings it back.
        rig.health.eject(Why::Slow, now);
        rig.health.tick(now + Duration::from_secs(3_600), 1);
        rig.health.configure(rules(!breaker), &[], now, 1);
        assert!(rig.health.word().is_drained() && rig.health.report().drained);
        assert!(rig.health.drain(false, now));
        assert_eq!(rig.share(), WHOLE / 10);
        assert!(rig.request(Verdict::Success));
    }
}

#[test]
fn failures_lower_the_share_and_successes_bring_it_back() {
    let (rig, _) = rig(false, false);
    for want in [950, 903, 857] {
        assert!(rig.request(Verdict::Failure));
        assert_eq!(rig.share(), want);
    }
    assert!(rig.request(Verdict::Soft) && rig.request(Verdict::Neutral) && rig.request(Verdict::Unknown));
    assert_eq!(rig.share(), 857, "none of these says how well it is");
    let back = (0..).find(|_| {
        rig.request(Verdict::Success);
        rig.share() == WHOLE
    });
    assert!(back.is_some_and(|requests| requests < 120), "{back:?}");
    assert!(!rig.health.word().is_watched());
    for _ in 0..1_000 {
        assert!(rig.request(Verdict::Failure), "without a breaker nothing is refused");
    }
    assert_eq!(rig.share(), 50);
}

#[test]
fn time_mends_as_a_success_a_second_does() {
    let (rig, _) = rig(false, false);
    (0..10).for_each(|_| assert!(rig.request(Verdict::Failure)));
    let now = Instant::now();
    rig.health.tick(now, 0);
    let before = rig.health.report().score;
    for tick in 1..=200 {
        rig.health.tick(now + Duration::from_millis(50 * tick), 0);
    }
    let want = 1.0 - (1.0 - before) * 0.95_f64.powi(10);
    assert!((rig.health.report().score - want).abs() < 1e-6);
}

#[test]
fn the_breaker_takes_the_whole_share() {
    let (rig, _) = rig(true, false);
    (0..5).for_each(|_| assert!(rig.request(Verdict::Failure)));
    assert_eq!((rig.share(), rig.request(Verdict::Success)), (0, false));
    assert!(rig.health.wait() > Duration::from_secs(59));
    assert!(!rig.health.word().is_down(), "a breaker is not overridden where few are well");
    rig.health.tick(Instant::now() + Duration::from_secs(70), 0);
    assert!(rig.health.word().wants_probe());
    let report = rig.health.report();
    assert_eq!((report.state, report.changes.len()), (State::HalfOpen, 2));
}

#[test]
fn checks_and_ejections_take_it_down_and_it_comes_back_slowly() {
    let (rig, now) = rig(true, false);
    let second = Duration::from_secs(1);
    let checks = [HealthCheck::default(), HealthCheck { path: "/b".to_owned(), ..HealthCheck::default() }];
    rig.health.checked(&checks[0], false, now);
    rig.health.checked(&checks[1], false, now);
    rig.health.checked(&checks[0], true, now);
    assert!(rig.health.word().is_down(), "the other check still fails");
    // A reload that no longer has the failing check.
    rig.health.configure(rules(true), &[&checks[0]], now, 0);
    assert!(!rig.health.word().is_down());
    rig.health.checked(&checks[0], false, now);
    rig.health.checked(&checks[0], true, now);
    assert_eq!((rig.share(), rig.health.word().is_down()), (100, false));
    rig.health.tick(now + 5 * second, 0);
    assert_eq!(rig.share(), 550);
    rig.health.tick(now + 10 * second, 0);
    assert_eq!((rig.share(), rig.health.word().is_watched()), (WHOLE, false));

    let mut now = now + 10 * second;
    for times in [1, 2, 3] {
        rig.health.eject(Why::Slow, now);
        assert!(rig.health.word().is_down() && rig.health.report().ejected);
        rig.health.tick(now + 30 * times * second - second, 0);
        assert!(rig.health.word().is_down(), "ejection {times}");
        now += 30 * times * second;
        rig.health.tick(now, 0);
        assert_eq!((rig.share(), rig.health.word().is_down()), (100, false));
    }
    for step in 1..=3 {
        rig.health.forgive(now + 30 * step * second);
    }
    rig.health.eject(Why::Failures, now);
    rig.health.tick(now + 30 * second, 0);
    assert!(!rig.health.word().is_down(), "as short as the first");
    assert_eq!(rig.health.report().ejections.into_iter().collect::<Vec<_>>(), [("failures", 1), ("slow", 3)]);
}

#[test]
fn who_joins_starts_slowly() {
    let (rig, _) = rig(false, true);
    assert_eq!(rig.share(), 100);
    rig.health.tick(Instant::now() + Duration::from_secs(11), 0);
    assert_eq!(rig.share(), WHOLE);
}
