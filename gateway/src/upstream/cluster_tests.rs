//! Who is chosen when members are not well.

use super::*;
use crate::config::{Backend, HealthCheck, Policy};
use crate::metrics::Registry;
use crate::upstream::breaker::Verdict;
use crate::upstream::outlier::Why;

struct Rig {
    cluster: Cluster,
    config: config::Config,
    dice: Dice,
}

fn rig(members: usize) -> Rig {
    rig_of(members, Policy::LeastRequests)
}

fn rig_of(members: usize, policy: Policy) -> Rig {
    let text = r#"{ "routes": [ { "path": "/", "backend": "http://a" } ], "circuit_breaker": {} }"#;
    let config = config::parse(text, "x").expect("it is valid");
    let registry = Registry::new(1);
    let named = |at: usize| Backend { host: format!("10.0.0.{at}"), port: 80 };
    let members_of: Vec<_> =
        (0..members.max(1)).map(|at| config::Member { backend: named(at), weight: 1 }).collect();
    let of = config::Cluster { members: members_of, policy };
    let members = (0..members).map(|index| {
        let endpoint =
            Endpoint::new(named(index), Vec::new(), named(index).to_string(), &config, &registry, false);
        Member { endpoint: Arc::new(endpoint), index, weight: 1 }
    });
    let cluster = Cluster::new(of, "x".to_owned(), members.collect(), Vec::new(), Arc::default());
    Rig { cluster, config, dice: Dice::seeded(1) }
}

impl Rig {
    fn asked(expendable: bool, tried: &[usize]) -> Asked<'_> {
        Asked { key: 0, tried, expendable, lost_after: Duration::from_secs(30) }
    }

    fn choose(&self, tried: &[usize], expendable: bool) -> Result<(usize, Ticket), Refused> {
        self.cluster.tick(&self.config.upstreams);
        self.cluster.choose(&Self::asked(expendable, tried), |_| 0, &mut Vec::new(), &self.dice)
    }

    /// All who are chosen in a hundred choices, none of which comes to anything.
    fn chosen(&self, tried: &[usize]) -> Vec<usize> {
        let mut chosen: Vec<_> = (0..100)
            .filter_map(|_| {
                let (at, ticket) = self.choose(tried, true).ok()?;
                self.health(at).settle(ticket, Verdict::Unknown, || 0, 0.0);
                Some(at)
            })
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    fn health(&self, at: usize) -> &super::super::health::Health {
        &self.cluster.members[at].endpoint.health
    }

    fn open(&self, at: usize) {
        for _ in 0..5 {
            let ticket = self.health(at).admit(Duration::ZERO, false, || 0).unwrap();
            self.health(at).settle(ticket, Verdict::Failure, || 0, 0.0);
        }
    }

    fn check_down(&self, at: usize) {
        self.health(at).checked(&HealthCheck::default(), false, Instant::now());
    }
}

#[test]
fn whoever_is_down_open_or_tried_is_passed_over() {
    let rig = rig(4);
    assert_eq!(rig.chosen(&[]), [0, 1, 2, 3]);
    rig.open(0);
    rig.check_down(1);
    assert_eq!(rig.chosen(&[]), [2, 3]);
    assert_eq!(rig.chosen(&[2]), [3]);
    // Rather one that fails its checks than one that has just failed this request.
    assert_eq!(rig.chosen(&[2, 3]), [1]);
    assert_eq!(rig.chosen(&[1, 2, 3]), [1, 2, 3]);
}

#[test]
fn where_few_are_well_checks_count_for_nothing_but_breakers_do() {
    let rig = rig(4);
    (0..2).for_each(|at| rig.check_down(at));
    assert_eq!(rig.chosen(&[]), [2, 3]);
    rig.check_down(2);
    assert_eq!(rig.chosen(&[]), [0, 1, 2, 3], "panic: one of four is less than a half");
    rig.open(3);
    assert_eq!(rig.chosen(&[]), [0, 1, 2]);
    (0..3).for_each(|at| rig.open(at));
    let Err(Refused::For(wait)) = rig.choose(&[], true) else { panic!("all are open") };
    assert!(wait > Duration::from_secs(55) && wait <= Duration::from_secs(66), "{wait:?}");
}

#[test]
fn the_last_endpoint_is_never_left_out_but_by_its_breaker() {
    let rig = rig(1);
    rig.check_down(0);
    rig.health(0).eject(Why::Slow, Instant::now());
    assert_eq!(rig.chosen(&[]), [0]);
    rig.open(0);
    assert!(rig.chosen(&[]).is_empty());
}

