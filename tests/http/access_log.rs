//! The access log: what its lines say, where they go, and that nobody waits for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use gateway_tests::client::get;
use gateway_tests::upstream::ok;
use gateway_tests::{Client, Gateway, PATIENCE, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// One worker, so that lines stand in the order in which requests ended.
fn logging(upstream: &Upstream, log: Value) -> Value {
    json!({ "routes": [{ "path": "/", "backend": upstream.url() }], "workers": 1, "access_log": log })
}

fn folder() -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("there is room for a folder");
    let file = folder.path().join("access.log");
    (folder, file)
}

/// The lines of a file once there are `count` of them.
#[track_caller]
fn lines(file: &Path, count: usize) -> Vec<String> {
    let started = Instant::now();
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        if text.ends_with('\n') && text.lines().count() >= count || count == 0 {
            assert_eq!(text.lines().count(), count, "{text}");
            return text.lines().map(str::to_owned).collect();
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {count} lines:\n{text}");
        std::thread::yield_now();
    }
}

#[track_caller]
fn objects(file: &Path, count: usize) -> Vec<Value> {
    let parse = |line: &String| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    lines(file, count).iter().map(parse).collect()
}

/// Bytes of a body, most of which never come to the gateway's own memory.
const LONG: usize = 1 << 20;

#[test]
fn json_lines_say_what_happened() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            match request.target() {
                "/api/cut" => return,
                "/api/b" => conn.send(ok(&"x".repeat(LONG))),
                _ => conn.send(ok("four")),
            }
        }
    });
    let ((_folder, file), address) = (folder(), upstream.address.to_string());
    let gateway = Gateway::start(json!({
        "workers": 1,
        "trusted_proxies": ["127.0.0.1"],
        "access_log": { "to": file },
        "rate_limit": { "enabled": true },
        "routes": [
            { "path": "/api", "backend": upstream.url(), "retry": { "attempts": 0 } },
            { "path": "/kept", "backend": upstream.url(), "enable_cache": true, "cache": { "ttl": "1h" } },
            { "path": "/one", "backend": upstream.url(), "rate_limit_per_minute": 1 },
        ],
    }));
    let mut client = gateway.connect();
    for request in [
        get("/api/a?x=%22&y=1").replace("\r\n\r\n", "\r\nX-Request-Id: my-id\r\nUser-Agent: a\"b\r\n\r\n"),
        get("/api/b").replace("\r\n\r\n", "\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n"),
        get("/kept"),
        get("/kept"),
        get("/one"),
        get("/one"),
        get("/none"),
        get("/api/cut"),
    ] {
        client.send(request).response();
    }
    Client::connect(gateway.address).send("GET /\x01 HTTP/1.1\r\n\r\n").response();
    let lines = objects(&file, 9);
    for (at, want) in [
        (
            0,
            json!({
                "client": "127.0.0.1", "peer": "127.0.0.1", "method": "GET", "host": "a", "path": "/api/a",
                "query": "x=%22&y=1", "protocol": "HTTP/1.1", "user_agent": "a\"b", "request_id": "my-id",
                "status": 200, "bytes": 4, "outcome": "ok", "route": "/api", "upstream": address, "tries": 1,
            }),
        ),
        (
            1,
            json!({ "client": "203.0.113.7", "peer": "127.0.0.1", "path": "/api/b", "query": null, "bytes": LONG }),
        ),
        (2, json!({ "cache": "miss", "status": 200, "bytes": 4, "route": "/kept", "upstream": null })),
        (3, json!({ "cache": "hit", "status": 200, "bytes": 4, "upstream": null })),
        (4, json!({ "status": 200, "route": "/one", "rule": null })),
        (5, json!({ "status": 429, "outcome": "limited", "rule": "default", "upstream": null })),
        (6, json!({ "status": 404, "outcome": "no_route", "route": null, "path": "/none" })),
        (7, json!({ "status": 502, "outcome": "upstream_failed", "upstream": address })),
        (8, json!({ "status": 400, "outcome": "bad_request", "method": null, "path": null })),
    ] {
        let line = &lines[at];
        for (key, want) in want.as_object().expect("an object") {
            assert_eq!(&line[key], want, "{key} of {line}");
        }
        let time = line["time"].as_str().expect("a time");
        assert!(time.len() == 24 && time.starts_with("20") && time.ends_with('Z'), "{line}");
        assert!(line["duration"].as_f64().is_some_and(|took| (0.0..60.0).contains(&took)), "{line}");
    }
    let answered_in = lines[0]["upstream_duration"].as_f64().expect("it was answered");
    assert!(answered_in <= lines[0]["duration"].as_f64().expect("seen above"), "{}", lines[0]);
    assert_eq!(lines[2]["request_id"].as_str().map(str::len), Some(32), "{}", lines[2]);
    gateway.wait_for_metrics("written", |metrics| {
        metrics.get("gateway_access_log_lines_total", &[("result", "written")]) == Some(9.0)
    });
}

