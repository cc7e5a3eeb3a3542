//! A new configuration while requests go on: every way it can come, and those that are refused.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};

use gateway_tests::client::get;
use gateway_tests::gateway::{complete, route_to};
use gateway_tests::upstream::ok;
use gateway_tests::{Gate, Gateway, PATIENCE, Upstream};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

const RELOADED: &str = "configuration reloaded";
const REFUSED: &str = "configuration refused";

const RELOADS: usize = 1_000;

/// What a process has of what a leak takes.
#[derive(Debug)]
pub struct Held {
    pub descriptors: usize,
    pub threads: usize,
    kib: u64,
}

impl Held {
    pub fn by(gateway: &Gateway) -> Self {
        let count =
            |what: &str| fs::read_dir(format!("/proc/{}/{what}", gateway.id())).expect("it runs").count();
        Self { descriptors: count("fd"), threads: count("task"), kib: gateway.memory_kib("VmRSS") }
    }
}

struct Pair {
    old: Upstream,
    new: Upstream,
    gateway: Gateway,
}

fn pair() -> Pair {
    let (old, new) = (Upstream::answering(ok("old")), Upstream::answering(ok("new")));
    let gateway = Gateway::to(&old);
    Pair { old, new, gateway }
}

impl Pair {
    #[track_caller]
    fn serves(&self, want: &str) {
        assert_eq!(self.gateway.get("/").text(), want);
    }

    fn new_config(&self) -> serde_json::Value {
        route_to(&self.new.url())
    }
}

#[test]
fn a_written_file() {
    let pair = pair();
    pair.serves("old");
    pair.gateway.write(pair.new_config());
    pair.gateway.log.wait_for(RELOADED);
    pair.serves("new");
    pair.gateway.write(route_to(&pair.old.url()));
    pair.gateway.log.wait_for(RELOADED);
    pair.serves("old");
    assert_eq!(pair.gateway.scrape().get("gateway_config_generation", &[]), Some(3.0));
}

#[test]
fn a_file_renamed_over_it() {
    let pair = pair();
    let next = pair.gateway.directory().join("next.json");
    fs::write(&next, complete(pair.new_config())).unwrap();
    fs::rename(next, &pair.gateway.file).unwrap();
    pair.gateway.log.wait_for(RELOADED);
    pair.serves("new");
}

/// As an editor does: the file away, a new one in its place.
#[test]
fn a_file_moved_away_and_written_anew() {
    let pair = pair();
    fs::rename(&pair.gateway.file, pair.gateway.directory().join("gateway.json~")).unwrap();
    pair.gateway.write(pair.new_config());
    pair.gateway.log.wait_for(RELOADED);
    pair.serves("new");
}

/// As Kubernetes does with a ConfigMap: `gateway.json` → `..data/gateway.json`, `..data` → a folder.
#[test]
fn a_symbolic_link_swapped_beside_it() {
    let (old, new) = (Upstream::answering(ok("old")), Upstream::answering(ok("new")));
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    for (version, upstream) in [("..1", &old), ("..2", &new)] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("gateway.json"), complete(route_to(&upstream.url()))).unwrap();
    }
    symlink("..1", path("..data")).unwrap();
    symlink("..data/gateway.json", path("gateway.json")).unwrap();
    let (file, next, data) = (path("gateway.json"), path("..data_tmp"), path("..data"));
    let gateway = Gateway::run(directory, file, |_| {});
    assert_eq!(gateway.get("/").text(), "old");
    symlink("..2", &next).unwrap();
    fs::rename(next, data).unwrap();
    gateway.log.wait_for(RELOADED);
    assert_eq!(gateway.get("/").text(), "new");
}

