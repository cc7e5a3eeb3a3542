//! Shared limits without their store: each way of losing a real Redis, what requests meet meanwhile, and its return.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use gateway_tests::redis::Redis;
use gateway_tests::{Gateway, Upstream, gateway};
use serde_json::{Value, json};

use super::cluster::{alone, asking, by_tenant, config, wait_for_store};

const WORKERS: f64 = 2.0;

fn up(gateway: &Gateway) -> Option<f64> {
    gateway.scrape().get("gateway_limit_store_up", &[])
}

/// Waits until no worker has the store, and for this reason.
#[track_caller]
fn wait_until_away(gateway: &Gateway, reason: &str) {
    gateway.wait_for_metrics(reason, |metrics| {
        metrics.get("gateway_limit_store_losses_total", &[("reason", reason)]) >= Some(WORKERS)
    });
}

/// Waits until every worker has lost the store, and the log says so.
#[track_caller]
fn wait_for_loss(gateway: &Gateway, reason: &str) {
    wait_until_away(gateway, reason);
    let line = gateway.log.wait_for("the store of rate limits is lost");
    assert!(line.contains(&format!("reason=\"{reason}\"")), "{line}");
}

#[track_caller]
fn wait_for_return(gateway: &Gateway) {
    wait_for_store(gateway);
    gateway.log.wait_for("the store of rate limits is back");
}

/// How many of `count` requests of one tenant are admitted; every one is answered.
#[track_caller]
fn volley(gateway: &Gateway, tenant: &str, count: usize) -> usize {
    let mut client = gateway.connect();
    let statuses = (0..count).map(|_| client.send(asking(tenant)).response().status());
    statuses.inspect(|status| assert!(matches!(status, 200 | 429), "{status}")).filter(|s| *s == 200).count()
}

/// A gateway of two that share ten a day and tenant; by itself it grants five.
fn one_of_two(upstream: &Upstream, redis: &Redis, wait: &str) -> Gateway {
    let mut config = config(upstream, redis, json!([by_tenant(10, json!({}))]));
    config["rate_limit"]["gateways"] = json!(2);
    config["rate_limit"]["store_wait"] = json!(wait);
    Gateway::start(config)
}

#[test]
fn killed_under_load_and_started_again() {
    const LIMIT: usize = 2_000;
    const LEASE: usize = 20;
    let (upstream, mut redis) = (Upstream::ok(), Redis::start());
    let mut config = config(&upstream, &redis, json!([by_tenant(LIMIT, json!({ "lease": LEASE }))]));
    config["rate_limit"]["gateways"] = json!(2);
    let gateways = [(); 2].map(|()| Gateway::start(config.clone()));
    gateways.iter().for_each(wait_for_store);
    let (admitted, refused, over) =
        ([AtomicUsize::new(0), AtomicUsize::new(0)], AtomicUsize::new(0), AtomicBool::new(false));
    let mut at_kill = [0; 2];
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (gateway, admitted, refused, over) = (&gateways[n % 2], &admitted[n % 2], &refused, &over);
            scope.spawn(move || {
                let mut client = gateway.connect();
                while !over.load(Ordering::Relaxed) {
                    match client.send(asking("x")).response().status() {
                        200 => admitted.fetch_add(1, Ordering::Relaxed),
                        429 => refused.fetch_add(1, Ordering::Relaxed),
                        status => panic!("{status}"),
                    };
                }
            });
        }
        let reached = |count| {
            let sum = || admitted.iter().map(|count| count.load(Ordering::Relaxed)).sum::<usize>();
            let done = || sum() >= count || refused.load(Ordering::Relaxed) > 0;
            gateways[0].wait_for_metrics("requests", |_| done());
        };
        reached(LIMIT / 20);
        redis.kill();
        for (at_kill, admitted) in at_kill.iter_mut().zip(&admitted) {
            *at_kill = admitted.load(Ordering::Relaxed);
        }
        for gateway in &gateways {
            wait_for_loss(gateway, "gone");
        }
        // Until the shares are used up.
        let before = refused.load(Ordering::Relaxed);
        gateways[0].wait_for_metrics("refusals", |_| refused.load(Ordering::Relaxed) > before + 1_000);
        over.store(true, Ordering::Relaxed);
    });
    for (gateway, (admitted, at_kill)) in gateways.iter().zip(admitted.iter().zip(at_kill)) {
        // What a gateway had admitted before counts against its share; then there was what its four clients had
        // under way, and what it had leased.
        let most = (LIMIT / 2).max(at_kill + 4 + LEASE);
        let admitted = admitted.load(Ordering::Relaxed);
        assert!(admitted <= most, "{admitted} of {most}, {at_kill} before");
        assert!(alone(gateway) > 0.0);
    }
    redis.restart(&[], "Ready to accept connections");
    for gateway in &gateways {
        wait_for_return(gateway);
    }
    let before = gateways.each_ref().map(alone);
    let admitted: usize = gateways.iter().map(|gateway| volley(gateway, "y", LIMIT)).sum();
    assert!((LIMIT - 2 * LEASE..=LIMIT).contains(&admitted), "{admitted}");
    assert_eq!(gateways.each_ref().map(alone), before, "the store decides again");
    for gateway in gateways {
        gateway.signal(rustix::process::Signal::TERM);
        let lines = gateway.log.to_end();
        let said = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!([said("is lost"), said("is back")], [1, 1], "{lines:#?}");
    }
}

