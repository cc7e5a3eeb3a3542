//! The end of a gateway: drained, at once, or killed.

use std::net::TcpStream;
use std::sync::{Mutex, mpsc};

use gateway_tests::client::get;
use gateway_tests::gateway::route_to;
use gateway_tests::upstream::ok;
use gateway_tests::{Client, Gate, Gateway, PATIENCE, Upstream};
use rustix::process::Signal;
use serde_json::json;

/// An upstream that answers when told, and tells when it was asked.
fn gated() -> (Upstream, mpsc::Receiver<()>, Gate) {
    let (came, arrived) = mpsc::channel();
    let came = Mutex::new(came);
    let gate = Gate::default();
    let opened = gate.clone();
    let upstream = Upstream::start(move |mut conn| {
        while conn.request().is_some() {
            let _ = came.lock().expect("no panic while held").send(());
            opened.wait();
            conn.send(ok("late"));
        }
    });
    (upstream, arrived, gate)
}

#[test]
fn sigterm_lets_a_request_under_way_end() {
    for signal in [Signal::TERM, Signal::INT] {
        let (upstream, arrived, gate) = gated();
        let mut gateway = Gateway::to(&upstream);
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
        client.expect_closed();
        assert_eq!(gateway.wait(), Some(0), "{signal:?}");
        assert!(TcpStream::connect(gateway.address).is_err(), "it still listens");
    }
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
    let (upstream, arrived, _gate) = gated();
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

#[test]
fn a_second_signal_ends_a_drain_at_once() {
    let (upstream, arrived, _gate) = gated();
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
