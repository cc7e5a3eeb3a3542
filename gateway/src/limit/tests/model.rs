//! One key's quota against a model that keeps every admitted request and counts with fractions.

use super::*;
use quota::{Quota, State};

/// What `quota` and `window` say they are, without their tricks.
struct Model {
    limit: u128,
    period_ns: u128,
    /// Nanoseconds of refill that the bucket holds, and can hold.
    bucket: Option<(u128, u128)>,
    admitted: Vec<u64>,
    last_ns: u64,
}

/// How sure the model is, for the implementation works with 32 bits of a window's fraction.
#[derive(Debug, PartialEq)]
enum Says {
    Admit,
    Refuse,
    /// Within one request in 2^31 of the border.
    Either,
}

impl Model {
    fn new(limit: u32, period_s: u32, burst: Option<u32>) -> Self {
        let (limit, period_ns) = (u128::from(limit), u128::from(period_s) * u128::from(SECOND_NS));
        let full = burst.filter(|burst| u128::from(*burst) < limit);
        let full = full.map(|burst| u128::from(burst) * period_ns.div_ceil(limit));
        Self { limit, period_ns, bucket: full.map(|full| (full, full)), admitted: Vec::new(), last_ns: 0 }
    }

    fn says(&mut self, now_ns: u64) -> Says {
        if let Some((held, full)) = &mut self.bucket {
            *held = (*held + u128::from(now_ns - self.last_ns)).min(*full);
            self.last_ns = now_ns;
            if *held < self.period_ns.div_ceil(self.limit) {
                return Says::Refuse;
            }
        }
        let window = |at: u64| u128::from(at) / self.period_ns;
        let number = window(now_ns);
        let count = |of: u128| self.admitted.iter().filter(|at| window(**at) == of).count() as u128;
        let previous = number.checked_sub(1).map_or(0, count);
        let to_come = self.period_ns - u128::from(now_ns) % self.period_ns;
        let wanted = previous * to_come + (count(number) + 1) * self.period_ns;
        let slack = ((previous * self.period_ns) >> 31) + 1;
        match self.limit * self.period_ns {
            have if wanted + slack <= have => Says::Admit,
            have if wanted > have + slack => Says::Refuse,
            _ => Says::Either,
        }
    }

    fn take(&mut self, now_ns: u64) {
        self.admitted.push(now_ns);
        if let Some((held, _)) = &mut self.bucket {
            *held -= self.period_ns.div_ceil(self.limit);
        }
    }
}

/// A rule, and steps between requests from none to several windows.
fn schedule(random: &mut Random) -> (u32, u32, Option<u32>, Vec<u64>) {
    let period_s = [1, 60, 3_600, 86_400][random.below(4) as usize];
    let limit = 1 + random.below(60) as u32;
    let burst = (random.below(2) == 0).then(|| 1 + random.below(limit.into()) as u32);
    let period_ns = u64::from(period_s) * SECOND_NS;
    let mut now = random.below(1 << 50);
    let times = (0..400).map(|_| {
        now += match random.below(20) {
            0 => random.below(3 * period_ns),
            1..10 => 0,
            _ => random.below(1 + 2 * period_ns / u64::from(limit)),
        };
        now
    });
    (limit, period_s, burst, times.collect())
}

#[test]
fn decides_as_the_model_does_and_keeps_its_bound() {
    for seed in 1..=1_000 {
        let (limit, period_s, burst, times) = schedule(&mut Random(seed));
        let (quota, mut model) = (Quota::new(limit, period_s, burst), Model::new(limit, period_s, burst));
        let mut state = State::default();
        let mut decided = [0, 0];
        for now in times {
            let (says, result) = (model.says(now), quota.take(state, now));
            let agreed = if result.is_ok() { Says::Admit } else { Says::Refuse };
            assert!(says == agreed || says == Says::Either, "seed {seed} at {now}: {says:?}, {result:?}");
            decided[usize::from(result.is_ok())] += 1;
            if let Ok(next) = result {
                model.take(now);
                state = next;
            }
        }
        assert!(decided[1] > 0, "seed {seed}");
        assert_within_bound(&model, burst, 0, seed);
    }
}

