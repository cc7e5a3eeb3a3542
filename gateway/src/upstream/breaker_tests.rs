//! The breaker against a model that remembers everything, by random schedules; and its promises one by one.

use super::*;
use crate::upstream::dice::Dice;

const SECOND: Duration = Duration::from_secs(1);

fn rules() -> Rules {
    Rules {
        enabled: true,
        failure_threshold: 5,
        success_threshold: 3,
        timeout: 60 * SECOND,
        max_timeout: 600 * SECOND,
        failure_ratio: 0.5,
        minimum_requests: 20,
        window: 10 * SECOND,
        slow_call: None,
        half_open_requests: 2,
        recovery: 10 * SECOND,
        health_decay: 0.95,
    }
}

/// What is said in words, computed from the whole history each time.
struct Model {
    rules: Rules,
    state: State,
    since: Instant,
    open_for: Duration,
    relapses: u32,
    epoch: u32,
    /// Of this epoch: when, and whether it was a failure.
    calls: Vec<(Instant, bool)>,
    /// Verdicts of this epoch in a row that were failures.
    row: u32,
    /// Probes admitted and not known to have ended, with when they are lost.
    probes: Vec<(u64, Instant)>,
    good_probes: u32,
    chance: f64,
}

impl Model {
    fn new(rules: Rules, now: Instant) -> Self {
        Self {
            rules,
            state: State::Closed,
            since: now,
            open_for: Duration::ZERO,
            relapses: 0,
            epoch: 0,
            calls: Vec::new(),
            row: 0,
            probes: Vec::new(),
            good_probes: 0,
            chance: 0.0,
        }
    }

    fn go(&mut self, state: State, now: Instant) {
        if state == State::Open {
            let fresh = self.state == State::Closed && now - self.since >= self.open_for;
            self.relapses = if fresh { 0 } else { self.relapses + 1 };
            let wanted =
                (0..self.relapses).fold(self.rules.timeout, |time, _| (time * 2).min(self.rules.max_timeout));
            self.open_for = wanted.mul_f64(1.0 + 0.1 * self.chance).min(self.rules.max_timeout);
        }
        (self.state, self.since, self.epoch) = (state, now, self.epoch + 1);
        self.calls.clear();
        self.probes.clear();
        (self.row, self.good_probes) = (0, 0);
    }

    fn tick(&mut self, now: Instant) {
        self.probes.retain(|(_, lost)| *lost > now);
        if self.state == State::Open && now >= self.since + self.open_for {
            self.go(State::HalfOpen, now);
        } else if self.state == State::Recovering && now - self.since >= self.rules.recovery {
            self.go(State::Closed, now);
        }
    }

    fn recent(&self, now: Instant) -> (f64, f64) {
        let bucket =
            |at: Instant| ((at - self.since).as_nanos() / (self.rules.window / 10).as_nanos()) as i64;
        let recent = self.calls.iter().filter(|(at, _)| bucket(*at) + 10 > bucket(now));
        recent.fold((0.0, 0.0), |(bad, all), (_, failed)| (bad + f64::from(u8::from(*failed)), all + 1.0))
    }

    fn report(&mut self, epoch: u32, probe: Option<u64>, verdict: Verdict, now: Instant) {
        if epoch != self.epoch {
            return;
        }
        if let Some(number) = probe {
            let known = self.probes.len();
            self.probes.retain(|(probe, _)| *probe != number);
            if self.probes.len() == known {
                return;
            }
            match verdict {
                Verdict::Success | Verdict::Neutral => {
                    self.good_probes += 1;
                    if self.good_probes == self.rules.success_threshold {
                        self.go(State::Recovering, now);
                    }
                }
                Verdict::Failure | Verdict::Soft => self.go(State::Open, now),
                Verdict::Unknown => {}
            }
            return;
        }
        match verdict {
            Verdict::Success => {
                self.calls.push((now, false));
                self.row = 0;
            }
            Verdict::Failure | Verdict::Soft => {
                self.calls.push((now, true));
                self.row += u32::from(verdict == Verdict::Failure);
                let (bad, all) = self.recent(now);
                let ratio =
                    all >= f64::from(self.rules.minimum_requests) && bad / all >= self.rules.failure_ratio;
                if self.row >= self.rules.failure_threshold || ratio {
                    self.go(State::Open, now);
                }
            }
            Verdict::Neutral | Verdict::Unknown => {}
        }
    }
}

