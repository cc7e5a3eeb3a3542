//! Each step of a reload that can fail, failing for its real reason: nothing changes, it is told everywhere, and
//! the next good one works. What the kernel half refuses is in `tests/kernel/reload_faults.rs`.

use std::fs;
use std::path::Path;
use std::time::Instant;

use gateway_tests::gateway::{complete, route_to};
use gateway_tests::upstream::ok;
use gateway_tests::{Gateway, PATIENCE, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::reload::Held;

const RELOADED: &str = "configuration reloaded";
const REFUSED: &str = "configuration refused";

struct Rig {
    old: Upstream,
    new: Upstream,
    gateway: Gateway,
    generation: f64,
}

fn rig() -> Rig {
    let (old, new) = (Upstream::answering(ok("old")), Upstream::answering(ok("new")));
    let gateway = Gateway::single(&old);
    assert_eq!(gateway.get("/").text(), "old");
    Rig { old, new, gateway, generation: 1.0 }
}

/// One worker: it has one connection to each upstream, whoever asks.
fn to(upstream: &Upstream) -> Value {
    let mut config = route_to(&upstream.url());
    config["workers"] = json!(1);
    config
}

impl Rig {
    /// Puts a broken configuration in place, which is refused for `says`; then `mend` and a good one.
    #[track_caller]
    fn refuses(&mut self, says: &str, break_it: impl FnOnce(&Path), mend: impl FnOnce(&Path)) {
        let before = Held::by(&self.gateway);
        break_it(&self.gateway.file);
        self.gateway.signal(Signal::HUP);
        let line = self.gateway.log.wait_for(REFUSED);
        assert!(line.contains(says), "{line}");
        assert_eq!(self.gateway.get("/").text(), "old", "{says}");
        let scrape = self.gateway.scrape();
        assert_eq!(scrape.get("gateway_config_generation", &[]), Some(self.generation), "{says}");
        assert_eq!(scrape.get("gateway_config_last_reload_successful", &[]), Some(0.0), "{says}");
        let health = self.gateway.admin("/health").json();
        assert_eq!(health["status"], "degraded", "{health}");
        assert_eq!(health["config"]["generation"].as_f64(), Some(self.generation), "{health}");
        let error = health["config"]["last_reload_error"].as_str().expect("it says why");
        assert!(error.contains(says), "{error}");
        self.waits_for("what it opened is closed", |held| {
            held.descriptors <= before.descriptors && held.threads <= before.threads
        });

        mend(&self.gateway.file);
        for (upstream, body) in [(&self.new, "new"), (&self.old, "old")] {
            self.gateway.replace(to(upstream));
            self.gateway.log.wait_for(RELOADED);
            self.generation += 1.0;
            assert_eq!(self.gateway.get("/").text(), body, "{says}");
        }
        let scrape = self.gateway.scrape();
        assert_eq!(scrape.get("gateway_config_generation", &[]), Some(self.generation), "{says}");
        assert_eq!(scrape.get("gateway_config_last_reload_successful", &[]), Some(1.0), "{says}");
        assert_eq!(self.gateway.admin("/health").json()["status"], "ok");
    }

    /// Connections of the test's own end when the gateway gets round to it.
    #[track_caller]
    fn waits_for(&self, what: &str, holds: impl Fn(&Held) -> bool) {
        let started = Instant::now();
        loop {
            let held = Held::by(&self.gateway);
            if holds(&held) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{what}: {held:?}");
            std::thread::yield_now();
        }
    }

    /// A configuration for the other upstream, were it not for `wrong`.
    fn but_for(&self, wrong: Value) -> String {
        let mut config = to(&self.new);
        let wrong = wrong.as_object().expect("keys and their values").clone();
        config.as_object_mut().expect("it is one").extend(wrong);
        complete(config)
    }
}

#[test]
fn a_file_that_cannot_be_read() {
    let mut rig = rig();
    let away = |file: &Path| {
        fs::remove_file(file).unwrap();
        fs::create_dir(file).unwrap();
    };
    rig.refuses("cannot be read", away, |file| fs::remove_dir(file).unwrap());
    rig.refuses("No such file", |file| fs::remove_file(file).unwrap(), |_| {});
}

#[test]
fn a_document_that_is_wrong() {
    let mut rig = rig();
    for (text, says) in [
        (r#"{ "routes": "#.to_owned(), "not valid JSON"),
        (rig.but_for(json!({ "timeouts": { "idle": "soon" } })), "timeouts.idle"),
        (rig.but_for(json!({ "rotues": [] })), "did you mean"),
        (rig.but_for(json!({ "include": ["absent.json"] })), "absent.json"),
        (rig.but_for(json!({ "user": "${GATEWAY_TESTS_ABSENT}" })), "GATEWAY_TESTS_ABSENT"),
        (
            rig.but_for(json!({ "routes": [{ "path": "/", "backend": "http://a", "burst_size": 5 }] })),
            "burst_size",
        ),
    ] {
        rig.refuses(says, |file| fs::write(file, text).unwrap(), |_| {});
    }
}

#[test]
fn an_access_log_that_cannot_be_opened() {
    let mut rig = rig();
    let folder = rig.gateway.directory().join("logs");
    for (to, says) in
        [(folder.join("access.log"), "No such file"), (rig.gateway.directory().to_owned(), "Is a directory")]
    {
        let text = rig.but_for(json!({ "access_log": { "to": to } }));
        rig.refuses(says, |file| fs::write(file, text).unwrap(), |_| {});
    }
    assert!(!folder.exists());
    // The same text is taken once the cause is gone, and asked for again.
    let text = rig.but_for(json!({ "access_log": { "to": folder.join("access.log") } }));
    fs::write(&rig.gateway.file, text).unwrap();
    rig.gateway.log.wait_for(REFUSED);
    fs::create_dir(&folder).unwrap();
    rig.gateway.signal(Signal::HUP);
    rig.gateway.log.wait_for(RELOADED);
    assert_eq!(rig.gateway.get("/").text(), "new");
    assert!(folder.join("access.log").exists());
}

#[test]
fn what_changes_with_a_restart_only() {
    let mut rig = rig();
    let control = json!({ "socket": "/absent/control.sock", "state_file": "/absent/state.json" });
    for (key, wrong) in [
        ("listen_addr", json!({ "listen_addr": "127.0.0.1:1" })),
        ("metrics_addr", json!({ "metrics_addr": "127.0.0.1:1" })),
        ("user", json!({ "user": "nobody" })),
        ("control", json!({ "control": control })),
        ("workers", json!({ "workers": 3 })),
        ("cache.shards", json!({ "cache": { "shards": 4 } })),
        ("rate_limit.num_shards", json!({ "rate_limit": { "num_shards": 4 } })),
        ("rate_limit.max_keys", json!({ "rate_limit": { "max_keys": 1_003 } })),
        ("kernel.interfaces", json!({ "kernel": { "interfaces": ["lo"] } })),
        ("kernel.mode", json!({ "kernel": { "mode": "tc" } })),
        ("kernel.persist", json!({ "kernel": { "persist": "/absent" } })),
    ] {
        let text = rig.but_for(wrong);
        let says = format!("{key} cannot change while the gateway runs: put it back, or restart");
        rig.refuses(&says, |file| fs::write(file, text).unwrap(), |_| {});
    }
}

/// Nobody's mistake in the configuration: the rest of it counts, and that route answers when the name does.
#[test]
fn a_name_that_leads_nowhere_refuses_nothing() {
    let rig = rig();
    let mut config = to(&rig.new);
    config["routes"] = json!([
        { "path": "/", "backend": rig.new.url() },
        { "path": "/lost", "backend": "http://nowhere.invalid:80" },
    ]);
    rig.gateway.replace(config);
    rig.gateway.log.wait_for(RELOADED);
    assert_eq!(rig.gateway.get("/").text(), "new");
    assert_eq!(rig.gateway.get("/lost").status(), 502);
    assert_eq!(rig.gateway.admin("/health").json()["status"], "ok");
}

#[test]
fn a_burst_of_changes_is_one_reload_of_the_last() {
    let rig = rig();
    for n in 0..200 {
        let mut config = to(&rig.old);
        config["timeouts"] = json!({ "idle": format!("{}s", 10 + n) });
        rig.gateway.replace(config);
    }
    rig.gateway.replace(to(&rig.new));
    let started = Instant::now();
    while rig.gateway.get("/").text() != "new" {
        assert!(started.elapsed() < PATIENCE, "the last one is never in force");
    }
    // A machine that is busy enough to make pauses in the burst makes several of it, but not hundreds.
    let reloads = rig.gateway.scrape().get("gateway_config_reloads_total", &[("result", "success")]);
    assert!(reloads.is_some_and(|reloads| (1.0..=20.0).contains(&reloads)), "{reloads:?}");
}
