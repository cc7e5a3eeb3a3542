//! Who a client is: what trusted proxies say, in fields or in a PROXY header, and what others claim.
//!
//! A refusal's line in the log tells whom a request was taken to be from; `X-Forwarded-For` tells the
//! upstream who the peer is.

use std::fs;
use std::time::{Duration, Instant};

use gateway_tests::client::get;
use gateway_tests::gateway::{complete, route_to};
use gateway_tests::{Client, Gateway, PATIENCE, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const V1: &str = "PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\x00\x71\x07\x0a\x00\x00\x01\xdc\x04\x01\xbb";
const REFUSED: &str = "gateway_proxy_headers_refused_total";

/// One worker, so that an answer to one connection tells that it has looked at the others.
fn config(upstream: &Upstream, trusted: Value, proxy_protocol: bool) -> Value {
    let mut config = route_to(&upstream.url());
    config["workers"] = json!(1);
    config["trusted_proxies"] = trusted;
    config["proxy_protocol"] = json!(proxy_protocol);
    config
}

/// Behind a load balancer on the loopback that writes PROXY headers.
fn balanced(upstream: &Upstream) -> Gateway {
    Gateway::start(config(upstream, json!(["127.0.0.0/8", "10.0.0.0/8"]), true))
}

/// With every refusal in the log.
fn talkative(config: Value) -> Gateway {
    let directory = TempDir::new().expect("there is room for a folder");
    let file = directory.path().join("gateway.json");
    fs::write(&file, complete(config)).expect("there is room for a file");
    Gateway::run(directory, file, |command| {
        command.env("GATEWAY_LOG", "debug");
    })
}

fn request(fields: &str) -> String {
    get("/").replace("Host: a\r\n", &format!("Host: a\r\n{fields}"))
}

/// A request that waits for its answer on a connection of its own: what was sent before has been seen.
#[track_caller]
fn settle(gateway: &Gateway) {
    assert_eq!(gateway.connect().send(format!("{V1}{}", get("/settle"))).response().status(), 200);
}

#[track_caller]
fn wait_refused(gateway: &Gateway, count: usize) {
    gateway
        .wait_for_metrics("refusals", |metrics| metrics.get(REFUSED, &[]).is_some_and(|n| n == count as f64));
}

/// Fields of a request; who it is from when the peer, 127.0.0.1, is trusted.
const FIELDS: &[(&str, &str)] = &[
    ("", "127.0.0.1"),
    ("X-Forwarded-For: 203.0.113.7\r\n", "203.0.113.7"),
    ("X-Forwarded-For: 6.6.6.6, 203.0.113.7, 10.0.0.2\r\n", "203.0.113.7"),
    ("X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-For: 10.0.0.2\r\n", "203.0.113.7"),
    ("X-Forwarded-For: 203.0.113.7\r\nX-A: b\r\nx-forwarded-for: 127.0.0.1\r\n", "203.0.113.7"),
    ("X-Forwarded-For: 10.0.0.3, 127.0.0.1\r\n", "10.0.0.3"),
    ("X-Forwarded-For: 6.6.6.6, unknown, 10.0.0.2\r\n", "10.0.0.2"),
    ("X-Forwarded-For: 6.6.6.6, \u{fc}\r\n", "127.0.0.1"),
    ("X-Forwarded-For: ::ffff:203.0.113.7\r\n", "203.0.113.7"),
    ("X-Forwarded-For: [2001:db8:1:2:3::4]:80\r\n", "2001:db8:1:2::"),
    (
        "Forwarded: for=6.6.6.6, For=\"[2001:db8:1:2:3::4]:80\";proto=https, for=10.0.0.2\r\n",
        "2001:db8:1:2::",
    ),
    ("Forwarded: for=\", for=203.0.113.7\r\n", "203.0.113.7"),
    ("Forwarded: for=6.6.6.6, for=_hidden\r\n", "127.0.0.1"),
    ("Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 203.0.113.7\r\n", "203.0.113.7"),
    ("X-Real-IP: 6.6.6.6\r\nTrue-Client-IP: 6.6.6.6\r\n", "127.0.0.1"),
];

/// Whom `gateway` takes a request with `fields` to be from.
#[track_caller]
fn taken_for(gateway: &Gateway, fields: &str) -> String {
    let request = request(fields).replace("GET / ", "DELETE / ");
    assert_eq!(gateway.connect().send(request).response().status(), 405, "{fields}");
    let line = gateway.log.wait_for("MethodNotAllowed");
    let client = line.split_whitespace().find_map(|word| word.strip_prefix("client="));
    client.unwrap_or_else(|| panic!("no client in {line}")).to_owned()
}

#[test]
fn a_trusted_proxy_is_believed_and_nobody_else() {
    let upstream = Upstream::ok();
    let gateway = |trusted| {
        let mut config = config(&upstream, trusted, false);
        config["routes"][0]["methods"] = json!(["GET"]);
        talkative(config)
    };
    let trusting = gateway(json!(["127.0.0.0/8", "10.0.0.0/8"]));
    let wary = gateway(json!(["10.0.0.0/8"]));
    for (fields, client) in FIELDS {
        assert_eq!(taken_for(&trusting, fields), *client, "{fields}");
        assert_eq!(taken_for(&wary, fields), "127.0.0.1", "{fields}");
        assert_eq!(wary.connect().send(request(fields)).response().status(), 200);
        let sent = upstream.last();
        assert_eq!((sent.field("x-forwarded-for"), sent.field("forwarded")), (Some("127.0.0.1"), None));
    }
}

#[test]
fn the_prefix_of_ipv6_clients_is_configured() {
    let upstream = Upstream::ok();
    let mut config = config(&upstream, json!(["127.0.0.1"]), false);
    config["routes"][0]["methods"] = json!(["GET"]);
    config["client_ipv6_prefix"] = json!(56);
    let gateway = talkative(config);
    assert_eq!(taken_for(&gateway, "X-Forwarded-For: 2001:db8:1:2ff::1\r\n"), "2001:db8:1:200::");
}

#[test]
fn a_forgotten_load_balancer_is_named_once() {
    let upstream = Upstream::ok();
    let mut gateway = Gateway::start(config(&upstream, json!([]), false));
    let mut client = gateway.connect();
    for fields in ["Via: 1.1 cache\r\n", "X-Forwarded-For: 203.0.113.7\r\n", ""] {
        assert_eq!(client.send(request(fields)).response().status(), 200);
    }
    assert_eq!(gateway.connect().send(request("Forwarded: for=6.6.6.6\r\n")).response().status(), 200);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    let lines = gateway.log.to_end();
    let warnings: Vec<_> = lines.iter().filter(|line| line.contains("trusted_proxies")).collect();
    let [warning] = warnings[..] else { panic!("not one warning: {lines:#?}") };
    for part in ["WARN", "add=127.0.0.0/24", "peer=127.0.0.1", "Via"] {
        assert!(warning.contains(part), "no {part} in {warning}");
    }
}

#[test]
fn a_client_without_such_fields_is_no_load_balancer() {
    let upstream = Upstream::ok();
    let mut gateway = Gateway::start(config(&upstream, json!([]), false));
    assert_eq!(gateway.connect().send(request("X-Real-IP: 6.6.6.6\r\n")).response().status(), 200);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    assert!(!gateway.log.to_end().iter().any(|line| line.contains("trusted_proxies")));
}

#[test]
fn a_kept_connection_has_the_standing_of_the_configuration_in_force() {
    let upstream = Upstream::ok();
    let gateway = Gateway::start(config(&upstream, json!([]), false));
    let mut client = gateway.connect();
    assert_eq!(client.send(request("X-Forwarded-For: 203.0.113.7\r\n")).response().status(), 200);
    assert_eq!(upstream.last().field("x-forwarded-for"), Some("127.0.0.1"));
    for (trusted, sent) in
        [(json!(["127.0.0.1"]), "203.0.113.7, 127.0.0.1"), (json!(["10.0.0.0/8"]), "127.0.0.1")]
    {
        gateway.write(config(&upstream, trusted, false));
        gateway.log.wait_for("configuration reloaded");
        assert_eq!(client.send(request("X-Forwarded-For: 203.0.113.7\r\n")).response().status(), 200);
        assert_eq!(upstream.last().field("x-forwarded-for"), Some(sent));
    }
}

/// A version 2 header with this command, family and block.
fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).expect("it is short").to_be_bytes();
    [&V2[..12], &[0x20 | command, family], &length, block].concat()
}

