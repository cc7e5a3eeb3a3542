//! Identical requests at the same time are one request upstream.

use std::io::Read;
use std::sync::Arc;

use gateway_tests::client::get;
use gateway_tests::{Crowd, Fate, Gate, Gateway, Message, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};

const CROWD: usize = 10_000;

fn cached(upstream: &Upstream, route: Value) -> Gateway {
    let mut config = json!({ "path": "/", "backend": upstream.url(), "enable_cache": true });
    for (key, value) in route.as_object().expect("it is an object") {
        config[key] = value.clone();
    }
    Gateway::start(json!({ "routes": [config] }))
}

/// Waits until so many requests read a fetch.
#[track_caller]
fn wait_for_waiters(gateway: &Gateway, count: usize) {
    gateway.wait_for_metrics(&format!("{count} waiters"), |metrics| {
        metrics.get("gateway_coalesce_waiters", &[]) == Some(count as f64)
    });
}

/// Every client's response, all of which are whole.
#[track_caller]
fn all(crowd: Crowd) -> Vec<Message> {
    let whole = |(number, fate)| match fate {
        Fate::Response(message) => message,
        Fate::Broken(received) => panic!("client {number} got {} bytes only", received.len()),
    };
    crowd.responses().into_iter().map(whole).collect()
}

/// Answers every request in two halves, each behind a gate.
fn in_halves(head: &'static str, body: &'static str, gates: [Gate; 2]) -> Upstream {
    let (first, second) = body.split_at(body.len() / 2);
    Upstream::start(move |mut conn| {
        while conn.request().is_some() {
            gates[0].wait();
            conn.send(format!("HTTP/1.1 200 OK\r\n{head}Content-Length: {}\r\n\r\n{first}", body.len()));
            gates[1].wait();
            conn.send(second);
        }
    })
}

fn body() -> &'static str {
    "0123456789abcdef".repeat(256).leak()
}

#[test]
fn ten_thousand_are_one() {
    let gates = [Gate::default(), Gate::default()];
    let upstream = in_halves("Cache-Control: max-age=60\r\n", body(), gates.clone());
    let gateway = cached(&upstream, json!({}));
    let mut crowd = Crowd::connect(gateway.address, CROWD);
    crowd.send(|_| get("/x"));
    wait_for_waiters(&gateway, CROWD);
    gates.iter().for_each(Gate::open);
    for message in all(crowd) {
        assert_eq!((message.status(), message.text().as_str()), (200, body()));
    }
    assert_eq!(upstream.requests().len(), 1);
    let metrics = gateway.scrape();
    let of = |result| metrics.get("gateway_cache_requests_total", &[("result", result)]);
    assert_eq!((of("miss"), of("collapsed")), (Some(1.0), Some(CROWD as f64 - 1.0)));
    assert_eq!(gateway.get("/x").field("cache-status").map(|status| &status[..12]), Some("gateway; hit"));
}

#[test]
fn nothing_is_said_of_freshness_and_still_they_are_one() {
    let gates = [Gate::default(), Gate::default()];
    let upstream = in_halves("", body(), gates.clone());
    let gateway = cached(&upstream, json!({}));
    let mut crowd = Crowd::connect(gateway.address, 100);
    crowd.send(|_| get("/x"));
    wait_for_waiters(&gateway, 100);
    gates.iter().for_each(Gate::open);
    assert!(all(crowd).iter().all(|message| message.text() == body()));
    assert_eq!(upstream.requests().len(), 1);
    gateway.get("/x");
    assert_eq!(upstream.requests().len(), 2, "it is not kept");
}

