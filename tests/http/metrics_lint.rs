//! The form of what `/metrics` says without the kernel half, and that the lint itself finds faults.

use gateway_tests::client::get;
use gateway_tests::lint::{lint, undocumented};
use gateway_tests::{Gateway, Upstream};
use serde_json::json;

#[test]
fn every_family_is_well_made() {
    let upstream = Upstream::ok();
    let gateway = Gateway::start(json!({
        "rate_limit": { "enabled": true, "rules": [{ "name": "all", "limit": 3, "per": "minute" }] },
        "circuit_breaker": { "enabled": true },
        "access_log": { "to": "/dev/null" },
        "routes": [
            { "path": "/kept", "backend": upstream.url(), "enable_cache": true, "health_check": true },
            { "path": "/", "backend": { "endpoints": [upstream.url(), "http://127.0.0.1:1"] } },
        ],
    }));
    for target in ["/kept", "/kept", "/a", "/b", "/c", "/d"] {
        gateway.get(target);
    }
    gateway.connect().send(get("/e").replace("Host: a\r\n", "")).response();
    let text = gateway.scrape().to_string();
    let (families, faults) = lint(&text);
    assert!(families > 40, "only {families} families");
    assert!(faults.is_empty(), "{faults:#?}");
    assert_eq!(undocumented(&text), [""; 0]);
    assert_eq!(undocumented("# TYPE gateway_unheard_of gauge\n"), ["gateway_unheard_of"]);
}

#[test]
fn the_lint_finds_what_is_wrong() {
    for (text, want) in [
        ("# HELP gateway_a Some words here.\n# TYPE gateway_a counter\ngateway_a 1\n", "`_total` is for"),
        (
            "# HELP gateway_a_total Some words here.\n# TYPE gateway_a_total gauge\ngateway_a_total 1\n",
            "`_total` is for",
        ),
        ("# HELP gateway_a_ms Some words here.\n# TYPE gateway_a_ms gauge\ngateway_a_ms 1\n", "base unit"),
        ("# HELP gateway_a a\n# TYPE gateway_a gauge\ngateway_a 1\n", "no sentence of help"),
        (
            "# HELP gateway_a Some words here.\n# TYPE gateway_a gauge\ngateway_a{client=\"x\"} 1\n",
            "a label client",
        ),
        (
            "# HELP gateway_a_seconds Some words here.\n# TYPE gateway_a_seconds histogram\n\
             gateway_a_seconds_bucket{le=\"1\"} 1\ngateway_a_seconds_bucket{le=\"+Inf\"} 1\n",
            "too few",
        ),
    ] {
        let (_, found) = lint(text);
        assert!(found.iter().any(|fault| fault.contains(want)), "{want}: {found:?}");
    }
}
