//! Lists made at run time, in the kernel: from the command to the packet, over restarts and reloads.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Api, Client, Gateway, PATIENCE, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::flood::{Answering, Forger, kernel};
use crate::process::{LOUD, QUIET, budget, config, reaches, start_controlled};
use crate::traffic::connect;

/// A gateway with a control socket; more of the configuration is `kernel`.
fn start(network: &Network, upstream: &Upstream, kernel: Value) -> Gateway {
    let mut config = config(upstream, kernel);
    // The same port after a restart.
    config["listen_addr"] = json!("10.77.0.1:8080");
    start_controlled(network, config, |_| {})
}

fn explain(gateway: &Gateway, source: &str) -> Value {
    gateway.ask(&["explain", source, "--json"]).json()["kernel"].clone()
}

#[test]
fn a_network_denied_at_run_time_is_dropped_until_it_is_not() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, &upstream, budget(1_000, 1_000));
    let place = gateway.address;
    assert!(reaches(&network, QUIET, place));
    let before = explain(&gateway, QUIET);
    assert_eq!((&before["verdict"], &before["dropped"]), (&json!("pass"), &json!(false)));

    let told = gateway.ask(&["deny", "add", QUIET, "--for", "1h", "--reason", "scraper"]);
    assert_eq!((told.code, told.out.as_str()), (Some(0), "deny 10.77.0.3/32 for 3600 s\n"));
    let is_denied = |gateway: &Gateway| {
        let told = explain(gateway, QUIET);
        assert_eq!((&told["verdict"], &told["dropped"]), (&json!("denied"), &json!(true)));
        assert_eq!(
            (&told["reason"], &told["change"]),
            (&json!("scraper"), &json!("gateway deny del 10.77.0.3/32"))
        );
        let seconds = told["until"].as_u64().unwrap() - told["since"].as_u64().unwrap();
        assert_eq!(seconds, 3_600);
        let refused = explain(gateway, QUIET)["refused"].as_u64().unwrap();
        assert!(connect(&network, QUIET, place).is_none(), "the denied");
        assert!(explain(gateway, QUIET)["refused"].as_u64().unwrap() > refused, "its packets are counted");
        assert!((0..5).all(|_| reaches(&network, LOUD, place)), "its neighbour");
    };
    is_denied(&gateway);
    let gateway = network.gateway.run(|| gateway.restart(|_| ()));
    is_denied(&gateway);
    let mut reloaded: Value = serde_json::from_str(&std::fs::read_to_string(&gateway.file).unwrap()).unwrap();
    reloaded["kernel"] = budget(2_000, 2_000);
    gateway.replace(reloaded);
    gateway.log.wait_for("reloaded");
    is_denied(&gateway);

    // An allow entry on trial is stronger than nothing.
    assert_eq!(gateway.ask(&["allow", "add", "10.77.0.0/29", "--trial"]).code, Some(0));
    let told = gateway.ask(&["deny", "add", QUIET, "--for", "1h", "--reason", "scraper"]);
    assert_eq!(told.out, "deny 10.77.0.3/32 for 3600 s\n");
    is_denied(&gateway);
    // Allowed, it is served whatever the deny list says, and who adds to that list is told so.
    assert_eq!(gateway.ask(&["allow", "add", "10.77.0.0/29"]).code, Some(0));
    assert!(reaches(&network, QUIET, place));
    let told = gateway.ask(&["deny", "add", QUIET, "--for", "1h"]);
    assert!(told.out.contains("note: 10.77.0.0/29 is on the allow list, which is stronger"), "{told:?}");
    assert_eq!(gateway.ask(&["allow", "del", "10.77.0.0/29"]).code, Some(0));
    assert!(connect(&network, QUIET, place).is_none());
    assert_eq!(gateway.ask(&["deny", "del", QUIET]).code, Some(0));
    assert!((0..5).all(|_| reaches(&network, QUIET, place)));
}

#[test]
fn an_entry_whose_time_is_over_drops_nothing() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, &upstream, budget(1_000, 1_000));
    assert_eq!(gateway.ask(&["deny", "add", QUIET, "--for", "2s"]).code, Some(0));
    let started = std::time::Instant::now();
    while connect(&network, QUIET, gateway.address).is_none() {
        assert!(started.elapsed() < PATIENCE, "it goes on");
    }
    assert_eq!(explain(&gateway, QUIET)["verdict"], json!("pass"));
}

/// What an entry would do is known before it does it.
#[test]
fn an_entry_on_trial_counts_and_drops_nothing() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, &upstream, budget(1_000, 1_000));
    let packets = |gateway: &Gateway| {
        let entries = gateway.ask(&["deny", "list", "--json"]).json()["entries"].clone();
        assert_eq!(
            (&entries[0]["network"], &entries[0]["entry"]["trial"]),
            (&json!("10.77.0.3/32"), &json!(true))
        );
        entries[0]["packets"].as_u64().unwrap()
    };
    assert_eq!(gateway.ask(&["deny", "add", QUIET, "--trial"]).code, Some(0));
    assert_eq!(packets(&gateway), 0);
    assert!((0..5).all(|_| reaches(&network, QUIET, gateway.address)));
    assert!(packets(&gateway) >= 5);
    assert!(gateway.ask(&["deny", "list"]).out.contains("for good  on trial"));
    let gateway = network.gateway.run(|| gateway.restart(|_| ()));
    assert!(reaches(&network, QUIET, gateway.address));
    assert_eq!(gateway.ask(&["deny", "add", QUIET]).code, Some(0));
    assert!(connect(&network, QUIET, gateway.address).is_none(), "in earnest");
}

