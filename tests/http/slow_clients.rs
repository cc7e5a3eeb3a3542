//! Clients that hold what they do not use: connections, heads, bodies, answers. Each attack with its counts, and a good
//! client that is served throughout.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use gateway_tests::client::get;
use gateway_tests::gateway::route_to;
use gateway_tests::metrics::Metrics;
use gateway_tests::upstream::ok;
use gateway_tests::{Client, Gateway, PATIENCE, Upstream};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

fn gateway(upstream: &Upstream, sections: Value) -> Gateway {
    let mut config = route_to(&upstream.url());
    for (key, value) in sections.as_object().expect("sections") {
        config[key] = value.clone();
    }
    Gateway::start(config)
}

/// Sources of the loopback, each another client.
fn source(number: usize) -> [u8; 4] {
    [127, 1, (number / 250) as u8, (number % 250 + 1) as u8]
}

fn ended(gateway: &Gateway, cause: &str) -> f64 {
    gateway.scrape().get("gateway_connections_ended_total", &[("cause", cause)]).unwrap_or(0.0)
}

/// Waits for `time`; nothing comes.
fn pass(time: Duration) {
    let (_open, nothing) = mpsc::channel::<()>();
    nothing.recv_timeout(time).expect_err("nothing is sent");
}

#[test]
fn a_source_has_no_more_connections_than_it_may() {
    const MOST: usize = 5;
    let upstream = Upstream::answering(ok("served"));
    let gateway = gateway(&upstream, json!({ "connections": { "max_per_source": MOST } }));
    let connect = |from: usize| Client::connect_from(source(from), gateway.address);
    let mut held: Vec<_> = (0..MOST).map(|_| connect(1)).collect();
    for client in &mut held {
        assert_eq!(client.get("/").text(), "served");
    }
    for _ in 0..3 {
        Client::expect_reset(source(1), gateway.address);
    }
    let refused = gateway.scrape().get("gateway_connections_refused_total", &[("cause", "source")]);
    assert_eq!(refused, Some(3.0));
    // Others have their own, and one that is given back can be taken again.
    assert_eq!(connect(2).get("/").text(), "served");
    drop(held.pop());
    gateway.wait_for_metrics("a place", |metrics| {
        metrics.get("gateway_connections_open", &[]) == Some((MOST - 1) as f64)
    });
    assert_eq!(connect(1).get("/").text(), "served");
}

/// Load balancers bring the clients of many: those that are trusted have no such bound.
#[test]
fn a_trusted_proxy_may_have_as_many_as_it_needs() {
    let upstream = Upstream::ok();
    let sections = json!({ "connections": { "max_per_source": 2 }, "trusted_proxies": ["127.1.0.0/16"] });
    let gateway = gateway(&upstream, sections);
    let mut held: Vec<_> = (0..10).map(|_| Client::connect_from(source(1), gateway.address)).collect();
    for client in &mut held {
        assert_eq!(client.get("/").status(), 200);
    }
}

/// With a PROXY header, the source is who it names.
#[test]
fn sources_behind_a_load_balancer_are_told_apart() {
    let upstream = Upstream::ok();
    let gateway = gateway(
        &upstream,
        json!({
            "connections": { "max_per_source": 2 }, "trusted_proxies": ["127.0.0.1"], "proxy_protocol": true
        }),
    );
    let connect = |from: &str| {
        let mut client = gateway.connect();
        client.send(format!("PROXY TCP4 {from} 192.0.2.1 1 2\r\n{}", get("/")));
        client
    };
    let mut held: Vec<_> = (0..2).map(|_| connect("198.51.100.1")).collect();
    for client in &mut held {
        assert_eq!(client.response().status(), 200);
    }
    connect("198.51.100.1").expect_closed();
    assert_eq!(connect("198.51.100.2").response().status(), 200);
}

