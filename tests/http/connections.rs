//! A client's connection over its life: several requests, interim answers, ends of either kind.

use gateway_tests::client::get;
use gateway_tests::upstream::ok;
use gateway_tests::{Gate, Gateway, PATIENCE, Upstream};
use serde_json::json;
use std::io::Read;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

/// Answers each request with its target.
fn mirror() -> Upstream {
    Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            conn.send(ok(request.target()));
        }
    })
}

#[test]
fn one_connection_serves_many_requests_over_one_upstream_connection() {
    let upstream = mirror();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    for n in 0..100 {
        assert_eq!(client.get(&format!("/{n}")).text(), format!("/{n}"));
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = mirror();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    let post = "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    client.send(format!("{}{post}{}", get("/1"), get("/3")));
    for want in ["/1", "/2", "/3"] {
        assert_eq!(client.response().text(), want);
    }
}

#[test]
fn pipelined_requests_are_answered_after_the_client_s_end() {
    let upstream = mirror();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send(format!("{}{}{}", get("/4"), get("/5"), get("/6"))).half_close();
    for want in ["/4", "/5", "/6"] {
        assert_eq!(client.response().text(), want);
    }
    client.expect_closed();
}

#[test]
fn empty_lines_before_a_request_are_skipped() {
    let upstream = mirror();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    assert_eq!(client.send(format!("\r\n{}", get("/1"))).response().text(), "/1");
    assert_eq!(client.send(format!("\r\n\r\n{}", get("/2"))).response().text(), "/2");
}

#[test]
fn a_head_may_come_byte_by_byte() {
    let upstream = mirror();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    for byte in get("/slow").bytes() {
        client.send([byte]);
    }
    assert_eq!(client.response().text(), "/slow");
}

#[test]
fn connection_close_is_kept() {
    let upstream = mirror();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    let response = client.send(get("/").replace("Host: a", "Host: a\r\nConnection: close")).response();
    assert!(response.closes(), "{response}");
    client.expect_closed();
}

#[test]
fn continue_is_said_when_the_body_is_wanted() {
    let upstream = mirror();
    let gateway = Gateway::start(json!({ "routes": [{ "path": "/a", "backend": upstream.url() }] }));
    let head = "POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    let mut client = gateway.connect();
    let interim = client.send(head).response();
    assert_eq!((interim.status(), interim.fields.len()), (100, 0), "{interim}");
    assert_eq!(client.send("abc").response().text(), "/a");
    assert_eq!((upstream.last().text().as_str(), upstream.last().field("expect")), ("abc", None));

    // Refused at once: the body is not waited for.
    let mut client = gateway.connect();
    let refused = client.send(head.replace("/a", "/b")).response();
    assert_eq!(refused.status(), 404);
    // Bodies of clients that go on all the same are nobody's next request.
    let _ = client.try_send(format!("abc{}", get("/a/next")));
    match client.try_response("GET") {
        Ok(next) => assert_eq!(next.text(), "/a/next"),
        Err(error) => assert!(refused.closes(), "{error}"),
    }
}

#[test]
fn head_gets_no_body_but_its_length() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            let answer = ok("hello");
            conn.send(if request.method() == "HEAD" { answer.trim_end_matches("hello") } else { &answer });
        }
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    for _ in 0..2 {
        let response = client.send(get("/").replace("GET", "HEAD")).response_to("HEAD");
        assert_eq!((response.status(), response.field("content-length")), (200, Some("5")));
        assert_eq!(client.get("/").text(), "hello");
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn responses_without_a_body_keep_the_connection() {
    for head in [
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 9\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let upstream = Upstream::answering(head);
        let gateway = Gateway::to(&upstream);
        let mut client = gateway.connect();
        for _ in 0..3 {
            let response = client.get("/");
            assert_eq!(format!("{}", response.status()), head[9..12], "{response}");
            assert!(response.body.is_empty());
        }
        assert_eq!(upstream.connections(), 1, "{head}");
    }
}

#[test]
fn an_interim_response_reaches_the_client_before_the_final_one() {
    let gate = Gate::default();
    let opened = gate.clone();
    let upstream = Upstream::start(move |mut conn| {
        while conn.request().is_some() {
            conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
            opened.wait();
            conn.send("HTTP/1.1 102 Processing\r\n\r\n");
            conn.send(ok("final"));
        }
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send(get("/"));
    let hints = client.response();
    assert_eq!((hints.status(), hints.field("link")), (103, Some("</a.css>")));
    gate.open();
    assert_eq!(client.response().status(), 102);
    assert_eq!(client.response().text(), "final");
    client.send(get("/"));
    let statuses: Vec<u16> = (0..3).map(|_| client.response().status()).collect();
    assert_eq!(statuses, [103, 102, 200]);
    // HTTP/1.0 knows no interim responses (RFC 9110 §15.2).
    let mut old = gateway.connect();
    assert_eq!(old.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n").response().status(), 200);
}

#[test]
fn http_1_0_clients() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            match request.target() {
                "/chunked" => conn.send(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
                ),
                _ => conn.send(ok("abcde")),
            }
        }
    });
    let gateway = Gateway::to(&upstream);
    for target in ["/counted", "/chunked"] {
        let mut client = gateway.connect();
        let response = client.send(format!("GET {target} HTTP/1.0\r\n\r\n")).response();
        assert_eq!((response.status(), response.text().as_str()), (200, "abcde"), "{target}");
        assert_eq!(response.field("transfer-encoding"), None, "{response}");
        client.expect_closed();
        assert_eq!(upstream.last().field("via"), Some("1.0 gateway"));
        assert!(upstream.last().field("host").is_some(), "HTTP/1.1 upstream needs a host");
    }
    // Asked for, the connection is kept where the length is known.
    let mut client = gateway.connect();
    for _ in 0..2 {
        let request = "GET /counted HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(client.send(request).response().text(), "abcde");
    }
}