/// The kernel half knows the end of each entry: it needs nobody to take it away.
#[test]
fn an_entry_ends_while_the_gateway_is_stopped() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, &upstream, budget(1_000, 1_000));
    assert_eq!(gateway.ask(&["deny", "add", QUIET, "--for", "3s"]).code, Some(0));
    assert_eq!(gateway.ask(&["deny", "add", "10.77.0.4"]).code, Some(0));
    gateway.signal(Signal::STOP);
    let started = std::time::Instant::now();
    while connect(&network, QUIET, gateway.address).is_none() {
        assert!(started.elapsed() < PATIENCE, "it goes on");
    }
    assert!(connect(&network, "10.77.0.4", gateway.address).is_none(), "the other has no end");
    gateway.signal(Signal::CONT);
}

#[test]
fn who_is_over_budget_is_told_until_when() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, &upstream, budget(1, 3));
    let started = std::time::Instant::now();
    while connect(&network, LOUD, gateway.address).is_some() {
        assert!(started.elapsed() < PATIENCE, "slower than the budget");
    }
    let told = explain(&gateway, LOUD);
    if told["verdict"] == json!("over_budget") {
        assert_eq!((&told["dropped"], &told["left"]), (&json!(true), &json!(0)));
        assert_eq!(told["rule"], json!("kernel.connections_per_second 1, kernel.burst 3"));
        assert!(told["until"].is_u64());
    } else {
        // Seconds have passed since.
        assert!(told["verdict"] == json!("pass") && told["left"].as_u64() >= Some(1), "{told}");
    }
    assert!(told["refused"].as_u64() >= Some(1), "{told}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let last = told["last_refused"].as_u64().unwrap();
    assert!((now - 60..=now).contains(&last), "{last}, {now}");
    let stranger = explain(&gateway, "10.77.0.9");
    assert_eq!((&stranger["left"], &stranger["last_refused"]), (&json!(3), &json!(null)));
}

/// Somebody uses up a known client's budget in its name: that client gets a cookie, and nobody is told of a drop.
#[test]
fn a_client_that_is_forged_is_told_of_its_cookie() {
    let answering = Answering::new();
    let network = &answering.network;
    let upstream = network.gateway.run(Upstream::ok);
    let few = kernel(json!({ "connections_per_second": 1, "burst": 3 }));
    let gateway = start_controlled(network, config(&upstream, few), |_| {});
    assert!(answering.is_served(QUIET, gateway.address));
    network.gateway.run(|| {
        gateway.wait_for_metrics("it is known", |metrics| {
            metrics.get("gateway_kernel_entries", &[("map", "gw_known")]) == Some(1.0)
        });
    });
    let mut forger = Forger::new(network, gateway.address);
    let started = std::time::Instant::now();
    loop {
        (0..5).for_each(|_| forger.send(QUIET.parse().unwrap()));
        let told = explain(&gateway, QUIET);
        assert_eq!(told["dropped"], json!(false), "{told}");
        match told["verdict"].as_str().unwrap() {
            "cookie_sent" if answering.counted(&gateway, "cookie_sent") > 0 => break,
            // Until they are armed and the stack has its seed; and a second later it may open one.
            "cookie_sent" | "flooded" | "pass" => {}
            _ => panic!("{told}"),
        }
        assert!(started.elapsed() < PATIENCE, "no cookie: {told}");
    }
}

/// A gateway that takes five requests a minute of each client, and slows those that ignore it.
fn start_limited(network: &Network, upstream: &Upstream) -> Gateway {
    let mut config = config(upstream, json!({ "interfaces": [EDGE], "escalation": "slow" }));
    config["routes"][0]["rate_limits"] = json!([{ "name": "five", "limit": 5, "per": "minute" }]);
    start_controlled(network, config, |_| {})
}

/// Sends requests as `LOUD`, whatever is answered and however often its connection is closed for that, until `seen` finds
/// what it looks for in the document at `target`.
fn ignore_refusals(
    network: &Network,
    gateway: &Gateway,
    target: &str,
    seen: impl Fn(&Value) -> bool,
) -> Value {
    let mut abuser = None;
    let started = std::time::Instant::now();
    loop {
        assert!(started.elapsed() < PATIENCE, "it ignores its refusals for nothing");
        let again = || connect(network, LOUD, gateway.address).map(Client::over);
        if let Some(mut client) = abuser.take().or_else(again) {
            let closes = client.get("/").closes();
            abuser = (!closes).then_some(client);
        }
        let document = Api::of(gateway).get(target).json();
        if seen(&document) {
            return document;
        }
    }
}