#[test]
fn combined_lines_are_as_others_write_them() {
    let upstream = Upstream::ok();
    let (_folder, file) = folder();
    let gateway = Gateway::start(logging(&upstream, json!({ "format": "combined", "to": file })));
    let fields = "\r\nReferer: http://b/\"x\r\nUser-Agent: c\\d\r\n\r\n";
    gateway.connect().send(get("/a?b=c").replace("\r\n\r\n", fields)).response();
    gateway.get("/plain");
    let lines = lines(&file, 2);
    for (line, request, rest) in [
        (&lines[0], "\"GET /a?b=c HTTP/1.1\" 200 ", r#" "http://b/\x22x" "c\x5Cd""#),
        (&lines[1], "\"GET /plain HTTP/1.1\" 200 ", r#" "-" "-""#),
    ] {
        let (before, after) = line.split_once("] ").expect("a time in brackets");
        let (client, time) = before.split_once(" - - [").expect("nobody's name");
        assert_eq!((client, time.len(), &time[20..]), ("127.0.0.1", 26, " +0000"), "{line}");
        assert!(after.starts_with(request) && after.ends_with(rest), "{line}");
    }
}

/// What a client sends makes neither a line nor a key of its own.
#[test]
fn nobody_writes_the_log_but_the_gateway() {
    let upstream = Upstream::ok();
    for format in ["json", "combined"] {
        let (_folder, file) = folder();
        let gateway = Gateway::start(logging(&upstream, json!({ "format": format, "to": file })));
        let agent = b"\",\"status\":200}\t\xe2\x80\xa8\xff".as_slice();
        let head = [b"GET /x HTTP/1.1\r\nHost: a\r\nUser-Agent: ".as_slice(), agent, b"\r\n\r\n"].concat();
        let response = gateway.connect().send(head).response();
        let status = response.status();
        let line = &lines(&file, 1)[0];
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line}");
        if format == "json" {
            let object: Value = serde_json::from_str(line).expect("one object");
            assert_eq!(object["status"], status, "{line}");
        }
    }
}

#[test]
fn sigusr1_opens_the_file_again() {
    let upstream = Upstream::ok();
    let (_folder, file) = folder();
    let mut gateway = Gateway::start(logging(&upstream, json!({ "to": file })));
    gateway.get("/before");
    assert_eq!(objects(&file, 1)[0]["path"], "/before");
    let aside = file.with_extension("1");
    fs::rename(&file, &aside).expect("they are in one folder");
    gateway.get("/renamed");
    assert_eq!(objects(&aside, 2)[1]["path"], "/renamed");
    gateway.signal(Signal::USR1);
    gateway.log.wait_for("access log opened again");
    gateway.get("/after");
    assert_eq!(objects(&file, 1)[0]["path"], "/after");
    lines(&aside, 2);
    // Where it cannot be opened, lines go on where they went.
    fs::remove_file(&file).expect("it is there");
    fs::create_dir(&file).expect("nothing else is there");
    gateway.signal(Signal::USR1);
    gateway.log.wait_for("cannot open the access log again");
    assert_eq!(gateway.get("/more").status(), 200);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
}

#[test]
fn a_sample_leaves_no_failure_out() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            match request.target() {
                "/bad" => conn.send("HTTP/1.1 500 Bad\r\nContent-Length: 0\r\n\r\n"),
                _ => conn.send(ok("")),
            }
        }
    });
    let (_folder, file) = folder();
    let gateway = Gateway::start(logging(&upstream, json!({ "to": file, "sample": 5 })));
    let mut client = gateway.connect();
    for round in 0..20 {
        client.get(&format!("/{round}"));
    }
    (0..3).for_each(|_| drop(client.get("/bad")));
    let lines = objects(&file, 7);
    let told = |status: u16| lines.iter().filter(|line| line["status"] == status).collect::<Vec<_>>();
    assert!(told(200).len() == 4 && told(200).iter().all(|line| line["sample"] == 5), "{lines:#?}");
    assert!(told(500).len() == 3 && told(500).iter().all(|line| line["sample"].is_null()), "{lines:#?}");
}