/// In any stretch of up to a period: the limit, and once more its share of the stretch. With a burst, in
/// any stretch whatever: the burst and the rate. Clocks that lag stretch a stretch by their lag.
fn assert_within_bound(model: &Model, burst: Option<u32>, lag_ns: u64, seed: u64) {
    let (limit, period) = (model.limit, model.period_ns);
    for (first, from) in model.admitted.iter().enumerate() {
        for (more, to) in model.admitted[first..].iter().enumerate() {
            let (count, stretch) = (more as u128 + 1, u128::from(to - from + lag_ns));
            if stretch <= period {
                assert!(count * period <= limit * (period + stretch), "seed {seed}: {count} in {stretch} ns");
            }
            if let Some(burst) = burst {
                let bound = u128::from(burst) * period + limit * stretch;
                assert!(count * period <= bound, "seed {seed}: {count} in {stretch} ns");
            }
        }
    }
}

#[test]
fn who_waits_as_told_is_admitted_and_not_a_nanosecond_sooner() {
    let mut refusals = 0;
    for seed in 1..=1_000 {
        let mut random = Random(seed);
        let (limit, period_s, burst, times) = schedule(&mut random);
        // Now and then a reload lowers the limit, and what was admitted before weighs on.
        let lower = Quota::new(1 + random.below(limit.into()) as u32, period_s, burst);
        let quota = Quota::new(limit, period_s, burst);
        let mut state = State::default();
        for now in times {
            for quota in [quota, lower] {
                let Err(refused) = quota.take(state, now) else { continue };
                refusals += 1;
                let wait = refused.wait_ns;
                assert!(quota.take(state, now + wait - 1).is_err(), "seed {seed} at {now}");
                for wait in [wait, wait + 1, u64::from(quota::seconds(wait)) * SECOND_NS, 4 * wait] {
                    let result = quota.take(state, now + wait);
                    assert!(result.is_ok(), "seed {seed} at {now}: {wait} ns and still {result:?}");
                }
            }
            state = quota.take(state, now).unwrap_or(state);
        }
    }
    assert!(refusals > 10_000, "{refusals}");
}

#[test]
fn an_idle_key_owes_nothing_when_it_is_forgotten() {
    for seed in 1..=1_000 {
        let (limit, period_s, burst, times) = schedule(&mut Random(seed));
        let quota = Quota::new(limit, period_s, burst);
        let volley = |mut state, now| {
            let mut count = 0;
            while let Ok(next) = quota.take(state, now) {
                (state, count) = (next, count + 1);
            }
            count
        };
        let mut state = State::default();
        for now in times {
            state = quota.take(state, now).unwrap_or(state);
            let later = now + quota.forgotten_after_ns();
            assert_eq!(volley(state, later), volley(State::default(), later), "seed {seed} at {now}");
        }
    }
}

#[test]
fn clocks_that_disagree_admit_no_more() {
    for seed in 1..=500 {
        let mut random = Random(seed);
        let (limit, period_s, burst, times) = schedule(&mut random);
        let quota = Quota::new(limit, period_s, burst);
        let (mut model, mut state) = (Model::new(limit, period_s, burst), State::default());
        let lag = 1 + random.below(u64::from(period_s) * SECOND_NS / 4);
        for now in times {
            if let Ok(next) = quota.take(state, now.saturating_sub(random.below(lag))) {
                state = next;
                model.admitted.push(now);
            }
        }
        assert_within_bound(&model, burst, lag, seed);
    }
}

#[test]
fn a_steady_demand_at_the_limit_is_served() {
    for limit in [1, 2, 7, 100, 6_000] {
        let quota = Quota::new(limit, 60, None);
        let step = 60 * SECOND_NS / u64::from(limit);
        let (mut state, mut admitted) = (State::default(), 0);
        for n in 0..u64::from(10 * limit) {
            if let Ok(next) = quota.take(state, n * step) {
                (state, admitted) = (next, admitted + 1);
            }
        }
        let windows = u64::from(10 * limit).div_ceil(u64::from(limit));
        assert!(admitted + windows >= u64::from(10 * limit), "{admitted} of {limit} in ten windows");
    }
}

/// What remains is told exactly: so many more are admitted at once, and no more.
#[test]
fn what_is_left_is_what_can_be_had() {
    for seed in 1..=300 {
        let (limit, period_s, burst, times) = schedule(&mut Random(seed));
        let quota = Quota::new(limit, period_s, burst);
        let mut state = State::default();
        for now in times {
            state = quota.take(state, now).unwrap_or(state);
            let left = quota.left(state, now);
            let (mut then, mut more) = (state, 0);
            while let Ok(next) = quota.take(then, now) {
                (then, more) = (next, more + 1);
            }
            assert_eq!(left.count, more, "seed {seed} at {now}");
            assert!(left.reset_s >= 1 && left.reset_s <= period_s, "seed {seed}: {left:?}");
        }
    }
}
