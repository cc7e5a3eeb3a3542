//! Which route takes a request, and what those get that none takes.

use gateway_tests::client::get;
use gateway_tests::upstream::ok;
use gateway_tests::{Gateway, Upstream};
use serde_json::json;

/// An upstream for each name, which it answers with.
fn named<const N: usize>(names: [&str; N]) -> [Upstream; N] {
    names.map(|name| Upstream::answering(ok(name)))
}

#[test]
fn the_longest_prefix_on_segment_borders_takes_it() {
    let [root, api, users, deep] = named(["root", "api", "users", "deep"]);
    let gateway = Gateway::start(json!({ "routes": [
        { "path": "/", "backend": root.url() },
        { "path": "/api", "backend": api.url() },
        { "path": "/api/users/deep", "backend": deep.url() },
        { "path": "/api/users", "backend": users.url() },
    ]}));
    let mut client = gateway.connect();
    for (target, want) in [
        ("/", "root"),
        ("/?x=/api/users", "root"),
        ("/ap", "root"),
        ("/apix", "root"),
        ("/api", "api"),
        ("/api/", "api"),
        ("/api?x", "api"),
        ("/api/usersx", "api"),
        ("/api/users", "users"),
        ("/api/users/", "users"),
        ("/api/users/42?y=1", "users"),
        ("/api/users/deeper", "users"),
        ("/api/users/deep/er", "deep"),
        ("/API/users", "root"),
    ] {
        let response = client.get(target);
        assert_eq!((response.status(), response.text().as_str()), (200, want), "{target}");
    }
}

#[test]
fn a_host_s_own_routes_come_first() {
    let [any, own] = named(["any", "own"]);
    let gateway = Gateway::start(json!({ "routes": [
        { "path": "/", "backend": any.url() },
        { "path": "/a", "host": "own.example", "backend": own.url() },
    ]}));
    let mut client = gateway.connect();
    for (host, target, want) in [
        ("own.example", "/a", "own"),
        ("OWN.Example", "/a/b", "own"),
        ("own.example:8080", "/a", "own"),
        ("own.example.", "/a", "own"),
        ("own.example", "/b", "any"),
        ("not.own.example", "/a", "any"),
        ("own.example.evil", "/a", "any"),
    ] {
        let request = get(target).replace("Host: a", &format!("Host: {host}"));
        assert_eq!(client.send(request).response().text(), want, "{host} {target}");
    }
    // The target's own authority outranks the field (RFC 9112 §3.2.2).
    let absolute = get("http://own.example/a/x?y");
    assert_eq!(client.send(absolute).response().text(), "own");
    let sent = own.last();
    assert_eq!((sent.target(), sent.field("host")), ("/a/x?y", Some("own.example")));
}

#[test]
fn only_a_route_s_methods_are_admitted() {
    let upstream = Upstream::ok();
    let gateway = Gateway::start(json!({ "routes": [
        { "path": "/some", "backend": upstream.url(), "methods": ["GET", "POST"] },
        { "path": "/all", "backend": upstream.url() },
    ]}));
    for (method, target, want) in [
        ("GET", "/some", 200),
        ("POST", "/some", 200),
        ("DELETE", "/some", 405),
        ("get", "/some", 405),
        ("HEAD", "/some", 405),
        ("DELETE", "/all", 200),
        ("PROPFIND", "/all", 200),
        ("DELETE", "/none", 404),
    ] {
        let mut client = gateway.connect();
        let response = client.send(get(target).replace("GET", method)).response_to(method);
        assert_eq!(response.status(), want, "{method} {target}");
        let allow = (want == 405).then_some("GET, POST");
        assert_eq!(response.field("allow"), allow, "{method} {target}");
    }
    assert!(upstream.requests().iter().all(|request| request.method() != "get"));
}

#[test]
fn a_refused_request_leaves_the_connection_in_use() {
    let upstream = Upstream::ok();
    let gateway = Gateway::start(json!({ "routes": [
        { "path": "/some", "backend": upstream.url(), "methods": ["GET"] },
    ]}));
    let mut client = gateway.connect();
    for (request, want) in [
        (get("/none"), 404),
        (get("/some").replace("GET", "PUT"), 405),
        ("POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc".to_owned(), 404),
        (get("/some"), 200),
    ] {
        assert_eq!(client.send(&request).response().status(), want, "{request}");
    }
}
