//! How long and how much: heads, idle connections, stalled bodies.

use std::io::Read;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use gateway_tests::client::get;
use gateway_tests::gateway::route_to;
use gateway_tests::upstream::ok;
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

/// An upstream that stops amid its body is given up as a client is that stops amid its own.
#[test]
fn a_response_that_stalls_is_given_up() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
        conn.wait_closed();
    });
    let stalled = |config| {
        let gateway = Gateway::start(config);
        let mut client = gateway.connect();
        let started = Instant::now();
        client.send(get("/"));
        let error = client.try_response("GET").expect_err("the body lacks its end");
        assert!(error.kind() != std::io::ErrorKind::WouldBlock, "{error}");
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(4), "{took:?}");
        gateway.wait_for_metrics("a timeout", |metrics| metrics.requests(200, "timeout") == 1.0);
    };
    let mut config = route_to(&upstream.url());
    config["timeouts"] = json!({ "body_stall": "400ms" });
    stalled(config.clone());
    config["timeouts"] = json!({});
    config["routes"][0]["timeout_seconds"] = json!("400ms");
    stalled(config);
}

/// One that goes on, however slowly, is not.
#[test]
fn a_response_that_moves_is_not_given_up() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
        conn.reader.get_mut().set_read_timeout(Some(Duration::from_millis(200))).expect("it is not zero");
        for _ in 0..10 {
            conn.send("x");
            if conn.wait_closed() {
                return;
            }
        }
    });
    let gateway = with(&upstream, "timeouts", json!({ "body_stall": "1s" }));
    assert_eq!(gateway.get("/").text(), "xxxxxxxxxx");
}

/// The time between two requests begins when the answer has gone out, not when the client is slow to take it.
#[test]
fn a_slow_reader_is_not_idle() {
    const BYTES: usize = 24 << 20;
    let upstream = Upstream::start(|mut conn| {
        while conn.request().is_some() {
            conn.send(ok(&"x".repeat(BYTES)));
        }
    });
    let gateway = with(&upstream, "timeouts", json!({ "idle": "100ms", "body_stall": "10s" }));
    let mut client = gateway.connect();
    client.send(get("/"));
    let head = client.head();
    assert_eq!(head.status(), 200);
    let (mut read, mut piece) = (0, vec![0; 64 * 1024]);
    while gateway.scrape().requests(200, "ok") == 0.0 {
        read += client.reader.read(&mut piece).expect("no reset");
    }
    // The gateway has the whole answer and the client's socket is full. Nothing comes here.
    let (_open, nothing) = mpsc::channel::<()>();
    nothing.recv_timeout(Duration::from_millis(600)).expect_err("nothing is sent");
    while let n @ 1.. = client.reader.read(&mut piece).expect("no reset") {
        read += n;
    }
    assert_eq!(read, BYTES);
}
