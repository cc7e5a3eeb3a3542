//! Bodies of both directions: framing, trailers, back-pressure.

use std::io::Read;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use gateway_tests::client::{Client, get};
use gateway_tests::upstream::{Conn, ok};
use gateway_tests::{Gate, Gateway, PATIENCE, Upstream};
use serde_json::json;

const MIB: usize = 1024 * 1024;
const BIG: usize = 64 * MIB;
/// How long nobody may take a byte before a sender counts as held back.
const STALLED: Duration = Duration::from_millis(500);
/// A body that is buffered whole would show in the gateway's memory eight times over.
const GROWTH_KIB: u64 = 8 * 1024;

#[test]
fn a_request_s_body_arrives_as_it_was_sent() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    for (framing, body, want) in [
        ("Content-Length: 5", "hello", "hello"),
        ("Content-Length: 0", "", ""),
        ("Transfer-Encoding: chunked", "3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", "hello"),
        ("Transfer-Encoding: chunked", "5;ext=\"a\"\r\nhello\r\n000\r\n\r\n", "hello"),
        ("Transfer-Encoding: CHUNKED", "0\r\n\r\n", ""),
    ] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
        assert_eq!(client.send(format!("{head}{body}")).response().status(), 200, "{framing}");
        assert_eq!(upstream.last().text(), want, "{framing}: {body}");
    }
}

#[test]
fn a_response_s_body_arrives_as_it_was_sent() {
    for (framing, body, keeps) in [
        ("Content-Length: 5\r\n", "hello", true),
        ("Transfer-Encoding: chunked\r\n", "3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", true),
        ("Connection: close\r\n", "hello", false),
        ("", "hello", false),
    ] {
        let upstream = Upstream::start(move |mut conn| {
            while conn.request().is_some() {
                conn.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n{body}"));
                if !keeps {
                    return;
                }
            }
        });
        let gateway = Gateway::to(&upstream);
        let mut client = gateway.connect();
        for _ in 0..2 {
            assert_eq!(client.get("/").text(), "hello", "{framing:?}");
        }
        assert_eq!(upstream.connections(), if keeps { 1 } else { 2 }, "{framing:?}");
    }
}

#[test]
fn an_http_1_0_upstream_ends_its_body_by_closing() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.send("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nhello");
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    for _ in 0..2 {
        let response = client.get("/");
        assert_eq!((response.start.as_str(), response.text().as_str()), ("HTTP/1.1 200 OK", "hello"));
        assert_eq!(response.field("via"), Some("1.0 gateway"));
    }
}

