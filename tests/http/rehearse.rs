//! `gateway rehearse`: what a configuration would have done to the requests of a recorded log.

use std::fmt::Write as _;
use std::fs;
use std::process::Stdio;

use gateway_tests::gateway::{Told, command, complete};
use serde_json::{Value, json};
use tempfile::TempDir;

fn config(rest: Value) -> Value {
    let mut config = json!({ "routes": [{ "path": "/api", "backend": "http://127.0.0.1:1" }] });
    for (key, value) in rest.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

fn limited(per_minute: u32) -> Value {
    config(json!({
        "rate_limit": { "enabled": true },
        "routes": [{
            "path": "/api", "backend": "http://127.0.0.1:1", "rate_limit_per_minute": per_minute, "methods": ["GET"],
        }],
    }))
}

fn line(second: f64, client: &str, method: &str, path: &str, outcome: &str) -> String {
    let (whole, millis) = (second as u64, (second.fract() * 1000.0).round() as u64);
    let time = format!("2026-11-29T14:{:02}:{:02}.{millis:03}Z", whole / 60, whole % 60);
    let line = json!({
        "time": time, "client": client, "peer": client, "method": method, "host": "a", "path": path,
        "status": 200, "outcome": outcome,
    });
    format!("{line}\n")
}

fn rehearse(log: &str, config: &Value, against: Option<&Value>, json: bool) -> Told {
    let folder = TempDir::new().expect("there is room for a folder");
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("there is room for a file");
        file
    };
    let mut command = command(folder.path());
    command.arg("rehearse").arg("--config").arg(write("new.json", &complete(config.clone())));
    command.arg("--log").arg(write("access.log", log)).stdout(Stdio::piped());
    if let Some(against) = against {
        command.arg("--against").arg(write("current.json", &complete(against.clone())));
    }
    if json {
        command.arg("--json");
    }
    let output = command.output().expect("the binary is there");
    let text = |bytes| String::from_utf8(bytes).expect("it writes text");
    Told { code: output.status.code(), out: text(output.stdout), error: text(output.stderr) }
}

/// Ten requests of one client within a second, one of another, and what fits no route.
fn log() -> String {
    let mut log = String::new();
    // Out of order, as lines are: they are written at the ends of their requests.
    for n in (0..10).rev() {
        log += &line(f64::from(n) / 10.0, "192.0.2.7", "GET", "/api//users", "ok");
    }
    log += &line(2.0, "192.0.2.8", "GET", "/api/users", "limited");
    log += &line(3.0, "192.0.2.8", "GET", "/apis", "no_route");
    log += &line(4.0, "192.0.2.8", "PUT", "/api", "ok");
    log
}

#[test]
fn beside_what_was_recorded() {
    let report = rehearse(&log(), &limited(4), None, true).json();
    let fates = &report["fates"];
    assert_eq!(report["requests"], 13);
    assert_eq!(fates["served"], json!({ "now": 12, "then": 5 }));
    assert_eq!(fates["limited /api default"], json!({ "now": 0, "then": 6 }));
    assert_eq!(fates["no route"]["then"], 1);
    assert_eq!(fates["method not allowed /api"]["then"], 1);
    // Who was refused by a limit then, and is not now.
    assert_eq!((&report["newly_refused"], &report["newly_served"]), (&json!(8), &json!(1)));
    assert_eq!(report["clients"], json!([["192.0.2.7", 6], ["192.0.2.8", 2]]));
}

#[test]
fn beside_another_configuration() {
    let same = rehearse(&log(), &limited(4), Some(&limited(4)), true).json();
    assert_eq!((&same["newly_refused"], &same["newly_served"]), (&json!(0), &json!(0)), "{same}");
    let tighter = rehearse(&log(), &limited(4), Some(&limited(8)), true).json();
    assert_eq!(tighter["fates"]["limited /api default"], json!({ "now": 2, "then": 6 }), "{tighter}");
    assert_eq!((&tighter["newly_refused"], &tighter["newly_served"]), (&json!(4), &json!(0)), "{tighter}");
    let told = rehearse(&log(), &limited(4), Some(&limited(8)), false);
    assert_eq!(told.code, Some(0), "{told:?}");
    for want in [
        "13 requests\n",
        "limited /api default",
        "against",
        "newly refused 4, newly served 0",
        "192.0.2.7: 4",
    ] {
        assert!(told.out.contains(want), "{want}: {}", told.out);
    }
}

/// Who comes on in spite of his 429s is dropped by the kernel half, where that is configured.
#[test]
fn penalties() {
    let mut log = String::new();
    for n in 0..3000 {
        log += &line(f64::from(n) / 100.0, "192.0.2.7", "GET", "/api", "ok");
    }
    let mut new = limited(1);
    new["kernel"] = json!({ "interfaces": ["lo"], "escalation": "drop" });
    let report = rehearse(&log, &new, None, true).json();
    let dropped = report["fates"]["dropped by a penalty"]["then"].as_u64().expect("some are");
    assert!(dropped > 1000, "{report}");
    assert_eq!(
        (&report["penalties_slowed"], &report["penalties_blocked"]),
        (&json!(1), &json!(1)),
        "{report}"
    );
    new["kernel"]["escalation"] = json!("slow");
    let report = rehearse(&log, &new, None, true).json();
    assert!(report["fates"]["dropped by a penalty"].is_null(), "{report}");
    new["kernel"]["interfaces"] = json!([]);
    let report = rehearse(&log, &new, None, true).json();
    assert_eq!(report["penalties_slowed"], 0, "{report}");
}

#[test]
fn lines_that_cannot_be_read_are_named() {
    let mut text = log();
    for n in 0..7 {
        writeln!(text, "192.0.2.7 - - line {n}").expect("a string takes everything");
    }
    let report = rehearse(&text, &limited(4), None, true).json();
    assert_eq!((&report["requests"], &report["unreadable"]), (&json!(13), &json!(7)));
    let first = report["first_unreadable"].as_array().expect("a list");
    assert!(
        first.len() == 5 && first[0].as_str().is_some_and(|line| line.starts_with("line 14: ")),
        "{report}"
    );
    let told = rehearse("192.0.2.7 - - [x]\n", &limited(4), None, false);
    assert_eq!(told.code, Some(1));
    assert!(told.error.contains("no line is one of a JSON access log; line 1: "), "{told:?}");
}

#[test]
fn what_a_log_cannot_tell_is_said() {
    let new = config(json!({ "rate_limit": { "enabled": true, "rules": [
        { "name": "keys", "limit": 5, "per": "minute", "key": "api_key" },
    ]}}));
    let sampled = log().replace("\"status\":200", "\"sample\":10,\"status\":200");
    let told = rehearse(&sampled, &new, None, false);
    assert!(told.out.contains("/api keys counts by a header"), "{told:?}");
    assert!(told.out.contains("13 stand for others"), "{told:?}");
}
