//! Paths: one normal form for matching and forwarding, and no way round a route.

use gateway_tests::client::get;
use gateway_tests::{Gateway, Upstream};
use serde_json::json;

/// What was asked for, what the upstream of `/api/users` gets; `None`: it gets nothing.
#[test]
fn a_disguised_path_does_not_evade_its_route() {
    let (users, other) = (Upstream::ok(), Upstream::ok());
    let gateway = Gateway::start(json!({ "routes": [
        { "path": "/api/users", "backend": users.url() },
        { "path": "/", "backend": other.url() },
    ]}));
    for (target, want) in [
        ("/api/users", Some("/api/users")),
        ("/api//users", Some("/api//users")),
        ("//api/users", Some("//api/users")),
        ("/api/users//", Some("/api/users//")),
        ("/api/%75sers", Some("/api/users")),
        ("/%61pi/users/%7Eme", Some("/api/users/~me")),
        ("/x/../api/users", Some("/api/users")),
        ("/x/%2e%2e/api/users", Some("/api/users")),
        ("/x/.%2E/api/./users/.", Some("/api/users/")),
        ("/../../api/users", Some("/api/users")),
        ("/api/users/%2fetc?q=%2e%2E/", Some("/api/users/%2Fetc?q=%2e%2E/")),
        ("/api/users/a%c3%a9", Some("/api/users/a%C3%A9")),
        ("/api/users/..", None),
        ("/api/users/%2e%2e/admin", None),
        ("/api%2Fusers", None),
        ("/api%2fusers", None),
        ("/api/users%2F..", None),
        ("/api/%2575sers", None),
        ("/api/us%00ers", None),
        ("/api/users/%5c..", Some("/api/users/%5C..")),
        ("/api;x/users", None),
    ] {
        let before = users.requests().len();
        gateway.get(target);
        let came = users.requests().get(before).map(|request| request.target().to_owned());
        assert_eq!(came.as_deref(), want, "{target}");
    }
}

#[test]
fn what_has_no_normal_form_is_refused() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    for target in ["/%00", "/a%00b", "/a\\b", "/..\\..\\etc", "/%", "/%4", "/%zz", "/a%2", "*x", "a", "/a b"]
    {
        let mut client = gateway.connect();
        let response = client.send(get(target)).response();
        assert_eq!(response.status(), 400, "{target}");
        client.expect_closed();
    }
    assert!(upstream.requests().is_empty());
}

#[test]
fn the_query_is_nobody_s_business() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    for target in ["/?", "/a?b=c&d", "/a?//../%2e%zz", "/a?b?c", "/a?{x:[1]}", "/?a=%00"] {
        assert_eq!(gateway.get(target).status(), 200, "{target}");
        assert_eq!(upstream.last().target(), target);
    }
}