#[test]
fn trailers_pass_both_ways() {
    let upstream = Upstream::start(|mut conn| {
        while conn.request().is_some() {
            conn.send(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                 5\r\nhello\r\n0\r\nX-Sum: down\r\n\r\n",
            );
        }
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    for _ in 0..2 {
        let response = client
            .send(
                "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\
                 Trailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: up\r\n\r\n",
            )
            .response();
        assert_eq!(response.text(), "hello");
        assert_eq!(response.trailers, [("x-sum".to_owned(), "down".to_owned())], "{response}");
        let sent = upstream.last();
        assert_eq!((sent.text().as_str(), sent.field("te")), ("abc", Some("trailers")));
        assert_eq!(sent.trailers, [("x-sum".to_owned(), "up".to_owned())], "{sent}");
    }
}

#[test]
fn bytes_pass_as_they_come() {
    let (next, more) = mpsc::channel();
    let more = Mutex::new(more);
    let upstream = Upstream::start(move |mut conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for piece in more.lock().unwrap().iter() {
            let piece: &str = piece;
            conn.send(format!("{:x}\r\n{piece}\r\n", piece.len()));
        }
        conn.send("0\r\n\r\n");
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send(get("/"));
    assert_eq!(client.head().status(), 200);
    for piece in ["first", "second", "third"] {
        next.send(piece).unwrap();
        let chunk = gateway_tests::message::read_chunk(&mut client.reader).unwrap();
        assert_eq!(chunk.as_deref(), Some(piece.as_bytes()));
    }
    drop(next);
    assert_eq!(gateway_tests::message::read_chunk(&mut client.reader).unwrap(), None);
}

#[test]
fn a_response_may_come_before_the_request_has_ended() {
    let upstream = Upstream::start(|mut conn| {
        conn.head();
        conn.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
        conn.wait_closed();
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nabc");
    let response = client.response();
    assert_eq!((response.status(), response.text().as_str()), (413, "big"));
    client.half_close();
    client.rest().expect("an orderly end");
}

#[test]
fn a_client_that_reads_slowly_holds_the_upstream_back() {
    let (stalled, held_back) = mpsc::channel();
    let stalled = Mutex::new(stalled);
    let upstream = Upstream::start(move |mut conn| {
        conn.request();
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n"));
        let sent = conn.send_until_stalled(BIG, STALLED);
        stalled.lock().unwrap().send(sent).unwrap();
        conn.send(vec![b'x'; BIG - sent]);
    });
    let gateway = Gateway::to(&upstream);
    let before = gateway.memory_kib("VmHWM");
    let mut client = gateway.connect();
    client.send(get("/"));
    let sent = held_back.recv_timeout(PATIENCE).unwrap();
    assert!(sent < BIG, "the gateway took the whole body from a client that reads none of it");
    assert_eq!(client.response().body.len(), BIG);
    let grown = gateway.memory_kib("VmHWM") - before;
    assert!(grown < GROWTH_KIB, "{grown} KiB more for a body of {} KiB", BIG / 1024);
}

/// Bytes that tell where they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

/// Sends what its target says: so many bytes, announced as such, in pieces of so many.
fn sends_as_asked(mut conn: Conn) {
    while let Some(request) = conn.request() {
        let mut asked = request.start.split(['/', ' ']).filter_map(|part| part.parse().ok());
        let (length, piece) = (asked.next().expect("a length"), asked.next().expect("a piece"));
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"));
        pattern(length).chunks(piece).for_each(|piece| conn.send(piece));
    }
}

/// Where there are descriptors for pipes, most of it moves within the kernel.
#[test]
fn a_long_response_arrives_whole_in_whatever_pieces() {
    let upstream = Upstream::start(sends_as_asked);
    let one_worker = || json!({ "workers": 1, "routes": [{ "path": "/", "backend": upstream.url() }] });
    for gateway in [Gateway::start(one_worker()), Gateway::start_after("ulimit -n 1000", one_worker())] {
        let before = upstream.connections();
        let mut client = gateway.connect();
        for length in [32 * 1024, 64 * 1024 + 1, 100_000, MIB + 1, 5 * MIB] {
            for piece in [1_000, 65_536, 300_000] {
                // The next request is there before the answer has ended.
                client.send(get(&format!("/{length}/{piece}")).repeat(2) + &get("/3/3"));
                for _ in 0..2 {
                    assert!(client.response().body == pattern(length), "{length} in pieces of {piece}");
                }
                assert_eq!(client.response().body, pattern(3));
            }
        }
        assert_eq!(upstream.connections() - before, 1);
    }
}

/// A worker has 64 pipes; who finds none of them free is served by copying.
#[test]
fn more_long_responses_than_there_are_pipes_arrive_whole() {
    const PIPES: usize = 64;
    const LENGTH: usize = 6 * MIB;
    let body = Arc::new(pattern(LENGTH));
    let sent = body.clone();
    let upstream = Upstream::start(move |mut conn| {
        conn.request();
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
        conn.send(&*sent);
    });
    let gateway = Gateway::single(&upstream);
    let idle = gateway.pipes();
    let mut clients: Vec<_> = (0..PIPES + 16).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(get("/"));
        assert_eq!(client.head().status(), 200);
    }
    // Nobody reads on, so whoever has a pipe keeps it.
    gateway.wait_for_metrics("every pipe in use", |_| gateway.pipes() - idle == 2 * PIPES);
    for client in &mut clients {
        let mut got = vec![0; LENGTH];
        client.reader.read_exact(&mut got).expect("the whole body");
        assert!(got == *body);
    }
    assert_eq!(gateway.pipes() - idle, 2 * PIPES, "they wait for other bodies");
}

#[test]
fn a_long_response_that_breaks_off_breaks_off_downstream() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * MIB));
        conn.send(pattern(MIB));
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send(get("/"));
    assert_eq!(client.head().status(), 200);
    assert!(client.rest().expect("what has come") == pattern(MIB));
    gateway.wait_for_metrics("its outcome", |metrics| metrics.requests(200, "upstream_failed") == 1.0);
}

/// Pipes that still hold something go with it.
#[test]
fn clients_that_leave_during_long_responses_leave_nothing_behind() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n"));
        conn.send_until_stalled(BIG, STALLED);
    });
    let gateway = Gateway::single(&upstream);
    let idle = gateway.descriptors();
    let mut clients: Vec<_> = (0..20).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(get("/"));
        assert_eq!(client.head().status(), 200);
    }
    clients.into_iter().for_each(Client::reset);
    gateway.wait_for_metrics("everybody gone", |metrics| {
        metrics.get("gateway_connections_open", &[]) == Some(0.0) && gateway.descriptors() <= idle + 4
    });
}

#[test]
fn an_upstream_that_reads_slowly_holds_the_client_back() {
    let gate = Gate::default();
    let opened = gate.clone();
    let upstream = Upstream::start(move |mut conn| {
        conn.head();
        opened.wait();
        let got = std::io::copy(&mut conn.reader.by_ref().take(BIG as u64), &mut std::io::sink()).unwrap();
        conn.send(ok(&got.to_string()));
        conn.wait_closed();
    });
    let gateway = Gateway::to(&upstream);
    let before = gateway.memory_kib("VmHWM");
    let mut client = gateway.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BIG}\r\n\r\n"));
    let sent = client.send_until_stalled(BIG, STALLED);
    assert!(sent < BIG, "the gateway took the whole body for an upstream that reads none of it");
    gate.open();
    client.send(vec![b'x'; BIG - sent]);
    assert_eq!(client.response().text(), BIG.to_string());
    let grown = gateway.memory_kib("VmHWM") - before;
    assert!(grown < GROWTH_KIB, "{grown} KiB more for a body of {} KiB", BIG / 1024);
}

#[test]
fn a_head_framed_twice_is_found_behind_a_large_upload() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let body = vec![b'x'; 2 << 20];
    // In one stream, so that the second head lies in the same reads as the first one's body.
    let first = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let second =
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let mut client = gateway.connect();
    client.send([first.as_bytes(), &body, second.as_bytes()].concat());
    assert_eq!(client.response().status(), 200);
    assert_eq!(client.response().status(), 400);
    assert_eq!(upstream.requests().len(), 1);
}
