//! A running gateway's profile: what it spends its time on under load, one at a time, ended by whoever leaves.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use flate2::read::GzDecoder;
use gateway_tests::gateway::{command, route_to};
use gateway_tests::{Api, Gateway, Upstream};
use pprof::protos::{Message, Profile};
use serde_json::Value;

/// Runs `during` while requests come one after another.
fn under_load<T>(gateway: &Gateway, during: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = gateway.connect();
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(client.get("/").status(), 200);
            }
        });
        let result = during();
        is_over.store(true, Ordering::Relaxed);
        result
    })
}

fn read(file: &Path) -> Profile {
    let mut bytes = Vec::new();
    GzDecoder::new(File::open(file).expect("it was written")).read_to_end(&mut bytes).expect("it is gzip");
    Profile::decode(bytes.as_slice()).expect("it is a profile")
}

#[test]
fn a_profile_of_a_gateway_under_load_names_what_it_does() {
    let upstream = Upstream::ok();
    let gateway = Gateway::controlled(route_to(&upstream.url()));
    let told = under_load(&gateway, || gateway.ask(&["profile", "--seconds", "1", "--output", "p.pb.gz"]));
    assert_eq!(told.code, Some(0), "{}", told.error);
    assert_eq!(told.out, "p.pb.gz holds a profile: go tool pprof -top p.pb.gz\n");

    let profile = read(&gateway.directory().join("p.pb.gz"));
    let text = |index: i64| profile.string_table[usize::try_from(index).unwrap()].as_str();
    let kinds: Vec<_> = profile.sample_type.iter().map(|kind| (text(kind.ty), text(kind.unit))).collect();
    assert_eq!(kinds, [("samples", "count"), ("cpu", "nanoseconds")]);
    let samples: i64 = profile.sample.iter().map(|sample| sample.value[0]).sum();
    assert!(samples > 0);
    // A worker's stack stands on what its thread was started with.
    let own = profile.function.iter().filter(|function| text(function.name).starts_with("gateway::"));
    let own: Vec<_> = own.map(|function| text(function.name)).collect();
    assert!(own.iter().any(|name| name.contains("worker")), "{samples} samples: {own:#?}");
    assert_eq!(gateway.get("/").status(), 200);
}

#[test]
fn a_second_one_waits_until_the_first_is_over_or_given_up() {
    let upstream = Upstream::ok();
    let gateway = Gateway::controlled(route_to(&upstream.url()));
    let api = Api::of(&gateway);
    let ask = |seconds: u64| api.ask("POST", &format!("/v1/profile?seconds={seconds}"), "");
    // Again where the first has been heard second.
    let (first, refused) = loop {
        let mut first = UnixStream::connect(gateway.directory().join("control.sock")).unwrap();
        first.write_all(b"POST /v1/profile?seconds=300 HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let answer = ask(1);
        if answer.status() != 200 {
            break (first, answer);
        }
    };
    assert_eq!(refused.status(), 409, "{refused}");
    let detail = "a profile is being taken: ask again when that one is done";
    assert_eq!(refused.json()["detail"], Value::from(detail));

    let told = gateway.ask(&["profile", "--seconds", "1", "--output", "p.pb.gz"]);
    assert_eq!((told.code, told.error), (Some(1), format!("gateway: {detail}\n")));
    assert!(!gateway.directory().join("p.pb.gz").exists(), "a refusal leaves no file");

    drop(first);
    while ask(1).status() == 409 {}
}

#[test]
fn what_cannot_be_taken_or_written_is_said_at_once() {
    let upstream = Upstream::ok();
    let gateway = Gateway::controlled(route_to(&upstream.url()));
    let api = Api::of(&gateway);
    for (query, detail) in [
        ("?seconds=0", "seconds \"0\": a profile takes from 1 to 300 seconds"),
        ("?seconds=301", "seconds \"301\": a profile takes from 1 to 300 seconds"),
        ("?seconds=1.5", "seconds \"1.5\": invalid digit found in string; give whole seconds"),
        ("", "the parameter \"seconds\" is missing: For how long samples are taken."),
    ] {
        let answer = api.ask("POST", &format!("/v1/profile{query}"), "");
        assert_eq!((answer.status(), &answer.json()["detail"]), (400, &Value::from(detail)), "{query}");
    }
    assert_eq!(api.get("/v1/profile?seconds=1").status(), 405);

    let exit = Gateway::exit_of(command(gateway.directory()).args(["profile", "--seconds", "301"]));
    assert_eq!(exit.code, Some(2));
    assert!(exit.lines[0].contains("301 is not in 1..=300"), "{:?}", exit.lines);
    let told = gateway.ask(&["profile", "--output", "nowhere/p"]);
    let error = "gateway: nowhere/p: No such file or directory (os error 2); --output names another file\n";
    assert_eq!((told.code, told.error.as_str()), (Some(2), error));
}
