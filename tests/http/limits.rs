//! How long and how much: heads, idle connections, stalled bodies.

use std::time::{Duration, Instant};

use gateway_tests::client::get;
use gateway_tests::gateway::route_to;
use gateway_tests::{Client, Gateway, Upstream};
use serde_json::{Value, json};

fn with(upstream: &Upstream, key: &str, value: Value) -> Gateway {
    let mut config = route_to(&upstream.url());
    config[key] = value;
    Gateway::start(config)
}

/// The gateway ends the connection no earlier than `after`, and not much later.
#[track_caller]
fn expect_end(client: &mut Client, after: Duration, what: &str) {
    let started = Instant::now();
    let rest = client.rest().unwrap_or_else(|error| panic!("{what}: {error}"));
    let took = started.elapsed();
    assert!(
        rest.is_empty() || rest.starts_with(b"HTTP/1.1 408 "),
        "{what}: {}",
        String::from_utf8_lossy(&rest)
    );
    // What was sent may have been there a little before the clock was read here.
    let early = after - Duration::from_millis(100);
    assert!(took >= early && took < after + Duration::from_secs(3), "{what}: {took:?}");
}

#[test]
fn a_head_must_come_in_time() {
    let upstream = Upstream::ok();
    let gateway = with(&upstream, "timeouts", json!({ "header_read": "400ms" }));
    let after = Duration::from_millis(400);
    for (what, begun) in
        [("nothing", ""), ("a start line", "GET / HTTP/1.1\r\n"), ("half", "GET / HTTP/1.1\r\nHost:")]
    {
        let mut client = gateway.connect();
        client.send(begun);
        expect_end(&mut client, after, what);
    }
    // The second request of a connection has the same time, however long it was idle before.
    let mut client = gateway.connect();
    assert_eq!(client.get("/").status(), 200);
    client.send("GET / HT");
    expect_end(&mut client, after, "half of a second head");
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn an_idle_connection_is_closed_in_time() {
    let upstream = Upstream::ok();
    let gateway = with(&upstream, "timeouts", json!({ "idle": "400ms" }));
    let mut client = gateway.connect();
    assert_eq!(client.get("/").status(), 200);
    assert_eq!(client.get("/").status(), 200);
    expect_end(&mut client, Duration::from_millis(400), "idle");
}

#[test]
fn an_idle_upstream_connection_is_closed_in_time() {
    let upstream = Upstream::ok();
    let gateway = with(&upstream, "timeouts", json!({ "upstream_idle": "300ms" }));
    assert_eq!(gateway.get("/").status(), 200);
    gateway.wait_for_metrics("no idle connection", |metrics| {
        metrics.get("gateway_upstream_idle_connections", &[]) == Some(0.0)
    });
}

#[test]
fn an_upload_that_stalls_is_given_up() {
    let upstream = Upstream::ok();
    let gateway = with(&upstream, "timeouts", json!({ "body_stall": "400ms" }));
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
    let started = Instant::now();
    // An answer or none, but an end.
    let _ = client.rest().expect("an end");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert!(upstream.requests().is_empty());
}

#[test]
fn a_download_that_stalls_is_given_up() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
        conn.send_until_stalled(100_000_000, Duration::from_secs(10));
    });
    let gateway = with(&upstream, "timeouts", json!({ "body_stall": "400ms" }));
    let mut client = gateway.connect();
    client.send(get("/"));
    gateway.wait_for_metrics("the client given up", |metrics| {
        metrics.get("gateway_connections_open", &[]) == Some(0.0)
            && metrics.requests(200, "client_abort") == 1.0
    });
}

#[test]
fn a_head_is_taken_up_to_its_limit() {
    let upstream = Upstream::ok();
    let gateway = with(&upstream, "head", json!({ "max_bytes": 8192, "max_headers": 20 }));
    let fields = |count: usize| {
        let fields: String = (0..count).map(|n| format!("X-{n}: 1\r\n")).collect();
        get("/").replace("\r\n\r\n", &format!("\r\n{fields}\r\n"))
    };
    let long = |bytes: usize| fields(1).replace(": 1\r\n", &format!(": {}\r\n", "x".repeat(bytes)));
    for (what, request, want) in [
        ("all fields", fields(19), 200),
        ("a field too many", fields(20), 431),
        ("almost all bytes", long(8000), 200),
        ("a few bytes too many", long(8300), 431),
        ("far too many bytes", long(200_000), 431),
    ] {
        let mut client = gateway.connect();
        let _ = client.try_send(request);
        assert_eq!(client.response().status(), want, "{what}");
    }
}
