//! More keys than there is room for: what is held, who is refused, and how much work each costs.

use super::*;

const NOW: u64 = 1_000_000 * SECOND_NS;

/// Looked at by the costliest operation: a newcomer that sweeps a full shard, removing all it sweeps,
/// and looks through its places twice.
const MOST_STEPS: usize = 32 + (4 + 32) * (1 + 32) + 2 * 32 + 32;

fn steps(rig: &Rig) -> Vec<usize> {
    rig.limits.shards.iter().map(|shard| std::mem::take(&mut lock(&shard.0).steps)).collect()
}

#[test]
fn a_million_keys_are_held_within_their_bound_and_cost_no_more_each() {
    let rig =
        Rig::new(r#""rate_limits": [{ "name": "a", "limit": 5, "per": "minute" }]"#, r#""max_keys": 100000"#);
    let places = |rig: &Rig| -> usize {
        let entries = |shard: &Locked| lock(&shard.0).reserved();
        rig.limits.shards.iter().map(entries).sum()
    };
    let (reserved, mut most, mut sum) = (places(&rig), 0, 0);
    let mut admitted = 0;
    let mut keys = Keys::default();
    for n in 0..1_000_000 {
        // Over a minute and a half: nobody is forgotten yet.
        let now = NOW + u64::from(n) * 90_000;
        admitted += usize::from(rig.ask_as(0, n, None, now, &mut keys).is_ok());
        let cost: usize = steps(&rig).into_iter().sum();
        (most, sum) = (most.max(cost), sum + cost);
    }
    let tally = rig.limits.tally();
    assert!((99_000..=100_000).contains(&tally.keys), "{tally:?}");
    assert_eq!((tally.evicted, tally.expired, tally.overflowed), (0, 0, 1_000_000 - tally.keys));
    // Each shard's shared state grants sixteen limits a minute, so not over five in this time and a half.
    let shared = admitted - tally.keys as usize;
    let a_minute = 16 * 16 * 5;
    assert!((a_minute..=a_minute * 5 / 2).contains(&shared), "{shared}");
    assert_eq!(places(&rig), reserved, "nothing has grown");
    assert!(most <= MOST_STEPS, "{most} looks for one request");

    // Two windows later all of them are forgotten, and newcomers have room again.
    for n in 1_000_000..1_090_000 {
        let now = NOW + 300 * SECOND_NS;
        assert!(rig.ask_as(0, n, None, now, &mut keys).is_ok());
        let cost: usize = steps(&rig).into_iter().sum();
        (most, sum) = (most.max(cost), sum + cost);
    }
    let after = rig.limits.tally();
    assert_eq!(after.overflowed, tally.overflowed);
    assert!(after.keys <= 100_000 && after.evicted + after.expired >= 80_000, "{after:?}");
    assert!(most <= MOST_STEPS, "{most} looks for one request");
    assert!(sum / 1_090_000 < 200, "{} looks on average", sum / 1_090_000);
}

#[test]
fn a_key_that_owes_is_never_evicted() {
    let rig = Rig::new(
        r#""rate_limits": [{ "name": "a", "limit": 5, "per": "hour" }]"#,
        r#""max_keys": 1000, "num_shards": 4"#,
    );
    assert_eq!(rig.volley(1, 9, NOW), 5);
    for n in 0..100_000 {
        let _ = rig.ask(1_000 + n, None, NOW + u64::from(n));
    }
    assert_eq!(rig.volley(1, 9, NOW + SECOND_NS), 0, "it comes back with what it had");
    // Those without a place share sixteen limits a shard, and each of the others has its own.
    let shared = (0..100_000).filter(|n| rig.ask(1_000 + n, None, NOW + 3_590 * SECOND_NS).is_ok()).count();
    assert!(shared <= 1_000 * 5, "{shared}");
}

#[test]
fn long_keys_have_a_bound_of_their_own() {
    let rig = Rig::new(
        r#""rate_limits": [{ "name": "a", "limit": 5, "per": "hour", "key": "header:x-tenant" }]"#,
        r#""max_keys": 1000, "num_shards": 1"#,
    );
    let tenant = |n: u32| format!("{n:04000}");
    for n in 0..100 {
        let _ = rig.ask(n, Some(&tenant(n)), NOW);
    }
    let tally = rig.limits.tally();
    assert_eq!((tally.keys, tally.overflowed), (15, 85), "64 bytes a key, of 1,000 keys");
    assert!(rig.ask(0, Some("short"), NOW).is_ok());
    assert_eq!(rig.limits.tally().keys, 16);
    // Once they are forgotten, others fit in.
    for n in 200..215 {
        let _ = rig.ask(n, Some(&tenant(n)), NOW + 7_201 * SECOND_NS);
    }
    assert_eq!(rig.limits.tally().overflowed, 85);
}

#[test]
fn what_nobody_asks_for_is_swept_away() {
    let rig = Rig::new(r#""rate_limit_per_minute": 5"#, r#""num_shards": 4"#);
    for n in 0..1_000 {
        assert!(rig.ask(n, None, NOW).is_ok());
    }
    rig.limits.sweep(NOW + 119 * SECOND_NS);
    assert_eq!(rig.limits.tally().keys, 1_000);
    for _ in 0..1_000 / SWEPT_AT_ONCE {
        rig.limits.sweep(NOW + 121 * SECOND_NS);
    }
    let tally = rig.limits.tally();
    assert_eq!((tally.keys, tally.expired), (0, 1_000));
    assert!(rig.ask(1, None, NOW + 122 * SECOND_NS).is_ok());
}

/// A key known, met again and again among many: the same place, without a word to the allocator.
#[test]
fn a_known_key_is_found_with_the_memory_that_is_there() {
    let rig = Rig::new(
        r#""rate_limits": [{ "name": "a", "limit": 4000000, "per": "hour", "key": ["header:x-tenant", "client"] }]"#,
        r#""num_shards": 1"#,
    );
    let mut keys = Keys::default();
    let long = "a tenant with quite a long name";
    rig.ask_as(0, 1, Some(long), NOW, &mut keys).unwrap();
    let (held, capacity) = (lock(&rig.limits.shards[0].0).reserved(), keys.capacity());
    for _ in 0..10_000 {
        rig.ask_as(0, 1, Some(long), NOW, &mut keys).unwrap();
    }
    assert_eq!((lock(&rig.limits.shards[0].0).reserved(), keys.capacity()), (held, capacity));
    assert_eq!(rig.limits.tally().keys, 1);
}

/// Ten thousand routes, and a shard with room for none of their keys.
#[test]
fn rules_without_room_share_a_state_each_and_let_go_of_it() {
    let mut shard = Shard::new(0);
    let state = |current| State { counts: window::Counts { current, ..Default::default() }, full_at_ns: 0 };
    let later = NOW + 120 * SECOND_NS;
    for rule in 0..10_000 {
        let place = shard.place(u64::from(rule), rule, b"a", NOW);
        shard.set(place, state(rule), later);
    }
    assert_eq!(shard.shared(), 10_000);
    for rule in 0..10_000 {
        let place = shard.place(u64::from(rule) << 32, rule, b"b", later - 1);
        assert_eq!(shard.get(place), state(rule), "whatever the key");
        shard.set(place, state(rule), later);
    }
    // Forgotten ones make room for those of other rules.
    for rule in 10_000..40_000 {
        let place = shard.place(0, rule, b"a", later);
        assert_eq!(shard.get(place), State::default());
        shard.set(place, state(1), later);
    }
    assert!(shard.shared() <= 30_000, "{}", shard.shared());
    assert_eq!(shard.tally().overflowed, 50_000);
}
