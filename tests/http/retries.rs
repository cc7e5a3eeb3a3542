//! What is sent again, where to, how often, and what it costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gateway_tests::client::get;
use gateway_tests::upstream::ok;
use gateway_tests::{Crowd, Fate, Fault, Gate, Gateway, Restartable, Upstream};
use serde_json::{Value, json};

/// `bad` first, `good` when it is asked again.
fn in_turn(bad: &Upstream, good: &Upstream, retry: Value) -> Gateway {
    let backend = json!({ "endpoints": [bad.url(), good.url()], "balancer": "round_robin" });
    let route = json!({ "path": "/", "backend": backend, "retry": retry });
    Gateway::start(json!({ "routes": [route], "workers": 1 }))
}

#[test]
fn a_body_is_sent_again_whole_to_another_endpoint() {
    let chunked = "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (what, request) in [
        ("a length", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabcdefghi".to_owned()),
        ("chunks", format!("{chunked}3\r\nabc\r\n6\r\ndefghi\r\n0\r\n\r\n")),
        ("trailers", format!("{chunked}9\r\nabcdefghi\r\n0\r\nX-Sum: 7\r\n\r\n")),
    ] {
        let (bad, good) = (Fault::Close.start(), Upstream::ok());
        let gateway = in_turn(&bad, &good, json!({}));
        assert_eq!(gateway.connect().send(&request).response().status(), 200, "{what}");
        for upstream in [&bad, &good] {
            assert_eq!(upstream.last().text(), "abcdefghi", "{what}");
        }
        let trailers = if what == "trailers" { 1 } else { 0 };
        assert_eq!(good.last().trailers.len(), trailers, "{what}");
    }
}

#[test]
fn a_body_that_is_still_coming_goes_on_where_it_was() {
    // The first endpoint fails amid the upload; the rest comes when the second has the beginning.
    let bad = Upstream::start(|mut conn| {
        conn.head();
    });
    let good = Upstream::ok();
    let gateway = in_turn(&bad, &good, json!({}));
    let mut client = gateway.connect();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc");
    let name = good.address.to_string();
    gateway.wait_for_metrics("the second try", |m| {
        m.get("gateway_upstream_active_requests", &[("upstream", &name)]) == Some(1.0)
    });
    assert_eq!(client.send("def").response().status(), 200);
    assert_eq!(good.last().text(), "abcdef");
}

#[test]
fn a_body_beyond_the_cap_is_sent_once() {
    let (bad, good) = (Fault::Close.start(), Upstream::ok());
    let gateway = in_turn(&bad, &good, json!({ "max_body_bytes": 8 }));
    let put = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabcdefghi";
    assert_eq!(gateway.connect().send(put).response().status(), 502);
    assert!(good.requests().is_empty());
}

#[test]
fn each_endpoint_gets_its_own_name_where_the_host_is_not_preserved() {
    let (bad, good) = (Fault::Close.start(), Upstream::ok());
    let backend = json!({ "endpoints": [bad.url(), good.url()], "balancer": "round_robin" });
    let route = json!({ "path": "/", "backend": backend, "preserve_host": false });
    let gateway = Gateway::start(json!({ "routes": [route], "workers": 1 }));
    let put = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(gateway.connect().send(put).response().status(), 200);
    for upstream in [&bad, &good] {
        let (host, own) = (upstream.last().field("host").map(str::to_owned), upstream.address.to_string());
        assert_eq!(host, Some(own));
    }
    assert_eq!(good.last().text(), "abc");
}

#[test]
fn no_more_tries_than_allowed_and_each_elsewhere_first() {
    let bad = [(); 3].map(|()| Fault::Status(503).start());
    let urls: Vec<_> = bad.iter().map(Upstream::url).collect();
    let backend = json!({ "endpoints": urls, "balancer": "round_robin" });
    let route = json!({ "path": "/", "backend": backend, "retry": { "attempts": 4 } });
    let gateway = Gateway::start(json!({ "routes": [route], "workers": 1 }));
    assert_eq!(gateway.get("/").status(), 503);
    let mut counts = bad.each_ref().map(|upstream| upstream.requests().len());
    counts.sort_unstable();
    assert_eq!(counts, [1, 2, 2]);
    let retries = [("reason", "status")];
    assert_eq!(gateway.scrape().get("gateway_upstream_retries_total", &retries), Some(4.0));
}

#[test]
fn the_upstreams_own_word_about_when_to_come_again_is_kept() {
    // One endpoint: the second try comes after the second it asked for; the third does not fit.
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            let seconds = if request.target() == "/long" { 60 } else { 1 };
            conn.send(format!("HTTP/1.1 503 X\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    let route = json!({
        "path": "/", "backend": upstream.url(), "timeout_seconds": 10, "retry": { "attempts": 1 }
    });
    let gateway = Gateway::start(json!({ "routes": [route], "workers": 1 }));
    let started = Instant::now();
    let response = gateway.get("/short");
    assert_eq!((response.status(), response.field("retry-after")), (503, Some("1")));
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(upstream.requests().len(), 2);
    let response = gateway.get("/long");
    assert_eq!((response.status(), response.field("retry-after")), (503, Some("60")));
    assert_eq!(upstream.requests().len(), 3, "the answer is passed on at once");
}