#[test]
fn flushed_scripts_are_loaded_again_without_a_request_noticing() {
    let (upstream, redis) = (Upstream::ok(), Redis::start());
    let gateway = one_of_two(&upstream, &redis, super::cluster::UNHURRIED);
    wait_for_store(&gateway);
    let mut admitted = 0;
    for _ in 0..4 {
        admitted += volley(&gateway, "x", 3);
        assert_eq!(redis.ask(&["SCRIPT", "FLUSH"]), "OK");
    }
    assert_eq!((admitted, alone(&gateway), up(&gateway)), (10, 0.0, Some(WORKERS)));
}

#[test]
fn a_fail_over_is_followed_to_the_other_server() {
    let (upstream, old) = (Upstream::ok(), Redis::start());
    let address = (old.address.ip().to_string(), old.address.port().to_string());
    let new = Redis::start_with(&["--replicaof", &address.0, &address.1]);
    let mut config = config(&upstream, &old, json!([by_tenant(10, json!({}))]));
    config["rate_limit"]["store"] = json!([old.url(), new.url()]);
    config["rate_limit"]["gateways"] = json!(2);
    let gateway = Gateway::start(config);
    wait_for_store(&gateway);
    assert_eq!(volley(&gateway, "x", 4), 4);
    let mut session = old.connect();
    session.ask(&["SET", "last", "1"]);
    assert_eq!(session.ask(&["WAIT", "1", "20000"]), "1", "the replica has everything");

    new.ask(&["REPLICAOF", "NO", "ONE"]);
    // Of a primary that nobody reaches: what it has stays, and it takes no more.
    old.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    wait_for_loss(&gateway, "read_only");
    wait_for_return(&gateway);
    let before = alone(&gateway);
    assert_eq!(volley(&gateway, "x", 10), 6, "the counts have moved along");
    assert_eq!(alone(&gateway), before);
}

