//! The answers that the gateway makes up itself: their status, body and trace in the metrics.

use gateway_tests::client::get;
use gateway_tests::{Gateway, Message, Upstream, upstream};
use serde_json::json;

const MARK: &str = "zebra-crossing";

/// A route for each failure there is, under its own path.
fn gateway(hanging: &Upstream, garbage: &Upstream) -> Gateway {
    let ok = hanging.url();
    Gateway::start(json!({
        "head": { "max_bytes": 262_144 },
        "routes": [
            { "path": "/some", "backend": ok, "methods": ["GET"] },
            { "path": "/refused", "backend": format!("http://{}", upstream::nowhere()) },
            { "path": "/garbage", "backend": garbage.url() },
            { "path": "/hangs", "backend": hanging.url(), "timeout_seconds": "200ms" },
        ]
    }))
}

fn hanging() -> Upstream {
    Upstream::start(|mut conn| {
        conn.request();
        conn.wait_closed();
    })
}

fn garbage() -> Upstream {
    Upstream::answering("220 mail.example ESMTP\r\n")
}

/// Request, status, outcome in the metrics, whether the connection ends.
fn table() -> Vec<(String, u16, &'static str, bool)> {
    let with = |target: &str, fields: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: a\r\nX-Mark: {MARK}\r\n{fields}\r\n")
    };
    let field = |bytes: usize| format!("X-Long: {}\r\n", "x".repeat(bytes));
    vec![
        (with(&format!("/{MARK}"), ""), 404, "no_route", false),
        (with("/some", "").replace("GET", "PUT"), 405, "method_not_allowed", false),
        (with(&format!("/refused/{MARK}"), ""), 502, "connect_failed", false),
        (with(&format!("/garbage/{MARK}"), ""), 502, "upstream_failed", false),
        (with(&format!("/hangs/{MARK}"), ""), 504, "timeout", false),
        (with("/some", &field(300_000)), 431, "bad_request", true),
        (with("/some", &"X-Many: 1\r\n".repeat(120)), 431, "bad_request", true),
        (with(&format!("/some/{MARK}{}", "x".repeat(70_000)), ""), 414, "bad_request", true),
        (with("a:1", "").replace("GET", "CONNECT"), 501, "bad_request", true),
        (with("/some", &format!("{MARK} no colon\r\n")), 400, "bad_request", true),
        (with("/some", "").replace("HTTP/1.1", "HTTP/3.7"), 400, "bad_request", true),
        (with("/some", "").replace("Host: a", "Host: a\r\nHost: b"), 400, "bad_request", true),
        (with("/so\\me", ""), 400, "bad_request", true),
    ]
}

#[track_caller]
fn check_problem(response: &Message, status: u16) {
    assert_eq!(response.status(), status, "{response}");
    assert_eq!(response.field("content-type"), Some("application/problem+json"), "{response}");
    let problem = response.json();
    assert_eq!(problem["status"], status, "{response}");
    for key in ["type", "title", "detail"] {
        assert!(problem[key].as_str().is_some_and(|text| !text.is_empty()), "{key} in {response}");
    }
    let id = problem["request_id"].as_str().expect("an id");
    assert_eq!(response.field("x-request-id"), Some(id), "{response}");
    assert_eq!(id.len(), 32, "{id}");
}

#[test]
fn every_failure_is_a_problem_document_and_is_counted() {
    let (hanging, garbage) = (hanging(), garbage());
    let gateway = gateway(&hanging, &garbage);
    for (request, status, outcome, closes) in table() {
        let before = gateway.scrape().requests(status, outcome);
        let mut client = gateway.connect();
        // A head too large may be refused before all of it has been taken.
        let _ = client.try_send(&request);
        let response = client.response();
        check_problem(&response, status);
        assert!(!response.to_string().contains(MARK), "echoes the client: {response}");
        assert_eq!(response.closes(), closes, "{response}");
        if closes {
            client.expect_closed();
        } else {
            assert_eq!(client.get("/nowhere").status(), 404, "after {response}");
        }
        let what = format!("{status} counted as {outcome}");
        gateway.wait_for_metrics(&what, |metrics| {
            metrics.requests(status, outcome) == before + 1.0 + f64::from(u8::from(status == 404))
        });
    }
}