#[test]
fn a_proxy_header_names_the_peer() {
    let upstream = Upstream::ok();
    let gateway = balanced(&upstream);
    let ipv6 =
        [&[0x20, 1, 0x0d, 0xb8, 0, 1, 0, 2, 0, 3, 0, 0, 0, 0, 0, 4][..], &[0; 16], &[1, 2, 3, 4]].concat();
    let mapped = [&[0; 10][..], &[0xff, 0xff, 203, 0, 113, 7], &[0; 16], &[1, 2, 3, 4]].concat();
    let extended = [&V2[16..], &[4, 0, 3, 1, 2, 3, 0xea, 0, 0]].concat();
    let table: Vec<(Vec<u8>, &str)> = vec![
        (V1.into(), "203.0.113.7"),
        (b"PROXY TCP6 2001:db8:1:2:3::4 ::1 1 2\r\n".into(), "2001:db8:1:2:3::4"),
        (b"PROXY TCP6 ::ffff:203.0.113.7 ::1 1 2\r\n".into(), "203.0.113.7"),
        (b"PROXY UNKNOWN\r\n".into(), "127.0.0.1"),
        (b"PROXY UNKNOWN 6.6.6.6 10.0.0.1 1 2\r\n".into(), "127.0.0.1"),
        (V2.into(), "203.0.113.7"),
        (v2(1, 0x21, &ipv6), "2001:db8:1:2:3::4"),
        (v2(1, 0x21, &mapped), "203.0.113.7"),
        (v2(1, 0x11, &extended), "203.0.113.7"),
        (v2(0, 0x11, &V2[16..]), "127.0.0.1"),
        (v2(0, 0, b""), "127.0.0.1"),
        (v2(1, 0, b""), "127.0.0.1"),
        (v2(1, 0x31, &[b'/'; 216]), "127.0.0.1"),
        (v2(0, 0, &[7; 4080]), "127.0.0.1"),
    ];
    for (header, source) in table {
        let mut client = gateway.connect();
        // The second request of the connection is the same client's.
        for bytes in [[&header[..], get("/").as_bytes()].concat(), get("/").into_bytes()] {
            assert_eq!(client.send(bytes).response().status(), 200, "{}", header.escape_ascii());
            assert_eq!(upstream.last().field("x-forwarded-for"), Some(source), "{}", header.escape_ascii());
        }
    }
    assert_eq!(gateway.scrape().get(REFUSED, &[]), Some(0.0));
}

