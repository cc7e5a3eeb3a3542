//! How requests spread: by weight, by share, by load, by key.

use super::*;
use crate::config::HashKey;

const NAMES: [&str; 5] = ["a:1", "b:1", "c:1", "d:1", "e:1"];

fn balancer(policy: Policy, weights: &[u32]) -> Balancer {
    Balancer::new(policy, NAMES.iter().copied().zip(weights.iter().copied()))
}

/// How many of `requests`, none of which ends, each of the endpoints gets; `keep`: they stay under way.
fn spread(balancer: &Balancer, shares: &[u32], requests: u64, keep: bool) -> Vec<u64> {
    let (mut got, mut turns, dice) = (vec![0; shares.len()], Turns::new(), Dice::seeded(3));
    for request in 0..requests {
        let view = |at: usize| View { share: shares[at], load: if keep { got[at] } else { 0 } };
        let at = balancer.pick(view, hash(&request.to_le_bytes()), &mut turns, &dice).expect("one is well");
        got[at] += 1;
    }
    got
}

/// Each within `tolerance` of its part.
#[track_caller]
fn close(got: &[u64], parts: &[f64], tolerance: f64) {
    let total: u64 = got.iter().sum();
    let sum: f64 = parts.iter().sum();
    for (got, part) in got.iter().zip(parts) {
        let want = total as f64 * part / sum;
        assert!((*got as f64 - want).abs() <= want * tolerance + 1.0, "{got} instead of {want}");
    }
}

const ALL: [Policy; 3] = [Policy::LeastRequests, Policy::RoundRobin, Policy::Hash(HashKey::Client)];

#[test]
fn by_weight_and_share_whether_idle_or_loaded() {
    for policy in ALL {
        for keep in [false, true] {
            for (weights, shares) in [
                (&[1, 1, 1][..], &[1_000, 1_000, 1_000][..]),
                (&[3, 1], &[1_000, 1_000]),
                (&[5, 1, 1, 1, 1], &[1_000; 5]),
                (&[1, 1, 1], &[1_000, 500, 0]),
                (&[4, 1], &[250, 1_000]),
            ] {
                let parts: Vec<_> =
                    weights.iter().zip(shares).map(|(w, s)| f64::from(*w) * f64::from(*s)).collect();
                // A key's endpoint knows nothing of shares until loads show them.
                let tolerance = match policy {
                    Policy::Hash(_) if !keep && shares.iter().any(|share| !matches!(share, 0 | 1_000)) => {
                        continue;
                    }
                    // As far as the bound allows; without loads, as even as the points lie.
                    Policy::Hash(_) => 0.3,
                    Policy::LeastRequests | Policy::RoundRobin => 0.06,
                };
                let got = spread(&balancer(policy.clone(), weights), shares, 20_000, keep);
                close(&got, &parts, tolerance);
            }
        }
    }
}

#[test]
fn an_endpoint_without_a_share_gets_nothing_and_without_any_there_is_no_choice() {
    for policy in ALL {
        let balancer = balancer(policy, &[1, 100, 1]);
        assert_eq!(spread(&balancer, &[1_000, 0, 0], 1_000, false), [1_000, 0, 0]);
        // The smallest share of a whole cluster still finds it.
        assert_eq!(spread(&balancer, &[0, 0, 1], 100, false), [0, 0, 100]);
        let nobody = |_| View { share: 0, load: 0 };
        assert_eq!(balancer.pick(nobody, 7, &mut Turns::new(), &Dice::seeded(1)), None);
    }
}

#[test]
fn turns_are_smooth() {
    let balancer = balancer(Policy::RoundRobin, &[5, 1, 1]);
    let (mut turns, dice) = (Turns::new(), Dice::seeded(0));
    let order: String = (0..7)
        .map(|_| balancer.pick(|_| View { share: WHOLE, load: 0 }, 0, &mut turns, &dice).unwrap().to_string())
        .collect();
    assert_eq!(order, "0010200", "as in nginx's own example");
}

#[test]
fn the_loaded_one_of_two_is_passed_over() {
    let balancer = balancer(Policy::LeastRequests, &[1, 1]);
    let dice = Dice::seeded(5);
    let view = |at: usize| View { share: WHOLE, load: [50, 3][at] };
    for _ in 0..1_000 {
        assert_eq!(balancer.pick(view, 0, &mut Turns::new(), &dice), Some(1));
    }
}

#[test]
fn a_key_keeps_its_endpoint_when_others_come_and_go() {
    let idle = |_| View { share: WHOLE, load: 0 };
    let pick = |balancer: &Balancer, key: u64| {
        let at = balancer.pick(idle, hash(&key.to_le_bytes()), &mut Turns::new(), &Dice::seeded(0)).unwrap();
        NAMES[at]
    };
    let policy = || Policy::Hash(HashKey::Client);
    let (four, five) = (balancer(policy(), &[1; 4]), balancer(policy(), &[1; 5]));
    let moved: Vec<_> = (0..10_000).filter(|&key| pick(&four, key) != pick(&five, key)).collect();
    assert!((1_500..2_600).contains(&moved.len()), "{} moved", moved.len());
    assert!(moved.iter().all(|&key| pick(&five, key) == "e:1"), "and only to the newcomer");
}

#[test]
fn a_key_that_everybody_asks_for_is_spread_within_bounds() {
    let balancer = balancer(Policy::Hash(HashKey::Client), &[1; 4]);
    let mut got = [0_u64; 4];
    for request in 1..=10_000_u64 {
        let at = balancer
            .pick(|at| View { share: WHOLE, load: got[at] }, 42, &mut Turns::new(), &Dice::seeded(0))
            .unwrap();
        got[at] += 1;
        assert!(got[at] as f64 <= (BOUND * request as f64 / 4.0).ceil(), "{got:?}");
    }
}
