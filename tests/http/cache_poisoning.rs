//! What one client sends that the key does not hold never shapes what another is answered with.

use gateway_tests::{Client, Gateway, Message, Upstream};
use serde_json::{Value, json};

/// A backend that shows the head it was asked with, for a minute.
fn telling(head: &'static str) -> Upstream {
    Upstream::start(move |mut conn| {
        while let Some(request) = conn.request() {
            let body = request.to_string().to_ascii_lowercase();
            let length = body.len();
            conn.send(format!(
                "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n{head}Content-Length: {length}\r\n\r\n{body}"
            ));
        }
    })
}

fn cached(upstream: &Upstream, trusted: &[&str], cache: Value) -> Gateway {
    Gateway::start(json!({
        "trusted_proxies": trusted,
        "routes": [{ "path": "/", "backend": upstream.url(), "enable_cache": true, "cache": cache }]
    }))
}

fn ask(client: &mut Client, target: &str, fields: &str) -> Message {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).response()
}

const TOLD: [&str; 6] = [
    "X-Forwarded-Host: evil",
    "X-Forwarded-Port: evil",
    "X-Forwarded-Prefix: /evil",
    "X-Forwarded-Scheme: evil",
    "X-Forwarded-Server: evil",
    "X-Forwarded-Proto: evil",
];

#[test]
fn nobody_is_believed_about_the_site() {
    let upstream = telling("");
    let gateway = cached(&upstream, &[], json!({}));
    let mut client = gateway.connect();
    for (number, field) in TOLD.iter().enumerate() {
        let first = ask(&mut client, &format!("/{number}"), &format!("{field}\r\n"));
        assert!(!first.text().contains("evil"), "{field}");
    }
}

/// Load balancers pass on much of what their clients say.
#[test]
fn what_a_trusted_proxy_says_of_the_site_is_part_of_the_key() {
    let upstream = telling("");
    let gateway = cached(&upstream, &["127.0.0.1"], json!({}));
    let mut client = gateway.connect();
    for (number, field) in TOLD.iter().enumerate() {
        let target = format!("/{number}");
        let first = ask(&mut client, &target, &format!("{field}\r\n"));
        assert!(first.text().contains("evil"), "{field}");
        assert!(!ask(&mut client, &target, "").text().contains("evil"), "{field}");
        let again = ask(&mut client, &target, &format!("{field}\r\n"));
        assert!(again.text().contains("evil") && again.field("age").is_some(), "{field}");
    }
}

/// The gateway writes the field for each client: one that is answered by it is nobody else's.
#[test]
fn an_answer_for_one_address() {
    for name in ["X-Forwarded-For", "X-Request-Id"] {
        let head = format!("Vary: {name}\r\n");
        let upstream = telling(head.leak());
        let gateway = cached(&upstream, &[], json!({}));
        let of = |source| ask(&mut Client::connect_from(source, gateway.address), "/", "").text();
        assert!(of([127, 0, 0, 1]) != of([127, 0, 0, 2]), "{name}");
    }
}

#[test]
fn parameters_that_are_not_what_they_look_like() {
    let upstream = telling("");
    for (rule, plain, disguised) in [
        (json!({ "keep": ["id"] }), "/x?id=1", "/x?id=1&%69d=2"),
        (json!({ "keep": ["id"] }), "/x?id=1", "/x?id=1&u=1;id=2"),
        (json!({ "ignore": ["u"] }), "/x?id=1", "/x?id=1&u=1;id=2"),
    ] {
        let gateway = cached(&upstream, &[], json!({ "key_query": rule }));
        let mut client = gateway.connect();
        ask(&mut client, disguised, "");
        assert_eq!(ask(&mut client, plain, "").field("age"), None, "{disguised}");
    }
}

#[test]
fn a_cookie_sent_twice() {
    let upstream = telling("");
    let gateway = cached(&upstream, &[], json!({ "key_cookies": ["lang"] }));
    let mut client = gateway.connect();
    ask(&mut client, "/x", "Cookie: lang=de; lang=en\r\n");
    assert_eq!(ask(&mut client, "/x", "Cookie: lang=de\r\n").field("age"), None);
}
