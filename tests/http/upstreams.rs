//! Upstreams that fail, hang, close at the wrong moment or answer nonsense.

use std::net::TcpListener;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use gateway_tests::client::get;
use gateway_tests::gateway::route_to;
use gateway_tests::upstream::{nowhere, ok};
use gateway_tests::{Gate, Gateway, PATIENCE, Upstream};
use serde_json::json;

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";

#[test]
fn what_comes_back_for_each_failure() {
    let table: &[(&str, &str, u16)] = &[
        ("nonsense", "220 mail.example ESMTP\r\n\r\n", 502),
        ("other protocol", "SSH-2.0-OpenSSH_9.2\r\n", 502),
        ("nothing", "", 502),
        ("half a head", "HTTP/1.1 200 OK\r\nContent-Le", 502),
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", 502),
        ("length no number", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\na", 502),
        ("status no number", "HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n", 502),
        ("only interim", "HTTP/1.1 100 Continue\r\n\r\n", 502),
    ];
    for &(what, bytes, want) in table {
        let upstream = Upstream::start(move |mut conn| {
            conn.request();
            conn.send(bytes);
        });
        let gateway = Gateway::to(&upstream);
        let mut client = gateway.connect();
        for request in [get("/"), POST.to_owned()] {
            assert_eq!(client.send(request).response().status(), want, "{what}");
        }
        // On a new connection nothing is tried twice.
        assert_eq!(upstream.connections(), 2, "{what}");
    }
}

#[test]
fn a_reset_before_the_response_is_a_502() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.reset();
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    assert_eq!(client.get("/").status(), 502);
    assert_eq!(client.send(POST).response().status(), 502);
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn a_refused_connection_is_a_502_and_is_counted() {
    let gateway = Gateway::start(route_to(&format!("http://{}", nowhere())));
    assert_eq!(gateway.get("/").status(), 502);
    let failures = gateway.scrape().get("gateway_upstream_connect_failures_total", &[]);
    assert_eq!(failures, Some(1.0));
}

#[test]
fn a_name_that_does_not_resolve_is_a_502() {
    let gateway = Gateway::start(route_to("http://no-such-host.invalid:80"));
    assert_eq!(gateway.get("/").status(), 502);
}

#[test]
fn every_address_of_a_name_is_tried() {
    // It listens on 127.0.0.1 alone; where `localhost` is `::1` as well, that one refuses.
    let upstream = Upstream::ok();
    let gateway = Gateway::start(route_to(&format!("http://localhost:{}", upstream.address.port())));
    for _ in 0..3 {
        assert_eq!(gateway.get("/").status(), 200);
    }
}

#[test]
fn an_upstream_that_hangs_is_a_504_in_time() {
    // Accepted by the kernel and never by anybody; answering nothing; stuck amid its head.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let deaf = Upstream::start(|mut conn| {
        conn.request();
        conn.wait_closed();
    });
    let stuck = Upstream::start(|mut conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-");
        conn.wait_closed();
    });
    for backend in [format!("http://{}", silent.local_addr().unwrap()), deaf.url(), stuck.url()] {
        let mut config = route_to(&backend);
        config["routes"][0]["timeout_seconds"] = json!("300ms");
        let gateway = Gateway::start(config);
        let mut client = gateway.connect();
        let started = Instant::now();
        assert_eq!(client.get("/").status(), 504, "{backend}");
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(3), "{took:?}");
        // The client's connection is as good as before.
        assert_eq!(client.get("/").status(), 504);
    }
}

#[test]
fn the_timeout_holds_for_the_body_too() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
        conn.wait_closed();
    });
    let mut config = route_to(&upstream.url());
    config["routes"][0]["timeout_seconds"] = json!("300ms");
    let gateway = Gateway::start(config);
    let mut client = gateway.connect();
    client.send(get("/"));
    let error = client.try_response("GET").expect_err("a whole response");
    assert!(error.kind() != std::io::ErrorKind::WouldBlock, "{error}");
}

