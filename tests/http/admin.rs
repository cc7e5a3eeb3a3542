//! The admin API: what it answers, whom, and what it refuses.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use gateway_tests::gateway::route_to;
use gateway_tests::{Api, Gateway, Message, PATIENCE, Upstream};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A gateway to `upstream` with a control socket.
fn start(upstream: &Upstream) -> Gateway {
    Gateway::controlled(route_to(&upstream.url()))
}

#[test]
fn it_says_how_the_gateway_is() {
    let upstream = Upstream::ok();
    let gateway = start(&upstream);
    let api = Api::of(&gateway);
    let status = api.get("/v1/status").json();
    assert_eq!(status["health"], json!("ok"));
    assert_eq!(status["version"], json!(env!("CARGO_PKG_VERSION")));
    assert_eq!(status["pid"], json!(gateway.id()));
    assert_eq!(status["listeners"]["proxy"], json!(gateway.address.to_string()));
    assert_eq!(status["listeners"]["metrics"], json!(gateway.metrics.to_string()));
    assert_eq!((&status["workers"], &status["routes"]), (&json!(2), &json!(1)));
    assert_eq!(status["config"]["generation"], json!(1));
    assert_eq!(status["config"]["last_reload_error"], Value::Null);
    assert_eq!(status["kernel"], json!({ "running": false, "interfaces": [] }));

    fs::write(&gateway.file, "{").unwrap();
    gateway.log.wait_for("configuration refused");
    let status = api.get("/v1/status").json();
    assert_eq!((&status["health"], &status["config"]["reloads_failed"]), (&json!("degraded"), &json!(1)));
    assert!(status["config"]["last_reload_error"].as_str().unwrap().contains("not valid JSON"), "{status}");
}

#[test]
fn it_has_the_pages_of_the_metrics_port() {
    let upstream = Upstream::ok();
    let gateway = start(&upstream);
    for (target, kind, holds) in [
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", "gateway_connections_open"),
        ("/health", "application/json", "\"ok\""),
        ("/healthz", "text/plain", "ok"),
        ("/readyz", "text/plain", "ready"),
        ("/stats", "application/json", "connections_open"),
    ] {
        let answer = Api::of(&gateway).get(target);
        assert_eq!((answer.status(), answer.field("content-type")), (200, Some(kind)), "{target}");
        assert!(answer.text().contains(holds), "{target}: {answer}");
    }
}

#[test]
fn lists_are_changed_by_documents() {
    let upstream = Upstream::ok();
    let gateway = start(&upstream);
    let api = Api::of(&gateway);
    // As IPv4-mapped IPv6, which is only another way to write it.
    let mapped = json!({ "network": "::ffff:203.0.113.0/120", "seconds": 60, "reason": "r" });
    let added = api.post("/v1/lists/deny", &mapped);
    assert_eq!((added.status(), &added.json()["message"]), (200, &json!("deny 203.0.113.0/24 for 60 s")));
    let listed = api.get("/v1/lists/deny").json();
    assert_eq!(listed["entries"][0]["network"], json!("203.0.113.0/24"));
    assert_eq!(listed["entries"][0]["entry"]["reason"], json!("r"));
    let target = "/v1/lists/deny?network=203.0.113.0%2F24";
    assert_eq!(api.delete(target).status(), 200, "escaped, as programs send it");
    assert_eq!(api.delete(target).status(), 404);
    assert_eq!(api.get("/v1/lists/deny").json(), json!({ "entries": [] }));
}

#[test]
fn stored_responses_are_forgotten() {
    let upstream =
        Upstream::answering("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 0\r\n\r\n");
    let mut config = route_to(&upstream.url());
    config["routes"][0]["enable_cache"] = json!(true);
    let gateway = Gateway::controlled(config);
    for (verb, name, told) in [
        ("url", "http://a/x", "1 stored responses are gone\n"),
        ("prefix", "http://a", "2 stored responses are gone\n"),
        ("tag", "none", "0 stored responses are gone\n"),
    ] {
        gateway.get("/x");
        gateway.get("/y");
        let said = gateway.ask(&["purge", verb, name]);
        assert_eq!((said.code, said.out.as_str()), (Some(0), told), "{said:?}");
    }
    assert_eq!(gateway.ask(&["purge", "prefix", "http://a", "--json"]).json(), json!({ "purged": 2 }));
    let nothing = gateway.ask(&["purge", "tag", ""]);
    assert_eq!(nothing.code, Some(1));
    assert!(nothing.error.contains("it names nothing"), "{nothing:?}");
}