#[test]
fn browsers_get_a_page() {
    let (hanging, garbage) = (hanging(), garbage());
    let gateway = gateway(&hanging, &garbage);
    for (target, status) in [("/none", 404), ("/refused", 502), ("/garbage", 502), ("/hangs", 504)] {
        let request = get(target)
            .replace("Host: a", &format!("Host: a\r\nAccept: text/html,*/*;q=0.8\r\nX-Mark: <b>{MARK}</b>"));
        let response = gateway.connect().send(request).response();
        assert_eq!(response.status(), status, "{target}");
        assert_eq!(response.field("content-type"), Some("text/html; charset=utf-8"), "{target}");
        let page = response.text();
        assert!(page.contains(&format!("<h1>{status} ")) && !page.contains(MARK), "{page}");
        assert!(page.contains(response.field("x-request-id").expect("an id")), "{page}");
    }
}

#[test]
fn who_names_json_gets_json() {
    let gateway = Gateway::start(json!({ "routes": [
        { "path": "/only", "backend": format!("http://{}", upstream::nowhere()) },
    ]}));
    let mut client = gateway.connect();
    for accept in [
        "*/*",
        "application/json, text/plain, */*",
        "application/json, text/html;q=0.1",
        "text/html;q=0, application/problem+json",
    ] {
        let request = get("/none").replace("Host: a", &format!("Host: a\r\nAccept: {accept}"));
        assert_eq!(client.send(request).response().json()["status"], 404, "{accept}");
    }
}

#[test]
fn a_head_request_gets_the_failure_s_head_alone() {
    let gateway = Gateway::start(json!({ "routes": [
        { "path": "/refused", "backend": format!("http://{}", upstream::nowhere()) },
    ]}));
    let mut client = gateway.connect();
    for (target, status) in [("/none", 404), ("/refused", 502)] {
        let response = client.send(get(target).replace("GET", "HEAD")).response_to("HEAD");
        assert_eq!(response.status(), status);
        assert!(response.field("content-length").is_some_and(|length| length != "0"), "{response}");
    }
    assert_eq!(client.get("/none").status(), 404);
}

#[test]
fn ids_differ_from_request_to_request() {
    let gateway = Gateway::start(json!({ "routes": [
        { "path": "/only", "backend": format!("http://{}", upstream::nowhere()) },
    ]}));
    let mut client = gateway.connect();
    let mut id = || client.get("/none").field("x-request-id").expect("an id").to_owned();
    assert_ne!(id(), id());
}

/// Proxies pass on what their clients wrote: a page that shows it must not run it.
#[test]
fn an_id_that_could_break_out_of_an_answer_is_not_taken() {
    let gateway = Gateway::start(json!({
        "trusted_proxies": ["127.0.0.1"],
        "routes": [{ "path": "/only", "backend": format!("http://{}", upstream::nowhere()) }],
    }));
    let mut client = gateway.connect();
    let long = "a".repeat(129);
    for (id, taken) in [
        ("4bf92f35-77b3.4da6_a3ce:1/2@3+4=", true),
        ("<script>alert(1)</script>", false),
        ("a\",\"status\":200,\"b\":\"", false),
        ("a\\", false),
        ("a b", false),
        ("é", false),
        ("", false),
        (long.as_str(), false),
    ] {
        for accept in ["text/html", "*/*"] {
            let fields = format!("Host: a\r\nAccept: {accept}\r\nX-Request-Id: {id}");
            let answer = client.send(get("/none").replace("Host: a", &fields)).response();
            let sent = answer.field("x-request-id").expect("an id");
            assert_eq!(sent == id, taken, "{answer}");
            assert!(answer.text().contains(sent), "{answer}");
            if accept == "*/*" {
                assert_eq!(answer.json()["request_id"].as_str(), Some(sent));
            }
        }
    }
}