#[test]
fn a_volley_of_failures_is_retried_within_the_budget() {
    // All of 60 requests are under way at the first endpoint before it fails them at once.
    let (came, gate) = (Arc::new(AtomicUsize::new(0)), Gate::default());
    let (arrived, opened) = (came.clone(), gate.clone());
    let first = Upstream::start(move |mut conn| {
        if conn.request().is_some() {
            arrived.fetch_add(1, Ordering::SeqCst);
            opened.wait();
        }
    });
    // The second keeps every retry under way until all have been decided.
    let (second, _, late) = Upstream::gated("");
    let backend = json!({
        "endpoints": [{ "url": first.url(), "weight": 100 }, { "url": second.url() }], "balancer": "round_robin"
    });
    let route = json!({ "path": "/", "backend": backend });
    let gateway = Gateway::start(json!({ "routes": [route], "workers": 2 }));
    let mut crowd = Crowd::connect(gateway.address, 60);
    crowd.send(|_| get("/"));
    gateway.wait_for_metrics("all are under way", |_| {
        came.load(Ordering::SeqCst) + second.requests().len() == 60
    });
    let (direct, failed) = (second.requests().len(), came.load(Ordering::SeqCst));
    gate.open();
    gateway.wait_for_metrics("all are decided", |m| {
        let decided = m.get("gateway_retries_refused_total", &[]).unwrap_or(0.0)
            + m.get("gateway_upstream_retries_total", &[]).unwrap_or(0.0);
        decided as usize == failed
    });
    let retries = gateway.scrape().get("gateway_upstream_retries_total", &[]).expect("a sample") as usize;
    // A fifth of those under way, whose number only falls; three in any case.
    assert!((3..=12).contains(&retries), "{retries}");
    late.open();
    let fates = crowd.responses();
    let served = fates.values().filter(|fate| matches!(fate, Fate::Response(r) if r.status() == 200)).count();
    assert_eq!(served, direct + retries);
    assert_eq!(second.requests().len(), direct + retries);
}

#[test]
fn a_group_of_coalesced_requests_is_retried_once() {
    // The first endpoint fails when all of the group wait for it, the second at once.
    let gate = Gate::default();
    let opened = gate.clone();
    let first = Upstream::start(move |mut conn| {
        conn.request();
        opened.wait();
    });
    let second = Fault::Close.start();
    let backend = json!({ "endpoints": [first.url(), second.url()], "balancer": "round_robin" });
    let route = json!({ "path": "/", "backend": backend, "enable_cache": true });
    let gateway = Gateway::start(json!({ "routes": [route], "workers": 1 }));
    let mut crowd = Crowd::connect(gateway.address, 40);
    crowd.send(|_| get("/"));
    gateway.wait_for_metrics("the group", |m| m.get("gateway_coalesce_waiters", &[]) == Some(40.0));
    gate.open();
    for fate in crowd.responses().into_values() {
        assert!(matches!(&fate, Fate::Response(response) if response.status() == 502), "{fate:?}");
    }
    assert_eq!((first.requests().len(), second.requests().len()), (1, 1));
}

/// Eight clients without a pause, while each of three backends is cut off and comes back.
#[test]
fn a_rolling_restart_fails_no_idempotent_request() {
    const CLIENTS: usize = 8;
    let mut backends = [(); 3].map(|()| Restartable::start());
    let urls: Vec<_> = backends.iter().map(Restartable::url).collect();
    let route = json!({ "path": "/", "backend": { "endpoints": urls }, "retry": { "attempts": 2 } });
    let gateway = Gateway::start(json!({
        "routes": [route], "workers": 2, "upstream": { "retry_minimum": CLIENTS, "slow_start": "100ms" },
        "circuit_breaker": { "timeout_seconds": "200ms", "recovery_seconds": "200ms" }
    }));
    let (done, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = gateway.connect();
                    while !done.load(Ordering::SeqCst) {
                        let response = client.get("/");
                        assert_eq!(response.status(), 200, "{response}");
                        served.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let wait_for_more = |what: &str, more: usize| {
            let goal = served.load(Ordering::SeqCst) + more;
            gateway.wait_for_metrics(what, |_| {
                served.load(Ordering::SeqCst) >= goal || clients.iter().any(|client| client.is_finished())
            });
        };
        wait_for_more("the first requests", 100);
        for (at, backend) in backends.iter_mut().enumerate() {
            backend.kill();
            wait_for_more("requests without it", 300);
            backend.restart();
            let before = backend.served();
            gateway.wait_for_metrics(&format!("backend {at} serves again"), |_| {
                backend.served() > before || clients.iter().any(|client| client.is_finished())
            });
        }
        done.store(true, Ordering::SeqCst);
    });
    let failed = gateway.scrape().get("gateway_upstream_failures_total", &[]);
    assert!(failed.is_some_and(|failed| failed >= 3.0), "each restart was felt: {failed:?}");
}

#[test]
fn a_retry_that_would_be_a_probe_is_admitted_like_one() {
    let good = Upstream::answering(ok("good"));
    let bad = Fault::Close.start();
    let backend = json!({ "endpoints": [bad.url(), good.url()], "balancer": "round_robin" });
    let route = json!({ "path": "/", "backend": backend });
    let gateway = Gateway::start(json!({
        "routes": [route], "workers": 1,
        "circuit_breaker": { "failure_threshold": 1, "timeout_seconds": "100ms", "max_timeout_seconds": "100ms" }
    }));
    let mut client = gateway.connect();
    let name = bad.address.to_string();
    // Probe after probe goes to the bad one, and no client notices.
    gateway.wait_for_metrics("failed probes", |m| {
        assert_eq!(client.get("/").text(), "good");
        let probes = [("upstream", name.as_str()), ("reason", "probe_failed")];
        m.get("gateway_upstream_breaker_changes_total", &probes).is_some_and(|failed| failed >= 3.0)
    });
    // What cannot be sent again is never a probe while there is another.
    let before = bad.requests().len();
    for _ in 0..50 {
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(client.send(post).response().text(), "good");
    }
    assert_eq!(bad.requests().len(), before);
}