#[test]
fn random_schedules_agree_with_the_model() {
    let mut seen = [0; 4];
    for seed in 0..300 {
        let dice = Dice::seeded(seed);
        let rules = Rules {
            failure_threshold: 1 + dice.below(6),
            success_threshold: 1 + dice.below(4),
            minimum_requests: 1 + dice.below(30),
            half_open_requests: 1 + dice.below(3) as usize,
            failure_ratio: [0.1, 0.5, 0.9][dice.below(3) as usize],
            timeout: SECOND * (1 + dice.below(20)),
            max_timeout: SECOND * (20 + dice.below(100)),
            ..rules()
        };
        // How bad the endpoint is, so that every state comes up.
        let bad = [5, 30, 70][dice.below(3) as usize];
        let mut now = Instant::now();
        let mut breaker = Breaker::new(rules.clone(), now, 0);
        let mut model = Model::new(rules.clone(), now);
        let mut successes = 0;
        let mut out: Vec<Ticket> = Vec::new();
        for step in 0..2_000 {
            let pause = [0, 1, 10, 100, 1_000, 7_000][dice.below(6) as usize];
            now += Duration::from_millis(u64::from(dice.below(pause + 1)));
            breaker.tick(now, successes);
            model.tick(now);
            let lost_at = now + Duration::from_millis(u64::from(dice.below(20_000)));
            if dice.below(2) == 0 {
                let room = model.probes.len() < rules.half_open_requests;
                let admitted = breaker.admit(now, lost_at, false);
                let allowed = match model.state {
                    State::Closed | State::Recovering => true,
                    State::Open => false,
                    State::HalfOpen => room,
                };
                assert_eq!(admitted.is_ok(), allowed, "seed {seed}, step {step}");
                match admitted {
                    Ok(ticket) => {
                        assert_eq!(ticket.is_probe(), model.state == State::HalfOpen);
                        model.probes.extend(ticket.probe.map(|number| (number, lost_at)));
                        out.push(ticket);
                    }
                    Err(wait) if model.state == State::Open => {
                        assert_eq!(wait, model.since + model.open_for - now, "seed {seed}, step {step}");
                    }
                    Err(_) => {}
                }
            } else if !out.is_empty() {
                let ticket = out.swap_remove(dice.below(out.len() as u32) as usize);
                let verdict = match dice.below(100) {
                    roll if roll < bad => [Verdict::Failure, Verdict::Soft][usize::from(roll % 4 == 0)],
                    roll if roll % 10 == 0 => {
                        [Verdict::Neutral, Verdict::Unknown][usize::from(roll % 20 == 0)]
                    }
                    _ => Verdict::Success,
                };
                // Some are never heard of again.
                if dice.below(10) == 0 {
                    continue;
                }
                let of_this_epoch = ticket.epoch == model.epoch;
                model.chance = dice.fraction();
                if verdict == Verdict::Success && of_this_epoch && ticket.probe.is_none() {
                    successes += 1;
                }
                breaker.report(ticket, verdict, now, successes, model.chance);
                model.report(ticket.epoch, ticket.probe, verdict, now);
            }
            assert_eq!(
                (breaker.state, breaker.epoch),
                (model.state, model.epoch),
                "seed {seed}, step {step}"
            );
            assert_eq!(breaker.probes.len(), model.probes.len(), "seed {seed}, step {step}");
            seen[model.state as usize] += 1;
        }
        comes_back(breaker, now, &rules, successes);
    }
    assert!(seen.iter().all(|&steps| steps > 1_000), "every state was visited: {seen:?}");
}

/// Whatever has happened, an endpoint that is well again gets its requests back.
fn comes_back(mut breaker: Breaker, mut now: Instant, rules: &Rules, successes: u64) {
    now += rules.max_timeout * 2;
    breaker.tick(now, successes);
    for _ in 0..rules.success_threshold {
        if breaker.state == State::HalfOpen {
            let probe = breaker.admit(now, now + SECOND, true).expect("a probe is admitted");
            breaker.report(probe, Verdict::Success, now, successes, 0.5);
        }
    }
    now += rules.recovery;
    breaker.tick(now, successes);
    assert_eq!(breaker.state, State::Closed);
}

/// A breaker that has just opened, and when.
fn opened(rules: Rules) -> (Breaker, Instant) {
    let now = Instant::now();
    let mut breaker = Breaker::new(rules.clone(), now, 0);
    for _ in 0..rules.failure_threshold {
        let ticket = breaker.admit(now, now, true).unwrap();
        breaker.report(ticket, Verdict::Failure, now, 0, 0.0);
    }
    assert_eq!(breaker.state, State::Open);
    (breaker, now)
}