#[test]
fn included_files_are_followed_as_the_first_is() {
    let pair = pair();
    let routes = pair.gateway.directory().join("routes");
    fs::create_dir(&routes).unwrap();
    let route = |path: &str| json!({ "routes": [{ "path": path, "backend": pair.new.url() }] }).to_string();
    let get = |path: &str| pair.gateway.get(path).text();
    let mut main = route_to(&pair.old.url());
    main["include"] = json!(["routes/*.json"]);
    pair.gateway.write(main);
    pair.gateway.log.wait_for(RELOADED);
    // A new one that the glob matches, as an editor saves it.
    fs::write(routes.join(".a.json.swp"), route("/a")).unwrap();
    fs::rename(routes.join(".a.json.swp"), routes.join("a.json")).unwrap();
    pair.gateway.log.wait_for(RELOADED);
    assert_eq!((get("/a"), get("/b")), ("new".to_owned(), "old".to_owned()));
    // A ConfigMap: each file is a link through one that is swapped.
    for (version, path) in [("..1", "/b"), ("..2", "/c")] {
        fs::create_dir(routes.join(version)).unwrap();
        fs::write(routes.join(version).join("map.json"), route(path)).unwrap();
    }
    symlink("..1", routes.join("..data")).unwrap();
    symlink("..data/map.json", routes.join("map.json")).unwrap();
    pair.gateway.log.wait_for(RELOADED);
    assert_eq!((get("/b"), get("/c")), ("new".to_owned(), "old".to_owned()));
    symlink("..2", routes.join("..next")).unwrap();
    fs::rename(routes.join("..next"), routes.join("..data")).unwrap();
    pair.gateway.log.wait_for(RELOADED);
    assert_eq!((get("/b"), get("/c")), ("old".to_owned(), "new".to_owned()));
    // A broken one changes nothing, one that is gone and returns does.
    fs::write(routes.join("a.json"), "{").unwrap();
    let refused = pair.gateway.log.wait_for(REFUSED);
    assert!(refused.contains("routes/a.json:1:1"), "{refused}");
    assert_eq!((get("/a"), get("/c")), ("new".to_owned(), "new".to_owned()));
    fs::remove_file(routes.join("a.json")).unwrap();
    pair.gateway.log.wait_for(RELOADED);
    assert_eq!(get("/a"), "old");
    fs::write(routes.join("a.json"), route("/a")).unwrap();
    pair.gateway.log.wait_for(RELOADED);
    assert_eq!(get("/a"), "new");
}

#[test]
fn a_file_written_piece_by_piece_counts_when_it_is_whole() {
    let pair = pair();
    let whole = complete(pair.new_config());
    let mut file = fs::File::create(&pair.gateway.file).unwrap();
    for byte in whole.as_bytes() {
        file.write_all(&[*byte]).unwrap();
    }
    drop(file);
    pair.gateway.log.wait_for(RELOADED);
    pair.serves("new");
    let reloads = pair.gateway.scrape();
    assert_eq!(reloads.get("gateway_config_reloads_total", &[("result", "success")]), Some(1.0));
}

#[test]
fn sighup() {
    let pair = pair();
    pair.gateway.signal(Signal::HUP);
    pair.gateway.log.wait_for(RELOADED);
    pair.serves("old");
    pair.gateway.write(pair.new_config());
    pair.gateway.signal(Signal::HUP);
    pair.gateway.log.wait_for(RELOADED);
    pair.serves("new");
}