/// The fields of whom the header names are believed where that peer is trusted itself.
#[test]
fn a_proxy_header_and_a_field() {
    let upstream = Upstream::ok();
    let gateway = balanced(&upstream);
    for (source, sent) in [("203.0.113.7", "203.0.113.7"), ("10.1.2.3", "6.6.6.6, 10.1.2.3")] {
        let header = V1.replace("203.0.113.7", source);
        let request = request("X-Forwarded-For: 6.6.6.6\r\n");
        assert_eq!(gateway.connect().send(format!("{header}{request}")).response().status(), 200);
        assert_eq!(upstream.last().field("x-forwarded-for"), Some(sent));
    }
}

#[test]
fn a_proxy_header_may_come_in_any_two_pieces() {
    let upstream = Upstream::ok();
    let gateway = balanced(&upstream);
    for header in [V1.as_bytes(), V2] {
        let stream = [header, get("/").as_bytes()].concat();
        for cut in 1..stream.len() {
            let mut client = gateway.connect();
            client.send(&stream[..cut]);
            settle(&gateway);
            assert_eq!(client.send(&stream[cut..]).response().status(), 200, "cut after {cut}");
            assert_eq!(upstream.last().field("x-forwarded-for"), Some("203.0.113.7"), "cut after {cut}");
        }
    }
}

