//! The end of a gateway: drained, at once, or killed.

use std::io::Read;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};

use gateway_tests::client::get;
use gateway_tests::gateway::route_to;
use gateway_tests::upstream::ok;
use gateway_tests::{Client, Gate, Gateway, PATIENCE, Upstream};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn sigterm_lets_a_request_under_way_end() {
    for signal in [Signal::TERM, Signal::INT] {
        let (upstream, arrived, gate) = Upstream::gated("late");
        let mut gateway = Gateway::single(&upstream);
        let mut idle = gateway.connect();
        assert_eq!(idle.send("GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n").response().status(), 400);
        let mut idle = gateway.connect();
        let mut client = gateway.connect();
        client.send(get("/"));
        arrived.recv_timeout(PATIENCE).unwrap();
        // Kept alive before the end.
        let mut admin = Client::connect(gateway.metrics);
        assert_eq!(admin.get("/readyz").status(), 200);
        gateway.signal(signal);
        gateway.log.wait_for("draining");
        idle.expect_closed();
        let ready = admin.get("/readyz");
        assert_eq!((ready.status(), ready.text().as_str()), (503, "draining\n"));
        assert_eq!(admin.get("/health").json()["status"], "draining");
        gate.open();
        let response = client.response();
        assert_eq!((response.status(), response.text().as_str()), (200, "late"));
        assert!(response.closes(), "{response}");
        assert_eq!(client.rest().expect("an orderly end"), b"");
        assert_eq!(gateway.wait(), Some(0), "{signal:?}");
        assert!(TcpStream::connect(gateway.address).is_err(), "it still listens");
    }
}

/// Whoever had connected and asked before the signal is served, also from the accept queue.
#[test]
fn sigterm_serves_what_waits_in_the_accept_queue() {
    const CLIENTS: usize = 1_000;
    let upstream = Upstream::answering(ok("served"));
    let mut config = route_to(&upstream.url());
    config["workers"] = json!(1);
    config["connections"] = json!({ "max_per_source": 2 * CLIENTS });
    let mut gateway = Gateway::start(config);
    let mut kept: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
    for client in &mut kept {
        assert_eq!(client.get("/").text(), "served");
    }
    // It stands still while all of this comes to its sockets.
    gateway.signal(Signal::STOP);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| gateway.connect()).collect();
    for client in clients.iter_mut().chain(&mut kept) {
        client.send(get("/"));
    }
    gateway.signal(Signal::TERM);
    gateway.signal(Signal::CONT);
    for (n, client) in clients.iter_mut().chain(&mut kept).enumerate() {
        let response = client.try_response("GET").unwrap_or_else(|error| panic!("client {n}: {error}"));
        assert_eq!((response.status(), response.text().as_str()), (200, "served"), "client {n}");
    }
    for client in clients.iter_mut().chain(&mut kept) {
        client.expect_closed();
    }
    assert_eq!(gateway.wait(), Some(0));
}

/// Clients that go on asking, on kept connections and on new ones, while the signal comes: whoever gets a connection
/// gets its answer, and every connection ends with an answer that says so, or in order.
#[test]
fn sigterm_under_load_resets_nobody() {
    const KEPT: usize = 16;
    const CONNECTING: usize = 16;
    const LONG: usize = 16;
    let gate = Gate::default();
    let opened = gate.clone();
    let upstream = Upstream::start(move |mut conn| {
        while let Some(request) = conn.request() {
            if request.target() == "/long" {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nlong");
                opened.wait();
                conn.send("long");
            } else {
                conn.send(ok("served"));
            }
        }
    });
    let mut gateway = Gateway::to(&upstream);
    let mut long: Vec<_> = (0..LONG).map(|_| gateway.connect()).collect();
    for client in &mut long {
        client.send(get("/long"));
        assert_eq!(client.head().status(), 200);
    }
    let (address, connects) = (gateway.address, AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let kept: Vec<_> = (0..KEPT)
            .map(|_| {
                scope.spawn(move || {
                    let mut client = Client::connect(address);
                    let mut served = 0;
                    loop {
                        let response = client.get("/");
                        assert_eq!((response.status(), response.text().as_str()), (200, "served"));
                        served += 1;
                        if response.closes() {
                            assert_eq!(client.rest().expect("an orderly end"), b"");
                            return served;
                        }
                    }
                })
            })
            .collect();
        let connecting: Vec<_> = (0..CONNECTING)
            .map(|_| {
                let connects = &connects;
                scope.spawn(move || {
                    // Until nobody listens any more.
                    while let Ok(mut client) = Client::try_connect(address) {
                        connects.fetch_add(1, Ordering::SeqCst);
                        let response = client.get("/");
                        assert_eq!((response.status(), response.text().as_str()), (200, "served"));
                    }
                })
            })
            .collect();
        while connects.load(Ordering::SeqCst) < 1_000 {
            gateway.scrape();
        }
        gateway.signal(Signal::TERM);
        gateway.log.wait_for("draining");
        assert_eq!(gateway.scrape().get("gateway_draining", &[]), Some(1.0));
        let served: usize = kept.into_iter().map(|client| client.join().expect("all were served")).sum();
        connecting.into_iter().for_each(|client| client.join().expect("all were served"));
        assert!(served >= KEPT);
    });
    // Nobody new, and those who were being answered still are.
    assert!(gateway.is_running());
    gate.open();
    for client in &mut long {
        let mut rest = [0; 8];
        client.reader.read_exact(&mut rest).expect("the rest of the answer");
        assert_eq!(&rest, b"longlong");
        assert_eq!(client.rest().expect("an orderly end"), b"");
    }
    assert_eq!(gateway.wait(), Some(0));
}

