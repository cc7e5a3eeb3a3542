//! Limits that several gateways share through a real Redis: what they admit together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use gateway_tests::redis::Redis;
use gateway_tests::{Gateway, Message, Upstream, gateway};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Long enough that no answer of the store is late, however loaded the machine.
pub const UNHURRIED: &str = "10s";
const WORKERS: usize = 2;

/// One route to `upstream` with `rules`, counted in `redis`.
pub fn config(upstream: &Upstream, redis: &Redis, rules: Value) -> Value {
    json!({
        "routes": [{ "path": "/", "backend": upstream.url(), "rate_limits": rules }],
        "rate_limit": { "store": redis.url(), "store_wait": UNHURRIED },
    })
}

/// A rule of the cluster that counts by `X-Tenant`.
pub fn by_tenant(limit: usize, more: Value) -> Value {
    let mut rule =
        json!({ "name": "a", "limit": limit, "per": "day", "key": "header:x-tenant", "scope": "cluster" });
    for (key, value) in more.as_object().expect("an object") {
        rule[key] = value.clone();
    }
    rule
}

pub fn asking(tenant: impl std::fmt::Display) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\nX-Tenant: {tenant}\r\n\r\n")
}

/// Waits until every worker of `gateway` has the store.
#[track_caller]
pub fn wait_for_store(gateway: &Gateway) {
    gateway.wait_for_metrics("every worker has the store", |metrics| {
        metrics.get("gateway_limit_store_up", &[]) == Some(WORKERS as f64)
    });
}

#[track_caller]
fn start(config: Value) -> Gateway {
    let gateway = Gateway::start(config);
    wait_for_store(&gateway);
    gateway
}

/// Decisions made without the store.
pub fn alone(gateway: &Gateway) -> f64 {
    gateway.scrape().get("gateway_limit_store_alone_total", &[]).expect("samples")
}

/// A gateway on a host whose clock is thirty seconds ahead.
fn start_ahead(config: Value) -> Gateway {
    let directory = TempDir::new().expect("there is room for a folder");
    let file = directory.path().join("gateway.json");
    std::fs::write(&file, gateway::complete(config)).expect("there is room for a file");
    let gateway = Gateway::run(directory, file, |command: &mut Command| {
        command.env("LD_PRELOAD", libfaketime()).env("FAKETIME", "+30s");
    });
    wait_for_store(&gateway);
    gateway
}

fn libfaketime() -> PathBuf {
    let libraries = std::fs::read_dir("/usr/lib").expect("there is a /usr/lib").map_while(Result::ok);
    let mut places = libraries.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    places.find(|place| Path::exists(place)).expect("libfaketime is installed: apt-get install faketime")
}

/// xorshift64*; a seed prints with every failure.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}

/// How many requests of each tenant are admitted when four clients of each gateway send `count` each, of tenants in a
/// random order; and how many of each were sent.
fn admitted(
    gateways: &[Gateway],
    tenants: usize,
    count: usize,
    seed: u64,
) -> BTreeMap<usize, (usize, usize)> {
    let total: Mutex<BTreeMap<usize, (usize, usize)>> = Mutex::default();
    std::thread::scope(|scope| {
        for client in 0..4 * gateways.len() {
            let (gateway, total) = (&gateways[client % gateways.len()], &total);
            scope.spawn(move || {
                let mut random = Random(seed * 1_000 + client as u64 + 1);
                let mut client = gateway.connect();
                for _ in 0..count {
                    let tenant = (seed * 1_000 + random.below(tenants as u64)) as usize;
                    let status = client.send(asking(tenant)).response().status();
                    assert!(matches!(status, 200 | 429), "{status}");
                    let mut total = total.lock().expect("no panic while held");
                    let (admitted, sent) = total.entry(tenant).or_default();
                    *admitted += usize::from(status == 200);
                    *sent += 1;
                }
            });
        }
    });
    total.into_inner().expect("no panic while held")
}

