//! Fetches under way when what they bring is forgotten, and answers that validate and take back at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use gateway_tests::client::get;
use gateway_tests::{Api, Client, Gate, Gateway, Message, Upstream};
use serde_json::{Value, json};

fn cached(upstream: &Upstream, cache: Value) -> Gateway {
    Gateway::controlled(json!({
        "routes": [{ "path": "/", "backend": upstream.url(), "enable_cache": true, "cache": cache }]
    }))
}

#[track_caller]
fn purge(gateway: &Gateway, what: Value) {
    assert_eq!(Api::of(gateway).post("/v1/purge", &what).status(), 200);
}

fn ask(client: &mut Client, fields: &str) -> Message {
    client.send(format!("GET /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).response()
}

/// A backend whose first answer comes in halves, the first with its head, each behind a gate. Answers are numbered.
fn slow_at_first(head: &'static str, gates: [Gate; 2]) -> Upstream {
    let count = AtomicUsize::new(0);
    Upstream::start(move |mut conn| {
        while let Some(request) = conn.request() {
            if request.method() != "GET" {
                conn.send("HTTP/1.1 204 No Content\r\n\r\n");
                continue;
            }
            let number = count.fetch_add(1, Ordering::SeqCst);
            let slow = number == 0;
            slow.then(|| gates[0].wait());
            conn.send(format!("HTTP/1.1 200 OK\r\n{head}Content-Length: 2\r\n\r\n{number}"));
            slow.then(|| gates[1].wait());
            conn.send(".");
        }
    })
}

/// What was fetched before a change is neither kept nor given to whoever asks after it.
#[test]
fn what_was_being_fetched_when_it_was_forgotten() {
    type Forget = fn(&Gateway);
    let forgets: [(&str, Forget); 4] = [
        ("POST", |gateway| {
            let post = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
            assert_eq!(gateway.connect().send(post).response().status(), 204);
        }),
        ("url", |gateway| purge(gateway, json!({ "url": "http://a/x" }))),
        ("prefix", |gateway| purge(gateway, json!({ "prefix": "http://a/" }))),
        ("tag", |gateway| purge(gateway, json!({ "tag": "t" }))),
    ];
    for (how, forget) in forgets {
        for halfway in [false, true] {
            let gates = [Gate::default(), Gate::default()];
            let head = "Cache-Control: max-age=60\r\nCache-Tag: t\r\n";
            let upstream = slow_at_first(head, gates.clone());
            let gateway = cached(&upstream, json!({}));
            let mut before = gateway.connect();
            before.send(get("/x"));
            gateway.wait_for_metrics("the fetch", |_| upstream.requests().len() == 1);
            if halfway {
                gates[0].open();
                before.stream().peek(&mut [0]).expect("its head comes");
            }
            forget(&gateway);
            let at = format!("{how}, halfway: {halfway}");
            assert_eq!(gateway.get("/x").text(), "1.", "{at}: asked after it");
            gates.iter().for_each(Gate::open);
            assert_eq!(before.response().text(), "0.", "{at}: asked before it");
            assert_eq!(gateway.get("/x").text(), "1.", "{at}: kept");
        }
    }
}

/// What another purge is about is stored as ever.
#[test]
fn what_was_being_fetched_when_others_were_forgotten() {
    let gates = [Gate::default(), Gate::default()];
    let upstream = slow_at_first("Cache-Control: max-age=60\r\nCache-Tag: t\r\n", gates.clone());
    let gateway = cached(&upstream, json!({}));
    let mut before = gateway.connect();
    before.send(get("/x"));
    gateway.wait_for_metrics("the fetch", |_| upstream.requests().len() == 1);
    for what in [json!({ "url": "http://a/y" }), json!({ "prefix": "http://b" }), json!({ "tag": "u" })] {
        purge(&gateway, what);
    }
    gateway.connect().send("POST /y HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").response();
    gates.iter().for_each(Gate::open);
    assert_eq!(before.response().text(), "0.");
    assert_eq!(gateway.get("/x").text(), "0.");
}

/// A backend that answers 304 with `head` where it can, once the gate is open.
fn validating(first: &'static str, head: &'static str, gate: Gate) -> Upstream {
    Upstream::start(move |mut conn| {
        while let Some(request) = conn.request() {
            if request.field("if-none-match").is_some() {
                gate.wait();
                conn.send(format!("HTTP/1.1 304 Not Modified\r\nETag: \"e\"\r\n{head}\r\n"));
            } else {
                let tag = if first.contains("ETag") { "" } else { "ETag: \"e\"\r\n" };
                conn.send(format!("HTTP/1.1 200 OK\r\n{first}{tag}Content-Length: 2\r\n\r\nok"));
            }
        }
    })
}

/// What a 304 says to one client alone is not told to those who wait with it.
#[test]
fn a_304_for_one_alone() {
    for (head, field) in [
        ("Set-Cookie: s=first\r\nCache-Control: max-age=60\r\n", "set-cookie"),
        ("X-User: first\r\nCache-Control: private\r\n", "x-user"),
    ] {
        let gate = Gate::default();
        let upstream = Upstream::start({
            let gate = gate.clone();
            move |mut conn| {
                while let Some(request) = conn.request() {
                    let first = request.field("x-first").is_some();
                    if request.field("if-none-match").is_some() && first {
                        gate.wait();
                        conn.send(format!("HTTP/1.1 304 Not Modified\r\nETag: \"e\"\r\n{head}\r\n"));
                    } else {
                        let fresh = "Cache-Control: max-age=60\r\nETag: \"e\"\r\n";
                        conn.send(format!("HTTP/1.1 200 OK\r\n{fresh}Content-Length: 2\r\n\r\nok"));
                    }
                }
            }
        });
        let gateway = cached(&upstream, json!({}));
        gateway.get("/x");
        let (mut first, mut other) = (gateway.connect(), gateway.connect());
        let validate = "GET /x HTTP/1.1\r\nHost: a\r\nCache-Control: no-cache\r\n";
        first.send(format!("{validate}X-First: 1\r\n\r\n"));
        let waiters = |count: f64| {
            gateway.wait_for_metrics("waiters", move |metrics| {
                metrics.get("gateway_coalesce_waiters", &[]) == Some(count)
            });
        };
        waiters(1.0);
        other.send(format!("{validate}\r\n"));
        waiters(2.0);
        gate.open();
        assert!(first.response().field(field).is_some(), "{head}");
        assert_eq!(other.response().field(field), None, "{head}");
    }
}

/// A 304 may say that the stored response is for some requests only.
#[test]
fn a_304_that_varies() {
    let gate = Gate::default();
    gate.open();
    let upstream = validating(
        "Cache-Control: max-age=60\r\nAge: 60\r\n",
        "Cache-Control: max-age=60\r\nVary: Foo\r\n",
        gate,
    );
    let gateway = cached(&upstream, json!({}));
    let mut client = gateway.connect();
    ask(&mut client, "Foo: 1\r\n");
    ask(&mut client, "Foo: 1\r\n");
    let asked = upstream.requests().len();
    assert_eq!(asked, 2);
    ask(&mut client, "Foo: 1\r\n");
    assert_eq!(upstream.requests().len(), 2, "those who sent the same");
    ask(&mut client, "Foo: 2\r\n");
    assert_eq!(upstream.requests().len(), 3, "not for others");
}

/// Whose answers are not kept leave what is kept as it was.
#[test]
fn a_304_to_a_cookie() {
    let gate = Gate::default();
    gate.open();
    let upstream = validating("Cache-Control: max-age=60\r\nAge: 60\r\n", "", gate);
    let gateway = cached(&upstream, json!({}));
    let mut client = gateway.connect();
    for fields in ["", "Cookie: a=b\r\n", "Cookie: a=b\r\n", ""] {
        assert_eq!((ask(&mut client, fields).text().as_str(), fields), ("ok", fields));
    }
    let conditional = |request: &Message| request.field("if-none-match").is_some();
    assert_eq!(upstream.requests().iter().map(conditional).collect::<Vec<_>>(), [false, true, true, true]);
}

/// What is fetched anew in the background is the whole, whatever the request wanted that set it off.
#[test]
fn a_refresh_is_of_the_whole() {
    for request in
        ["GET /x HTTP/1.1\r\nHost: a\r\nRange: bytes=0-0\r\n\r\n", "HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n"]
    {
        let count = AtomicUsize::new(0);
        let upstream = Upstream::start(move |mut conn| {
            while let Some(request) = conn.request() {
                let head = match count.fetch_add(1, Ordering::SeqCst) {
                    0 => "Cache-Control: max-age=60, stale-while-revalidate=60\r\nAge: 60\r\n",
                    _ => "Cache-Control: max-age=60\r\n",
                };
                match (request.method(), request.field("range")) {
                    ("HEAD", _) => conn.send(format!("HTTP/1.1 200 OK\r\n{head}Content-Length: 2\r\n\r\n")),
                    (_, Some(_)) => conn.send(format!(
                        "HTTP/1.1 206 Partial Content\r\n{head}Content-Range: bytes 0-0/2\r\nContent-Length: 1\r\n\r\no"
                    )),
                    (_, None) => conn.send(format!("HTTP/1.1 200 OK\r\n{head}Content-Length: 2\r\n\r\nok")),
                }
            }
        });
        let gateway = cached(&upstream, json!({}));
        gateway.get("/x");
        let method = request.split(' ').next().unwrap();
        gateway.connect().send(request).response_to(method);
        gateway.wait_for_metrics("the fetch", |_| upstream.requests().len() == 2);
        let asked = &upstream.requests()[1];
        assert_eq!((asked.method(), asked.field("range")), ("GET", None), "{request}");
    }
}