/// A request that comes when the drain has begun is answered, on a connection that was idle and on a new one.
#[test]
fn who_asks_at_the_last_moment_is_served() {
    let upstream = Upstream::answering(ok("served"));
    let mut gateway = Gateway::single(&upstream);
    let (mut idle, mut new) = (gateway.connect(), gateway.connect());
    assert_eq!(idle.get("/").text(), "served");
    gateway.wait_for_metrics("both accepted", |metrics| {
        metrics.get("gateway_connections_accepted_total", &[]) == Some(2.0)
    });
    gateway.signal(Signal::TERM);
    gateway.log.wait_for("draining");
    for client in [&mut idle, &mut new] {
        // Before or after the worker has heard of it.
        loop {
            let response = client.get("/");
            assert_eq!((response.status(), response.text().as_str()), (200, "served"));
            if response.closes() {
                break;
            }
        }
        assert_eq!(client.rest().expect("an orderly end"), b"");
    }
    assert_eq!(gateway.wait(), Some(0));
}

/// Who has sent nothing is told so by an orderly end, not by a reset.
#[test]
fn sigterm_closes_what_has_sent_nothing() {
    let upstream = Upstream::ok();
    let mut gateway = Gateway::to(&upstream);
    let mut silent: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
    gateway.wait_for_metrics("all accepted", |metrics| {
        metrics.get("gateway_connections_accepted_total", &[]) == Some(8.0)
    });
    gateway.signal(Signal::TERM);
    for client in &mut silent {
        assert_eq!(client.rest().expect("an orderly end"), b"");
    }
    assert_eq!(gateway.wait(), Some(0));
}

#[test]
fn an_idle_gateway_ends_at_once() {
    let upstream = Upstream::ok();
    let mut gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    assert_eq!(client.get("/").status(), 200);
    gateway.signal(Signal::TERM);
    client.expect_closed();
    assert_eq!(gateway.wait(), Some(0));
}

#[test]
fn a_drain_has_an_end() {
    let (upstream, arrived, _gate) = Upstream::gated("late");
    let mut config = route_to(&upstream.url());
    config["timeouts"] = json!({ "drain": "300ms" });
    let mut gateway = Gateway::start(config);
    let mut client = gateway.connect();
    client.send(get("/"));
    arrived.recv_timeout(PATIENCE).unwrap();
    gateway.signal(Signal::TERM);
    gateway.log.wait_for("drain timeout passed");
    assert_eq!(gateway.wait(), Some(0));
    assert!(client.try_response("GET").is_err());
}

/// What an operator watches: how long it has gone on, how long it may, and what it waits for.
#[test]
fn a_drain_shows_how_far_it_is() {
    const LONGEST: f64 = 600.0;
    let (upstream, arrived, gate) = Upstream::gated("late");
    let mut config = route_to(&upstream.url());
    config["timeouts"] = json!({ "drain": "600s" });
    let mut gateway = Gateway::start(config);
    let mut clients: Vec<_> = (0..3).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(get("/"));
        arrived.recv_timeout(PATIENCE).unwrap();
    }
    let gauges = ["gateway_drain_elapsed_seconds", "gateway_drain_left_seconds"];
    assert_eq!(gauges.map(|name| gateway.scrape().get(name, &[])), [None; 2]);
    let stats = gateway.admin("/stats").json();
    assert_eq!((&stats["drain"], &stats["requests_active"]), (&json!(null), &json!(3)));

    gateway.signal(Signal::TERM);
    gateway.log.wait_for("draining");
    let mut before = 0.0;
    for _ in 0..3 {
        let metrics = gateway.scrape();
        let [elapsed, left] = gauges.map(|name| metrics.get(name, &[]).expect("it drains"));
        assert!(elapsed > before && (elapsed + left - LONGEST).abs() < 1e-6, "{elapsed} {left}");
        before = elapsed;
    }
    let stats = gateway.admin("/stats").json();
    let (open, active) = (&stats["connections_open"], &stats["requests_active"]);
    assert_eq!((open, active), (&json!(3), &json!(3)));
    let [elapsed, left] =
        ["elapsed_seconds", "left_seconds"].map(|key| stats["drain"][key].as_f64().expect("it drains"));
    assert!(elapsed > before && (elapsed + left - LONGEST).abs() < 1e-6, "{stats}");

    // Signalled again, it says what it cuts off.
    gateway.signal(Signal::TERM);
    let said = gateway.log.wait_for("a second signal");
    assert!(said.contains("connections=3"), "{said}");
    assert_eq!(gateway.wait(), Some(0));
    gate.open();
}

#[test]
fn a_second_signal_ends_a_drain_at_once() {
    let (upstream, arrived, _gate) = Upstream::gated("late");
    let mut gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send(get("/"));
    arrived.recv_timeout(PATIENCE).unwrap();
    gateway.signal(Signal::TERM);
    gateway.log.wait_for("draining");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
}

#[test]
fn after_sigkill_it_starts_again_on_the_same_ports() {
    let upstream = Upstream::answering(ok("again"));
    let mut gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    assert_eq!(client.get("/").text(), "again");
    let (address, metrics) = (gateway.address, gateway.metrics);
    gateway.signal(Signal::KILL);
    assert_eq!(gateway.wait(), None);
    let mut config = route_to(&upstream.url());
    config["listen_addr"] = json!(address.to_string());
    config["metrics_addr"] = json!(metrics.to_string());
    let gateway = Gateway::start(config);
    assert_eq!((gateway.address, gateway.metrics), (address, metrics));
    assert_eq!(gateway.get("/").text(), "again");
}