/// Sends `request`, half-closes with it or while it is being answered, and wants the answer.
#[track_caller]
fn check_half_close(request: &str, with_it: bool) {
    let (upstream, arrived, gate) = Upstream::gated("late");
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send(request);
    if with_it {
        client.half_close();
    }
    arrived.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("not sent upstream: {request}"));
    if !with_it {
        client.half_close();
    }
    // Proves nothing about the socket, but gives the workers a turn.
    gateway.scrape();
    gate.open();
    assert_eq!(client.response().text(), "late", "half-closed with it: {with_it}, {request}");
    client.expect_closed();
    assert_eq!(gateway.scrape().requests(499, "client_abort"), 0.0);
}

#[test]
fn a_half_closed_client_gets_its_answer() {
    for with_it in [true, false] {
        check_half_close(&get("/"), with_it);
        check_half_close("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", with_it);
        let chunked = "3\r\nabc\r\n0\r\n\r\n";
        check_half_close(
            &format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"),
            with_it,
        );
    }
}

#[test]
fn a_client_s_reset_drops_the_attempt() {
    let (came, arrived) = mpsc::channel();
    let (left, gone) = mpsc::channel();
    let (came, left) = (Mutex::new(came), Mutex::new(left));
    let upstream = Upstream::start(move |mut conn| {
        if conn.request().is_some() {
            came.lock().unwrap().send(()).unwrap();
            left.lock().unwrap().send(conn.wait_closed()).unwrap();
        }
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send(get("/"));
    arrived.recv_timeout(PATIENCE).unwrap();
    client.reset();
    assert!(gone.recv_timeout(PATIENCE).unwrap(), "the upstream connection outlived its client");
    gateway.wait_for_metrics("one 499", |metrics| metrics.requests(499, "client_abort") == 1.0);
    gateway.wait_for_metrics("no connection left open", |metrics| {
        metrics.get("gateway_connections_open", &[]) == Some(0.0)
    });
}

#[test]
fn a_client_that_leaves_amid_a_response_drops_it() {
    let (left, gone) = mpsc::channel();
    let left = Mutex::new(left);
    let upstream = Upstream::start(move |mut conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
        left.lock().unwrap().send(conn.wait_closed()).unwrap();
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send(get("/"));
    assert_eq!(client.head().status(), 200);
    client.reset();
    assert!(gone.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn four_hundred_idle_connections_park_and_all_still_work() {
    const CLIENTS: usize = 400;
    let upstream = mirror();
    let gateway = Gateway::single(&upstream);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| gateway.connect()).collect();
    for round in 0..2 {
        for (n, client) in clients.iter_mut().enumerate() {
            let target = format!("/{round}/{n}");
            assert_eq!(client.get(&target).text(), target);
        }
        gateway.wait_for_metrics("100 parked", |metrics| {
            metrics.get("gateway_connections_parked", &[]).is_some_and(|parked| parked >= 100.0)
        });
    }
    let metrics = gateway.scrape();
    assert_eq!(metrics.get("gateway_connections_open", &[]), Some(CLIENTS as f64));
    assert_eq!(metrics.get("gateway_connections_accepted_total", &[]), Some(CLIENTS as f64));
    // A parked connection notices that its client leaves.
    drop(clients);
    gateway
        .wait_for_metrics("all closed", |metrics| metrics.get("gateway_connections_open", &[]) == Some(0.0));
}

/// A reset is noticed where nothing is being read, and leaves nothing behind.
#[test]
fn parked_connections_notice_a_reset() {
    const CLIENTS: usize = 400;
    let upstream = mirror();
    let gateway = Gateway::single(&upstream);
    let wait_for = |name: &str, want: usize| {
        gateway.wait_for_metrics(name, |metrics| metrics.get(name, &[]) == Some(want as f64));
    };
    for _ in 0..2 {
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| gateway.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.get("/").text(), "/");
        }
        wait_for("gateway_connections_parked", CLIENTS - 256);
        for client in clients {
            client.reset();
        }
        wait_for("gateway_connections_open", 0);
        wait_for("gateway_connections_parked", 0);
    }
    assert_eq!(gateway.scrape().requests(499, "client_abort"), 0.0);
}

#[test]
fn parked_connections_take_pipelined_and_split_requests() {
    let upstream = mirror();
    let gateway = Gateway::single(&upstream);
    let mut clients: Vec<_> = (0..300).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.get("/warm");
    }
    for client in &mut clients {
        let request = get("/split");
        client.send(&request[..9]);
    }
    for client in &mut clients {
        let request = get("/split");
        client.send(format!("{}{}", &request[9..], get("/next")));
    }
    for client in &mut clients {
        assert_eq!(client.response().text(), "/split");
        assert_eq!(client.response().text(), "/next");
    }
}

#[test]
fn concurrent_clients_get_their_own_answers() {
    let upstream = Arc::new(mirror());
    let gateway = Gateway::to(&upstream);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut client = gateway.connect();
                for n in 0..100 {
                    let target = format!("/{thread}/{n}");
                    assert_eq!(client.get(&target).text(), target);
                }
            });
        }
    });
}

