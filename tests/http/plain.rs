//! A request that comes whole and alone does without hyper; behind one with a body, hyper reads it. Nobody can tell.

use gateway_tests::upstream::{Conn, ok};
use gateway_tests::{Client, Gateway, Message, Upstream};
use serde_json::json;

/// Answers by the path asked for.
fn answer(mut conn: Conn) {
    while let Some(request) = conn.request() {
        let path = request.target().to_owned();
        let kept = |body: &str| {
            ok(body).replace("\r\n\r\n", "\r\nCache-Control: max-age=600\r\nETag: \"e\"\r\n\r\n")
        };
        conn.send(match path.split('?').next().unwrap_or_default() {
            "/empty" => ok(""),
            "/large" => ok(&"x".repeat(300_000)),
            "/middle" => ok(&"x".repeat(9_000)),
            "/none" => "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n".to_owned(),
            "/none-of-length" => "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "/same" => "HTTP/1.1 304 Not Modified\r\nETag: \"e\"\r\nContent-Length: 10\r\n\r\n".to_owned(),
            "/reason" => "HTTP/1.1 200 Very Well\r\nContent-Length: 2\r\nX-A: 1\r\nX-B: 2\r\nX-A: 3\r\n\r\nab".to_owned(),
            "/odd" => "HTTP/1.1 799\r\nContent-Length: 2\r\n\r\nab".to_owned(),
            "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_owned(),
            "/trailers" => "HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n".to_owned(),
            "/hint" => format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{}", ok("hinted")),
            "/closes" => ok("a").replace("\r\n\r\n", "\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\r\n"),
            "/missing" => "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone".to_owned(),
            "/cached" | "/cached/large" => kept(&"x".repeat(if path.len() > 8 { 100_000 } else { 10 })),
            "/varies" => kept("varied").replace("\r\nETag", "\r\nVary: X-V\r\nETag"),
            _ => ok(&path),
        });
        if path == "/closes" {
            return;
        }
    }
}

fn gateway(upstream: &Upstream) -> Gateway {
    let url = upstream.url();
    Gateway::start(json!({
        "workers": 1,
        "trusted_proxies": ["127.0.0.9/32"],
        "routes": [
            { "path": "/", "backend": url },
            { "path": "/cached", "backend": url, "enable_cache": true },
            { "path": "/varies", "backend": url, "enable_cache": true },
            { "path": "/limited", "backend": url,
              "rate_limits": [{ "name": "a", "limit": 1, "per": "day", "key": ["client"] }] },
            { "path": "/posts", "backend": url, "methods": ["POST"] },
        ],
    }))
}

const FIRST: &str = "POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";

/// All of an answer that does not differ from one request to the next, as text.
fn told(answer: &Message) -> String {
    let id = answer.field("x-request-id").unwrap_or_default().to_owned();
    let mut fields: Vec<_> = answer
        .fields
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.replace(&id, "ID")))
        .map(|(name, value)| match name.as_str() {
            // A second may have passed.
            "date" | "age" | "retry-after" | "ratelimit" => (name, String::new()),
            "cache-status" => (name, value.split("ttl=").next().unwrap_or_default().to_owned()),
            _ => (name, value),
        })
        .collect();
    fields.sort();
    let body = String::from_utf8_lossy(&answer.body).replace(&id, "ID");
    format!("{}\n{fields:?}\n{body}", answer.start)
}

/// The final answer and whatever came before it.
fn answers(client: &mut Client) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let answer = client.response();
        all.push(told(&answer));
        if answer.status() >= 200 {
            return all;
        }
    }
}

const TARGETS: &[&str] = &[
    "/x",
    "/x?a=b&c",
    "/a/../b//c/%41",
    "/empty",
    "/middle",
    "/large",
    "/none",
    "/none-of-length",
    "/same",
    "/reason",
    "/odd",
    "/chunked",
    "/trailers",
    "/hint",
    "/closes",
    "/missing",
    "/cached",
    "/cached/large",
    "/varies",
    "/limited",
    "/posts",
    "/%00",
    "/a\\b",
    "/%zz",
];