#[test]
fn a_connection_without_a_good_proxy_header_is_closed() {
    let upstream = Upstream::ok();
    let gateway = balanced(&upstream);
    let mut garbled = V2.to_vec();
    garbled[11] = b'\r';
    let wrong_checksum = [&V2[16..], &[3, 0, 4, 1, 2, 3, 4]].concat();
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("none", get("/").into()),
        ("lower case", V1.to_lowercase().into()),
        ("a blank line before it", format!("\r\n{V1}").into()),
        ("bare LF", V1.replace("\r\n", "\n").into()),
        ("no such family", V1.replace("TCP4", "UDP4").into()),
        ("the other family", V1.replace("TCP4", "TCP6").into()),
        ("no such port", V1.replace("56324", "65536").into()),
        ("octal", V1.replace("203.0.113.7", "0313.0.113.7").into()),
        ("two spaces", V1.replace("TCP4 ", "TCP4  ").into()),
        ("too long a line", format!("PROXY UNKNOWN {}\r\n", "x".repeat(92)).into()),
        ("signature", garbled),
        ("version", [&V2[..12], b"\x11\x11\0\0"].concat()),
        ("command", v2(2, 0x11, &V2[16..])),
        ("family", v2(1, 0x41, &V2[16..])),
        ("too short for its family", v2(1, 0x11, &V2[16..27])),
        ("too long", v2(0, 0, &[7; 4081])),
        ("checksum", v2(1, 0x11, &wrong_checksum)),
        ("extension beyond the end", v2(1, 0x11, &[&V2[16..], &[4, 0, 9]].concat())),
    ];
    let count = table.len();
    for (what, header) in table {
        let mut client = gateway.connect();
        let _ = client.try_send([&header[..], get("/").as_bytes()].concat());
        match client.rest() {
            Ok(rest) => assert!(rest.is_empty(), "{what}: {}", rest.escape_ascii()),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{what}"),
        }
    }
    wait_refused(&gateway, count);
    // One that is cut short.
    gateway.connect().send(&V2[..20]).half_close().expect_closed();
    wait_refused(&gateway, count + 1);
    // One that leaves without a word, as a connection check does.
    gateway.connect().half_close().expect_closed();
    settle(&gateway);
    assert_eq!(gateway.scrape().get(REFUSED, &[]), Some((count + 1) as f64));
    assert!(upstream.requests().iter().all(|request| request.target() == "/settle"));
    gateway.wait_for_metrics("none left open", |metrics| {
        metrics.get("gateway_connections_open", &[]) == Some(0.0)
    });
}

#[test]
fn a_proxy_header_of_somebody_else_is_refused() {
    let upstream = Upstream::ok();
    let gateway = Gateway::start(config(&upstream, json!(["10.0.0.0/8"]), true));
    for header in [V1.as_bytes(), V2, b"PROXY UNKNOWN\r\n"] {
        let mut client = gateway.connect();
        let _ = client.try_send([header, get("/").as_bytes()].concat());
        client.expect_closed();
    }
    wait_refused(&gateway, 3);
    assert!(upstream.requests().is_empty());
    assert!(gateway.log.wait_for("trusted_proxies").contains("add=127.0.0.0/24"));
}

