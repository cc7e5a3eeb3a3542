//! The control socket without a kernel half: who may ask, what limits say of a client, what is kept.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use gateway_tests::gateway::{command, complete, route_to};
use gateway_tests::{Exit, Gateway, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A gateway to `upstream` whose control socket and state file are beside its configuration.
fn controlled(upstream: &Upstream) -> (TempDir, Value) {
    let directory = TempDir::new().expect("there is room for a folder");
    let mut config = route_to(&upstream.url());
    config["control"] = control(directory.path());
    (directory, config)
}

fn control(directory: &Path) -> Value {
    json!({ "socket": directory.join("control.sock"), "state_file": directory.join("state.json") })
}

fn start(directory: TempDir, config: Value) -> Gateway {
    let file = directory.path().join("gateway.json");
    fs::write(&file, complete(config)).expect("there is room for a file");
    Gateway::run(directory, file, |_| {})
}

fn refused(directory: &TempDir, config: Value) -> Exit {
    let file = directory.path().join("second.json");
    fs::write(&file, complete(config)).expect("there is room for a file");
    Gateway::exit_of(command(directory.path()).arg("--config").arg(&file))
}

#[test]
fn a_client_is_told_what_its_limits_would_say() {
    let upstream = Upstream::ok();
    let (directory, mut config) = controlled(&upstream);
    config["routes"][0]["rate_limits"] = json!([
        { "name": "day", "limit": 100, "per": "day", "burst": 3 },
        { "name": "watched", "limit": 1, "per": "day", "shadow": true },
        { "name": "tenant", "limit": 5, "per": "day", "key": "api_key" }
    ]);
    let gateway = start(directory, config);
    let explain = || gateway.ask(&["explain", "127.0.0.1", "--json"]).json();
    let rules = |explained: &Value| {
        let rules = explained["proxy"]["rules"].as_array().unwrap();
        let row = |rule: &Value| {
            (rule["rule"].as_str().unwrap().to_owned(), rule["left"].as_u64(), rule["wait_seconds"].is_null())
        };
        rules.iter().map(row).collect::<Vec<_>>()
    };
    let before = explain();
    assert_eq!(before["kernel"], Value::Null);
    assert_eq!(before["proxy"]["refused"], json!(false));
    assert_eq!(rules(&before), [("day-burst".into(), Some(3), true), ("watched".into(), Some(1), true)]);
    assert_eq!(rules(&explain()), rules(&before), "asking takes nothing");

    for status in [200, 200, 200, 429] {
        assert_eq!(gateway.get("/").status(), status);
    }
    let after = explain();
    assert_eq!(after["proxy"]["refused"], json!(true));
    assert_eq!(rules(&after), [("day-burst".into(), Some(0), false), ("watched".into(), Some(0), false)]);
    assert_eq!(after["proxy"]["last_ten_seconds"]["refused"], json!(1));
    let wait = after["proxy"]["rules"][0]["wait_seconds"].as_u64().unwrap();
    assert!((1..=864).contains(&wait), "100 a day are one in 864 s: {wait}");

    let told = gateway.ask(&["explain", "127.0.0.1"]);
    assert_eq!(told.code, Some(0));
    for line in [
        "connections: pass; the kernel half does not run",
        "requests: refused with 429 by a rule below",
        "rule    / day-burst: nothing left, again in",
        "rule    / watched: nothing left, again in",
        "change  wait",
    ] {
        assert!(told.out.contains(line), "no {line:?} in\n{}", told.out);
    }
    let other = gateway.ask(&["explain", "2001:db8::1:2:3:4", "--json"]).json();
    assert_eq!(other["proxy"]["client"], json!("2001:db8::"));
    assert_eq!(rules(&other), rules(&before));
}

#[test]
fn lists_are_kept_over_a_restart_and_end_by_themselves() {
    let upstream = Upstream::ok();
    let (directory, mut config) = controlled(&upstream);
    config["kernel"] = json!({ "deny": ["198.51.100.0/24"] });
    let gateway = start(directory, config);
    let list = |gateway: &Gateway| gateway.ask(&["deny", "list", "--json"]).json()["entries"].clone();
    let networks = |entries: Value| {
        let networks =
            entries.as_array().unwrap().iter().map(|entry| entry["network"].as_str().unwrap().to_owned());
        networks.collect::<Vec<_>>()
    };
    let told = gateway.ask(&["deny", "add", "203.0.113.0/24", "--for", "7d", "--reason", "scrapers"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.out.contains("note: the kernel half does not run here"), "{told:?}");
    assert_eq!(gateway.ask(&["deny", "add", "2001:db8:bad::/48"]).code, Some(0));
    let kept = ["198.51.100.0/24", "203.0.113.0/24", "2001:db8:bad::/48"];
    assert_eq!(networks(list(&gateway)), kept);

    let gateway = gateway.restart(|_| ());
    assert_eq!(networks(list(&gateway)), kept);
    let entry = list(&gateway)[1]["entry"].clone();
    assert_eq!(entry["reason"], json!("scrapers"));
    let seconds = entry["until"].as_u64().unwrap() - entry["since"].as_u64().unwrap();
    assert_eq!(seconds, 7 * 24 * 60 * 60);

    // The first is on the list already: only its end and its reason change.
    assert_eq!(gateway.ask(&["deny", "add", "203.0.113.0/24", "--for", "1s"]).code, Some(0));
    let ours = [("list", "deny")];
    gateway.wait_for_metrics("its second is over", |metrics| {
        metrics.get("gateway_control_entries", &ours) == Some(1.0)
    });
    assert_eq!(networks(list(&gateway)), ["198.51.100.0/24", "2001:db8:bad::/48"]);
    let state = fs::read_to_string(gateway.directory().join("state.json")).unwrap();
    assert!(!state.contains("203.0.113.0"), "{state}");

    assert_eq!(gateway.ask(&["deny", "del", "2001:db8:bad::/48"]).code, Some(0));
    let told = gateway.ask(&["deny", "del", "2001:db8:bad::/48"]);
    assert_eq!(
        (told.code, told.error.as_str()),
        (Some(1), "gateway: 2001:db8:bad::/48 is not on the deny list\n")
    );
    let told = gateway.ask(&["deny", "del", "198.51.100.0/24"]);
    assert_eq!(told.code, Some(1));
    assert!(told.error.contains("stands in kernel.deny of the configuration"), "{told:?}");
    assert_eq!(gateway.ask(&["allow", "list"]).out, "the list is empty\n");
}

#[test]
fn only_its_owner_may_ask_and_wrong_arguments_are_refused() {
    let upstream = Upstream::ok();
    let (directory, config) = controlled(&upstream);
    let socket = directory.path().join("control.sock");
    let gateway = start(directory, config);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(gateway.ask(&["explain", "127.0.0.1"]).code, Some(0));

    for (arguments, told) in [
        (&["explain", "nobody"][..], "invalid value 'nobody'"),
        (&["deny", "add", "10.0.0.1/8"], "has bits set behind its prefix length"),
        (&["deny", "add", "10.0.0.0/8", "--for", "soon"], "such as 90s or 7d"),
    ] {
        let answer = gateway.ask(arguments);
        assert_eq!(answer.code, Some(2), "{answer:?}");
        assert!(answer.error.contains(told), "{told}: {answer:?}");
    }
    let long = "x".repeat(201);
    let answer = gateway.ask(&["deny", "add", "10.0.0.0/8", "--reason", &long]);
    assert_eq!(answer.code, Some(1));
    assert!(answer.error.contains("the reason is longer than 200 bytes"), "{answer:?}");
}

#[test]
fn without_a_gateway_or_a_socket_the_verbs_say_so() {
    let upstream = Upstream::ok();
    let (directory, config) = controlled(&upstream);
    let mut gateway = start(directory, config);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    assert!(!gateway.directory().join("control.sock").exists(), "it takes its socket along");
    let told = gateway.ask(&["explain", "127.0.0.1"]);
    assert_eq!(told.code, Some(3));
    assert!(told.error.contains("is it running, with this `control.socket`"), "{told:?}");
    gateway.write(route_to(&upstream.url()));
    let told = gateway.ask(&["deny", "list"]);
    assert_eq!(told.code, Some(3));
    assert!(told.error.contains("the configuration has no `control`: add"), "{told:?}");
}

#[test]
fn a_socket_or_state_file_that_cannot_serve_ends_it() {
    let upstream = Upstream::ok();
    let (directory, config) = controlled(&upstream);
    let first = start(directory, config);
    let directory = TempDir::new().unwrap();
    let check = |section: Value, told: &str| {
        let mut config = route_to(&upstream.url());
        config["control"] = section;
        let exit = refused(&directory, config);
        assert_eq!(exit.code, Some(3), "{exit:#?}");
        assert!(matches!(exit.lines.as_slice(), [line] if line.contains(told)), "{told}: {exit:#?}");
    };
    check(control(first.directory()), "a running gateway answers there");
    assert_eq!(first.ask(&["deny", "list"]).code, Some(0), "the first goes on");
    let own = control(directory.path());
    let with = |key: &str, value: Value| {
        let mut section = own.clone();
        section[key] = value;
        section
    };
    check(with("socket", json!(directory.path().join("second.json"))), "something else than a socket");
    check(with("socket", json!(directory.path().join("no/control.sock"))), "its folder has to be there");
    check(with("state_file", json!(directory.path().join("no/state.json"))), "its folder has to be there");
    fs::write(directory.path().join("state.json"), "{").unwrap();
    check(own.clone(), "move it away to start with empty lists");
}

/// What a gateway that was killed leaves is no hindrance.
#[test]
fn a_dead_gateways_socket_is_replaced() {
    let upstream = Upstream::ok();
    let (directory, config) = controlled(&upstream);
    drop(UnixListener::bind(directory.path().join("control.sock")).unwrap());
    let gateway = start(directory, config);
    assert_eq!(gateway.ask(&["deny", "list"]).code, Some(0));
}