#[test]
fn the_leader_leaves_halfway() {
    let gates = [Gate::default(), Gate::default()];
    let upstream = in_halves("Cache-Control: max-age=60\r\n", body(), gates.clone());
    let gateway = cached(&upstream, json!({}));
    let mut leader = gateway.connect();
    leader.send(get("/x"));
    wait_for_waiters(&gateway, 1);
    let mut crowd = Crowd::connect(gateway.address, CROWD - 1);
    crowd.send(|_| get("/x"));
    wait_for_waiters(&gateway, CROWD);
    gates[0].open();
    assert_eq!(leader.head().status(), 200);
    leader.reset();
    wait_for_waiters(&gateway, CROWD - 1);
    gates[1].open();
    for message in all(crowd) {
        assert_eq!((message.status(), message.text().as_str()), (200, body()));
    }
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_drain_waits_for_a_fetch_and_those_who_read_it() {
    const READERS: usize = 50;
    let gates = [Gate::default(), Gate::default()];
    let upstream = in_halves("Cache-Control: max-age=60\r\n", body(), gates.clone());
    let mut gateway = cached(&upstream, json!({}));
    let mut crowd = Crowd::connect(gateway.address, READERS);
    crowd.send(|_| get("/x"));
    wait_for_waiters(&gateway, READERS);
    gateway.signal(Signal::TERM);
    gateway.log.wait_for("draining");
    gates.iter().for_each(Gate::open);
    for message in all(crowd) {
        assert_eq!((message.status(), message.text().as_str()), (200, body()));
    }
    assert_eq!(gateway.wait(), Some(0));
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn followers_get_bytes_as_they_come() {
    let gates = [Gate::default(), Gate::default()];
    let upstream = in_halves("Cache-Control: max-age=60\r\n", body(), gates.clone());
    let gateway = cached(&upstream, json!({}));
    let mut clients = [gateway.connect(), gateway.connect(), gateway.connect()];
    for client in &mut clients {
        client.send(get("/x"));
    }
    wait_for_waiters(&gateway, 3);
    gates[0].open();
    for client in &mut clients {
        assert_eq!(client.head().status(), 200);
        let mut half = vec![0; body().len() / 2];
        client.reader.read_exact(&mut half).expect("the first half comes before the second");
    }
    gates[1].open();
    for client in &mut clients {
        let mut half = vec![0; body().len() / 2];
        client.reader.read_exact(&mut half).expect("the second half comes");
    }
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn interim_responses_go_to_the_client_whose_request_was_sent() {
    let gates = [Gate::default(), Gate::default()];
    let opened = gates.clone();
    let upstream = Upstream::start(move |mut conn| {
        while conn.request().is_some() {
            conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
            opened[0].wait();
            conn.send("HTTP/1.1 102 Processing\r\n\r\n");
            opened[1].wait();
            conn.send("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 5\r\n\r\nfinal");
        }
    });
    let gateway = cached(&upstream, json!({}));
    let (mut leader, mut follower) = (gateway.connect(), gateway.connect());
    leader.send(get("/"));
    let hints = leader.response();
    assert_eq!((hints.status(), hints.field("link")), (103, Some("</a.css>")));
    follower.send(get("/"));
    wait_for_waiters(&gateway, 2);
    gates[0].open();
    assert_eq!(leader.response().status(), 102);
    gates[1].open();
    for client in [&mut leader, &mut follower] {
        let answer = client.response();
        assert_eq!((answer.status(), answer.text().as_str(), answer.field("link")), (200, "final", None));
    }
    // What is stored is the final one, and HTTP/1.0 knows no other (RFC 9110 §15.2).
    assert_eq!(follower.get("/").status(), 200);
    let mut old = gateway.connect();
    assert_eq!(old.send("GET /old HTTP/1.0\r\nHost: a\r\n\r\n").response().status(), 200);
}

#[test]
fn a_failing_backend_is_asked_twice() {
    let gate = Gate::default();
    let upstream = Upstream::start({
        let gate = gate.clone();
        move |mut conn| {
            conn.request();
            gate.wait();
        }
    });
    let gateway = cached(&upstream, json!({}));
    let mut crowd = Crowd::connect(gateway.address, CROWD);
    crowd.send(|_| get("/x"));
    wait_for_waiters(&gateway, CROWD);
    gate.open();
    assert!(all(crowd).iter().all(|message| message.status() == 502));
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn a_second_503_is_everybody_s() {
    let gate = Gate::default();
    let upstream = Upstream::start({
        let gate = gate.clone();
        move |mut conn| {
            while conn.request().is_some() {
                gate.wait();
                conn.send("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy");
            }
        }
    });
    let gateway = cached(&upstream, json!({}));
    let mut crowd = Crowd::connect(gateway.address, 1_000);
    crowd.send(|_| get("/x"));
    wait_for_waiters(&gateway, 1_000);
    gate.open();
    assert!(all(crowd).iter().all(|message| message.status() == 503 && message.text() == "busy"));
    assert_eq!(upstream.requests().len(), 2);
}

/// The backend answers the released only when all of them have come to it: one after the other would
/// never get there.
#[test]
fn what_is_not_for_everybody_is_fetched_by_each_at_once() {
    const CLIENTS: usize = 1_000;
    for head in ["Cache-Control: private", "Cache-Control: no-store", "Set-Cookie: a=b", "Vary: *"] {
        let gates = [Gate::default(), Gate::default()];
        let upstream = Upstream::start({
            let gates = gates.clone();
            move |mut conn| {
                while conn.request().is_some() {
                    gates[usize::from(conn.index > 0)].wait();
                    conn.send(format!("HTTP/1.1 200 OK\r\n{head}\r\nContent-Length: 2\r\n\r\nok"));
                }
            }
        });
        let gateway = cached(&upstream, json!({}));
        let mut crowd = Crowd::connect(gateway.address, CLIENTS);
        crowd.send(|_| get("/x"));
        wait_for_waiters(&gateway, CLIENTS);
        gates[0].open();
        gateway.wait_for_metrics("all at the backend", |_| upstream.requests().len() >= CLIENTS);
        gates[1].open();
        assert!(all(crowd).iter().all(|message| message.text() == "ok"), "{head}");
        assert_eq!(upstream.requests().len(), CLIENTS, "{head}");
    }
}

#[test]
fn a_key_that_was_not_for_everybody_is_left_alone_for_a_while() {
    let gate = Gate::default();
    let upstream = Upstream::start({
        let gate = gate.clone();
        move |mut conn| {
            while let Some(request) = conn.request() {
                if request.field("x-first").is_none() {
                    gate.wait();
                }
                conn.send("HTTP/1.1 200 OK\r\nCache-Control: private\r\nContent-Length: 2\r\n\r\nok");
            }
        }
    });
    let gateway = cached(&upstream, json!({}));
    gateway.connect().send("GET /x HTTP/1.1\r\nHost: a\r\nX-First: 1\r\n\r\n").response();
    let mut crowd = Crowd::connect(gateway.address, 50);
    crowd.send(|_| get("/x"));
    gateway.wait_for_metrics("all at the backend", |_| upstream.requests().len() == 51);
    gate.open();
    assert!(all(crowd).iter().all(|message| message.text() == "ok"));
}

#[test]
fn a_vary_that_tells_the_waiters_apart() {
    let gate = Gate::default();
    let upstream = Upstream::start({
        let gate = gate.clone();
        move |mut conn| {
            while let Some(request) = conn.request() {
                gate.wait();
                let language = request.field("accept-language").unwrap_or_default().to_owned();
                let head = "Cache-Control: max-age=60\r\nVary: Accept-Language";
                let length = language.len();
                conn.send(format!("HTTP/1.1 200 OK\r\n{head}\r\nContent-Length: {length}\r\n\r\n{language}"));
            }
        }
    });
    let gateway = cached(&upstream, json!({}));
    let mut crowd = Crowd::connect(gateway.address, CROWD);
    let language = |number| ["de", "en", "fr"][number % 3];
    let request =
        |number| format!("GET /x HTTP/1.1\r\nHost: a\r\nAccept-Language: {}\r\n\r\n", language(number));
    crowd.send(request);
    wait_for_waiters(&gateway, CROWD);
    gate.open();
    for (number, fate) in crowd.responses() {
        let Fate::Response(message) = fate else { panic!("client {number}: {fate:?}") };
        assert_eq!(message.text(), language(number), "client {number}");
    }
    assert_eq!(upstream.requests().len(), 3, "one for each variant");
}

#[test]
fn credentials_ranges_and_no_store_are_not_made_one() {
    let gate = Gate::default();
    let upstream = Upstream::start({
        let gate = gate.clone();
        move |mut conn| {
            while conn.request().is_some() {
                gate.wait();
                conn.send("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok");
            }
        }
    });
    let rule = json!({ "name": "tenants", "limit": 1000, "per": "second", "key": "header:X-Tenant" });
    let gateway = cached(&upstream, json!({ "rate_limits": [rule] }));
    let fields = [
        "Authorization: x",
        "Cookie: a=b",
        "Range: bytes=0-0",
        "Cache-Control: no-store",
        "X-API-Key: k",
        "X-Tenant: t",
    ];
    let mut crowd = Crowd::connect(gateway.address, 2 * fields.len());
    crowd.send(|number| format!("GET /x HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", fields[number / 2]));
    gateway.wait_for_metrics("all at the backend", |_| upstream.requests().len() == 2 * fields.len());
    gate.open();
    assert!(all(crowd).iter().all(|message| message.text() == "ok"));
}

#[test]
fn key_parts_make_credentials_one_again() {
    let gates = [Gate::default(), Gate::default()];
    let upstream = in_halves("Cache-Control: max-age=60\r\n", body(), gates.clone());
    let gateway =
        cached(&upstream, json!({ "cache": { "key_headers": ["Authorization"], "key_cookies": ["s"] } }));
    let mut crowd = Crowd::connect(gateway.address, 100);
    crowd.send(|number| {
        let (user, theme) = (number % 2, number % 7);
        format!("GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: {user}\r\nCookie: t={theme}; s=1\r\n\r\n")
    });
    wait_for_waiters(&gateway, 100);
    gates.iter().for_each(Gate::open);
    assert!(all(crowd).iter().all(|message| message.text() == body()));
    assert_eq!(upstream.requests().len(), 2, "one for each value of Authorization");
}

#[test]
fn those_who_wait_do_so_no_longer_than_the_route_allows() {
    let never = Gate::default();
    let upstream = Upstream::start(move |mut conn| {
        conn.request();
        conn.wait_closed();
        let _ = &never;
    });
    let gateway = cached(&upstream, json!({ "timeout_seconds": "500ms" }));
    let mut crowd = Crowd::connect(gateway.address, 200);
    crowd.send(|_| get("/x"));
    assert!(all(crowd).iter().all(|message| message.status() == 504));
    assert!(upstream.requests().len() <= 2);
}

/// The slow one takes nothing until all others have everything.
#[test]
fn nobody_waits_for_a_slow_reader() {
    let body: &'static str = "x".repeat(4 << 20).leak();
    let gates = [Gate::default(), Gate::default()];
    let upstream = in_halves("Cache-Control: max-age=60\r\n", body, gates.clone());
    let gateway = cached(&upstream, json!({}));
    let mut crowd = Crowd::connect(gateway.address, 20);
    crowd.send(|_| get("/x"));
    wait_for_waiters(&gateway, 20);
    let mut slow = crowd.take(7);
    gates.iter().for_each(Gate::open);
    assert!(all(crowd).iter().all(|message| message.body.len() == body.len()));
    let message = Message::read_response(&mut std::io::BufReader::new(&mut slow), "GET").expect("all of it");
    assert_eq!(message.body.len(), body.len());
    assert_eq!(upstream.requests().len(), 1);
}

/// A body larger than is kept passes at the pace of the fastest, in bounded memory; who falls behind by
/// more than an entry may have is cut off.
#[test]
fn a_body_without_end_takes_bounded_memory() {
    const BYTES: usize = 256 << 20;
    let gate = Gate::default();
    let upstream = Upstream::start({
        let gate = gate.clone();
        move |mut conn| {
            let piece = Arc::new(format!("10000\r\n{}\r\n", "x".repeat(65_536)));
            conn.request();
            gate.wait();
            conn.send("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n");
            (0..BYTES / 65_536).for_each(|_| conn.send(piece.as_bytes()));
            conn.send("0\r\n\r\n");
        }
    });
    let gateway = cached(&upstream, json!({ "cache": { "max_entry_bytes": 1 << 20 } }));
    let mut crowd = Crowd::connect(gateway.address, 3);
    crowd.send(|_| get("/x"));
    wait_for_waiters(&gateway, 3);
    let before = gateway.memory_kib("VmRSS");
    let (mut fast, mut slow) = (crowd.take(0), crowd.take(1));
    drop(crowd.take(2));
    gate.open();
    let mut received = 0;
    let mut piece = vec![0; 1 << 20];
    while received < BYTES {
        let n = fast.read(&mut piece).expect("it goes on");
        assert!(n > 0, "it ended after {received} bytes");
        received += n;
    }
    let grown = gateway.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 48 * 1024, "{grown} KiB more");
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!(rest.len() < BYTES, "the slow one is cut off");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "and can tell that it was");
    assert_eq!(upstream.requests().len(), 1);
}
