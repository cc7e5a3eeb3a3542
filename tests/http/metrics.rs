//! The metrics port: what it serves and what it counts.

use gateway_tests::client::get;
use gateway_tests::upstream::ok;
use gateway_tests::{Client, Gateway, Upstream};
use serde_json::json;

#[test]
fn each_page() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    for (target, status, kind, holds) in [
        ("/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", "gateway_connections_open"),
        ("/health", 200, "application/json", "\"ok\""),
        ("/healthz", 200, "text/plain", "ok"),
        ("/readyz", 200, "text/plain", "ready"),
        ("/stats", 200, "application/json", "connections_open"),
        ("/", 404, "text/plain", "/metrics"),
    ] {
        let response = gateway.admin(target);
        assert_eq!((response.status(), response.field("content-type")), (status, Some(kind)), "{target}");
        assert!(response.text().contains(holds), "{target}: {response}");
    }
    let refused = Client::connect(gateway.metrics).send(get("/metrics").replace("GET", "PUT")).response();
    assert_eq!((refused.status(), refused.field("allow")), (405, Some("GET, HEAD")));
}

#[test]
fn requests_are_counted_by_route_status_and_outcome() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            match request.target() {
                "/a/teapot" => conn.send("HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n"),
                _ => conn.send(ok("")),
            }
        }
    });
    let gateway = Gateway::start(json!({ "routes": [
        { "path": "/a", "backend": upstream.url(), "methods": ["GET"] },
        { "path": "/b", "host": "b.example", "backend": upstream.url() },
    ]}));
    let mut client = gateway.connect();
    for request in [
        get("/a"),
        get("/a/x"),
        get("/a/teapot"),
        get("/a").replace("GET", "PUT"),
        get("/b").replace("Host: a", "Host: b.example"),
        get("/b"),
    ] {
        client.send(request).response();
    }
    for (route, status, outcome, want) in [
        ("/a", "200", "ok", 2.0),
        ("/a", "418", "ok", 1.0),
        ("/a", "405", "method_not_allowed", 1.0),
        ("b.example/b", "200", "ok", 1.0),
        ("none", "404", "no_route", 1.0),
    ] {
        let labels = [("route", route), ("status", status), ("outcome", outcome)];
        gateway.wait_for_metrics(route, |m| m.get("gateway_requests_total", &labels) == Some(want));
    }
    let metrics = gateway.scrape();
    let route = [("route", "/a")];
    assert_eq!(metrics.get("gateway_request_duration_seconds_count", &route), Some(4.0), "{metrics}");
    let all = [("route", "/a"), ("le", "+Inf")];
    assert_eq!(metrics.get("gateway_request_duration_seconds_bucket", &all), Some(4.0), "{metrics}");
    let connects = metrics.get("gateway_upstream_connects_total", &[]).expect("a sample");
    let reuses = metrics.get("gateway_upstream_reuses_total", &[]).expect("a sample");
    assert_eq!(connects + reuses, 4.0, "{metrics}");
    let stats = gateway.admin("/stats").json();
    assert_eq!(stats["routes"]["/a"]["requests"], 4);
    assert_eq!(stats["upstreams"][upstream.address.to_string()]["connects"], json!(connects as u64));
}

/// Every line is a comment or `name{labels} number`, each family is announced once.
#[test]
fn the_exposition_is_well_formed() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    gateway.get("/");
    let text = gateway.scrape().to_string();
    let mut types: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    let announced = types.len();
    types.sort_unstable();
    types.dedup();
    assert_eq!(types.len(), announced, "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (sample, value) = line.rsplit_once(' ').expect("a value");
        assert!(sample.starts_with("gateway_") && value.parse::<f64>().is_ok(), "{line}");
    }
}

/// Whoever stays keeps nobody out, and takes no more of the process than so many.
#[test]
fn connections_are_bounded_and_the_oldest_makes_room() {
    const MOST: usize = 64;
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let before = gateway.descriptors();
    let come = |_| {
        let mut client = Client::connect(gateway.metrics);
        assert_eq!(client.get("/healthz").status(), 200);
        client
    };
    let mut clients: Vec<Client> = (0..4 * MOST).map(come).collect();
    assert!(gateway.descriptors() <= before + MOST, "{} before, now {}", before, gateway.descriptors());
    let kept = clients.split_off(3 * MOST);
    clients.iter_mut().for_each(Client::expect_closed);
    kept.into_iter().for_each(|mut client| assert_eq!(client.get("/healthz").status(), 200));
}

#[test]
fn a_connection_that_asks_for_nothing_is_closed() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let [mut silent, mut idle] = [(); 2].map(|()| Client::connect(gateway.metrics));
    assert_eq!(idle.get("/readyz").status(), 200);
    silent.expect_closed();
    idle.expect_closed();
}