#[test]
fn routes_cache_and_limits_are_shown_as_they_are() {
    let upstream =
        Upstream::answering("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 0\r\n\r\n");
    let mut config = route_to(&upstream.url());
    config["routes"][0]["enable_cache"] = json!(true);
    config["routes"][0]["methods"] = json!(["GET"]);
    config["routes"][0]["rate_limits"] = json!([{ "name": "day", "limit": 9, "per": "day" }]);
    let gateway = Gateway::controlled(config);
    let api = Api::of(&gateway);
    let keys = || ["/v1/cache", "/v1/limits"].map(|target| api.get(target).json()["keys"].clone());
    assert_eq!(keys(), [json!(0), json!(0)]);
    gateway.get("/x");
    gateway.get("/y");
    assert_eq!(keys(), [json!(2), json!(1)]);
    assert!(api.get("/v1/cache").json()["bytes"].as_u64().unwrap() > 0);
    let route = api.get("/v1/routes").json()["routes"][0].clone();
    assert_eq!((&route["path"], &route["methods"]), (&json!("/"), &json!(["GET"])));
    assert_eq!((&route["limits"], &route["cached"]), (&json!(["day"]), &json!(true)));
    assert_eq!(route["endpoints"].as_array().unwrap().len(), 1);
}

#[test]
fn without_a_kernel_half_it_says_why() {
    let upstream = Upstream::ok();
    let gateway = start(&upstream);
    let told = Api::of(&gateway).get("/v1/kernel").json();
    let why = "kernel.interfaces names none";
    assert_eq!(told, json!({ "running": false, "why_not": why, "figures": null }));
    let sources = Api::of(&gateway).get("/v1/sources").json();
    assert_eq!(sources, json!({ "connections": null, "requests": [], "pushing": [] }));
}

#[test]
fn the_configuration_in_force_is_shown_as_check_prints_it() {
    let upstream = Upstream::ok();
    let gateway = start(&upstream);
    let printed = gateway.ask(&["check", "--print", "--json"]).json()["effective"].clone();
    assert!(printed["timeouts"].is_object(), "defaults are filled in: {printed}");
    let api = Api::of(&gateway);
    assert_eq!(api.get("/v1/config").json(), json!({ "generation": 1, "config": printed }));

    let mut changed = printed;
    changed["client_ipv6_prefix"] = json!(48);
    gateway.replace(changed);
    gateway.log.wait_for("reloaded");
    let told = api.get("/v1/config").json();
    assert_eq!((&told["generation"], &told["config"]["client_ipv6_prefix"]), (&json!(2), &json!(48)));

    // What was refused is not in force.
    fs::write(&gateway.file, "{").unwrap();
    gateway.log.wait_for("configuration refused");
    assert_eq!(api.get("/v1/config").json(), told);
}

#[test]
fn limits_are_shown_with_what_each_rule_decided() {
    let upstream = Upstream::ok();
    let mut config = route_to(&upstream.url());
    config["routes"][0]["rate_limits"] = json!([
        { "name": "day", "limit": 3, "per": "day" },
        { "name": "trial", "limit": 2, "per": "day", "shadow": true }
    ]);
    let gateway = Gateway::controlled(config);
    let rules = || Api::of(&gateway).get("/v1/limits").json()["rules"].clone();
    let rule = |name: &str, [allowed, near, denied, shadow]: [u64; 4]| json!({ "route": "/", "rule": name, "allowed": allowed, "near": near, "denied": denied, "shadow": shadow, "ignored": 0 });
    assert_eq!(rules(), json!([rule("day", [0; 4]), rule("trial", [0; 4])]));
    let answers: Vec<_> = (0..5).map(|_| gateway.get("/").status()).collect();
    assert_eq!(answers, [200, 200, 200, 429, 429]);
    assert_eq!(rules(), json!([rule("day", [2, 1, 2, 0]), rule("trial", [1, 1, 0, 3])]));
}