#[test]
fn a_store_that_is_loading_is_waited_for() {
    let (upstream, mut redis) = (Upstream::ok(), Redis::start_with(&["--enable-debug-command", "yes"]));
    assert_eq!(redis.ask(&["DEBUG", "POPULATE", "20000", "key", "100"]), "OK");
    assert_eq!(redis.ask(&["SAVE"]), "OK");
    redis.kill();
    // A hundred seconds, if nobody ends it.
    let slowly = ["--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024"];
    redis.restart(&slowly, "Server initialized");
    let gateway = one_of_two(&upstream, &redis, super::cluster::UNHURRIED);
    wait_until_away(&gateway, "loading");
    assert_eq!(volley(&gateway, "x", 8), 5);
    redis.ask(&["CONFIG", "SET", "key-load-delay", "0"]);
    wait_for_return(&gateway);
    assert_eq!(volley(&gateway, "y", 12), 10);
}

#[test]
fn a_store_without_memory_left() {
    let (upstream, redis) = (Upstream::ok(), Redis::start());
    let gateway = one_of_two(&upstream, &redis, super::cluster::UNHURRIED);
    wait_for_store(&gateway);
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    wait_for_loss(&gateway, "full");
    assert_eq!(volley(&gateway, "x", 8), 5);
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_for_return(&gateway);
    assert_eq!(volley(&gateway, "y", 12), 10);
}

#[test]
fn a_wrong_password_and_then_the_right_one() {
    // What docs/limits.md says that it needs, and no more.
    let user = "gateway on >right ~gateway:limit:* +eval +evalsha +script|load +get +set +time +select";
    let arguments: Vec<_> = ["--user"].into_iter().chain(user.split(' ')).collect();
    let (upstream, redis) = (Upstream::ok(), Redis::start_with(&arguments));
    let directory = tempfile::TempDir::new().expect("there is room for a folder");
    // As Kubernetes mounts a secret.
    let file = directory.path().join("gateway.json");
    let [password, data, next] = ["password", "..data", "..data_tmp"].map(|name| directory.path().join(name));
    for (version, word) in [("..1", "wrong\n"), ("..2", "right\n")] {
        std::fs::create_dir(directory.path().join(version)).expect("there is room for a folder");
        std::fs::write(directory.path().join(version).join("password"), word)
            .expect("there is room for a file");
    }
    symlink("..1", &data).and_then(|()| symlink("..data/password", &password)).expect("two links");
    let mut config = config(&upstream, &redis, json!([by_tenant(10, json!({}))]));
    config["rate_limit"]["gateways"] = json!(2);
    config["rate_limit"]["store"] = json!(format!("redis://gateway@{}/1", redis.address));
    config["rate_limit"]["store_password_file"] = json!(password);
    std::fs::write(&file, gateway::complete(config)).expect("there is room for a file");
    let gateway = Gateway::run(directory, file, |_| {});
    wait_until_away(&gateway, "password");
    assert_eq!(volley(&gateway, "x", 8), 5);
    symlink("..2", &next).and_then(|()| std::fs::rename(&next, &data)).expect("one link in place of another");
    wait_for_return(&gateway);
    assert_eq!(volley(&gateway, "y", 12), 10);
    let log = gateway.admin("/stats").json()["limit_store"].to_string();
    assert!(!log.contains("right"), "{log}");
}

#[test]
fn a_slow_store_makes_nobody_wait_for_it() {
    let (upstream, redis) = (Upstream::ok(), Redis::start());
    let gateway = one_of_two(&upstream, &redis, "1s");
    wait_for_store(&gateway);
    // Ten minutes: an answer before that has not waited for the store.
    assert_eq!(redis.ask(&["CLIENT", "PAUSE", "600000", "WRITE"]), "OK");
    assert_eq!(volley(&gateway, "x", 8), 5);
    wait_for_loss(&gateway, "slow");
    let metrics = gateway.scrape();
    let late = metrics.get("gateway_limit_store_late_total", &[]).expect("a sample");
    assert!(late <= 3.0 * WORKERS, "{late}: each worker waits three times in vain, then no more");
    assert_eq!(volley(&gateway, "z", 200), 5);
    assert_eq!(gateway.scrape().get("gateway_limit_store_late_total", &[]), Some(late));
    redis.ask(&["CLIENT", "UNPAUSE"]);
    wait_for_return(&gateway);
    // How fast it is then is this machine's affair; that it is asked again shows in its own count.
    gateway.wait_for_metrics("it counts", |_| {
        volley(&gateway, "w", 1);
        !redis.ask(&["KEYS", "*w"]).is_empty()
    });
}