const FIELDS: &[&str] = &[
    "",
    "Connection: keep-alive\r\nKeep-Alive: 5\r\n",
    "X-V: 1\r\nx-v: 2\r\nAccept: text/html\r\n",
    "If-None-Match: \"e\"\r\n",
    "Range: bytes=2-4\r\n",
    "Cache-Control: no-cache\r\nPragma: no-cache\r\n",
    "Cache-Control: only-if-cached\r\n",
    "Cookie: a=b\r\nAuthorization: c\r\nX-API-Key: d\r\n",
    "X-Forwarded-For: 6.6.6.6\r\nX-Request-Id: its-own\r\nForwarded: for=6.6.6.6\r\nVia: 1.1 b\r\n",
    "Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nTE: trailers\r\nConnection: keep-alive\r\n",
    "Host: b\r\n",
    "Connection: close\r\n",
    "X-Empty:\r\nX-Padded: \t a b \t\r\nX-High: \u{fc}\r\n",
];

#[test]
fn what_is_answered_does_not_depend_on_the_way() {
    let upstream = Upstream::start(answer);
    let gateway = gateway(&upstream);
    let connect = |source| Client::connect_from(source, gateway.address);
    let head = |target: &str, fields: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    for source in [[127, 0, 0, 1], [127, 0, 0, 9]] {
        for target in TARGETS {
            for (place, fields) in FIELDS.iter().enumerate() {
                let asked = head(target, fields);
                // What is stored, and what is left of a limit, is to be the same for all.
                answers(connect(source).send(&asked));
                // Its answers, and what the upstream was asked for them.
                let behind = |first: &str| {
                    let mut client = connect(source);
                    if !first.is_empty() && client.send(first).response().closes() {
                        return None;
                    }
                    let before = upstream.requests().len();
                    let answers = answers(client.send(&asked));
                    Some((answers, upstream.requests()[before..].iter().map(told).collect::<Vec<_>>()))
                };
                let alone = behind("");
                assert_eq!(behind(FIRST), alone, "behind one that hyper read: {asked}");
                // A connection's next request with the same fields is read in a way of its own.
                let like_it = behind(&head("/x", fields));
                assert!(like_it.is_none() || like_it == alone, "{like_it:?} is not {alone:?}: {asked}");
                let other = FIELDS[(place + 1) % FIELDS.len()];
                let unlike_it = behind(&head("/x", other));
                assert!(unlike_it.is_none() || unlike_it == alone, "{unlike_it:?} is not {alone:?}: {asked}");
            }
        }
    }
}

/// Plain and other requests on one connection, in any order and however they are cut.
#[test]
fn requests_of_both_kinds_take_turns() {
    let upstream = Upstream::start(answer);
    let gateway = gateway(&upstream);
    let plain = |n: usize| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n");
    let other = |n: usize| format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    // Bits: which of the requests have a body.
    for pattern in [0b000000, 0b000001, 0b000010, 0b100000, 0b010101, 0b101010, 0b011011, 0b111111] {
        let mut client = gateway.connect();
        for round in 0..4 {
            let all: Vec<_> =
                (0..6).map(|n| if pattern >> n & 1 == 1 { other(n) } else { plain(n) }).collect();
            match round {
                0 => (0..6).for_each(|n| {
                    assert_eq!(client.send(&all[n]).response().text(), format!("/{n}"));
                }),
                1 => {
                    client.send(all.concat());
                    (0..6).for_each(|n| assert_eq!(client.response().text(), format!("/{n}")));
                }
                // Twelve in a row that are plain: whoever had hyper lets go of it.
                2 => (0..12).for_each(|n| assert_eq!(client.get(&format!("/{n}")).text(), format!("/{n}"))),
                _ => {
                    // Each comes with the beginning of the next.
                    let stream = all.concat();
                    let (first, rest) = stream.split_at(all[0].len() + 5);
                    client.send(first);
                    assert_eq!(client.response().text(), "/0");
                    client.send(rest);
                    (1..6).for_each(|n| assert_eq!(client.response().text(), format!("/{n}")));
                }
            }
        }
    }
}

/// A connection's fields that were read before a reload have to keep to what holds after it.
#[test]
fn a_bound_that_a_reload_narrows_holds_for_known_fields_too() {
    let upstream = Upstream::start(answer);
    let config = |most: usize| json!({ "routes": [{ "path": "/", "backend": upstream.url() }], "head": { "max_headers": most } });
    let gateway = Gateway::start(config(4));
    let mut client = gateway.connect();
    let request = "GET /x HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n";
    for _ in 0..3 {
        assert_eq!(client.send(request).response().text(), "/x");
    }
    gateway.write(config(3));
    gateway.log.wait_for("configuration reloaded");
    assert_eq!(client.send(request).response().status(), 431);
    client.expect_closed();
}