#[test]
fn what_stands_behind_a_proxy_header_is_http() {
    let upstream = Upstream::ok();
    let gateway = balanced(&upstream);
    let twice =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let second: [&[u8]; 3] = [b"PROXY TCP4 6.6.6.6 10.0.0.1 1 2\r\n", V2, twice.as_bytes()];
    for header in [V1.as_bytes(), V2] {
        for second in second {
            let mut client = gateway.connect();
            let _ = client.try_send([header, second, get("/smuggled").as_bytes()].concat());
            assert_eq!(client.response().status(), 400, "{}", second.escape_ascii());
            client.expect_closed();
        }
    }
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
    let mut client = gateway.connect();
    client.send(format!("{V1}{}{}", get("/1"), get("/2"))).half_close();
    assert_eq!([client.response().status(), client.response().status()], [200, 200]);
    client.expect_closed();
}

#[test]
fn a_proxy_header_nobody_asked_for_is_no_request() {
    let upstream = Upstream::ok();
    let gateway = Gateway::start(config(&upstream, json!(["127.0.0.1"]), false));
    for header in [V1.as_bytes(), V2] {
        let mut client = gateway.connect();
        let _ = client.try_send([header, get("/").as_bytes()].concat());
        assert_eq!(client.response().status(), 400);
        client.expect_closed();
    }
    assert!(upstream.requests().is_empty());
}

#[test]
fn a_proxy_header_must_come_in_time() {
    let upstream = Upstream::ok();
    let mut config = config(&upstream, json!(["127.0.0.1"]), true);
    config["timeouts"] = json!({ "header_read": "400ms" });
    let gateway = Gateway::start(config);
    for (begun, refused) in [(&b""[..], 1), (&V2[..20], 2)] {
        let started = Instant::now();
        let mut client = gateway.connect();
        client.send(begun).expect_closed();
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(4), "{took:?}");
        wait_refused(&gateway, refused);
    }
}

#[test]
fn who_waits_with_a_proxy_header_does_not_hold_up_a_shutdown() {
    let upstream = Upstream::ok();
    let mut config = config(&upstream, json!(["127.0.0.1"]), true);
    config["timeouts"] = json!({ "header_read": "10m", "drain": "10m" });
    let mut gateway = Gateway::start(config);
    let mut client = gateway.connect();
    client.send(&V1[..20]);
    settle(&gateway);
    let started = Instant::now();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    assert!(started.elapsed() < PATIENCE);
    client.expect_closed();
}

#[test]
fn parked_connections_stay_whose_they_are() {
    let upstream = Upstream::ok();
    let gateway = balanced(&upstream);
    let source = |n: usize| format!("198.51.{}.{}", n / 250, n % 250 + 1);
    let mut clients: Vec<Client> = (0..300).map(|_| gateway.connect()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let header = V1.replace("203.0.113.7", &source(n));
        assert_eq!(client.send(format!("{header}{}", get("/"))).response().status(), 200);
    }
    gateway.wait_for_metrics("44 parked", |metrics| {
        metrics.get("gateway_connections_parked", &[]).is_some_and(|parked| parked >= 44.0)
    });
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.get("/").status(), 200);
        assert_eq!(upstream.last().field("x-forwarded-for"), Some(source(n).as_str()));
    }
    // What the metrics port says names no client.
    for page in ["/stats", "/metrics", "/health"] {
        let text = gateway.admin(page).text();
        assert!(!text.contains("198.51."), "{text}");
    }
}

#[test]
fn a_reload_begins_and_ends_the_proxy_protocol() {
    let upstream = Upstream::ok();
    let trusted = || json!(["127.0.0.1"]);
    let gateway = Gateway::start(config(&upstream, trusted(), false));
    let mut before = gateway.connect();
    assert_eq!(before.get("/").status(), 200);
    gateway.write(config(&upstream, trusted(), true));
    gateway.log.wait_for("configuration reloaded");
    settle(&gateway);
    gateway.connect().send(get("/")).expect_closed();
    assert_eq!(before.get("/").status(), 200);
    assert_eq!(upstream.last().field("x-forwarded-for"), Some("127.0.0.1"));
    gateway.write(config(&upstream, trusted(), false));
    gateway.log.wait_for("configuration reloaded");
    assert_eq!(gateway.get("/").status(), 200);
}