#[test]
fn a_probe_goes_first_if_the_request_can_be_sent_again() {
    let rig = rig(3);
    rig.open(1);
    assert_eq!(rig.chosen(&[]), [0, 2]);
    rig.health(1).tick(Instant::now() + Duration::from_secs(70), 0);
    for _ in 0..20 {
        let (at, _) = rig.choose(&[], false).unwrap();
        assert_ne!(at, 1);
    }
    let probes: Vec<_> = (0..3).map(|_| rig.choose(&[], true).unwrap()).collect();
    assert!(probes.iter().all(|(at, ticket)| *at == 1 && ticket.is_probe()));
    assert_eq!(rig.chosen(&[]), [0, 2], "so many probes at once and no more");
}

#[test]
fn a_drained_one_is_never_chosen_by_any_policy_or_for_any_reason() {
    for policy in [Policy::LeastRequests, Policy::RoundRobin, Policy::Hash(config::HashKey::Path)] {
        let rig = rig_of(4, policy.clone());
        let drain = |at: usize, drained| rig.health(at).drain(drained, Instant::now());
        assert!(drain(0, true) && !drain(0, true));
        let by_any_key = || {
            let asked = |key| Asked { key, ..Rig::asked(true, &[]) };
            let choose = |key| rig.cluster.choose(&asked(key), |_| 0, &mut Vec::new(), &rig.dice);
            (0..100_u64).map(|n| choose(n << 57 | n)).collect::<Vec<_>>()
        };
        assert!(by_any_key().iter().all(|chosen| matches!(chosen, Ok((1.., _)))), "{policy:?}");
        let is_left_out = |tried: &[usize]| {
            let chosen = rig.chosen(tried);
            assert!(!chosen.is_empty() && !chosen.contains(&0), "{policy:?}: {chosen:?}");
        };
        // Not where few are well either.
        (1..3).for_each(|at| rig.check_down(at));
        is_left_out(&[]);
        is_left_out(&[1, 2, 3]);
        // A breaker that wants a probe gets none from it.
        drain(0, false);
        rig.open(0);
        drain(0, true);
        rig.health(0).tick(Instant::now() + Duration::from_secs(70), 0);
        is_left_out(&[]);
        // Breakers of others say when to come again, as long as there is one.
        (1..4).for_each(|at| rig.open(at));
        assert!(matches!(rig.choose(&[], true), Err(Refused::For(_))), "{policy:?}");
        (1..4).for_each(|at| assert!(drain(at, true)));
        assert_eq!(rig.choose(&[], true).unwrap_err(), Refused::Drained, "{policy:?}");
    }
    // It is not one of those that are not well: two of three are.
    let rig = rig(4);
    rig.health(0).drain(true, Instant::now());
    rig.check_down(1);
    assert_eq!(rig.chosen(&[]), [2, 3]);
    let rig = self::rig(1);
    rig.health(0).drain(true, Instant::now());
    assert_eq!(rig.choose(&[], true).unwrap_err(), Refused::Drained);
    rig.health(0).drain(false, Instant::now());
    assert_eq!(rig.chosen(&[]), [0]);
}

#[test]
fn a_cluster_without_endpoints_refuses() {
    assert_eq!(rig(0).choose(&[], true).map(|(at, _)| at), Err(Refused::For(Duration::ZERO)));
}

#[test]
fn ejection_leaves_enough_of_them() {
    let rig = rig(3);
    let now = Instant::now();
    let fail = |at: usize| {
        for request in 0..100 {
            let Ok(ticket) = rig.health(at).admit(Duration::ZERO, false, || 0) else { return };
            let verdict = if request % 4 == 0 { Verdict::Failure } else { Verdict::Success };
            if verdict == Verdict::Success {
                rig.cluster.members[at].endpoint.cells[0].successes.add(1);
            }
            let endpoint = &rig.cluster.members[at].endpoint;
            rig.health(at).settle(ticket, verdict, || endpoint.successes(), 0.0);
        }
    };
    let succeed = |at: usize| rig.cluster.members[at].endpoint.cells[0].successes.add(100);
    fail(0);
    (1..3).for_each(succeed);
    rig.cluster.compare(&rig.config.upstreams, now);
    assert_eq!(rig.chosen(&[]), [1, 2]);
    fail(1);
    rig.cluster.compare(&rig.config.upstreams, now);
    assert_eq!(rig.chosen(&[]), [1, 2], "two are no crowd, and one would be too few");
    let off = config::Upstreams { ejection: false, ..rig.config.upstreams.clone() };
    let other = self::rig(3);
    other.cluster.compare(&off, now);
    assert_eq!(other.chosen(&[]), [0, 1, 2]);
}