/// The client's end is noticed while the last bytes of its answer are still held back by its slow reading.
#[test]
fn a_slow_reader_that_has_ended_its_output_gets_all_of_its_answer() {
    const BYTES: usize = 24 << 20;
    let upstream = Upstream::start(|mut conn| {
        while conn.request().is_some() {
            conn.send(ok(&"x".repeat(BYTES)));
        }
    });
    let gateway = Gateway::single(&upstream);
    for round in 1..=2 {
        let mut client = gateway.connect();
        client.send(get("/")).half_close();
        let head = client.head();
        assert_eq!(head.status(), 200);
        let (mut read, mut piece) = (0, vec![0; 64 * 1024]);
        while gateway.scrape().requests(200, "ok") < f64::from(round) {
            read += client.reader.read(&mut piece).expect("no reset");
        }
        // The gateway has the whole answer and the client's socket is full.
        while let n @ 1.. = client.reader.read(&mut piece).expect("no reset") {
            read += n;
        }
        assert_eq!(read, BYTES);
    }
}

/// hyper's own refusal of a head is replaced; a body that holds the same bytes is a body.
#[test]
fn a_body_that_reads_like_a_refusal_arrives_whole() {
    const BODY: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let upstream = Upstream::answering(ok(BODY));
    let gateway = Gateway::to(&upstream);
    for fields in ["", "Connection: close\r\n"] {
        let mut client = gateway.connect();
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        assert_eq!(client.response().text(), BODY, "{fields}");
    }
}
