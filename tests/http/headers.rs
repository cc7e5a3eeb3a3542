//! The fields that are taken away, added and replaced on the way up and on the way down.

use gateway_tests::client::get;
use gateway_tests::gateway::route_to;
use gateway_tests::{Gateway, Message, Upstream};
use serde_json::json;

fn trusting(upstream: &Upstream) -> Gateway {
    let mut config = route_to(&upstream.url());
    config["trusted_proxies"] = json!(["127.0.0.0/8"]);
    Gateway::start(config)
}

fn send(gateway: &Gateway, fields: &str) -> Message {
    let request = get("/").replace("Host: a\r\n", &format!("Host: a.example:81\r\n{fields}"));
    gateway.connect().send(request).response()
}

/// What each field is upstream, for a client of either standing.
#[test]
fn what_the_upstream_gets() {
    let upstream = Upstream::ok();
    let (stranger, trusted) = (Gateway::to(&upstream), trusting(&upstream));
    let table: &[(&str, &str, Option<&str>, Option<&str>)] = &[
        // Fields sent, field looked at, from a stranger, from a trusted proxy.
        ("", "Host", Some("a.example:81"), Some("a.example:81")),
        ("", "Via", Some("1.1 gateway"), Some("1.1 gateway")),
        ("Via: 1.0 cache\r\n", "Via", Some("1.0 cache, 1.1 gateway"), Some("1.0 cache, 1.1 gateway")),
        ("", "X-Forwarded-For", Some("127.0.0.1"), Some("127.0.0.1")),
        ("X-Forwarded-For: 6.6.6.6\r\n", "X-Forwarded-For", Some("127.0.0.1"), Some("6.6.6.6, 127.0.0.1")),
        (
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\n",
            "X-Forwarded-For",
            Some("127.0.0.1"),
            Some("6.6.6.6, 7.7.7.7, 127.0.0.1"),
        ),
        ("", "X-Forwarded-Proto", Some("http"), Some("http")),
        ("X-Forwarded-Proto: https\r\n", "X-Forwarded-Proto", Some("http"), Some("https")),
        ("", "X-Forwarded-Host", Some("a.example:81"), Some("a.example:81")),
        ("X-Forwarded-Host: evil\r\n", "X-Forwarded-Host", Some("a.example:81"), Some("evil")),
        ("Forwarded: for=6.6.6.6\r\n", "Forwarded", None, Some("for=6.6.6.6")),
        ("X-Request-Id: mine\r\n", "X-Request-Id", None, Some("mine")),
        // Hop by hop.
        ("Connection: keep-alive\r\n", "Connection", None, None),
        ("Connection: close, X-Hop\r\nX-Hop: 1\r\n", "X-Hop", None, None),
        ("Connection: X-Hop\r\nConnection: X-Other\r\nX-Other: 1\r\n", "X-Other", None, None),
        ("Keep-Alive: timeout=5\r\n", "Keep-Alive", None, None),
        ("Proxy-Connection: keep-alive\r\n", "Proxy-Connection", None, None),
        ("TE: gzip\r\n", "TE", None, None),
        ("TE: trailers\r\n", "TE", Some("trailers"), Some("trailers")),
        ("Connection: Upgrade\r\nUpgrade: h2c\r\n", "Upgrade", None, None),
        // `Connection` cannot take away what the gateway vouches for, nor the message's meaning.
        ("Connection: X-Forwarded-For\r\n", "X-Forwarded-For", Some("127.0.0.1"), Some("127.0.0.1")),
        ("Connection: Host\r\n", "Host", Some("a.example:81"), Some("a.example:81")),
        ("Connection: Cookie\r\nCookie: a=b\r\n", "Cookie", Some("a=b"), Some("a=b")),
        // End to end.
        ("tracestate: a=b\r\n", "tracestate", None, None),
        ("X-Odd: \u{e9}\u{df}\r\n", "X-Odd", Some("\u{e9}\u{df}"), Some("\u{e9}\u{df}")),
        ("X-Empty:\r\n", "X-Empty", Some(""), Some("")),
    ];
    for (gateway, who) in [(&stranger, "stranger"), (&trusted, "trusted")] {
        for (fields, name, from_stranger, from_trusted) in table {
            let response = send(gateway, fields);
            assert_eq!(response.status(), 200, "{fields}");
            let sent = upstream.last();
            let want = if who == "stranger" { from_stranger } else { from_trusted };
            if *name == "X-Request-Id" && want.is_none() {
                let id = sent.field(name).expect("an id of the gateway's own");
                assert_ne!(id, "mine");
                assert_eq!(id.len(), 32);
            } else {
                assert_eq!(sent.field(name), *want, "{name} for {who} after {fields}\n{sent}");
            }
            assert_eq!(response.field("x-request-id"), sent.field("x-request-id"), "the id is echoed");
        }
    }
}

#[test]
fn repeated_fields_keep_their_order() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    send(&gateway, "X-A: 1\r\nCookie: a\r\nX-A: 2\r\nX-A: 1\r\n");
    assert_eq!(upstream.last().all("x-a"), ["1", "2", "1"]);
}

#[test]
fn what_the_client_gets() {
    let upstream = Upstream::answering(
        "HTTP/1.1 200 Fine By Me\r\nContent-Length: 2\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
         X-Request-Id: theirs\r\nVia: 1.1 cache\r\nServer: them\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\nhi",
    );
    let gateway = Gateway::to(&upstream);
    let response = gateway.get("/");
    for gone in ["connection", "x-hop", "keep-alive", "proxy-connection", "upgrade", "transfer-encoding"] {
        assert!(response.all(gone).is_empty(), "{gone} in {response}");
    }
    assert_eq!(response.text(), "hi");
    assert_eq!(response.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(response.field("via"), Some("1.1 cache, 1.1 gateway"));
    assert_eq!(response.field("server"), Some("them"));
    assert_eq!(response.field("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
    assert_eq!(response.field("x-request-id"), upstream.last().field("x-request-id"));
}

#[test]
fn a_response_without_a_date_gets_one() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let response = gateway.get("/");
    assert!(response.field("date").is_some_and(|date| date.ends_with(" GMT")), "{response}");
}

#[test]
fn host_is_the_backend_s_where_it_is_not_preserved() {
    let upstream = Upstream::ok();
    let mut config = route_to(&upstream.url());
    config["routes"][0]["preserve_host"] = json!(false);
    let gateway = Gateway::start(config);
    send(&gateway, "");
    let sent = upstream.last();
    assert_eq!(sent.field("host"), Some(upstream.address.to_string().as_str()));
    assert_eq!(sent.field("x-forwarded-host"), Some("a.example:81"));
}
