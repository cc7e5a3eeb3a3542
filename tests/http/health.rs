//! Active health checks, and what they decide.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use gateway_tests::upstream::ok;
use gateway_tests::{Fault, Gateway, Restartable, Upstream};
use serde_json::{Value, json};

/// Answers checks with a status that the test turns, everything else with `body`.
fn checked(body: &'static str) -> (Upstream, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(200));
    let now = status.clone();
    let upstream = Upstream::start(move |mut conn| {
        while let Some(request) = conn.request() {
            match request.target() {
                "/up?now" => {
                    let status = now.load(Ordering::SeqCst);
                    conn.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"));
                }
                _ => conn.send(ok(body)),
            }
        }
    });
    (upstream, status)
}

fn gateway(endpoints: &[&Upstream], check: Value) -> Gateway {
    let urls: Vec<_> = endpoints.iter().map(|upstream| upstream.url()).collect();
    let route = json!({ "path": "/", "backend": { "endpoints": urls }, "health_check": check });
    Gateway::start(json!({ "routes": [route], "workers": 1, "upstream": { "slow_start": "100ms" } }))
}

fn healthy(gateway: &Gateway, upstream: &Upstream, want: f64) {
    let name = upstream.address.to_string();
    gateway.wait_for_metrics(&format!("{name} is healthy: {want}"), |m| {
        m.get("gateway_upstream_healthy", &[("upstream", &name)]) == Some(want)
    });
}

#[test]
fn an_endpoint_that_fails_its_checks_gets_nothing_until_it_passes_them() {
    let ((a, a_status), (b, _)) = (checked("a"), checked("b"));
    let check =
        json!({ "path": "/up?now", "interval": "50ms", "failures": 2, "successes": 2, "statuses": [200] });
    let gateway = gateway(&[&a, &b], check);
    let mut client = gateway.connect();
    let mut bodies = |requests: usize| {
        let mut bodies: Vec<_> = (0..requests).map(|_| client.get("/").text()).collect();
        bodies.sort();
        bodies.dedup();
        bodies
    };
    assert_eq!(bodies(100), ["a", "b"]);
    // Below 500, and still not what is asked for.
    a_status.store(204, Ordering::SeqCst);
    healthy(&gateway, &a, 0.0);
    // What was found is put in force at the next tick of the clock.
    gateway.wait_for_metrics("only b is asked", |_| bodies(50) == ["b"]);
    a_status.store(200, Ordering::SeqCst);
    healthy(&gateway, &a, 1.0);
    gateway.wait_for_metrics("both are asked", |_| bodies(50) == ["a", "b"]);
    let failed = [("upstream", a.address.to_string())];
    let failed = gateway.scrape().get("gateway_upstream_failed_checks_total", &[(failed[0].0, &failed[0].1)]);
    assert!(failed.is_some_and(|failed| failed >= 2.0), "{failed:?}");
    let request = a.requests().into_iter().find(|request| request.target() == "/up?now").expect("a check");
    assert_eq!(request.field("host"), Some(&*a.address.to_string()));
}

#[test]
fn one_line_is_enough_and_anything_below_500_is_well() {
    for (fault, want) in [
        (Fault::Status(404), 1.0),
        (Fault::Status(503), 0.0),
        (Fault::Silent, 0.0),
        (Fault::Garbage, 0.0),
        (Fault::Close, 0.0),
        (Fault::AcceptAndHang, 0.0),
    ] {
        let upstream = fault.start();
        let check = json!({ "interval": "100ms", "failures": 1, "successes": 1 });
        let gateway = gateway(&[&upstream], check);
        gateway.wait_for_metrics("a check", |_| upstream.connections() >= 2);
        healthy(&gateway, &upstream, want);
    }
    // `true` alone: the first check comes at once.
    let upstream = Upstream::ok();
    let gateway = gateway(&[&upstream], json!(true));
    gateway.wait_for_metrics("a check", |_| !upstream.requests().is_empty());
    let check = upstream.last();
    assert_eq!((check.method(), check.target()), ("GET", "/"));
}

#[test]
fn the_last_endpoint_is_asked_however_its_checks_go() {
    let (upstream, status) = checked("here");
    status.store(500, Ordering::SeqCst);
    let check = json!({ "path": "/up?now", "interval": "50ms", "failures": 1 });
    let gateway = gateway(&[&upstream], check);
    healthy(&gateway, &upstream, 0.0);
    assert_eq!(gateway.get("/").text(), "here");
    assert_eq!(gateway.admin("/stats").json()["upstreams"][upstream.address.to_string()]["healthy"], false);
}

#[test]
fn a_reload_ends_checks_that_are_configured_no_more() {
    let (upstream, status) = checked("here");
    status.store(500, Ordering::SeqCst);
    let config = |check: Value| json!({ "routes": [{ "path": "/", "backend": upstream.url(), "health_check": check }] });
    let gateway = Gateway::start(config(json!({ "path": "/up?now", "interval": "50ms", "failures": 1 })));
    healthy(&gateway, &upstream, 0.0);
    gateway.replace(config(json!(false)));
    gateway.wait_for_metrics("a reload", |m| m.get("gateway_config_generation", &[]) == Some(2.0));
    healthy(&gateway, &upstream, 1.0);
    gateway.get("/");
    let checks = || upstream.requests().iter().filter(|request| request.target() == "/up?now").count();
    // One may have been under way.
    let before = checks();
    for _ in 0..20 {
        gateway.get("/");
    }
    assert!(checks() <= before + 1);
}

#[test]
fn backends_that_come_back_are_found_by_their_checks() {
    let mut backend = Restartable::start();
    let other = Upstream::answering(ok("other"));
    let route = json!({
        "path": "/", "backend": { "endpoints": [backend.url(), other.url()] },
        "health_check": { "interval": "50ms", "failures": 1, "successes": 1 }
    });
    let gateway = Gateway::start(json!({ "routes": [route], "upstream": { "slow_start": "50ms" } }));
    let name = backend.address.to_string();
    for _ in 0..2 {
        backend.kill();
        let is = |want: f64| {
            gateway.wait_for_metrics(&format!("it is {want}"), |m| {
                m.get("gateway_upstream_healthy", &[("upstream", &name)]) == Some(want)
            });
        };
        is(0.0);
        backend.restart();
        is(1.0);
        gateway.wait_for_metrics("it serves", |_| gateway.get("/").text() == name);
    }
}