/// All places taken: who never asked for anything goes first, then who has been idle for longest.
#[test]
fn connections_that_are_not_used_make_room() {
    let upstream = Upstream::answering(ok("served"));
    let gateway = gateway(&upstream, json!({ "workers": 1, "connections": { "max": 4 } }));
    let mut idle = gateway.connect();
    assert_eq!(idle.get("/").text(), "served");
    let mut silent = gateway.connect();
    let mut half = gateway.connect();
    half.send("GET / HTTP/1.1\r\nHost:");
    let mut used = gateway.connect();
    for client in [&mut used, &mut idle] {
        assert_eq!(client.get("/").text(), "served");
    }
    let mut newcomers: Vec<Client> = Vec::new();
    for gone in [&mut silent, &mut half, &mut used] {
        let mut client = gateway.connect();
        assert_eq!(client.get("/").text(), "served");
        newcomers.push(client);
        gone.expect_closed();
        // Its place is free before the next comes.
        gateway.wait_for_metrics("four", |metrics| metrics.get("gateway_connections_open", &[]) == Some(4.0));
        assert_eq!(idle.get("/").text(), "served");
    }
    assert_eq!(ended(&gateway, "evicted"), 3.0);
}

#[test]
fn where_all_connections_are_in_use_the_next_is_told_so() {
    let (upstream, arrived, gate) = Upstream::gated("late");
    let gateway = gateway(
        &upstream,
        json!({ "workers": 1, "connections": { "max": 3 }, "timeouts": { "header_read": "60s" } }),
    );
    let mut busy: Vec<_> = (0..3)
        .map(|_| {
            let mut client = gateway.connect();
            client.send(get("/"));
            arrived.recv_timeout(PATIENCE).expect("it was sent upstream");
            client
        })
        .collect();
    let refused = gateway.connect().rest().expect("an orderly end");
    let refused = String::from_utf8_lossy(&refused).into_owned();
    assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 503 "), "{refused}");
    let total = |metrics: &Metrics| metrics.get("gateway_connections_refused_total", &[("cause", "total")]);
    assert_eq!(total(&gateway.scrape()), Some(1.0));
    gate.open();
    for client in &mut busy {
        assert_eq!(client.response().text(), "late");
    }
    assert_eq!(gateway.get("/").text(), "late");
}

#[test]
fn a_connection_ends_after_its_last_request() {
    let upstream = Upstream::answering(ok("served"));
    let gateway = gateway(&upstream, json!({ "connections": { "max_requests": 3 } }));
    for _ in 0..2 {
        let mut client = gateway.connect();
        for number in 1..=3 {
            let response = client.get("/");
            assert_eq!((response.status(), response.closes()), (200, number == 3), "{response}");
        }
        client.expect_closed();
    }
    assert_eq!(ended(&gateway, "requests"), 2.0);
}

/// Slowloris: heads that never end.
#[test]
fn heads_that_do_not_end_are_given_up() {
    const ATTACKERS: usize = 600;
    let upstream = Upstream::answering(ok("served"));
    let gateway = gateway(&upstream, json!({ "timeouts": { "header_read": "2s" } }));
    let mut good = gateway.connect();
    assert_eq!(good.get("/").text(), "served");
    let mut attackers: Vec<_> =
        (0..ATTACKERS).map(|n| Client::connect_from(source(n % 10), gateway.address)).collect();
    for client in &mut attackers {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX-");
    }
    let started = Instant::now();
    // Bytes keep coming, and the good client keeps asking, until all are gone.
    while ended(&gateway, "head") < ATTACKERS as f64 {
        for client in &mut attackers {
            let _ = client.try_send("a");
        }
        assert_eq!(good.get("/").text(), "served");
        assert!(started.elapsed() < PATIENCE, "{} ended", ended(&gateway, "head"));
    }
    assert_eq!(ended(&gateway, "head"), ATTACKERS as f64);
    for client in &mut attackers {
        client.expect_closed();
    }
}

/// Bodies that come a byte at a time never stall, and are given up all the same.
#[test]
fn bodies_that_come_too_slowly_are_given_up() {
    const ATTACKERS: usize = 40;
    let upstream = Upstream::answering(ok("served"));
    let gateway = gateway(
        &upstream,
        json!({ "connections": { "min_body_rate": 5_000 }, "timeouts": { "body_rate": "1s" } }),
    );
    let mut good = gateway.connect();
    let mut attackers: Vec<_> = (0..ATTACKERS).map(|_| gateway.connect()).collect();
    for client in &mut attackers {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    }
    let started = Instant::now();
    while ended(&gateway, "slow") < ATTACKERS as f64 {
        for client in &mut attackers {
            let _ = client.try_send("a");
        }
        assert_eq!(good.get("/").text(), "served");
        pass(Duration::from_millis(50));
        assert!(started.elapsed() < PATIENCE, "{} ended", ended(&gateway, "slow"));
    }
    let served = upstream.requests().into_iter().filter(|request| request.method() == "POST").count();
    assert_eq!((ended(&gateway, "slow"), served), (ATTACKERS as f64, 0));
}

