//! Clients that ask on without reading: the heads of answers meet full sockets, and are whole all the same.

use std::collections::HashSet;
use std::io::{self, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use gateway_tests::upstream::ok;
use gateway_tests::{Client, Gateway, Message, PATIENCE, Upstream};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

/// A client whose socket takes a few packets, so that the gateway's is full most of the time.
fn narrow(gateway: &Gateway) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there are sockets");
    socket.set_recv_buffer_size(4096).expect("any size is taken");
    socket.connect(&gateway.address.into()).expect("the gateway listens");
    Client::over(TcpStream::from(socket))
}

/// Sends GET and HEAD in turns until the gateway takes no more, since it gets rid of no more answers; then reads them.
fn ask(gateway: &Gateway, mut look: impl FnMut(&str, Message)) {
    const ROUNDS: usize = 2;
    const STALLED: Duration = Duration::from_millis(50);
    let padding = "x".repeat(2_000);
    let pair =
        ["GET", "HEAD"].map(|method| format!("{method} / HTTP/1.1\r\nHost: a\r\nX: {padding}\r\n\r\n"));
    let pair = pair.concat().into_bytes();
    for _ in 0..ROUNDS {
        let mut client = narrow(gateway);
        let mut writer = client.stream().try_clone().expect("it can be held twice");
        writer.set_write_timeout(Some(STALLED)).expect("it is not zero");
        let (mut pairs, mut at) = (1, 0);
        let stalled = loop {
            match writer.write(&pair[at..]) {
                Ok(n) => at += n,
                Err(error) => break error,
            }
            if at == pair.len() {
                (pairs, at) = (pairs + 1, 0);
            }
        };
        assert_eq!(stalled.kind(), io::ErrorKind::WouldBlock, "{stalled}");
        writer.set_write_timeout(Some(PATIENCE)).expect("it is not zero");
        thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&pair[at..]).expect("the gateway reads again"));
            for _ in 0..pairs {
                ["GET", "HEAD"].iter().for_each(|method| look(method, client.response_to(method)));
            }
        });
    }
}

fn names(message: &Message) -> Vec<String> {
    let mut names: Vec<_> = message.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.sort();
    names
}

#[test]
fn refusals_are_whole() {
    let upstream = Upstream::ok();
    let rule = json!([{ "name": "a", "limit": 1, "per": "day", "key": ["client"] }]);
    let gateway = Gateway::start(json!({
        "rate_limit": { "legacy_fields": true },
        "routes": [{ "path": "/", "backend": upstream.url(), "rate_limits": rule }],
    }));
    assert_eq!(gateway.get("/").status(), 200);
    let want = gateway.get("/");
    assert_eq!(want.status(), 429, "{want}");
    let mut ids = HashSet::new();
    ask(&gateway, |method, answer| {
        assert_eq!((answer.status(), names(&answer)), (429, names(&want)), "{answer}");
        let id = answer.field("x-request-id").expect("every answer has one").to_owned();
        assert_eq!(answer.text().contains(&id), method == "GET", "{answer}");
        assert!(ids.insert(id), "{answer}");
    });
}

#[test]
fn stored_answers_are_whole() {
    for bytes in [10, 3_000, 20_000] {
        let body = "x".repeat(bytes);
        let upstream = Upstream::answering(
            ok(&body).replace("\r\n\r\n", "\r\nCache-Control: max-age=600\r\nX-A: b\r\n\r\n"),
        );
        let gateway = Gateway::start(json!({
            "routes": [{ "path": "/", "backend": upstream.url(), "enable_cache": true }],
        }));
        assert_eq!(gateway.get("/").text(), body);
        let want = gateway.get("/");
        assert!(want.field("cache-status").is_some_and(|status| status.contains("hit")), "{want}");
        ask(&gateway, |method, answer| {
            assert_eq!((answer.status(), names(&answer)), (200, names(&want)), "{answer}");
            assert!(answer.body == if method == "GET" { body.as_bytes() } else { b"" }, "{answer}");
        });
        assert_eq!(upstream.requests().len(), 1);
    }
}

#[test]
fn who_waits_for_a_100_is_told_of_the_limit_too() {
    let upstream = Upstream::ok();
    let rule: Value = json!([{ "name": "a", "limit": 1, "per": "day", "key": ["client"] }]);
    let gateway = Gateway::start(json!({
        "routes": [{ "path": "/", "backend": upstream.url(), "rate_limits": rule }],
    }));
    assert_eq!(gateway.get("/").status(), 200);
    let mut client = gateway.connect();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    let answer = client.send(head).response();
    assert_eq!(answer.status(), 429, "{answer}");
    let named = ["retry-after", "ratelimit", "ratelimit-policy", "x-request-id", "date", "content-type"];
    named.iter().for_each(|name| assert!(answer.field(name).is_some(), "{name}: {answer}"));
    assert_eq!(answer.field("connection"), Some("close"), "{answer}");
    client.expect_closed();
}
