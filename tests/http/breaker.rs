//! The circuit breaker and the endpoints' health, as clients and metrics see them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Instant;

use gateway_tests::client::get;
use gateway_tests::{Fault, Gateway, PATIENCE, Restartable, Upstream};
use serde_json::{Value, json};

/// A backend whose status the test turns, and how many requests it got.
fn switched() -> (Upstream, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(200));
    let now = status.clone();
    let upstream = Upstream::start(move |mut conn| {
        while conn.request().is_some() {
            let status = now.load(Ordering::SeqCst);
            conn.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    (upstream, status)
}

fn guarded(backend: Value, workers: usize, breaker: Value) -> Gateway {
    Gateway::start(json!({
        "routes": [{ "path": "/", "backend": backend }], "workers": workers, "circuit_breaker": breaker
    }))
}

#[test]
fn one_endpoint_alone_opens_refuses_probes_and_serves_again() {
    let (upstream, status) = switched();
    let gateway = guarded(
        json!(upstream.url()),
        1,
        json!({
            "failure_threshold": 4, "success_threshold": 2, "half_open_requests": 1,
            "timeout_seconds": "300ms", "max_timeout_seconds": "300ms", "recovery_seconds": "300ms"
        }),
    );
    let mut client = gateway.connect();
    assert_eq!(client.get("/").status(), 200);
    status.store(500, Ordering::SeqCst);
    for _ in 0..4 {
        assert_eq!(client.get("/").status(), 500);
    }
    let refused = client.get("/");
    assert_eq!((refused.status(), refused.field("retry-after")), (503, Some("1")));
    assert_eq!(refused.json()["title"], "Upstream unavailable");
    let reached = upstream.requests().len();
    assert_eq!(reached, 5, "a refusal reaches nobody");
    gateway.wait_for_metrics("refusals", |m| m.requests(503, "no_upstream") == 1.0);

    // It fails its probes for as long as it is ill; each one is one request.
    let changed = |reason: &str| {
        let metrics = gateway.scrape();
        metrics.get("gateway_upstream_breaker_changes_total", &[("reason", reason)]).unwrap_or(0.0)
    };
    let mut probes = 0;
    let started = Instant::now();
    while probes < 3 {
        match client.get("/").status() {
            500 => probes += 1,
            status => assert_eq!(status, 503),
        }
        assert!(started.elapsed() < PATIENCE);
    }
    assert_eq!((changed("probe_failed"), upstream.requests().len()), (3.0, reached + 3));

    // Well again: the next probe is a success, a second one begins the ramp, and then all are served.
    status.store(200, Ordering::SeqCst);
    gateway.wait_for_metrics("it is closed again", |m| {
        assert!(matches!(client.get("/").status(), 200 | 503));
        m.get("gateway_upstream_breaker_state", &[("state", "closed")]) == Some(1.0)
    });
    assert_eq!((changed("probe_failed"), changed("probes_succeeded"), changed("ramped")), (3.0, 1.0, 1.0));
    for _ in 0..20 {
        assert_eq!(client.get("/").status(), 200);
    }
}

#[test]
fn it_is_one_for_the_process_however_many_workers() {
    let upstream = Fault::Status(500).start();
    let gateway = guarded(json!(upstream.url()), 4, json!({ "failure_threshold": 10 }));
    // Every request on a connection of its own, so that all workers have some.
    let statuses: Vec<_> = (0..40).map(|_| gateway.get("/").status()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 500).count(), 10);
    assert_eq!(upstream.requests().len(), 10);
}

#[test]
fn a_part_of_failures_opens_it_and_what_the_client_did_does_not() {
    let (upstream, status) = switched();
    let breaker = json!({ "failure_threshold": 1000, "failure_ratio": 0.5, "minimum_requests": 10, "window_seconds": "1h" });
    let gateway = guarded(json!(upstream.url()), 1, breaker);
    let mut client = gateway.connect();
    for (answer, times) in [(404, 50), (200, 10), (500, 9)] {
        status.store(answer, Ordering::SeqCst);
        for _ in 0..times {
            assert_eq!(client.get("/").status(), answer);
        }
    }
    assert_eq!(client.get("/").status(), 500, "the tenth of twenty");
    assert_eq!(client.get("/").status(), 503);
    let reason = [("reason", "failure_ratio")];
    assert_eq!(gateway.scrape().get("gateway_upstream_breaker_changes_total", &reason), Some(1.0));
}

#[test]
fn too_many_requests_and_slow_answers_count_for_the_part_alone() {
    let slow = Fault::Delay(std::time::Duration::from_millis(500)).start();
    let busy = Fault::Status(429).start();
    for (upstream, answer) in [(&slow, 200), (&busy, 429)] {
        let breaker = json!({
            "failure_threshold": 1, "minimum_requests": 4, "window_seconds": "1h", "slow_call_seconds": "300ms"
        });
        let gateway = guarded(json!(upstream.url()), 1, breaker);
        let mut client = gateway.connect();
        for _ in 0..4 {
            assert_eq!(client.get("/").status(), answer);
        }
        assert_eq!(client.get("/").status(), 503);
        assert_eq!(gateway.scrape().get("gateway_upstream_score", &[]), Some(1.0));
    }
}

#[test]
fn the_score_weighs_before_the_breaker_trips() {
    let (upstream, status) = switched();
    let gateway =
        guarded(json!(upstream.url()), 1, json!({ "failure_threshold": 1000, "health_decay": 0.5 }));
    status.store(500, Ordering::SeqCst);
    let mut client = gateway.connect();
    (0..10).for_each(|_| drop(client.get("/")));
    // Half of it goes with each failure; a second of time gives half of the rest back.
    let score = gateway.scrape().get("gateway_upstream_score", &[]).expect("a sample");
    assert!(score < 0.9, "{score}");
    gateway.wait_for_metrics("time mends it", |m| m.get("gateway_upstream_score", &[]) == Some(1.0));
}

#[test]
fn without_the_section_or_switched_off_nothing_opens() {
    let upstream = Fault::Status(500).start();
    let mut config = json!({ "routes": [{ "path": "/", "backend": upstream.url() }] });
    for breaker in [None, Some(json!({ "enabled": false, "failure_threshold": 1 }))] {
        if let Some(breaker) = breaker {
            config["circuit_breaker"] = breaker;
        }
        let gateway = Gateway::start(config.clone());
        let mut client = gateway.connect();
        for _ in 0..30 {
            assert_eq!(client.get("/").status(), 500);
        }
    }
}

#[test]
fn a_reload_keeps_the_state_and_takes_new_rules() {
    let upstream = Fault::Status(500).start();
    let config = |threshold: u32| {
        json!({
            "routes": [{ "path": "/", "backend": upstream.url() }],
            "circuit_breaker": { "failure_threshold": threshold }
        })
    };
    let gateway = Gateway::start(config(3));
    let mut client = gateway.connect();
    let reload = |threshold: u32, generation: f64| {
        gateway.replace(config(threshold));
        gateway.wait_for_metrics("a reload", |m| m.get("gateway_config_generation", &[]) == Some(generation));
    };
    (0..2).for_each(|_| assert_eq!(client.get("/").status(), 500));
    reload(4, 2.0);
    (0..2).for_each(|_| assert_eq!(client.get("/").status(), 500));
    assert_eq!(client.get("/").status(), 503, "two failures before, two after");
    reload(5, 3.0);
    assert_eq!(client.get("/").status(), 503, "open is open");
    assert_eq!(upstream.requests().len(), 4);
}

/// All backends go and come back: while they are away hardly anybody asks them, and the first probe
/// afterwards brings the service back.
#[test]
fn all_down_and_back() {
    let mut backends = [(); 3].map(|()| Restartable::start());
    let urls: Vec<_> = backends.iter().map(Restartable::url).collect();
    let gateway = guarded(
        json!({ "endpoints": urls }),
        2,
        json!({
            "failure_threshold": 3, "success_threshold": 1, "timeout_seconds": 1, "max_timeout_seconds": 1,
            "recovery_seconds": "100ms", "half_open_requests": 1
        }),
    );
    let mut client = gateway.connect();
    assert_eq!(client.get("/").status(), 200);
    backends.iter_mut().for_each(Restartable::kill);

    let asked = AtomicUsize::new(0);
    let ask = |client: &mut gateway_tests::Client| {
        asked.fetch_add(1, Ordering::SeqCst);
        client.send(get("/")).response()
    };
    let total = |name: &str, labels: &[(&str, &str)]| gateway.scrape().get(name, labels).unwrap_or(0.0);
    while total("gateway_upstream_breaker_state", &[("state", "open")]) < 3.0 {
        assert!(matches!(ask(&mut client).status(), 502 | 503));
        assert!(asked.load(Ordering::SeqCst) < 1_000, "ten failures open three breakers");
    }
    // A try for each request that was let through, and a retry for a part of these.
    let tries = total("gateway_upstream_connect_failures_total", &[]);
    let retries = total("gateway_upstream_retries_total", &[]);
    assert!(tries <= asked.load(Ordering::SeqCst) as f64 + retries, "{tries} tries, {retries} retries");
    // Three failures open each, and none is admitted after that: whoever asks is refused at once.
    assert_eq!(tries, 9.0);
    let refused = ask(&mut client);
    let wait: u64 = refused.field("retry-after").expect("it says when").parse().expect("seconds");
    assert!(refused.status() == 503 && (1..=2).contains(&wait), "{refused}");

    backends.iter_mut().for_each(Restartable::restart);
    let failed = total("gateway_upstream_breaker_changes_total", &[("reason", "probe_failed")]);
    gateway.wait_for_metrics("the service is back", |_| ask(&mut client).status() == 200);
    gateway.wait_for_metrics("all are closed again", |m| {
        assert!(matches!(ask(&mut client).status(), 200 | 503));
        m.get("gateway_upstream_breaker_state", &[("state", "closed")]) == Some(3.0)
    });
    // No probe was lost on the way: each breaker's first one after the return was good.
    assert_eq!(total("gateway_upstream_breaker_changes_total", &[("reason", "probe_failed")]), failed);
}
