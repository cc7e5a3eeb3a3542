//! Which endpoint of a cluster does much worse than the others.
//!
//! Pure. A breaker asks whether an endpoint is fit for anything; this asks whether the others are fitter.
//! The caller sees to it that enough endpoints stay.

/// What was seen of one endpoint in the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    pub calls: u64,
    pub failures: u64,
    /// Mean time to a response's head, in seconds; `None`: too few requests to say.
    pub wait: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Failures,
    Slow,
}

impl Why {
    pub const ALL: [Self; 2] = [Self::Failures, Self::Slow];

    pub fn name(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::Slow => "slow",
        }
    }
}

/// Fewer calls say nothing.
const LEAST_CALLS: u64 = 20;
/// An outlier needs a crowd to lie out of.
const LEAST_SAMPLES: usize = 3;
/// Failures in excess of the others' part, and as a multiple of it.
const EXCESS: f64 = 0.15;
const TIMES_FAILING: f64 = 3.0;
/// The others' median wait is multiplied by this, and so much longer at least.
const TIMES_SLOW: f64 = 4.0;
const LEAST_WAIT_SECONDS: f64 = 0.01;

/// The one to leave out, if there is one: by failures before slowness, the worst first.
pub fn worst(samples: &[Sample]) -> Option<(usize, Why)> {
    let judged: Vec<usize> = (0..samples.len()).filter(|&i| samples[i].calls >= LEAST_CALLS).collect();
    if judged.len() < LEAST_SAMPLES {
        return None;
    }
    let ratio = |i: usize| samples[i].failures as f64 / samples[i].calls as f64;
    let failing = worst_by(&judged, ratio)?;
    let others = mean(judged.iter().filter(|&&i| i != failing).map(|&i| ratio(i)));
    if ratio(failing) > others + EXCESS && ratio(failing) > others * TIMES_FAILING {
        return Some((failing, Why::Failures));
    }
    let timed: Vec<usize> = judged.into_iter().filter(|&i| samples[i].wait.is_some()).collect();
    if timed.len() < LEAST_SAMPLES {
        return None;
    }
    let wait = |i: usize| samples[i].wait.unwrap_or_default();
    let slow = worst_by(&timed, wait)?;
    let others = median(timed.iter().filter(|&&i| i != slow).map(|&i| wait(i)).collect());
    (wait(slow) > others * TIMES_SLOW && wait(slow) > others + LEAST_WAIT_SECONDS)
        .then_some((slow, Why::Slow))
}

fn worst_by(judged: &[usize], value: impl Fn(usize) -> f64) -> Option<usize> {
    judged.iter().copied().max_by(|&a, &b| value(a).total_cmp(&value(b)))
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

/// The higher of the middle two where there are two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_left_out() {
        let of = |calls, failures, ms: u32| Sample { calls, failures, wait: Some(f64::from(ms) / 1e3) };
        let untimed = Sample { wait: None, ..of(100, 0, 0) };
        for (what, samples, want) in [
            ("all well", vec![of(100, 0, 5), of(100, 1, 6), of(100, 0, 7)], None),
            ("all ill", vec![of(100, 90, 5), of(100, 95, 6), of(100, 100, 7)], None),
            ("one fails", vec![of(100, 0, 5), of(100, 40, 6), of(100, 1, 7)], Some((1, Why::Failures))),
            ("a little worse", vec![of(100, 0, 5), of(100, 14, 6), of(100, 0, 7)], None),
            ("twice as bad", vec![of(100, 20, 5), of(100, 40, 6), of(100, 20, 7)], None),
            ("one is slow", vec![of(100, 0, 200), of(100, 0, 20), of(100, 0, 20)], Some((0, Why::Slow))),
            ("three times as slow", vec![of(100, 0, 60), of(100, 0, 20), of(100, 0, 20)], None),
            ("slow by nothing much", vec![of(100, 0, 9), of(100, 0, 1), of(100, 0, 1)], None),
            (
                "both: failures first",
                vec![of(100, 0, 900), of(100, 50, 20), of(100, 0, 20)],
                Some((1, Why::Failures)),
            ),
            ("two only", vec![of(100, 0, 20), of(100, 90, 20)], None),
            ("few calls", vec![of(100, 0, 20), of(19, 19, 20), of(100, 0, 20)], None),
            ("few to be timed", vec![of(100, 0, 200), untimed, untimed], None),
            ("nothing", vec![], None),
        ] {
            assert_eq!(worst(&samples), want, "{what}");
        }
    }
}
