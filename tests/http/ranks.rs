//! Who gives way while the gateway is short: strangers, before a source that has proven itself. Without a kernel half.

use std::fs;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use gateway_tests::client::get;
use gateway_tests::metrics::Metrics;
use gateway_tests::upstream::ok;
use gateway_tests::{Api, Client, Gate, Gateway, PATIENCE, Upstream};
use serde_json::{Value, json};

/// Requests that prove a source.
const MANY: usize = 100;
const PROVEN: [u8; 4] = [127, 2, 0, 1];

fn stranger(number: usize) -> [u8; 4] {
    [127, 3, 0, number as u8 + 1]
}

/// Answers `/held` when the gate is opened, and says when it is asked for; anything else at once.
fn holding() -> (Upstream, Receiver<()>, Gate) {
    let gate = Gate::default();
    let (came, arrived) = mpsc::channel();
    let (came, opened) = (Mutex::new(came), gate.clone());
    let upstream = Upstream::start(move |mut conn| {
        while let Some(request) = conn.request() {
            if request.target() == "/held" {
                came.lock().expect("nobody panics").send(()).expect("the test waits for it");
                opened.wait();
            }
            conn.send(ok("served"));
        }
    });
    (upstream, arrived, gate)
}

fn one_worker(upstream: &Upstream) -> Gateway {
    Gateway::controlled(json!({ "workers": 1, "routes": [{ "path": "/", "backend": upstream.url() }] }))
}

/// Lets it have so much memory, and waits until so many requests may be under way.
fn allow(gateway: &Gateway, bytes: u64, ceiling: Option<f64>) {
    let text = fs::read_to_string(&gateway.file).expect("it is there");
    let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
    config["overload"] = json!({ "max_delay": "1h", "max_memory_bytes": bytes, "min_concurrency": 2 });
    gateway.replace(config);
    gateway.wait_for_metrics("the bound", |metrics| metrics.get("gateway_route_ceiling", &[]) == ceiling);
}

/// A hundred good requests of a source, which the gateway then knows.
fn prove(gateway: &Gateway) {
    let mut client = Client::connect_from(PROVEN, gateway.address);
    for n in 0..MANY {
        assert_eq!(client.get("/").status(), 200, "request {n}");
    }
    // What is left to tell of them is told when it ends.
    drop(client);
    let class =
        || -> Value { Api::of(gateway).get("/v1/explain?source=127.2.0.1").json()["proxy"]["class"].clone() };
    let begin = Instant::now();
    while class() != "proven" {
        assert!(begin.elapsed() < PATIENCE, "it is {}", class());
        std::thread::yield_now();
    }
}

fn refused(metrics: &Metrics) -> f64 {
    metrics.get("gateway_connections_refused_total", &[("cause", "total")]).expect("a count")
}

/// `count` strangers, each with a request that goes on.
fn hold(gateway: &Gateway, arrived: &Receiver<()>, count: usize) -> Vec<Client> {
    let hold = |number| {
        let mut client = Client::connect_from(stranger(number), gateway.address);
        client.send(get("/held"));
        arrived.recv_timeout(PATIENCE).expect("it was sent upstream");
        client
    };
    (0..count).map(hold).collect()
}

#[test]
fn while_memory_is_short_strangers_are_refused_and_make_room() {
    let (upstream, arrived, gate) = holding();
    let gateway = one_worker(&upstream);
    prove(&gateway);
    let mut held = hold(&gateway, &arrived, 2);
    // The proven one's connection has been without a request for longest.
    let mut kept = Client::connect_from(PROVEN, gateway.address);
    assert_eq!(kept.get("/").text(), "served");
    let mut idle = Client::connect_from(stranger(100), gateway.address);
    assert_eq!(idle.get("/").text(), "served");

    let in_use = gateway.memory_kib("VmRSS") * 1024;
    allow(&gateway, in_use, Some(2.0));

    let mut next = Client::connect_from(PROVEN, gateway.address);
    assert_eq!(next.get("/").text(), "served");
    idle.expect_closed();
    assert_eq!(kept.get("/").text(), "served");
    // No stranger's is left to make room: whoever comes is turned away, the proven one is not, on new connections or old.
    for n in 0..MANY {
        let mut stranger = Client::connect_from(stranger(n), gateway.address);
        let told = stranger.rest().expect("an orderly end");
        assert!(told.is_empty() || told.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&told));
        let mut next = Client::connect_from(PROVEN, gateway.address);
        for _ in 0..2 {
            assert_eq!(next.get("/").text(), "served", "connection {n}");
        }
    }
    let metrics = gateway.scrape();
    assert_eq!((refused(&metrics), metrics.requests(503, "shed:memory")), (MANY as f64, 0.0));

    allow(&gateway, 1 << 40, None);
    for n in 0..10 {
        assert_eq!(Client::connect_from(stranger(n), gateway.address).get("/").text(), "served");
    }
    gate.open();
    for client in &mut held {
        assert_eq!(client.response().text(), "served");
    }
}

/// Requests of strangers on connections that they have already.
#[test]
fn a_request_beyond_the_floor_is_served_if_it_is_a_proven_one_s() {
    let (upstream, arrived, gate) = holding();
    let gateway = one_worker(&upstream);
    prove(&gateway);
    let mut held = hold(&gateway, &arrived, 2);
    let mut stranger = Client::connect_from(stranger(2), gateway.address);
    let mut proven = Client::connect_from(PROVEN, gateway.address);
    for client in [&mut stranger, &mut proven] {
        assert_eq!(client.get("/").text(), "served");
    }
    let in_use = gateway.memory_kib("VmRSS") * 1024;
    allow(&gateway, in_use, Some(2.0));
    for n in 0..MANY {
        assert_eq!(stranger.get("/").status(), 503, "request {n}");
        assert_eq!(proven.get("/").status(), 200, "request {n}");
    }
    assert_eq!(gateway.scrape().requests(503, "shed:memory"), MANY as f64);
    gate.open();
    for client in &mut held {
        assert_eq!(client.response().text(), "served");
    }
}

/// Strangers may have all places but some, and keep them: their requests go on.
#[test]
fn strangers_requests_do_not_take_the_last_places() {
    const MOST: usize = 32;
    const KEPT: usize = 2;
    let (upstream, arrived, gate) = holding();
    let gateway = Gateway::controlled(json!({
        "workers": 1,
        "connections": { "max": MOST, "max_per_source": 1_000 },
        "routes": [{ "path": "/", "backend": upstream.url() }],
    }));
    prove(&gateway);
    let mut held = hold(&gateway, &arrived, MOST - KEPT);
    gateway.wait_for_metrics("descriptors to be short", |metrics| {
        metrics.get("gateway_distress", &[]).is_some_and(|distress| distress >= 1.0)
    });
    for n in 0..MANY {
        let mut late = Client::connect_from(stranger(MOST), gateway.address);
        let told = late.rest().expect("an orderly end");
        assert!(told.is_empty() || told.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&told));
        assert_eq!(Client::connect_from(PROVEN, gateway.address).get("/").text(), "served", "connection {n}");
    }
    let metrics = gateway.scrape();
    assert_eq!((refused(&metrics), metrics.requests(503, "shed:descriptors")), (MANY as f64, 0.0));
    gate.open();
    for client in &mut held {
        assert_eq!(client.response().text(), "served");
    }
    assert_eq!(Client::connect_from(stranger(MOST), gateway.address).get("/").text(), "served");
}