#[test]
fn without_a_store_each_rule_goes_by_its_on_failure() {
    let upstream = Upstream::ok();
    // Nobody is there: the address is this test's own.
    let mut redis = Redis::start();
    redis.kill();
    let answers = |on_failure: &str| {
        let mut config =
            config(&upstream, &redis, json!([by_tenant(10, json!({ "on_failure": on_failure }))]));
        config["rate_limit"]["gateways"] = json!(2);
        let gateway = Gateway::start(config);
        wait_until_away(&gateway, "gone");
        let mut client = gateway.connect();
        let answers: Vec<_> = (0..12).map(|_| client.send(asking("x")).response()).collect();
        let labels = [("on_failure", on_failure)];
        assert_eq!(gateway.scrape().get("gateway_limit_store_alone_total", &labels), Some(12.0));
        let stats: Value = gateway.admin("/stats").json();
        let store = &stats["limit_store"];
        assert_eq!(
            (&store["status"], &store["reason"], &store["workers_up"]),
            (&json!("away"), &json!("gone"), &json!(0))
        );
        assert_eq!(store["alone"][on_failure], 12);
        answers
    };
    let statuses = |on_failure| answers(on_failure).iter().map(|answer| answer.status()).collect::<Vec<_>>();
    assert_eq!(statuses("local"), [[200; 5].as_slice(), &[429; 7]].concat());
    assert_eq!(statuses("allow"), [200; 12]);
    for answer in answers("refuse") {
        assert_eq!((answer.status(), answer.field("retry-after")), (503, Some("1")), "{answer}");
        let kind = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";
        assert_eq!(answer.json()["type"], kind);
    }
}

#[test]
fn the_doctor_says_how_the_store_answers() {
    let (upstream, redis) = (Upstream::ok(), Redis::start());
    let address = (redis.address.ip().to_string(), redis.address.port().to_string());
    let replica = Redis::start_with(&["--replicaof", &address.0, &address.1]);
    let mut session = redis.connect();
    session.ask(&["SET", "last", "1"]);
    assert_eq!(session.ask(&["WAIT", "1", "20000"]), "1", "it is done with loading");
    let mut gone = Redis::start();
    gone.kill();
    let mut config = config(&upstream, &redis, json!([by_tenant(10, json!({ "lease": 3 }))]));
    config["rate_limit"]["store"] = json!([redis.url(), replica.url(), gone.url()]);
    let directory = tempfile::TempDir::new().expect("there is room for a folder");
    let file = directory.path().join("gateway.json");
    std::fs::write(&file, gateway::complete(config)).expect("there is room for a file");
    let mut command = gateway::command(directory.path());
    command.args(["doctor", "--json", "--config"]).arg(&file).stdout(std::process::Stdio::piped());
    let output = command.output().expect("the binary is there");
    let findings: Value = serde_json::from_slice(&output.stdout).expect("a document");
    let said = |of: &Redis| {
        let point = json!(format!("store {}/0", of.url()));
        let finding = findings.as_array().expect("a list").iter().find(|finding| finding["point"] == point);
        let finding = finding.unwrap_or_else(|| panic!("{point}: {findings}"));
        format!("{}: {} {}", finding["state"], finding["found"], finding["advice"])
    };
    for (server, words) in [
        (&redis, ["\"good\": \"answers in ", "rules counted in it: 1, with leases of up to 3"]),
        (&replica, ["\"limited\": \"", "a replica: rate_limit.store must name the primary as well"]),
        (&gone, ["\"limited\": \"Connection refused", "start it, or correct rate_limit.store"]),
    ] {
        let said = said(server);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    }
}