/// A pipe that nobody reads takes 64 KiB, the queue and the worker some MiB more; then lines are dropped.
#[test]
fn a_reader_that_stands_still_holds_up_nobody() {
    let upstream = Upstream::ok();
    let (_folder, pipe) = folder();
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .expect("there is room for a pipe");
    let mut gateway = Gateway::start(logging(&upstream, json!({ "to": pipe })));
    let mut client = gateway.connect();
    // Fields of this size make lines of some ten KiB.
    let head = get("/x").replace("\r\n\r\n", &format!("\r\nUser-Agent: {}\r\n\r\n", "\t\u{e9}".repeat(2000)));
    let mut dropped = 0.0;
    for _ in 0..200 {
        for _ in 0..50 {
            assert_eq!(client.send(head.as_str()).response().status(), 200);
        }
        dropped = gateway.scrape().get("gateway_access_log_dropped_total", &[]).expect("a sample");
        if dropped > 0.0 {
            break;
        }
    }
    assert!(dropped > 0.0, "all lines found a place");
    assert_eq!(gateway.get("/y").status(), 200);
    // It ends all the same.
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
}

/// Lines of the last second before the end, on standard output.
#[test]
fn the_end_writes_what_is_left() {
    let upstream = Upstream::ok();
    let (folder, file) = folder();
    let config = folder.path().join("gateway.json");
    let text = gateway_tests::gateway::complete(logging(&upstream, json!({})));
    fs::write(&config, text).expect("there is room for a file");
    let out = fs::File::create(&file).expect("there is room for a file");
    let mut gateway = Gateway::run(folder, config, |command| {
        command.stdout(Stdio::from(out));
    });
    let mut client = gateway.connect();
    for round in 0..300 {
        client.get(&format!("/{round}"));
    }
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    let paths: Vec<_> = objects(&file, 300).iter().map(|line| line["path"].clone()).collect();
    assert_eq!(paths, (0..300).map(|round| json!(format!("/{round}"))).collect::<Vec<_>>());
}

#[test]
fn a_reload_turns_it_on_off_and_elsewhere() {
    let upstream = Upstream::ok();
    let ((_folder, file), (_other, other)) = (folder(), folder());
    let config = logging(&upstream, json!({ "to": file }));
    let gateway = Gateway::start(config.clone());
    let mut client = gateway.connect();
    client.get("/one");
    let mut next = config.clone();
    next["access_log"] = json!({ "to": other, "format": "combined" });
    gateway.replace(next.clone());
    gateway.log.wait_for("configuration reloaded");
    client.get("/two");
    assert!(lines(&other, 1)[0].contains("\"GET /two "));
    assert_eq!(objects(&file, 1)[0]["path"], "/one");
    next["access_log"]["to"] = json!(other.parent().expect("a folder"));
    gateway.replace(next.clone());
    assert!(gateway.log.wait_for("refused").contains("cannot open the access log"));
    next.as_object_mut().expect("an object").remove("access_log");
    gateway.replace(next);
    gateway.log.wait_for("configuration reloaded");
    client.get("/three");
    gateway.replace(config);
    gateway.log.wait_for("configuration reloaded");
    client.get("/four");
    assert_eq!(objects(&file, 2)[1]["path"], "/four");
    lines(&other, 1);
}

#[test]
fn a_file_that_cannot_be_opened_is_said_at_the_start() {
    let exit = Gateway::refuse(&gateway_tests::gateway::complete(json!({
        "routes": [{ "path": "/", "backend": "http://127.0.0.1:1" }], "access_log": { "to": "/nowhere/at/all" },
    })));
    assert_eq!(exit.code, Some(3));
    let last = exit.lines.last().expect("a line");
    assert!(last.contains("cannot open the access log: /nowhere/at/all"), "{last}");
}