/// Seconds of the clock by which a gateway dates its answers.
fn date(gateway: &Gateway) -> u64 {
    let answer = gateway.get("/%00");
    let date = httpdate::parse_http_date(answer.field("date").expect("a date")).expect("a date");
    date.duration_since(std::time::UNIX_EPOCH).expect("after it").as_secs()
}

#[test]
fn two_gateways_one_of_them_ahead_admit_the_limit_once() {
    let (upstream, redis) = (Upstream::ok(), Redis::start());
    let rules = json!([by_tenant(40, json!({}))]);
    let config = || config(&upstream, &redis, rules.clone());
    let gateways = [start(config()), start_ahead(config())];
    let now = date(&gateways[0]);
    assert!(date(&gateways[1]) >= now + 29, "the second one's clock is ahead");
    for seed in 1..=5 {
        for (tenant, (admitted, sent)) in admitted(&gateways, 3 + 4 * seed as usize, 100, seed) {
            assert_eq!(admitted, sent.min(40), "seed {seed}, tenant {tenant}: of {sent}");
        }
    }
    for gateway in &gateways {
        assert_eq!(alone(gateway), 0.0);
    }
}

#[test]
fn a_burst_is_shared_as_well() {
    let (upstream, redis) = (Upstream::ok(), Redis::start());
    // One more comes after fourteen minutes.
    let rules = json!([by_tenant(100, json!({ "burst": 7 }))]);
    let gateways = [(); 2].map(|()| start(config(&upstream, &redis, rules.clone())));
    for (tenant, (admitted, sent)) in admitted(&gateways, 10, 60, 1) {
        assert_eq!(admitted, sent.min(7), "tenant {tenant}: of {sent}");
    }
    let answer = gateways[0].connect().send(asking("new")).response();
    assert_eq!(answer.status(), 200);
    let refused = gateways[1].connect().send(asking(1_000)).response();
    assert_eq!(refused.json()["violated-policies"], json!(["a-burst"]), "{refused}");
    assert_eq!(refused.field("ratelimit-policy"), Some(r#""a";q=100;w=86400, "a-burst";q=7;w=6048"#));
}

#[test]
fn leases_admit_too_little_by_no_more_than_they_hold_and_never_too_much() {
    const LIMIT: usize = 400;
    const LEASE: usize = 40;
    let (upstream, redis) = (Upstream::ok(), Redis::start());
    let rules = json!([by_tenant(LIMIT, json!({ "lease": LEASE }))]);
    let config = || config(&upstream, &redis, rules.clone());
    let gateways = [start(config()), start_ahead(config())];
    for seed in 1..=3 {
        for (tenant, (admitted, sent)) in admitted(&gateways, 2, 200, seed) {
            assert!(sent > LIMIT, "enough to be refused");
            let least = LIMIT - gateways.len() * LEASE;
            assert!(
                (least..=LIMIT).contains(&admitted),
                "seed {seed}, tenant {tenant}: {admitted} of {sent}"
            );
        }
    }
    let steps = |gateway: &Gateway| gateway.scrape().get("gateway_limit_store_seconds_count", &[]);
    let steps: f64 = gateways.iter().filter_map(steps).sum();
    let requests = upstream.requests().len() as f64;
    assert!(steps < requests / 3.0, "{steps} steps for {requests} requests admitted");
    let leased = |gateway: &Gateway| {
        gateway.wait_for_metrics("leases are counted", |metrics| {
            metrics.get("gateway_limit_store_leased", &[]).is_some_and(|leased| leased <= LEASE as f64 * 6.0)
        });
    };
    gateways.iter().for_each(leased);
}

#[test]
fn a_refusals_retry_after_holds_at_every_gateway() {
    let (upstream, redis) = (Upstream::ok(), Redis::start());
    for (rule, told) in [
        (json!({ "name": "a", "limit": 60, "per": "minute", "burst": 1, "scope": "cluster" }), 1..=1),
        (json!({ "name": "b", "limit": 2, "per": "second", "scope": "cluster" }), 1..=2),
    ] {
        let gateways = [(); 2].map(|()| start(config(&upstream, &redis, json!([rule]))));
        let mut clients = gateways.each_ref().map(Gateway::connect);
        let refused = loop {
            let answer = clients[0].get("/");
            if answer.status() == 429 {
                break answer;
            }
        };
        let wait: u64 = refused.field("retry-after").and_then(|wait| wait.parse().ok()).expect("seconds");
        assert!(told.contains(&wait), "{refused}");
        let clock =
            |gateway: &Gateway| gateway.scrape().get("gateway_uptime_seconds", &[]).expect("a sample");
        let until = clock(&gateways[1]) + wait as f64;
        gateways[1].wait_for_metrics("the time that was told", |metrics| {
            metrics.get("gateway_uptime_seconds", &[]) > Some(until)
        });
        assert_eq!(clients[1].get("/").status(), 200, "{rule}");
    }
}

#[test]
fn rules_of_one_request_are_charged_together() {
    let (upstream, redis) = (Upstream::ok(), Redis::start());
    for lease in [1, 4] {
        let rules = json!([
            { "name": "each", "limit": 4, "per": "day", "key": "header:x-tenant", "scope": "cluster" },
            { "name": "all", "limit": 20, "per": "day", "key": "route", "scope": "cluster", "lease": lease },
            { "name": "own", "limit": 3, "per": "day", "key": "header:x-other" },
            { "name": "watched", "limit": 1, "per": "day", "scope": "cluster", "shadow": true },
        ]);
        redis.ask(&["FLUSHDB"]);
        let mut config = config(&upstream, &redis, rules);
        config["workers"] = json!(1);
        let gateway = Gateway::start(config);
        gateway
            .wait_for_metrics("the store", |metrics| metrics.get("gateway_limit_store_up", &[]) == Some(1.0));
        let mut client = gateway.connect();
        let mut volley = |tenant: &str, other: &str| {
            let request =
                format!("GET / HTTP/1.1\r\nHost: a\r\nX-Tenant: {tenant}\r\nX-Other: {other}\r\n\r\n");
            (0..6).filter(|_| client.send(&request).response().status() == 200).count()
        };
        // What one rule refuses, others are not charged for.
        assert_eq!([volley("a", "a"), volley("a", "b")], [3, 1], "refused here, then by the store");
        assert_eq!([volley("b", "c"), volley("b", "d")], [3, 1]);
        let rest: Vec<_> = (0..5).map(|n| volley(&format!("c{n}"), &format!("e{n}"))).collect();
        assert_eq!(rest, [3, 3, 3, 3, 0], "twenty in all");
        let metrics = gateway.scrape();
        let decided = |rule, outcome| {
            metrics.get("gateway_limit_decisions_total", &[("rule", rule), ("outcome", outcome)])
        };
        // Of 54 requests 20 were admitted; one for each is within what is only watched.
        assert_eq!(decided("watched", "denied"), Some(0.0));
        assert_eq!(decided("all", "allowed").unwrap() + decided("all", "near").unwrap(), 20.0);
        assert_eq!(decided("own", "denied"), Some(3.0 * 6.0), "{metrics}");
    }
}

#[test]
fn gateways_agree_on_a_rule_whatever_else_they_are_configured_for() {
    let (upstream, redis) = (Upstream::ok(), Redis::start());
    let rule = json!([{ "name": "a", "limit": 10, "per": "day", "key": "route", "scope": "cluster" }]);
    let one = config(&upstream, &redis, rule);
    let mut other = one.clone();
    let route = json!({ "path": "/elsewhere", "backend": upstream.url(), "max_concurrent": 5 });
    other["routes"].as_array_mut().expect("a list").insert(0, route);
    other["rate_limit"]["rules"] = json!([{ "name": "b", "limit": 1000, "per": "day", "scope": "cluster" }]);
    let gateways = [start(one), start(other)];
    let volley = |gateway: &Gateway| (0..8).filter(|_| gateway.get("/").status() == 200).count();
    assert_eq!([volley(&gateways[0]), volley(&gateways[1])], [8, 2]);
}

#[test]
fn a_reload_that_raises_a_limit_keeps_what_was_counted() {
    let (upstream, redis) = (Upstream::ok(), Redis::start());
    let config = |limit| config(&upstream, &redis, json!([by_tenant(limit, json!({}))]));
    let gateway = start(config(5));
    let admitted = || is_admitted(&gateway.connect().send(asking("x")).response());
    assert_eq!((0..8).filter(|_| admitted()).count(), 5);
    gateway.replace(config(8));
    gateway.log.wait_for("configuration reloaded");
    let more = AtomicUsize::new(0);
    gateway
        .wait_for_metrics("three more", |_| more.fetch_add(usize::from(admitted()), Ordering::Relaxed) >= 3);
    assert_eq!((0..8).filter(|_| admitted()).count() + more.into_inner(), 3);
}

#[test]
fn a_reload_takes_another_store() {
    let (upstream, redis, next) = (Upstream::ok(), Redis::start(), Redis::start());
    let rules = json!([by_tenant(5, json!({}))]);
    let gateway = start(config(&upstream, &redis, rules.clone()));
    let volley = || (0..8).filter(|_| is_admitted(&gateway.connect().send(asking("x")).response())).count();
    assert_eq!(volley(), 5);
    gateway.replace(config(&upstream, &next, rules));
    gateway.log.wait_for("configuration reloaded");
    // Whoever asks is one of them.
    let connected = |to: &Redis| to.ask(&["CLIENT", "LIST"]).lines().count() - 1;
    gateway.wait_for_metrics("the other store", |_| connected(&redis) == 0 && connected(&next) == WORKERS);
    // Asked afterwards: before, it may be the first store that was up, and who is connected has yet to try the other.
    wait_for_store(&gateway);
    assert_eq!(volley(), 5, "which has counted nothing yet");
    let stats = gateway.admin("/stats").json();
    assert_eq!(stats["limit_store"]["servers"], json!([format!("{}/0", next.url())]));
    gateway.replace(gateway::route_to(&upstream.url()));
    gateway.log.wait_for("configuration reloaded");
    gateway.wait_for_metrics("nobody asks any more", |_| connected(&next) == 0);
    assert_eq!(volley(), 8);
    assert_eq!(gateway.admin("/stats").json()["limit_store"], Value::Null);
}

fn is_admitted(answer: &Message) -> bool {
    answer.status() == 200
}

#[test]
fn a_client_that_leaves_while_it_waits_takes_nothing_with_it() {
    let (upstream, redis) = (Upstream::ok(), Redis::start());
    let gateway = start(config(&upstream, &redis, json!([by_tenant(6, json!({ "lease": 6 }))])));
    redis.ask(&["CLIENT", "PAUSE", "600000", "WRITE"]);
    let asked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = gateway.connect();
                client.send(asking("x"));
                asked.fetch_add(1, Ordering::Relaxed);
                client.reset();
            });
        }
    });
    gateway.wait_for_metrics("they have left", |metrics| {
        metrics.get("gateway_requests_total", &[("status", "499")]) == Some(4.0)
    });
    redis.ask(&["CLIENT", "UNPAUSE"]);
    wait_for_store(&gateway);
    // At most a request each was granted for those that left, on the worker that they had come to.
    let admitted = (0..12).filter(|_| is_admitted(&gateway.connect().send(asking("x")).response())).count();
    assert!((2..=6).contains(&admitted), "{admitted}");
    assert_eq!(alone(&gateway), 0.0);
}