#[test]
fn one_endpoint_alone_opens_refuses_and_ramps() {
    let (mut breaker, start) = opened(rules());
    assert_eq!(breaker.admit(start + 59 * SECOND, start, true), Err(SECOND));
    let now = start + 60 * SECOND;
    let due = Change { to: State::HalfOpen, reason: Reason::Due };
    assert_eq!(breaker.tick(now, 0), Some(due));
    for _ in 0..3 {
        let probe = breaker.admit(now, now + SECOND, true).unwrap();
        breaker.report(probe, Verdict::Success, now, 0, 0.0);
    }
    assert_eq!(breaker.state, State::Recovering);
    for (second, want) in [(0, 100), (2, 100), (3, 250), (5, 500), (8, 1_000)] {
        let now = now + second * SECOND;
        breaker.tick(now, 0);
        let admitted = (0..1_000).filter(|_| breaker.admit(now, now, true).is_ok()).count();
        assert!(admitted.abs_diff(want) <= 1, "{admitted} of 1000 in second {second}");
    }
    assert_eq!(breaker.tick(now + 10 * SECOND, 0).map(|change| change.to), Some(State::Closed));
}

#[test]
fn among_others_the_share_grows_evenly_and_nothing_is_refused() {
    let (mut breaker, start) = opened(rules());
    let now = start + 60 * SECOND;
    breaker.tick(now, 0);
    for _ in 0..3 {
        let probe = breaker.admit(now, now + SECOND, false).unwrap();
        breaker.report(probe, Verdict::Success, now, 0, 0.0);
    }
    for second in 0..10 {
        let at = now + second * SECOND;
        assert!((breaker.share(at) - (0.1 + 0.09 * f64::from(second))).abs() < 1e-9);
        assert!(breaker.admit(at, at, false).is_ok());
    }
}

#[test]
fn lost_probes_make_room_again_and_their_late_results_count_for_nothing() {
    let (mut breaker, start) = opened(rules());
    let now = start + 60 * SECOND;
    breaker.tick(now, 0);
    let lost = [(); 2].map(|()| breaker.admit(now, now + SECOND, true).unwrap());
    assert_eq!(breaker.admit(now, now + SECOND, true), Err(Duration::ZERO));
    breaker.tick(now + SECOND, 0);
    assert!(breaker.wants_probe());
    for probe in lost {
        assert_eq!(breaker.report(probe, Verdict::Failure, now + SECOND, 0, 0.0), None);
    }
    assert_eq!(breaker.state, State::HalfOpen);
}

#[test]
fn each_relapse_takes_twice_as_long_up_to_the_most() {
    let (mut breaker, mut now) = opened(rules());
    for seconds in [60, 120, 240, 480, 600, 600] {
        assert_eq!(breaker.open_for, SECOND * seconds);
        now += breaker.open_for;
        breaker.tick(now, 0);
        let probe = breaker.admit(now, now + SECOND, true).unwrap();
        breaker.report(probe, Verdict::Failure, now, 0, 0.0);
    }
}

#[test]
fn chance_adds_a_tenth_at_most() {
    for (chance, want) in [(0.0, 60.0), (0.5, 63.0), (0.999, 65.994)] {
        let now = Instant::now();
        let mut breaker = Breaker::new(Rules { failure_threshold: 1, ..rules() }, now, 0);
        let ticket = breaker.admit(now, now, true).unwrap();
        breaker.report(ticket, Verdict::Failure, now, 0, chance);
        assert!((breaker.open_for.as_secs_f64() - want).abs() < 1e-6);
    }
}

#[test]
fn what_trips_and_what_does_not() {
    use Verdict::{Failure, Neutral, Soft, Success, Unknown};
    for (what, verdicts, trips) in [
        ("five in a row", vec![Failure; 5], Some(Reason::Consecutive)),
        ("four", vec![Failure; 4], None),
        ("a success between", vec![Failure, Failure, Failure, Failure, Success, Failure], None),
        (
            "a 4xx is no success",
            vec![Failure, Failure, Failure, Neutral, Failure, Unknown, Failure],
            Some(Reason::Consecutive),
        ),
        ("client errors", vec![Neutral; 1_000], None),
        ("clients that leave", vec![Unknown; 1_000], None),
        ("nineteen slow ones", vec![Soft; 19], None),
        ("twenty slow ones", vec![Soft; 20], Some(Reason::Ratio)),
        ("every other", [Success, Failure].repeat(10), Some(Reason::Ratio)),
        ("every third", [Success, Success, Failure].repeat(100), None),
    ] {
        let now = Instant::now();
        let mut breaker = Breaker::new(rules(), now, 0);
        let mut successes = 0;
        let mut reason = None;
        for verdict in verdicts {
            let ticket = breaker.admit(now, now, true).unwrap_or(Ticket { epoch: u32::MAX, probe: None });
            successes += u64::from(verdict == Success);
            reason =
                breaker.report(ticket, verdict, now, successes, 0.0).map(|change| change.reason).or(reason);
        }
        assert_eq!(reason, trips, "{what}");
    }
}