/// A client that keeps its pace may take as long as it needs.
#[test]
fn a_body_that_comes_steadily_is_taken() {
    const PIECES: usize = 30;
    let upstream = Upstream::answering(ok("served"));
    let gateway = gateway(
        &upstream,
        json!({ "connections": { "min_body_rate": 100 }, "timeouts": { "body_rate": "1s" } }),
    );
    let mut client = gateway.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", PIECES * 4096));
    for _ in 0..PIECES {
        client.send([b'x'; 4096]);
        pass(Duration::from_millis(100));
    }
    assert_eq!(client.response().text(), "served");
    assert_eq!((upstream.last().body.len(), ended(&gateway, "slow")), (PIECES * 4096, 0.0));
}

/// Answers that are asked for and hardly read.
#[test]
fn answers_that_are_taken_too_slowly_are_given_up() {
    const ATTACKERS: usize = 20;
    const BYTES: usize = 64 << 20;
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            match request.target() {
                "/large" => {
                    conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n"));
                    conn.send_until_stalled(BYTES, PATIENCE);
                }
                _ => conn.send(ok("served")),
            }
        }
    });
    let gateway = gateway(
        &upstream,
        json!({ "connections": { "min_body_rate": 100_000 }, "timeouts": { "body_rate": "1s" } }),
    );
    let mut good = gateway.connect();
    let mut attackers: Vec<_> = (0..ATTACKERS).map(|_| gateway.connect()).collect();
    let before = gateway.memory_kib("VmRSS");
    for client in &mut attackers {
        client.send(get("/large"));
    }
    let started = Instant::now();
    while ended(&gateway, "slow") < ATTACKERS as f64 {
        for client in &mut attackers {
            let _ = client.reader.get_mut().read(&mut [0; 16]);
        }
        assert_eq!(good.get("/").text(), "served");
        pass(Duration::from_millis(50));
        assert!(started.elapsed() < PATIENCE, "{} ended", ended(&gateway, "slow"));
    }
    assert_eq!(ended(&gateway, "slow"), ATTACKERS as f64);
    let grown = gateway.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 1024 * ATTACKERS as u64, "{grown} KiB for {ATTACKERS} clients");
}

/// 10,000 connections that send nothing, and 100 more than one source may have.
#[test]
fn ten_thousand_silent_connections_are_no_burden() {
    const SOURCES: usize = 10;
    const OF_EACH: usize = 1_000;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .expect("the soft limit may rise to the hard one");
    let upstream = Upstream::answering(ok("served"));
    let gateway = gateway(
        &upstream,
        json!({ "connections": { "max_per_source": OF_EACH }, "timeouts": { "header_read": "10m" } }),
    );
    let mut good = gateway.connect();
    assert_eq!(good.get("/").text(), "served");
    let before = gateway.memory_kib("VmRSS");
    let address: SocketAddr = gateway.address;
    let mut silent = Vec::with_capacity(SOURCES * OF_EACH);
    for number in 0..SOURCES {
        silent.extend((0..OF_EACH).map(|_| Client::connect_from(source(number), address)));
        assert_eq!(good.get("/").text(), "served");
        assert_eq!(gateway.get("/").text(), "served");
    }
    // As many as there are places for; where that is less than all, the oldest have made room.
    let open = |metrics: &Metrics| metrics.get("gateway_connections_open", &[]).expect("a count") as usize;
    let most = gateway.scrape().get("gateway_connections_limit", &[]).expect("a limit") as usize;
    let wanted = most.min(SOURCES * OF_EACH + 1);
    let least = if wanted < most { wanted } else { wanted - 16 };
    gateway.wait_for_metrics("all places taken", |metrics| (least..=wanted).contains(&open(metrics)));
    for _ in 0..100 {
        Client::expect_reset(source(SOURCES - 1), address);
    }
    let refused = gateway.scrape().get("gateway_connections_refused_total", &[("cause", "source")]);
    assert_eq!(refused, Some(100.0));
    for n in 0..100 {
        assert_eq!(good.get("/").text(), "served", "request {n}");
        assert_eq!(gateway.get("/").text(), "served", "request {n}");
    }
    let grown = gateway.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < (SOURCES * OF_EACH * 4) as u64, "{grown} KiB for 10,000 connections");
}