#[test]
fn a_broken_file_leaves_the_old_one_in_force_and_says_so() {
    let pair = pair();
    let successful = || pair.gateway.scrape().get("gateway_config_last_reload_successful", &[]);
    assert_eq!(successful(), Some(1.0));
    for (text, says) in [
        ("{", "not valid JSON"),
        ("", "empty"),
        (r#"{ "routes": [{ "path": "/", "backend": "http://a" }], "lisen_addr": ":1" }"#, "lisen_addr"),
        (r#"{ "routes": [{ "path": "/" }] }"#, "backend"),
    ] {
        fs::write(&pair.gateway.file, text).unwrap();
        pair.gateway.signal(Signal::HUP);
        let line = pair.gateway.log.wait_for(REFUSED);
        assert!(line.contains(says), "{line}");
        pair.serves("old");
        assert_eq!(successful(), Some(0.0));
        let health = pair.gateway.admin("/health");
        assert_eq!((health.status(), &health.json()["status"]), (200, &json!("degraded")), "{health}");
        let error = health.json()["config"]["last_reload_error"].as_str().map(str::to_owned);
        assert!(error.is_some_and(|error| error.contains(says)), "{health}");
        assert_eq!(pair.gateway.admin("/readyz").status(), 200);
    }
    fs::remove_file(&pair.gateway.file).unwrap();
    pair.gateway.signal(Signal::HUP);
    pair.gateway.log.wait_for("cannot be read");
    pair.serves("old");

    pair.gateway.write(pair.new_config());
    pair.gateway.log.wait_for(RELOADED);
    pair.serves("new");
    assert_eq!(successful(), Some(1.0));
    assert_eq!(pair.gateway.admin("/health").json()["status"], "ok");
}

#[test]
fn a_request_under_way_ends_as_it_began() {
    let (came, arrived) = mpsc::channel();
    let came = Mutex::new(came);
    let gate = Gate::default();
    let opened = gate.clone();
    let old = Upstream::start(move |mut conn| {
        conn.request();
        came.lock().unwrap().send(()).unwrap();
        opened.wait();
        conn.send(ok("old"));
    });
    let new = Upstream::answering(ok("new"));
    let gateway = Gateway::to(&old);
    let mut client = gateway.connect();
    client.send(get("/"));
    arrived.recv_timeout(PATIENCE).unwrap();
    gateway.write(route_to(&new.url()));
    gateway.log.wait_for(RELOADED);
    assert_eq!(gateway.get("/").text(), "new");
    gate.open();
    assert_eq!(client.response().text(), "old");
    assert_eq!(client.get("/").text(), "new");
}

#[test]
fn counters_and_upstream_connections_outlive_it() {
    let upstream = Upstream::ok();
    let mut config = route_to(&upstream.url());
    config["workers"] = json!(1);
    let gateway = Gateway::start(config.clone());
    let mut client = gateway.connect();
    assert_eq!(client.get("/").status(), 200);
    config["timeouts"] = json!({ "idle": "50s" });
    gateway.write(config);
    gateway.log.wait_for(RELOADED);
    assert_eq!(client.get("/").status(), 200);
    gateway.wait_for_metrics("two requests", |metrics| metrics.requests(200, "ok") == 2.0);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_thousand_reloads_under_load_fail_no_request_and_leave_nothing_behind() {
    let pair = pair();
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for fresh in [false, true] {
            let (pair, stop, served) = (&pair, &stop, &served);
            scope.spawn(move || {
                let mut client = pair.gateway.connect();
                for _ in 0.. {
                    if fresh {
                        client = pair.gateway.connect();
                    }
                    let response = client.get("/");
                    assert_eq!(response.status(), 200, "{response}");
                    // At least a hundred from each, however fast the reloads are.
                    let all = served.fetch_add(1, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) && all >= 200 {
                        break;
                    }
                }
            });
        }
        let mut early = None;
        for n in 0..RELOADS {
            // By then pools and buffers are as large as they get.
            if n == RELOADS / 4 {
                early = Some(Held::by(&pair.gateway));
            }
            let upstream = if n % 2 == 0 { &pair.new } else { &pair.old };
            pair.gateway.replace(route_to(&upstream.url()));
            pair.gateway.signal(Signal::HUP);
            pair.gateway.log.wait_for(RELOADED);
        }
        stop.store(true, Ordering::Relaxed);
        let (early, late) = (early.expect("it was looked at"), Held::by(&pair.gateway));
        assert_eq!(early.threads, late.threads);
        // Connections come and go at any time.
        assert!(late.descriptors <= early.descriptors + 8, "{early:?} {late:?}");
        assert!(late.kib <= early.kib + 4_096, "{early:?} {late:?}");
    });
    assert!(served.into_inner() >= 200);
    let metrics = pair.gateway.scrape();
    assert!(
        metrics.get("gateway_config_reloads_total", &[("result", "success")]) >= Some(RELOADS as f64),
        "{metrics}"
    );
    assert_eq!(metrics.get("gateway_config_reloads_total", &[("result", "failure")]), Some(0.0), "{metrics}");
}
