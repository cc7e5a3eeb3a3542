//! What a running gateway is asked to do, by its command line and by programs: a reload with its result, the log's
//! level.

use std::collections::BTreeSet;
use std::fs;

use gateway_tests::gateway::{command, complete, route_to};
use gateway_tests::upstream::ok;
use gateway_tests::{Api, Gateway, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A gateway with a control socket, and what its configuration is made from.
fn start(upstream: &Upstream) -> (Gateway, Value) {
    let directory = TempDir::new().expect("there is room for a folder");
    let mut config = route_to(&upstream.url());
    let path = |name| directory.path().join(name);
    config["control"] = json!({ "socket": path("control.sock"), "state_file": path("state.json") });
    let file = path("gateway.json");
    fs::write(&file, complete(config.clone())).expect("there is room for a file");
    (Gateway::run(directory, file, |_| {}), config)
}

#[test]
fn a_reload_says_what_came_of_it() {
    let (old, new) = (Upstream::answering(ok("old")), Upstream::answering(ok("new")));
    let (mut gateway, config) = start(&old);
    let told = gateway.ask(&["reload"]);
    assert_eq!((told.code, told.out.as_str()), (Some(0), "generation 2 is in force\n"), "{told:?}");

    // It has been read when the verb returns, and the watch finds nothing new in it.
    let mut next = config.clone();
    next["routes"][0]["backend"] = json!(new.url());
    gateway.replace(next.clone());
    assert_eq!(gateway.ask(&["reload", "--json"]).json(), json!({ "generation": 3 }));
    assert_eq!(gateway.get("/").text(), "new");

    // What only the running gateway can refuse.
    next["routes"][0]["backend"] = json!(old.url());
    next["access_log"] = json!({ "to": gateway.directory().join("absent/access.log") });
    gateway.replace(next);
    let told = gateway.ask(&["reload"]);
    assert_eq!((told.code, told.out.as_str()), (Some(1), ""), "{told:?}");
    assert!(told.error.contains("gateway: cannot open the access log:"), "{told:?}");
    assert!(told.error.contains("absent/access.log"), "{told:?}");
    assert_eq!(gateway.get("/").text(), "new");
    assert_eq!(gateway.admin("/health").json()["status"], "degraded");
    let refused = Api::of(&gateway).ask("POST", "/v1/reload", "");
    assert_eq!(refused.status(), 409);
    assert!(refused.json()["detail"].as_str().unwrap().contains("cannot open the access log"), "{refused}");

    // What the verb finds wrong itself.
    fs::write(&gateway.file, "{").unwrap();
    let told = gateway.ask(&["reload"]);
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.error.contains("gateway.json:1:1: not valid JSON"), "{told:?}");

    gateway.replace(config);
    assert_eq!(gateway.ask(&["reload"]).code, Some(0));
    assert_eq!(gateway.admin("/health").json()["status"], "ok");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    let told = gateway.ask(&["reload"]);
    assert_eq!(told.code, Some(3), "{told:?}");
    assert!(told.error.contains("no gateway answers"), "{told:?}");
}

/// Whoever asks gets a configuration that was read after they asked.
#[test]
fn many_who_ask_at_once_are_all_answered() {
    const ASKING: usize = 32;
    let upstream = Upstream::ok();
    let (gateway, _) = start(&upstream);
    let api = Api::of(&gateway);
    let generations: Vec<u64> = std::thread::scope(|scope| {
        let ask = || {
            let answer = api.ask("POST", "/v1/reload", "");
            assert_eq!(answer.status(), 200, "{answer}");
            answer.json()["generation"].as_u64().unwrap()
        };
        let asking: Vec<_> = (0..ASKING).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    let config = api.get("/v1/status").json()["config"].clone();
    let succeeded = config["reloads_succeeded"].as_u64().unwrap();
    assert!((1..=ASKING as u64).contains(&succeeded), "{config}");
    assert_eq!(config["generation"].as_u64(), Some(succeeded + 1));
    let told: BTreeSet<u64> = generations.into_iter().collect();
    assert_eq!(told, (2..=succeeded + 1).collect(), "each reload was for somebody");
}

#[test]
fn the_log_says_more_or_less_from_one_moment_on() {
    let refusing = route_to("http://127.0.0.1:1");
    let upstream = Upstream::ok();
    let (gateway, mut config) = start(&upstream);
    config["routes"] = refusing["routes"].clone();
    gateway.replace(config);
    assert_eq!(gateway.ask(&["reload"]).code, Some(0));
    let told_of_failures = || {
        assert_eq!(gateway.get("/").status(), 502);
        let lines = gateway.log.so_far();
        lines.iter().filter(|line| line.contains("upstream failed")).count()
    };
    let show = || gateway.ask(&["log"]).out;
    assert_eq!((show().as_str(), told_of_failures()), ("info\n", 0));

    let told = gateway.ask(&["log", "debug"]);
    assert_eq!((told.code, told.out.as_str()), (Some(0), "debug\n"), "{told:?}");
    assert_eq!(gateway.get("/").status(), 502);
    gateway.log.wait_for("upstream failed");
    assert_eq!(gateway.ask(&["log", "--json"]).json(), json!({ "level": "debug" }));

    // A reload changes nothing of it.
    assert_eq!(gateway.ask(&["reload"]).code, Some(0));
    assert_eq!(show(), "debug\n");
    assert_eq!(gateway.ask(&["log", "info,gateway::upstream=warn"]).out, "gateway::upstream=warn,info\n");
    let before = gateway.log.so_far().len();
    gateway.ask(&["reload"]);
    let lines = gateway.log.so_far();
    assert!(lines[before..].iter().all(|line| !line.contains("DEBUG")), "{lines:?}");

    let told = gateway.ask(&["log", "loud"]);
    assert_eq!((told.code, told.out.as_str()), (Some(1), ""), "{told:?}");
    assert!(told.error.contains("\"loud\" is no log level: there are off, error"), "{told:?}");
    assert_eq!(show(), "gateway::upstream=warn,info\n");
}

#[test]
fn a_level_that_is_none_ends_the_start() {
    let directory = TempDir::new().unwrap();
    for (level, code) in [("loud", 2), ("", 1)] {
        let file = directory.path().join("gateway.json");
        fs::write(&file, "{").unwrap();
        let mut command = command(directory.path());
        let exit = Gateway::exit_of(command.arg("--config").arg(&file).env("GATEWAY_LOG", level));
        assert_eq!(exit.code, Some(code), "{exit:?}");
        let named = exit.lines.iter().any(|line| line.contains("GATEWAY_LOG: \"loud\" is no log level"));
        assert_eq!(named, level == "loud", "{exit:?}");
    }
}
