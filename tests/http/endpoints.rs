//! Several endpoints behind one route: who gets which request, over how many connections, until when.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufReader, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gateway_tests::client::get;
use gateway_tests::gateway::complete;
use gateway_tests::metrics::Metrics;
use gateway_tests::upstream::ok;
use gateway_tests::{Crowd, Fate, Gate, Gateway, Message, Upstream};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Backends that answer with their number.
fn numbered(count: usize) -> Vec<Upstream> {
    (0..count).map(|number| Upstream::answering(ok(&number.to_string()))).collect()
}

fn gateway(backend: Value, upstream: Value) -> Gateway {
    Gateway::start(
        json!({ "routes": [{ "path": "/", "backend": backend }], "workers": 1, "upstream": upstream }),
    )
}

fn urls(upstreams: &[Upstream]) -> Vec<String> {
    upstreams.iter().map(Upstream::url).collect()
}

#[test]
fn in_turns_by_weight() {
    let upstreams = numbered(3);
    let endpoints = upstreams
        .iter()
        .zip([5, 1, 1])
        .map(|(upstream, weight)| json!({ "url": upstream.url(), "weight": weight }));
    let backend = json!({ "endpoints": endpoints.collect::<Vec<_>>(), "balancer": "round_robin" });
    let gateway = gateway(backend, json!({}));
    let mut client = gateway.connect();
    let order: String = (0..14).map(|_| client.get("/").text()).collect();
    assert_eq!(order, "00102000010200");
}

#[test]
fn the_busy_one_is_passed_over_by_default() {
    let (busy, arrived, gate) = Upstream::gated("busy");
    let free = Upstream::answering(ok("free"));
    let gateway = gateway(json!({ "endpoints": [busy.url(), free.url()] }), json!({}));
    // Requests are sent until the one that does not answer has one, and the others have been answered.
    let mut crowd = Vec::new();
    gateway.wait_for_metrics("the busy one has a request", |_| {
        let mut client = gateway.connect();
        client.send(get("/"));
        crowd.push(client);
        arrived.try_recv().is_ok()
    });
    // The last of them may still be on its way, and would make the free one as busy.
    let active = |metrics: &Metrics, of: &Upstream| {
        metrics.get("gateway_upstream_active_requests", &[("upstream", &of.address.to_string())])
    };
    gateway.wait_for_metrics("the free one has none", |m| {
        let answered = m.requests(200, "ok") as usize;
        active(m, &free) == Some(0.0)
            && active(m, &busy).is_some_and(|waiting| answered + waiting as usize == crowd.len())
    });
    let mut client = gateway.connect();
    for _ in 0..50 {
        assert_eq!(client.get("/").text(), "free");
    }
    gate.open();
}

#[test]
fn the_same_key_goes_to_the_same_endpoint() {
    let upstreams = numbered(4);
    let backend = json!({ "endpoints": urls(&upstreams), "balancer": "hash", "hash_key": "header:X-User" });
    let gateway = gateway(backend, json!({}));
    let mut client = gateway.connect();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for user in 0..40 {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-User: {user}\r\n\r\n");
        let first = client.send(&request).response().text();
        for _ in 0..3 {
            assert_eq!(client.send(&request).response().text(), first, "user {user}");
        }
        *places.entry(first).or_default() += 1;
    }
    assert_eq!(places.len(), 4, "{places:?}");
}

#[test]
fn no_more_connections_than_allowed_for_all_workers_together() {
    let upstream = Upstream::ok();
    let route = json!({ "path": "/", "backend": upstream.url() });
    let gateway = Gateway::start(json!({
        "routes": [route], "workers": 4, "upstream": { "max_connections": 3 }, "timeouts": { "connect": "20s" }
    }));
    // As many as may wait and be served at once; each worker has some, and none keeps what others need.
    for _ in 0..20 {
        let mut crowd = Crowd::connect(gateway.address, 6);
        crowd.send(|_| get("/"));
        for fate in crowd.responses().into_values() {
            assert!(matches!(&fate, Fate::Response(response) if response.status() == 200), "{fate:?}");
        }
        let connections = gateway.scrape().get("gateway_upstream_connections", &[]).expect("a sample");
        assert!(connections <= 3.0, "{connections}");
    }
}

#[test]
fn whoever_finds_no_room_is_told_to_come_again() {
    let (upstream, arrived, gate) = Upstream::gated("");
    let route = json!({ "path": "/", "backend": upstream.url() });
    let gateway = Gateway::start(json!({
        "routes": [route], "workers": 1, "upstream": { "max_connections": 1 }, "timeouts": { "connect": "20s" },
        "circuit_breaker": { "failure_threshold": 1 }
    }));
    let mut served: Vec<_> = (0..3).map(|_| gateway.connect()).collect();
    served[0].send(get("/"));
    arrived.recv().expect("it came");
    for client in &mut served[1..] {
        client.send(get("/"));
    }
    gateway.wait_for_metrics("two wait", |m| m.get("gateway_upstream_active_requests", &[]) == Some(3.0));
    let refused = gateway.get("/");
    assert_eq!((refused.status(), refused.field("retry-after")), (503, Some("1")));
    gate.open();
    for client in &mut served {
        assert_eq!(client.response().status(), 200);
    }
    assert_eq!(gateway.scrape().get("gateway_upstream_failures_total", &[]), Some(0.0), "nobody is to blame");
}

#[test]
fn old_connections_are_not_used_again() {
    let upstream = Upstream::ok();
    let gateway = gateway(json!(upstream.url()), json!({ "max_age": "100ms" }));
    let mut client = gateway.connect();
    gateway.wait_for_metrics("a second connection", |_| {
        assert_eq!(client.get("/").status(), 200);
        upstream.connections() >= 2
    });
}