#[test]
fn a_body_cut_short_upstream_is_cut_short_downstream() {
    let heads = ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"];
    // Without a length an orderly end is the end; a reset is none.
    let table = [(false, heads[0]), (true, heads[0]), (false, heads[1]), (true, heads[1]), (true, "\r\nabc")];
    for (reset, rest) in table {
        let gate = Gate::default();
        let opened = gate.clone();
        let upstream = Upstream::start(move |mut conn| {
            conn.request();
            conn.send(format!("HTTP/1.1 200 OK\r\n{rest}"));
            // A reset would overtake what is still on its way.
            opened.wait();
            if reset {
                conn.reset();
            }
        });
        let gateway = Gateway::to(&upstream);
        let mut client = gateway.connect();
        client.send(get("/"));
        let head = client.head();
        assert_eq!(head.status(), 200);
        gate.open();
        let error = head.clone().read_body(&mut client.reader).expect_err("the body lacks its end");
        let kind = error.kind();
        use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
        assert!(kind == UnexpectedEof || kind == ConnectionReset, "{kind:?} after {rest:?}, reset: {reset}");
        gateway.wait_for_metrics("an upstream failure", |m| m.requests(200, "upstream_failed") == 1.0);
    }
}

#[test]
fn a_kept_connection_closed_under_a_get_costs_nobody_a_502() {
    // The first connection answers once, then takes the next request and closes without a byte.
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.send(ok("fine"));
        if conn.index == 0 {
            conn.request();
            return;
        }
        while conn.request().is_some() {
            conn.send(ok("again"));
        }
    });
    let gateway = Gateway::single(&upstream);
    let mut client = gateway.connect();
    assert_eq!(client.get("/1").text(), "fine");
    assert_eq!(client.get("/2").status(), 200);
    assert_eq!(client.get("/3").text(), "again");
    let targets: Vec<_> = upstream.requests().iter().map(|request| request.target().to_owned()).collect();
    assert_eq!(targets, ["/1", "/2", "/2", "/3"]);
    assert_eq!(gateway.scrape().get("gateway_upstream_retries_total", &[]), Some(1.0));
}

#[test]
fn it_is_retried_once_only() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        if conn.index == 0 {
            conn.send(ok(""));
            conn.request();
        }
    });
    let gateway = Gateway::single(&upstream);
    let mut client = gateway.connect();
    assert_eq!(client.get("/1").status(), 200);
    assert_eq!(client.get("/2").status(), 502);
    assert_eq!(upstream.requests().len(), 3);
}

#[test]
fn a_post_is_never_sent_twice() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.send(ok(""));
        conn.request();
    });
    let gateway = Gateway::single(&upstream);
    let mut client = gateway.connect();
    assert_eq!(client.get("/").status(), 200);
    assert_eq!(client.send(POST).response().status(), 502);
    let posts = upstream.requests().iter().filter(|request| request.method() == "POST").count();
    assert_eq!(posts, 1);
}

#[test]
fn a_kept_connection_closed_before_is_not_used() {
    // Every connection answers one request and closes, which the upstream's own end has seen done.
    let (done, closed) = mpsc::channel();
    let done = Mutex::new(done);
    let upstream = Upstream::start(move |mut conn| {
        conn.request();
        conn.send(ok(""));
        drop(conn);
        done.lock().unwrap().send(()).unwrap();
    });
    let gateway = Gateway::single(&upstream);
    let mut client = gateway.connect();
    for request in [get("/"), POST.to_owned(), POST.to_owned(), get("/")] {
        assert_eq!(client.send(&request).response().status(), 200, "{request}");
        closed.recv_timeout(PATIENCE).unwrap();
    }
    assert_eq!(gateway.scrape().get("gateway_upstream_retries_total", &[]), Some(0.0));
}

#[test]
fn nonsense_after_a_response_is_nobody_s_answer() {
    let upstream = Upstream::start(|mut conn| {
        while conn.request().is_some() {
            conn.send(format!("{}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", ok("good")));
        }
    });
    let gateway = Gateway::single(&upstream);
    for _ in 0..5 {
        assert_eq!(gateway.get("/").text(), "good");
    }
}
