//! Nanoseconds per decision of the rate limiter: `cargo run --release -p gateway-tests --bin limit-ns`.
//!
//! One thread, then two; a key known, a million keys, more keys than there is room for. The longest
//! single decision bounds how long a shard's lock is held.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gateway::config;
use gateway::limit::fields::{self, RATELIMIT, RATELIMIT_POLICY};
use gateway::limit::{Keys, Limits, Rules, key};
use gateway::metrics::Registry;
use http::{HeaderMap, HeaderValue};

const WORKERS: usize = 2;
const ROUNDS: u32 = 5_000_000;

struct Rig {
    limits: Arc<Limits>,
    rules: Rules,
    policies: HeaderValue,
}

impl Rig {
    fn new(route: &str, section: &str) -> Self {
        let text = format!(
            r#"{{ "routes": [{{ "path": "/", "backend": "http://127.0.0.1:1", {route} }}], "rate_limit": {{ {section} }} }}"#
        );
        let config = config::parse(&text, "limit-ns").expect("a configuration of ours");
        let (shards, keys) = config.limit_table();
        let limits = Arc::new(Limits::new(shards, keys));
        let rules = Rules::new(&limits, &config, &config.routes[0], "/", &Registry::new(WORKERS));
        let policies = HeaderValue::from_str(&rules.policies).expect("visible ASCII");
        Self { limits, rules, policies }
    }

    /// What a request costs besides: reading its keys, the decision, and with `tell` the answer's fields.
    fn request(&self, worker: usize, client: u32, now_ns: u64, keys: &mut Keys, tell: bool) -> bool {
        let headers = HeaderMap::new();
        let client = IpAddr::from(client.to_be_bytes());
        let request = key::Request { client, route: self.rules.route, headers: &headers, query: None };
        self.limits.read(keys, &self.rules, &request);
        let decided = self.limits.decide(&self.rules, keys, now_ns, worker, None);
        if tell && let Ok(Some(standing)) = &decided {
            let mut answer = HeaderMap::with_capacity(8);
            let policy = self.rules.rule(standing.rule).policy(standing.part);
            answer.append(RATELIMIT_POLICY, self.policies.clone());
            answer.append(RATELIMIT, fields::item(policy, standing.left, standing.reset_s));
            black_box(answer);
        }
        decided.is_ok()
    }
}

/// Runs `request` for each number and prints what one took, and how many of them were admitted.
fn each(what: &str, rounds: u32, mut request: impl FnMut(u32) -> bool) {
    let started = Instant::now();
    let admitted = (0..rounds).filter(|n| request(*n)).count();
    let ns = started.elapsed().as_nanos() as f64 / f64::from(rounds);
    println!("{what:<58} {ns:7.1} ns    {admitted} of {rounds} admitted");
}

const SECOND_NS: u64 = 1_000_000_000;
const WIDE: &str = r#""rate_limit_per_minute": 4000000000"#;
const NOW: u64 = 1_000 * SECOND_NS;

fn main() {
    let mut keys = Keys::default();
    each("an empty HeaderMap, for comparison", ROUNDS, |_| {
        black_box(HeaderMap::<HeaderValue>::with_capacity(8));
        true
    });
    each("the clock, for comparison", ROUNDS, |_| black_box(Instant::now()).elapsed() < Duration::MAX);
    for (what, route, tell) in [
        ("admitted, window alone", WIDE.to_owned(), false),
        ("admitted, window and burst", format!(r#"{WIDE}, "burst_size": 1000000000"#), false),
        ("the same, and both fields in an answer", format!(r#"{WIDE}, "burst_size": 1000000000"#), true),
        (
            "admitted, three rules of one key",
            format!(
                r#"{WIDE}, "rate_limits": [{{ "name": "a", "limit": 4000000000, "per": "hour" }}, {{ "name": "b", "limit": 4000000000, "per": "day" }}]"#
            ),
            false,
        ),
        (
            "admitted, two rules of two keys",
            format!(
                r#"{WIDE}, "rate_limits": [{{ "name": "a", "limit": 4000000000, "per": "hour", "key": "route" }}]"#
            ),
            false,
        ),
    ] {
        let rig = Rig::new(&route, "");
        each(what, ROUNDS, |n| rig.request(0, 1, NOW + u64::from(n) * 1_000, &mut keys, tell));
    }
    let rig = Rig::new(r#""rate_limit_per_minute": 100"#, r#""burst_size": 10"#);
    each("refused", ROUNDS, |n| rig.request(0, 1, NOW + u64::from(n), &mut keys, false));

    let rig = Rig::new(WIDE, "");
    for (what, spread) in [("two threads, a key each", 1), ("two threads on one key", 0)] {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let rig = &rig;
                scope.spawn(move || {
                    let mut keys = Keys::default();
                    for n in 0..ROUNDS {
                        let client = 1 + worker as u32 * spread;
                        black_box(rig.request(worker, client, NOW + u64::from(n), &mut keys, false));
                    }
                });
            }
        });
        let ns = started.elapsed().as_nanos() as f64 / f64::from(ROUNDS);
        println!("{what:<58} {ns:7.1} ns");
    }
    many(&mut keys);
}

/// A million keys one after the other: as they come, known, too many, forgotten.
fn many(keys: &mut Keys) {
    const MILLION: u32 = 1_000_000;
    let before = resident_kib();
    let rig = Rig::new(r#""rate_limit_per_minute": 5"#, r#""max_keys": 1048576"#);
    println!("{:<58} {:7} KiB", "a table for 1,048,576 keys, empty", resident_kib() - before);
    let mut pass = |what: &str, first: u32, from_ns: u64| {
        let mut times = Vec::with_capacity(MILLION as usize);
        for n in 0..MILLION {
            let started = Instant::now();
            black_box(rig.request(0, first + n, from_ns + u64::from(n), keys, false));
            times.push(started.elapsed().as_nanos() as u32);
        }
        times.sort_unstable();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        let (p9999, p99) = (times[times.len() / 10_000 * 9_999], times[times.len() / 100 * 99]);
        println!("{what:<58} median {median} ns, p99 {p99}, p99.99 {p9999}, longest {worst}");
    };
    pass("a million keys, each new", 0, NOW);
    let bytes = (resident_kib() - before) * 1024 / u64::from(MILLION);
    println!("{:<58} {bytes:7} bytes of resident memory a key", "");
    pass("the same again, each known", 0, NOW + SECOND_NS);
    pass("another million, for which there is no room", MILLION, NOW + 2 * SECOND_NS);
    pass("another million, after all have been forgotten", 2 * MILLION, NOW + 300 * SECOND_NS);
    println!("{:<58} {:7} KiB; {:?}", "in the end", resident_kib() - before, rig.limits.tally());
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