#[test]
fn an_endpoint_that_leaves_finishes_what_it_has_and_keeps_nothing() {
    let (gate, closed) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    let (opened, ends) = (gate.clone(), closed.clone());
    let old = Upstream::start(move |mut conn| {
        while let Some(request) = conn.request() {
            if request.target() == "/slow" {
                opened.wait();
            }
            conn.send(ok("old"));
        }
        ends.fetch_add(1, Ordering::SeqCst);
    });
    let new = Upstream::answering(ok("new"));
    let config =
        |upstream: &Upstream| json!({ "routes": [{ "path": "/", "backend": upstream.url() }], "workers": 1 });
    let gateway = Gateway::start(config(&old));
    let (mut slow, mut quick) = (gateway.connect(), gateway.connect());
    slow.send(get("/slow"));
    gateway.wait_for_metrics("it is under way", |_| !old.requests().is_empty());
    assert_eq!(quick.get("/").text(), "old");
    gateway.replace(config(&new));
    gateway.wait_for_metrics("the idle connection is closed", |_| closed.load(Ordering::SeqCst) == 1);
    assert_eq!(quick.get("/").text(), "new");
    gate.open();
    assert_eq!(slow.response().text(), "old");
    gateway.wait_for_metrics("the other one too", |_| closed.load(Ordering::SeqCst) == 2);
}

#[test]
fn a_name_without_an_address_is_tried_again_and_the_others_serve() {
    let good = Upstream::answering(ok("good"));
    let backend = json!({ "endpoints": ["http://no-such-host.invalid", good.url()] });
    let gateway = gateway(backend, json!({ "resolve_every": "50ms" }));
    for _ in 0..10 {
        assert_eq!(gateway.get("/").text(), "good");
    }
}

/// A name of three addresses, one of which moves: the hosts file is the gateway's own, in a mount namespace.
#[test]
fn every_address_of_a_name_is_an_endpoint_and_one_that_moves_is_followed() {
    let listeners = Listeners::on(["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"]);
    let directory = TempDir::new().expect("there is room for a folder");
    let (hosts, file) = (directory.path().join("hosts"), directory.path().join("gateway.json"));
    let write = |addresses: &[&str]| {
        let lines: String = addresses.iter().map(|address| format!("{address} three.test\n")).collect();
        // In place: the mount is of the file, not of its name.
        fs::write(&hosts, lines).expect("there is room for a file");
    };
    write(&["127.0.0.2", "127.0.0.3", "127.0.0.4"]);
    let backend =
        json!({ "endpoints": [format!("http://three.test:{}", listeners.port)], "balancer": "round_robin" });
    let config = json!({
        "routes": [{ "path": "/", "backend": backend }], "workers": 1,
        "upstream": { "resolve_every": "100ms", "slow_start": "1ms" }
    });
    fs::write(&file, complete(config)).expect("there is room for a file");
    let gateway = Gateway::run(directory, file.clone(), |command| {
        let mut within = Command::new("unshare");
        within.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
        within.arg(&hosts).arg(command.get_program()).arg("--config").arg(&file);
        within.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).env("NO_COLOR", "1");
        *command = within;
    });
    let mut client = gateway.connect();
    let mut seen = || (0..12).map(|_| client.get("/").text()).collect::<BTreeSet<_>>();
    let set =
        |addresses: &[&str]| addresses.iter().map(|address| address.to_string()).collect::<BTreeSet<_>>();
    assert_eq!(seen(), set(&["127.0.0.2", "127.0.0.3", "127.0.0.4"]));
    let one = format!("three.test:{}@127.0.0.2", listeners.port);
    let requests = gateway.scrape().get("gateway_upstream_connects_total", &[("upstream", &one)]);
    assert_eq!(requests, Some(1.0), "each has counters of its own");
    write(&["127.0.0.2", "127.0.0.3", "127.0.0.5"]);
    gateway
        .wait_for_metrics("the one that moved", |_| seen() == set(&["127.0.0.2", "127.0.0.3", "127.0.0.5"]));
    // What stayed kept its connection, and the configuration is the same one.
    let metrics = gateway.scrape();
    assert_eq!(metrics.get("gateway_upstream_connects_total", &[("upstream", &one)]), Some(1.0));
    assert_eq!(metrics.get("gateway_config_generation", &[]), Some(1.0));
    // A name that is gone leaves its last addresses in use.
    write(&[]);
    gateway.log.wait_for("its last addresses stay in use");
    assert_eq!(seen(), set(&["127.0.0.2", "127.0.0.3", "127.0.0.5"]));
}

/// Backends at one port of several addresses; each answers with its own.
pub struct Listeners {
    pub port: u16,
}

impl Listeners {
    pub fn on<const N: usize>(addresses: [&'static str; N]) -> Self {
        // A port that is free on the first may be taken on another.
        let bound = (0..100).find_map(|_| {
            let first = TcpListener::bind((addresses[0], 0)).ok()?;
            let port = first.local_addr().ok()?.port();
            let others = addresses[1..].iter().map(|address| TcpListener::bind((*address, port)).ok());
            Some((port, std::iter::once(Some(first)).chain(others).collect::<Option<Vec<_>>>()?))
        });
        let (port, listeners) = bound.expect("a port is free on all of them");
        for (address, listener) in addresses.into_iter().zip(listeners) {
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    std::thread::spawn(move || {
                        let mut reader = BufReader::new(stream);
                        while let Ok(Some(_)) = Message::read_request(&mut reader) {
                            reader.get_mut().write_all(ok(address).as_bytes()).expect("the gateway reads");
                        }
                    });
                }
            });
        }
        Self { port }
    }
}
