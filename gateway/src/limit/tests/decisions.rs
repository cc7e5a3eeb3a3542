//! Whole sets of rules: all or none, the one that is reported, threads, shadows, reloads.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const NOW: u64 = 1_000_000 * SECOND_NS;

#[test]
fn the_shipped_configuration_admits_ten_of_a_volley() {
    let rig = Rig::new(r#""rate_limit_per_minute": 100"#, r#""burst_size": 10"#);
    assert_eq!(rig.volley(1, 10, NOW), 10);
    let denial = rig.ask(1, None, NOW).unwrap_err();
    let rule = rig.rules.rule(denial.rule);
    assert_eq!((rule.policy(denial.part), denial.wait_s), ("burst", 1));
    assert_eq!(rig.rules.policies, r#""default";q=100;w=60, "burst";q=10;w=6"#);
    assert_eq!(rig.volley(2, 11, NOW), 10, "another client has its own");
    assert_eq!(rig.volley(1, 2, NOW + SECOND_NS), 1, "who waits as told is admitted");
    assert_eq!(rig.decided("default"), [18, 3, 3, 0]);
}

#[test]
fn threads_together_admit_exactly_the_limit() {
    for rules in [
        r#""rate_limits": [{ "name": "a", "limit": 100, "per": "day" }]"#,
        r#""rate_limits": [{ "name": "a", "limit": 100, "per": "day", "burst": 100 }]"#,
        r#""rate_limits": [{ "name": "a", "limit": 1000000, "per": "day", "burst": 100, "key": "route" }]"#,
    ] {
        let rig = Rig::new(rules, "");
        let admitted = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let (rig, admitted) = (&rig, &admitted);
                scope.spawn(move || {
                    let mut keys = Keys::default();
                    for _ in 0..10_000 / WORKERS {
                        let now = NOW + rig.limits.at(Instant::now()) % 1_000_000;
                        if rig.ask_as(worker, 1, None, now, &mut keys).is_ok() {
                            admitted.fetch_add(1, Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(admitted.into_inner(), 100, "{rules}");
        let [allowed, near, denied, _] = rig.decided("a");
        assert_eq!((allowed + near, denied), (100, 9_900));
    }
}

/// Several keys a request, and so several locks: nobody waits for ever, and no rule is overdrawn.
#[test]
fn threads_with_many_keys_neither_deadlock_nor_admit_too_much() {
    let rules = r#""rate_limits": [
        { "name": "client", "limit": 40, "per": "day" },
        { "name": "tenant", "limit": 100, "per": "day", "key": "header:x-tenant" },
        { "name": "pair", "limit": 30, "per": "day", "key": ["client", "header:x-tenant"] },
        { "name": "all", "limit": 400, "per": "day", "key": "route" }
    ]"#;
    let rig = Rig::new(rules, r#""num_shards": 2"#);
    let (clients, tenants): (Vec<_>, Vec<_>) =
        ((0..16).map(|_| AtomicUsize::new(0)).collect(), (0..5).map(|_| AtomicUsize::new(0)).collect());
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (rig, clients, tenants) = (&rig, &clients, &tenants);
            scope.spawn(move || {
                let (mut random, mut keys) = (Random(worker as u64 + 1), Keys::default());
                for _ in 0..5_000 {
                    let (client, tenant) = (random.below(16), random.below(5));
                    let name = tenant.to_string();
                    if rig.ask_as(worker, client as u32, Some(&name), NOW, &mut keys).is_ok() {
                        clients[client as usize].fetch_add(1, Relaxed);
                        tenants[tenant as usize].fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    let counts = |all: Vec<AtomicUsize>| all.into_iter().map(AtomicUsize::into_inner).collect::<Vec<_>>();
    let (clients, tenants) = (counts(clients), counts(tenants));
    assert_eq!(clients.iter().sum::<usize>(), 400, "the route's rule is the first to run dry");
    assert!(clients.iter().all(|count| *count <= 40) && tenants.iter().all(|count| *count <= 100));
}

#[test]
fn a_request_is_taken_from_all_rules_or_from_none() {
    let rig = Rig::new(
        r#""rate_limits": [
            { "name": "client", "limit": 3, "per": "minute" },
            { "name": "tenant", "limit": 5, "per": "hour", "key": "header:x-tenant" }
        ]"#,
        "",
    );
    let admitted = |client, tenant| rig.ask(client, Some(tenant), NOW).is_ok();
    assert!((0..3).all(|_| admitted(1, "a")));
    // The client's rule refuses; the tenant pays for none of these.
    assert!((0..50).all(|_| !admitted(1, "a")));
    assert!((0..2).all(|_| admitted(2, "a")));
    // Now the tenant's does, and the second client keeps its third.
    let denial = rig.ask(2, Some("a"), NOW).unwrap_err();
    assert_eq!(rig.rules.rule(denial.rule).policy(denial.part), "tenant");
    assert!(admitted(2, "b"));
    let denial = rig.ask(1, Some("a"), NOW).unwrap_err();
    assert_eq!(rig.rules.rule(denial.rule).policy(denial.part), "tenant", "the longer wait is reported");
    assert_eq!(rig.decided("client"), [4, 2, 51, 0]);
    assert_eq!(rig.decided("tenant")[2], 2);
}

#[test]
fn the_rule_with_least_left_is_reported() {
    let rig = Rig::new(
        r#""rate_limit_per_minute": 100, "burst_size": 50, "rate_limits": [
            { "name": "second", "limit": 20, "per": "second" },
            { "name": "shy", "limit": 1, "per": "day", "shadow": true }
        ]"#,
        "",
    );
    let standing = |client, now| {
        let standing = rig.ask(client, None, now).unwrap().unwrap();
        (rig.rules.rule(standing.rule).policy(standing.part).to_owned(), standing.left)
    };
    assert_eq!(standing(1, NOW), ("second".to_owned(), 19));
    assert_eq!(standing(1, NOW), ("second".to_owned(), 18));
    // The second is soon over; the bucket takes a while to be full again.
    for _ in 0..18 {
        standing(1, NOW);
    }
    for second in 2..4 {
        for _ in 0..15 {
            standing(1, NOW + second * SECOND_NS);
        }
    }
    assert_eq!(standing(1, NOW + 8 * SECOND_NS).0, "burst");
}

#[test]
fn a_shadow_rule_counts_and_refuses_nothing() {
    let rig = Rig::new(
        r#""rate_limits": [
            { "name": "trial", "limit": 10, "per": "minute", "shadow": true },
            { "name": "real", "limit": 30, "per": "minute" }
        ]"#,
        "",
    );
    assert_eq!(rig.volley(1, 50, NOW), 30);
    assert_eq!(rig.decided("trial"), [9, 1, 0, 40]);
    assert_eq!(rig.decided("real"), [27, 3, 20, 0]);
    assert_eq!(rig.rules.policies, r#""real";q=30;w=60"#, "nobody is told of a trial");
}

#[test]
fn what_holds_where() {
    for (route, section, want) in [
        ("", "", 50),
        ("", r#""default_rate_per_minute": 20"#, 20),
        ("", r#""default_rate_per_minute": 20, "burst_size": 5"#, 5),
        (r#""rate_limit_per_minute": 30"#, r#""default_rate_per_minute": 20"#, 30),
        (r#""rate_limit_per_minute": 30"#, r#""burst_size": 5"#, 5),
        (r#""rate_limit_per_minute": 30, "burst_size": 7"#, r#""burst_size": 5"#, 7),
        (r#""rate_limit_per_minute": 30, "burst_size": 40"#, "", 30),
        (r#""rate_limit_per_minute": 30"#, r#""enabled": false"#, 50),
        // A list is a rate of the route's own.
        (
            r#""rate_limits": [{ "name": "a", "limit": 40, "per": "hour" }]"#,
            r#""default_rate_per_minute": 20"#,
            40,
        ),
        (
            r#""rate_limit_per_minute": 30, "rate_limits": [{ "name": "a", "limit": 9, "per": "day", "burst": 3 }]"#,
            r#""rules": [{ "name": "b", "limit": 2, "per": "second" }]"#,
            2,
        ),
    ] {
        let rig = Rig::new(route, section);
        assert_eq!(rig.volley(1, 50, NOW), want, "{route} with {section}");
    }
}

#[test]
fn a_reload_keeps_what_was_counted() {
    let rule = |limit: u32, rest: &str| {
        format!(r#""rate_limits": [{{ "name": "a", "limit": {limit}, "per": "hour"{rest} }}]"#)
    };
    let mut rig = Rig::new(&rule(20, ""), "");
    assert_eq!(rig.volley(1, 15, NOW), 15);
    rig.reload(&rule(20, ""), r#""burst_size": 1"#);
    assert_eq!(rig.volley(1, 10, NOW), 5, "unchanged");
    rig.reload(&rule(30, ""), "");
    assert_eq!(rig.volley(1, 20, NOW), 10, "a raised limit admits the difference");
    rig.reload(&rule(10, ""), "");
    assert_eq!(rig.volley(1, 1, NOW), 0, "a lowered one nothing");
    let denial = rig.ask(1, None, NOW).unwrap_err();
    assert_eq!(rig.volley(1, 1, NOW + u64::from(denial.wait_s) * SECOND_NS), 1);
    rig.reload(&rule(20, r#", "key": "route""#), "");
    assert_eq!(rig.volley(1, 50, NOW), 20, "another key is another rule");
}

#[test]
fn reloads_that_rename_leave_nothing_behind() {
    let route = |name: u32| {
        format!(
            r#""max_concurrent": 5, "max_concurrent_per_client": 5, "rate_limits": [
                {{ "name": "stays", "limit": 5, "per": "day" }},
                {{ "name": "n{name}", "limit": 5, "per": "day" }}]"#
        )
    };
    let mut rig = Rig::new(&route(0), "");
    assert_eq!(rig.volley(1, 3, 0), 3);
    let names = |rig: &Rig| {
        let names = rig.limits.numbers.lock().unwrap().by_name.len();
        (names, rig.limits.routes.lock().unwrap().len())
    };
    let before = names(&rig);
    for name in 1..200 {
        let config = parse(&route(name), "");
        let label = format!("/{name}");
        // A route that is gone with the next reload.
        let gone = Rules::new(&rig.limits, &config, &config.routes[0], &label, &rig.registry);
        rig.limits.forget_others([&gone, &rig.rules].into_iter());
        drop(gone);
        rig.reload(&route(name), "");
        rig.limits.forget_others([&rig.rules].into_iter());
        assert_eq!(names(&rig), before, "{name}");
    }
    assert_eq!(rig.volley(1, 5, 0), 2, "what stays keeps its counts");
}

/// What is said of a client is what its next request meets, and saying it takes nothing.
#[test]
fn a_look_says_what_a_request_would_meet() {
    let rules = r#""rate_limits": [
        { "name": "client", "limit": 5, "per": "hour", "burst": 3 },
        { "name": "tenant", "limit": 2, "per": "day", "key": "header:x-tenant" },
        { "name": "all", "limit": 7, "per": "hour", "key": ["route", "client"], "shadow": true }
    ]"#;
    let rig = Rig::new(rules, "");
    let look = |now| {
        let looks = rig.limits.look(&rig.rules, IpAddr::from(1u32.to_be_bytes()), now);
        looks.into_iter().map(|look| (look.rule, look.answer)).collect::<Vec<_>>()
    };
    let mut now = NOW;
    for step in 0..200 {
        let before = look(now);
        assert_eq!(before, look(now), "step {step}");
        assert_eq!(before.iter().map(|(rule, _)| *rule).collect::<Vec<_>>(), [0, 2], "not by header");
        // Another tenant each time, so that the client's rule decides alone.
        let asked = rig.ask(1, Some(&step.to_string()), now);
        match before[0].1 {
            Ok(left) => {
                let standing = asked.expect("it was to be admitted").expect("a rule applies");
                assert!(
                    standing.rule != 0 || standing.left + 1 == left.count,
                    "step {step}: {standing:?}, {left:?}"
                );
            }
            Err(refused) => {
                assert_eq!(asked.expect_err("it was to be refused").wait_s, quota::seconds(refused.wait_ns));
                now += refused.wait_ns / 2;
            }
        }
    }
    assert_eq!(rig.decided("client")[2] + rig.decided("client")[0] + rig.decided("client")[1], 200);
}