/// Each is refused by a problem that says what to do instead.
#[test]
fn what_it_does_not_understand_it_refuses() {
    let upstream = Upstream::ok();
    let gateway = start(&upstream);
    let api = Api::of(&gateway);
    let typed = api.with("Content-Type", "application/json");
    let large = format!("{{\"reason\": \"{}\"}}", "x".repeat(16 * 1024));
    for (answer, status, told) in [
        (api.get("/"), 404, "there is no such path"),
        (api.get("/v1/statuses"), 404, "there is no such path"),
        (api.get("/v1/status/"), 404, "there is no such path"),
        (api.ask("PUT", "/v1/status", ""), 405, "the methods here are GET"),
        (api.ask("PATCH", "/v1/lists/deny", ""), 405, "the methods here are GET, POST, DELETE"),
        (api.get("/v1/status?verbose=1"), 400, "there is no parameter \"verbose\" here"),
        (api.get("/v1/explain"), 400, "the parameter \"source\" is missing"),
        (api.get("/v1/explain?source=nobody"), 400, "invalid IP address syntax"),
        (api.get("/v1/explain?source=::1&source=::2"), 400, "stands there twice"),
        (api.get("/v1/explain?source=%ff"), 400, "is no UTF-8"),
        (api.get("/v1/lists/grey"), 400, "there are the lists \"allow\" and \"deny\""),
        (api.ask("POST", "/v1/lists/deny", "{}"), 415, "Content-Type: application/json"),
        (typed.ask("POST", "/v1/lists/deny", "{"), 400, "not understood: EOF"),
        (typed.ask("POST", "/v1/lists/deny", ""), 400, "not understood: EOF"),
        (typed.ask("POST", "/v1/lists/deny", "{}"), 400, "missing field `network`"),
        (typed.ask("POST", "/v1/lists/deny", "{\"network\": \"x\"}"), 400, "invalid IP address syntax"),
        (
            typed.ask("POST", "/v1/lists/deny", "{\"network\": \"::1/128\", \"for\": 1}"),
            400,
            "unknown field `for`",
        ),
        (typed.ask("POST", "/v1/purge", "{}"), 400, "not understood: "),
        (typed.ask("POST", "/v1/purge", r#"{"tag": "a", "url": "b"}"#), 400, "not understood: "),
        (typed.ask("POST", "/v1/purge", r#"{"tag": 1}"#), 400, "not understood: invalid type"),
        (typed.ask("POST", "/v1/purge", r#"{"all": "a"}"#), 400, "not understood: unknown variant"),
        (typed.ask("POST", "/v1/lists/deny", &large), 413, "16384 bytes at most"),
        (typed.ask("GET", "/v1/status", "{}"), 400, "this takes no body"),
    ] {
        assert_eq!(answer.status(), status, "{told}: {answer}");
        assert_eq!(answer.field("content-type"), Some("application/problem+json"), "{told}");
        let problem = answer.json();
        assert_eq!(problem["status"], json!(status));
        assert!(problem["detail"].as_str().unwrap().contains(told), "{told}: {problem}");
        let allow = told.strip_prefix("the methods here are ");
        assert_eq!(answer.field("allow"), allow);
    }
    let head = api.ask("HEAD", "/v1/status", "");
    assert_eq!((head.status(), head.body.len()), (200, 0));
}

#[test]
fn what_is_no_request_is_answered_or_closed() {
    let upstream = Upstream::ok();
    let gateway = start(&upstream);
    let socket = gateway.directory().join("control.sock");
    let said = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    // What a command line of another version may say.
    assert!(said(b"{\"explain\": {\"source\": \"::1\"}}\n").starts_with("HTTP/1.1 400"), "no request");
    assert_eq!(said(b"\"who knows\"\n"), "{\"refused\":\"not understood\"}\n");
    let endless = said(&[b'"'; 100_000]);
    assert!(endless.is_empty() || endless.starts_with("{\"refused\""), "{endless}");
    let head = said(&[b"GET /v1/status HTTP/1.1\r\nx: ".as_slice(), &[b'x'; 100_000]].concat());
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 431"), "{head}");
    assert_eq!(Api::of(&gateway).get("/v1/status").status(), 200);
}

/// Those who say nothing hold as many places as there are, and lose them in ten seconds.
#[test]
fn the_silent_make_room() {
    let upstream = Upstream::ok();
    let gateway = start(&upstream);
    let socket = gateway.directory().join("control.sock");
    let mut silent: Vec<_> = (0..64).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for (stream, part) in
        silent.iter_mut().zip(["GET", "GET / HTTP/1.1\r\nHost: a\r\n", "\"hand"].iter().cycle())
    {
        stream.write_all(part.as_bytes()).unwrap();
    }
    // It is accepted when the first of them is gone.
    assert_eq!(Api::of(&gateway).get("/v1/status").status(), 200);
    for mut stream in silent {
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

const TOKEN: &str = "6f0a1bd0c6a7fd2ac4fb3ac9a1ba8c70";

/// A gateway with the admin API over TCP too, and a token if there is to be one.
fn start_tcp(upstream: &Upstream, token: Option<&str>) -> (Gateway, Api, TempDir) {
    let place = TempDir::new().expect("there is room for a folder");
    let file = place.path().join("token");
    let mut config = route_to(&upstream.url());
    config["control"]["admin_addr"] = json!("127.0.0.1:0");
    if let Some(token) = token {
        fs::write(&file, token).expect("there is room for a file");
        config["control"]["token_file"] = json!(file);
    }
    let gateway = Gateway::controlled(config);
    let address = Api::of(&gateway).get("/v1/status").json()["listeners"]["admin"].clone();
    let api = Api::tcp(address.as_str().and_then(|address| address.parse().ok()).expect("an address"));
    (gateway, api, place)
}

fn with_token(api: &Api, token: &str) -> Api {
    api.with("Authorization", &format!("Bearer {token}"))
}

#[track_caller]
fn refused(answer: &Message, status: u16, told: &str) {
    assert_eq!(answer.status(), status, "{answer}");
    assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains(told)), "{told}: {answer}");
    let challenge = (status == 401).then_some("Bearer");
    assert_eq!(answer.field("www-authenticate"), challenge);
}

#[test]
fn over_tcp_a_token_says_who_asks() {
    let upstream = Upstream::ok();
    let (_gateway, api, place) = start_tcp(&upstream, Some(&format!("{TOKEN}\n")));
    let entry = json!({ "network": "203.0.113.0/24" });
    for target in ["/v1/status", "/health", "/metrics"] {
        assert_eq!(api.get(target).status(), 200, "{target}");
    }
    for answer in [
        api.get("/v1/explain?source=203.0.113.7"),
        api.get("/v1/lists/deny"),
        api.get("/v1/config"),
        api.get("/v1/kernel"),
        api.get("/v1/sources"),
        api.post("/v1/lists/deny", &entry),
        api.delete("/v1/lists/deny?network=203.0.113.0/24"),
    ] {
        refused(&answer, 401, "send \"Authorization: Bearer\"");
    }
    for token in [&TOKEN[1..], "", &format!("{TOKEN}0"), &TOKEN.to_uppercase()] {
        refused(
            &with_token(&api, token).post("/v1/lists/deny", &entry),
            401,
            "not that of control.token_file",
        );
        refused(&with_token(&api, token).get("/v1/status"), 401, "not that of control.token_file");
    }
    refused(&api.with("Authorization", TOKEN).get("/v1/status"), 401, "not that of control.token_file");
    let known = with_token(&api, TOKEN);
    assert_eq!(known.get("/v1/lists/deny").json(), json!({ "entries": [] }), "nothing was added");
    assert_eq!(known.post("/v1/lists/deny", &entry).status(), 200);
    assert_eq!(known.get("/v1/explain?source=203.0.113.7").json()["source"], json!("203.0.113.7"));
    assert_eq!(known.delete("/v1/lists/deny?network=203.0.113.0/24").status(), 200);
    let large = format!("{{\"reason\": \"{}\"}}", "x".repeat(16 * 1024));
    let typed = known.with("Content-Type", "application/json");
    refused(&typed.ask("POST", "/v1/lists/deny", &large), 413, "16384 bytes at most");
    let form = known.with("Content-Type", "application/x-www-form-urlencoded");
    refused(&form.ask("POST", "/v1/lists/deny", "network=::1"), 415, "Content-Type: application/json");

    // Another takes its place without a reload.
    fs::write(place.path().join("token"), "another one, long enough").unwrap();
    refused(&known.get("/v1/status"), 401, "not that of control.token_file");
    assert_eq!(with_token(&api, "another one, long enough").get("/v1/lists/deny").status(), 200);
    fs::remove_file(place.path().join("token")).unwrap();
    refused(&known.get("/v1/lists/deny"), 403, "over TCP this takes a token");
}

/// A name that was made to lead to this host is a page's in a browser on it.
#[test]
fn a_page_in_a_browser_is_told_nothing() {
    let upstream = Upstream::ok();
    let (_gateway, api, _place) = start_tcp(&upstream, Some(TOKEN));
    for host in ["evil.example", "evil.example:9091", "localhost.evil.example", ""] {
        for target in ["/v1/status", "/metrics", "/nowhere"] {
            refused(&api.called(host).get(target), 403, "so that no web page can ask");
        }
        assert_eq!(with_token(&api.called(host), TOKEN).get("/v1/status").status(), 200, "{host:?}");
    }
    refused(&api.get("http://evil.example/v1/status"), 403, "so that no web page can ask");
    for host in ["localhost", "127.0.0.1", "[::1]:9091", "192.0.2.1"] {
        assert_eq!(api.called(host).get("/v1/status").status(), 200, "{host}");
    }
}

#[test]
fn without_a_token_tcp_changes_nothing_and_names_nobody() {
    let upstream = Upstream::ok();
    let (gateway, api, _place) = start_tcp(&upstream, None);
    for api in [&api, &with_token(&api, ""), &with_token(&api, TOKEN)] {
        refused(&api.post("/v1/lists/deny", &json!({ "network": "::1/128" })), 403, "control.token_file");
        refused(&api.get("/v1/lists/deny"), 403, "control.token_file");
        assert_eq!(api.get("/v1/status").status(), 200);
    }
    assert_eq!(Api::of(&gateway).get("/v1/lists/deny").json(), json!({ "entries": [] }));

    let (gateway, api, _place) = start_tcp(&upstream, Some("short"));
    gateway.log.wait_for("holds less than 16 bytes");
    refused(&with_token(&api, "short").get("/v1/lists/deny"), 403, "control.token_file");
}

/// The port goes along in an upgrade.
#[test]
fn a_successor_answers_at_the_same_port() {
    let upstream = Upstream::ok();
    let (mut gateway, api, _place) = start_tcp(&upstream, None);
    let next = gateway.followed(|_| {});
    assert_eq!(gateway.wait(), Some(0));
    assert_eq!(api.get("/v1/status").json()["pid"], json!(next.id()));
}

/// Answers that are asked for and not read, as many as there are places: they are given up, and others have their turn.
#[test]
fn whoever_takes_nothing_of_its_answer_loses_its_place() {
    const PLACES: usize = 64;
    let upstream = Upstream::ok();
    let mut config = route_to(&upstream.url());
    // Far more than a socket takes by itself.
    let denied: Vec<_> = (0..20_000).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    config["kernel"] = json!({ "deny": denied });
    let gateway = Gateway::controlled(config);
    let api = Api::of(&gateway);
    let whole = api.get("/v1/config").body.len();
    let silent = (0..PLACES).map(|_| {
        let mut stream = UnixStream::connect(gateway.directory().join("control.sock")).unwrap();
        stream.write_all(b"GET /v1/config HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        stream
    });
    let silent: Vec<_> = silent.collect();
    assert_eq!(api.get("/v1/status").status(), 200);
    // The first of them has lost its place; the others have until now to read.
    let taken = silent.into_iter().map(|mut stream| {
        let mut taken = Vec::new();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_to_end(&mut taken).unwrap();
        taken.len()
    });
    assert!(taken.min().is_some_and(|least| (1..whole).contains(&least)));
    assert_eq!(api.get("/v1/config").body.len(), whole, "whoever reads has all of it");
}