#[test]
fn the_kernel_half_is_shown_with_whom_it_penalised() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start_limited(&network, &upstream);
    let before = Api::of(&gateway).get("/v1/kernel").json();
    assert_eq!((&before["running"], &before["why_not"]), (&json!(true), &Value::Null));
    let figures = &before["figures"];
    assert_eq!(figures["interfaces"], json!([{ "name": EDGE, "mode": "driver" }]));
    assert_eq!(figures["penalties"], json!([]));
    assert_eq!(figures["shed"][0], json!({ "class": "unknown", "ratio": 0.0 }));
    assert_eq!(figures["cookies"], json!({ "armed": false, "sent": 0, "accepted": 0 }));

    let of = |told: &Value, rows: &str, key: &str, name: &str, value: &str| {
        let rows = told["figures"][rows].as_array().unwrap().iter().filter(|row| row[key] == json!(name));
        rows.map(|row| row[value].as_u64().unwrap()).sum::<u64>()
    };
    // What is in the maps is counted once in a while.
    let is_penalised = |told: &Value| {
        told["figures"]["penalties"] != json!([]) && of(told, "maps", "map", "gw_penalty", "entries") == 1
    };
    let told = ignore_refusals(&network, &gateway, "/v1/kernel", is_penalised);
    let figures = &told["figures"];
    let penalty = &figures["penalties"][0];
    assert_eq!((&penalty["source"], &penalty["level"]), (&json!(LOUD), &json!(1)));
    assert_eq!(penalty["rule"], json!({ "route": "/", "rule": "five" }));
    let number = |key: &str| penalty[key].as_u64().unwrap();
    assert!(number("refused") >= number("ignored") && number("ignored") >= 50, "{penalty}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(
        number("since") <= now && now - number("since") < 60 && number("until") > number("since"),
        "{penalty}"
    );
    assert!(of(&told, "packets", "verdict", "pass", "packets") >= 1);
}

#[test]
fn the_loudest_are_named() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, &upstream, budget(1, 1));
    let nobody = Api::of(&gateway).get("/v1/sources").json();
    assert_eq!(nobody, json!({ "connections": [], "requests": [], "pushing": [] }));
    let refuse = |source: &str, times: usize| {
        while connect(&network, source, gateway.address).is_some() {}
        (1..times).for_each(|_| drop(connect(&network, source, gateway.address)));
    };
    refuse(QUIET, 1);
    refuse(LOUD, 6);
    let told = Api::of(&gateway).get("/v1/sources").json();
    let [loudest, other] = told["connections"].as_array().unwrap().as_slice() else { panic!("{told}") };
    assert_eq!((&loudest["source"], &other["source"]), (&json!(LOUD), &json!(QUIET)));
    assert!(
        loudest["refused"].as_u64() > other["refused"].as_u64() && other["refused"].as_u64() >= Some(1),
        "{told}"
    );
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(loudest["refused_at"].as_u64().is_some_and(|at| (now - 60..=now).contains(&at)), "{told}");
}

#[test]
fn who_ignores_refusals_is_named() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start_limited(&network, &upstream);
    let is_stubborn = |told: &Value| told["requests"] != json!([]);
    let told = ignore_refusals(&network, &gateway, "/v1/sources", is_stubborn);
    let [stubborn] = told["requests"].as_array().unwrap().as_slice() else { panic!("{told}") };
    assert_eq!(stubborn["source"], json!(LOUD));
    assert_eq!(stubborn["rule"], json!({ "route": "/", "rule": "five" }));
    let number = |key: &str| stubborn[key].as_u64().unwrap();
    assert!(number("requests") >= number("refused") && number("refused") >= number("ignored"), "{told}");
    assert!(number("ignored") >= 50, "{told}");
}

/// What it would have been penalised for is forgiven, and what it does afterwards is not.
#[test]
fn nobody_is_penalised_while_another_gateway_takes_over() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start_limited(&network, &upstream);
    // One that asks, and takes its time.
    let mut successor = UnixStream::connect(gateway.directory().join("control.sock")).unwrap();
    successor.write_all(b"\"hand_over\"\n").unwrap();
    successor.read_exact(&mut [0]).unwrap();
    let is_stubborn = |told: &Value| told["requests"] != json!([]);
    ignore_refusals(&network, &gateway, "/v1/sources", is_stubborn);
    drop(successor);
    const GOES_ON: &str = "no other gateway follows; this one goes on";
    gateway.log.wait_for(GOES_ON);

    let is_penalised = |told: &Value| told["figures"]["penalties"] != json!([]);
    ignore_refusals(&network, &gateway, "/v1/kernel", is_penalised);
    gateway.log.wait_for("penalised:");
    let lines = gateway.log.so_far();
    let first = |needle| lines.iter().position(|line| line.contains(needle)).unwrap();
    assert!(first(GOES_ON) < first("penalised:"), "{lines:#?}");
}
