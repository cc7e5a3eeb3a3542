//! The configuration through its front door: the files shipped, documentation, defaults, files on disk.
//!
//! Wrong documents and what is said about them are in `config_faults`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use gateway::config::{self, Config, Error, KernelMode, ListenAddr};
use serde_json::{Value, json};

const GATEWAY: &str = include_str!("../../config/gateway.json");
const DEMO: &str = include_str!("../../config/demo.json");
const REFERENCE: &str = include_str!("../../config/reference.json");
const DOCUMENTATION: &str = include_str!("../../docs/configuration.md");

#[track_caller]
fn load(text: &str) -> Config {
    config::parse(text, "gateway.json").unwrap_or_else(|error| panic!("{error}"))
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn gateway_json_keeps_the_values_promised() {
    let promised = json!({
        "listen_addr": ":8080", "metrics_addr": ":9090",
        "routes": [{
            "path": "/api/users", "backend": "http://localhost:3001", "methods": ["GET", "POST"],
            "rate_limit_per_minute": 100, "timeout_seconds": 30, "enable_cache": true, "health_check": true
        }],
        "rate_limit": {
            "enabled": true, "burst_size": 10, "default_rate_per_minute": 1000, "num_shards": 16
        },
        "circuit_breaker": {
            "enabled": true, "failure_threshold": 5, "success_threshold": 3, "timeout_seconds": 60,
            "health_decay": 0.95
        }
    });
    assert_eq!(value(GATEWAY), promised);

    let config = load(GATEWAY);
    assert_eq!((config.listen, config.metrics), (ListenAddr::Any(8080), ListenAddr::Any(9090)));
    let route = &config.routes[0];
    assert_eq!((route.path.as_str(), route.host.as_deref()), ("/api/users", None));
    let backend = &route.cluster.members[0].backend;
    assert_eq!((backend.host.as_str(), backend.port), ("localhost", 3001));
    assert_eq!(route.health_check, Some(config::HealthCheck::default()));
    assert_eq!(route.methods, Some(vec![http::Method::GET, http::Method::POST]));
    assert_eq!((route.rate_limit_per_minute, route.timeout), (Some(100), Duration::from_secs(30)));
    assert_eq!(config.rate_limit.expect("is set").default_rate_per_minute, Some(1000));
    assert_eq!(config.circuit_breaker.expect("is set").timeout, Duration::from_secs(60));
    assert!(config.kernel.interfaces.is_empty());
}

#[test]
fn demo_json_is_gateway_json_with_wider_limits() {
    let mut expected = value(GATEWAY);
    expected["routes"][0]["backend"] = json!("http://127.0.0.1:3001");
    expected["routes"][0]["rate_limit_per_minute"] = json!(600);
    expected["rate_limit"]["burst_size"] = json!(100);
    assert_eq!(value(DEMO), expected);
    load(DEMO);
}

#[test]
fn reference_json_loads() {
    let config = load(REFERENCE);
    assert_eq!(config.workers.map(|workers| workers.get()), Some(4));
    assert_eq!((config.kernel.mode, config.kernel.connection_burst), (KernelMode::Auto, 2000));
    assert_eq!(config.trusted_proxies.len(), 2);
}

/// What the loader knows is what it lists beside an unknown key that resembles nothing.
#[test]
fn reference_json_has_every_key_once() {
    const STRANGER: &str = "\u{1f980}";
    let objects = [
        "",
        "/routes/0",
        "/routes/0/backend",
        "/routes/0/backend/endpoints/0",
        "/routes/0/health_check",
        "/routes/0/retry",
        "/routes/0/rate_limits/0",
        "/routes/0/cache",
        "/routes/0/cache/key_query",
        "/timeouts",
        "/head",
        "/connections",
        "/overload",
        "/rate_limit",
        "/circuit_breaker",
        "/upstream",
        "/cache",
        "/kernel",
        "/access_log",
        "/control",
    ];
    let reference = value(REFERENCE);
    let nested = keys(&reference).iter().filter(|key| key.contains('.')).count();
    let mut counted = 0;
    for pointer in objects {
        let mut document = reference.clone();
        let object = document.pointer_mut(pointer).and_then(Value::as_object_mut).expect("an object");
        let mut written: Vec<String> = object.keys().cloned().collect();
        object.insert(STRANGER.to_owned(), json!(0));

        let Err(Error::Invalid { faults, .. }) = config::parse(&document.to_string(), "reference.json")
        else {
            panic!("{pointer}: a key that nobody knows was accepted");
        };
        let [fault] = &faults[..] else { panic!("{pointer}: {faults:?}") };
        let (_, list) = fault.message.split_once("known here are ").expect("a list of keys");
        let mut known: Vec<_> = list.split(", ").collect();
        known.sort_unstable();
        written.sort_unstable();
        assert_eq!(known, written, "{pointer}");
        counted += if pointer.is_empty() { 0 } else { known.len() };
    }
    assert_eq!(counted, nested, "an object of reference.json is missing in this test's list");
}

#[test]
fn documentation_and_reference_json_have_the_same_keys() {
    let mut documented: Vec<_> = documented_keys().into_iter().map(|(key, _)| key).collect();
    let mut written = keys(&value(REFERENCE));
    documented.sort_unstable();
    written.sort_unstable();
    assert_eq!(documented, written);
}

/// Setting a key to its documented default changes nothing; nor does leaving out a section documented as `{}`.
#[test]
fn documented_defaults_are_the_defaults() {
    let silent = json!({
        "routes": [{
            "path": "/", "backend": { "endpoints": [{ "url": "http://127.0.0.1:1" }] },
            "rate_limits": [{ "name": "a", "limit": 1, "per": "hour" }],
            "cache": { "key_query": {} }, "health_check": {}, "retry": {}
        }],
            "timeouts": {}, "head": {}, "connections": {}, "overload": {}, "rate_limit": {}, "circuit_breaker": {}, "upstream": {}, "cache": {},
        "kernel": {}, "access_log": {}
    });
    let expected = load(&silent.to_string());
    let defaults = documented_keys().into_iter().filter_map(|(key, default)| Some((key, default?)));
    let mut checked = 0;
    for (key, default) in defaults {
        let mut spoken = silent.clone();
        let pointer = format!("/{}", key.replace("[]", "/0").replace('.', "/"));
        let (parent, name) = pointer.rsplit_once('/').expect("begins with one");
        let object = spoken.pointer_mut(parent).and_then(Value::as_object_mut).expect("a section");
        if default == json!({}) {
            object.remove(name).expect("is there");
        } else if object.get(name).is_some_and(Value::is_array) {
            // One with an element, for the sake of its keys.
            continue;
        } else {
            object.insert(name.to_owned(), default);
        }
        assert_eq!(load(&spoken.to_string()), expected, "{key}");
        checked += 1;
    }
    assert!(checked >= 25, "only {checked} defaults found in the documentation");
}

#[test]
fn documented_faults_are_reported_as_documented() {
    let route = r#"{ "path": "/", "backend": "https://localhost:3001" }"#;
    let error = config::parse(&format!(r#"{{"listen_adr": ":80", "routes": [ {route} ]}}"#), "gateway.json")
        .expect_err("two faults");
    let block = DOCUMENTATION.split("```text\n").nth(1).and_then(|rest| rest.split("\n```").next());
    assert_eq!(Some(error.to_string().as_str()), block);
}

#[test]
fn values_that_are_written_in_several_ways() {
    let route = |path: &str, timeout: &str| {
        format!(r#"{{ "path": "{path}", "backend": "http://a", "timeout_seconds": {timeout} }}"#)
    };
    for (timeout, millis) in [
        ("30", 30_000),
        ("\"30s\"", 30_000),
        ("0.5", 500),
        ("\"500ms\"", 500),
        ("\"2m\"", 120_000),
        ("1e1", 10_000),
    ] {
        let config = load(&format!(r#"{{ "routes": [ {} ] }}"#, route("/", timeout)));
        assert_eq!(config.routes[0].timeout, Duration::from_millis(millis), "{timeout}");
    }
    let nested =
        load(&format!(r#"{{ "routes": [ {}, {} ] }}"#, route("/api/", "1"), route("/api/%75sers", "1")));
    let paths: Vec<_> = nested.routes.iter().map(|route| route.path.as_str()).collect();
    assert_eq!(paths, ["/api", "/api/users"]);

    let escaped = load(r#"{ "$schema": 7, "r\u006futes": [ { "path": "\/", "backend": "http://a" } ] }"#);
    assert_eq!(escaped.routes[0].path, "/");
    load(&format!("\u{feff}{GATEWAY}"));
    load(&GATEWAY.replace('\n', "\r\n"));
}

#[test]
fn a_file_on_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("gateway.json");

    let missing = config::load(&path).expect_err("there is none yet");
    assert!(matches!(missing, Error::Unreadable { .. }));
    let expected = "No such file or directory (os error 2): give the path of an existing file with --config";
    assert_eq!(missing.to_string(), format!("{}: cannot be read: {expected}", path.display()));

    fs::write(&path, GATEWAY).expect("written");
    assert_eq!(config::load(&path).expect("loads"), load(GATEWAY));

    fs::write(&path, b"{\n \"routes\xff\": []}").expect("written");
    let garbled = config::load(&path).expect_err("is not UTF-8");
    assert!(matches!(garbled, Error::Invalid { .. }));
    let expected = format!("{}:2:9: not UTF-8 text: save the file as UTF-8", path.display());
    assert_eq!(garbled.to_string(), expected);

    let unreadable = config::load(folder.path()).expect_err("is a folder");
    assert!(matches!(unreadable, Error::Unreadable { .. }));
    assert!(unreadable.to_string().ends_with("give a file with --config, not a folder"), "{unreadable}");
}

/// A bound on depth or length would be ours to report; there is none to hit.
#[test]
fn documents_meant_to_hurt() {
    let deep = format!("{{ \"routes\": {}{} }}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(config::parse(&deep, Path::new("x")), Err(Error::Invalid { .. })));
    let unclosed = "{\"routes\":[".repeat(50_000);
    assert!(matches!(config::parse(&unclosed, Path::new("x")), Err(Error::Invalid { .. })));
    for end in 0..REFERENCE.trim_end().len() {
        let cut = &REFERENCE[..end];
        assert!(config::parse(cut, "x").is_err(), "accepted when cut after {end} bytes");
    }
}

/// Key, and its default where the documentation gives one as JSON.
fn documented_keys() -> Vec<(String, Option<Value>)> {
    let rows = DOCUMENTATION.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let read = |cells: Vec<&str>| {
        let key = cells[1].split('`').nth(1).expect("a key in backticks").to_owned();
        let default = cells[3].strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
        (key, default.map(value))
    };
    rows.map(read).collect()
}

/// Every key of a document as the documentation writes it: `routes[].path`.
fn keys(document: &Value) -> Vec<String> {
    fn walk(value: &Value, prefix: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                for (name, value) in object {
                    let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                    walk(value, &key, found);
                    found.push(key);
                }
            }
            Value::Array(list) => {
                for value in list {
                    walk(value, &format!("{prefix}[]"), found);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut found = Vec::new();
    walk(document, "", &mut found);
    found
}
