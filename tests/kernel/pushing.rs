//! Sources that have as many connections as they may and go on opening more: who is penalised for it, and who is not.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gateway_tests::client::get;
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Api, Client, Gateway, Upstream};
use serde_json::{Value, json};

use crate::process::{LOUD, QUIET, config, start_controlled};
use crate::traffic::{connect, try_connect};

const MOST: usize = 20;
/// Longer than any penalty that a test waits for.
const PENALTY_PATIENCE: Duration = Duration::from_secs(90);
/// More than three seconds of the clock, after which a source that pushes is slowed.
const LONG: Duration = Duration::from_millis(4_500);

fn bounded(upstream: &Upstream, kernel: Value) -> Value {
    let mut config = config(upstream, kernel);
    config["connections"] = json!({ "max_per_source": MOST });
    config["timeouts"] = json!({ "header_read": "10m" });
    config
}

fn kernel(more: &Value) -> Value {
    let mut kernel = json!({
        "interfaces": [EDGE],
        "escalation": "drop",
        "connections_per_second": 100_000,
        "burst": 100_000
    });
    for (key, value) in more.as_object().expect("more of the section") {
        kernel[key] = value.clone();
    }
    kernel
}

fn client(network: &Network, source: &str, gateway: &Gateway) -> Option<Client> {
    connect(network, source, gateway.address).map(Client::over)
}

/// As many connections as a source may have, each with the beginning of a request.
fn hold(network: &Network, gateway: &Gateway, beginning: &str) -> Vec<Client> {
    let begin = || {
        let mut client = client(network, LOUD, gateway).expect("it is let in");
        client.send(beginning);
        client
    };
    let held = (0..MOST).map(|_| begin()).collect();
    network.gateway.run(|| {
        gateway.wait_for_metrics("all have their places", |metrics| {
            metrics.get("gateway_connections_open", &[]) == Some(MOST as f64)
        });
    });
    held
}

fn penalties(network: &Network, gateway: &Gateway) -> f64 {
    let scrape = network.gateway.run(|| gateway.scrape());
    ["1", "2"].map(|level| scrape.get("gateway_kernel_penalties", &[("level", level)]).unwrap()).iter().sum()
}

fn refused(network: &Network, gateway: &Gateway) -> f64 {
    let scrape = network.gateway.run(|| gateway.scrape());
    scrape.get("gateway_connections_refused_total", &[("cause", "source")]).unwrap()
}

/// Opens connections beyond what the source may have, until `end`.
fn push(network: &Network, gateway: &Gateway, beginning: &str, mut end: impl FnMut(bool) -> bool) {
    let begin = Instant::now();
    loop {
        let more = try_connect(network, LOUD, gateway.address);
        let is_answered = !matches!(&more, Err(error) if error.kind() == io::ErrorKind::TimedOut);
        more.into_iter().for_each(|more| drop(Client::over(more).try_send(beginning)));
        if end(is_answered) {
            return;
        }
        assert!(begin.elapsed() < PENALTY_PATIENCE, "it is still let in");
    }
}

/// A slow client that takes all places that it has, and makes anew what is closed; `forgive`: what has it let in again.
fn is_slowed_dropped_and_forgiven(beginning: &str, forgive: impl FnOnce(&Gateway)) {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start_controlled(&network, bounded(&upstream, kernel(&json!({}))), |_| {});
    let done = AtomicBool::new(false);
    let held = thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let mut asked = 0;
            while !done.load(Ordering::Relaxed) {
                let answer = client(&network, QUIET, &gateway).map(|mut client| client.get("/").status());
                assert_eq!(answer, Some(200), "request {asked}");
                asked += 1;
            }
            asked
        });
        let held = hold(&network, &gateway, beginning);
        push(&network, &gateway, beginning, |is_answered| !is_answered);
        done.store(true, Ordering::Relaxed);
        assert!(neighbour.join().unwrap() > 0);
        held
    });
    for level in ["level=1", "level=2"] {
        let line = gateway.log.wait_for(level);
        assert!(line.contains(LOUD) && line.contains("max_per_source"), "{line}");
    }
    let told = gateway.ask(&["explain", LOUD, "--json"]).json()["kernel"].clone();
    assert_eq!((&told["verdict"], &told["level"]), (&json!("penalised"), &json!(2)));
    let rule = told["rule"].as_str().unwrap();
    assert!(rule.contains("connections beyond connections.max_per_source 20 within 10 s"), "{rule}");
    // What it held is closed.
    held.into_iter().for_each(|mut client| client.expect_closed());
    forgive(&gateway);
    let begin = Instant::now();
    let mut back = loop {
        match client(&network, LOUD, &gateway) {
            Some(client) => break client,
            None => assert!(begin.elapsed() < PENALTY_PATIENCE, "it stays shut out"),
        }
    };
    for _ in 0..5 {
        assert_eq!(back.get("/").status(), 200);
    }
}

/// By what `explain` proposes as well: a reload without escalation ends what there is of it.
#[test]
fn slow_heads_that_push_are_slowed_dropped_and_forgiven_while_a_neighbour_is_served() {
    is_slowed_dropped_and_forgiven("GET / HTTP/1.1\r\nHost:", |gateway| {
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&gateway.file).unwrap()).unwrap();
        config["kernel"]["escalation"] = json!("off");
        let begin = Instant::now();
        gateway.replace(config);
        gateway.log.wait_for("penalty over");
        assert!(begin.elapsed() < Duration::from_secs(20), "it ended in its time: {:?}", begin.elapsed());
    });
}

/// By what `explain` proposes: it is served at once, though its penalty goes on.
#[test]
fn slow_bodies_that_push_are_slowed_dropped_and_allowed_while_a_neighbour_is_served() {
    let beginning = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx";
    is_slowed_dropped_and_forgiven(beginning, |gateway| {
        assert_eq!(gateway.ask(&["allow", "add", LOUD]).code, Some(0));
        let told = gateway.ask(&["explain", LOUD, "--json"]).json()["kernel"].clone();
        assert_eq!((&told["verdict"], &told["level"]), (&json!("allowed"), &json!(2)));
    });
}

/// Pushes long enough for a penalty; `held` has said what it has to say.
fn is_never_penalised(network: &Network, gateway: &Gateway, beginning: &str) {
    let begin = Instant::now();
    push(network, gateway, beginning, |is_answered| {
        assert!(is_answered, "after {:?}", begin.elapsed());
        begin.elapsed() > LONG
    });
    assert!(refused(network, gateway) > 50.0);
    assert_eq!(penalties(network, gateway) as u64, 0);
}

/// Many behind one address, with connections that they keep and use: however many more there are, none is penalised.
#[test]
fn a_shared_address_whose_connections_are_used_is_never_penalised() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start_controlled(&network, bounded(&upstream, kernel(&json!({}))), |_| {});
    let mut held = hold(&network, &gateway, &get("/"));
    held.iter_mut().for_each(|client| assert_eq!(client.response().status(), 200));
    is_never_penalised(&network, &gateway, &get("/"));
    held.iter_mut().for_each(|client| assert_eq!(client.get("/").status(), 200));
}

/// Uploads that flow are a use as well, though no request is whole yet.
#[test]
fn a_shared_address_whose_uploads_flow_is_never_penalised() {
    const BYTES: usize = 100_000;
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start_controlled(&network, bounded(&upstream, kernel(&json!({}))), |_| {});
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 2 * BYTES);
    let mut held = hold(&network, &gateway, &head);
    for client in &mut held {
        client.send(vec![b'x'; BYTES]);
    }
    is_never_penalised(&network, &gateway, &get("/"));
    for client in &mut held {
        client.send(vec![b'x'; BYTES]);
        assert_eq!(client.response_to("POST").status(), 200);
    }
}

#[test]
fn whoever_is_allowed_is_never_penalised() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let config = bounded(&upstream, kernel(&json!({ "allow": [format!("{LOUD}/32")] })));
    let gateway = start_controlled(&network, config, |_| {});
    let _held = hold(&network, &gateway, "GET / HTTP/1.1\r\nHost:");
    is_never_penalised(&network, &gateway, &get("/"));
}

/// Neither who relays, nor whom it names: that one sends no packets.
#[test]
fn nobody_is_penalised_for_what_a_proxy_header_names() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let mut config = bounded(&upstream, kernel(&json!({})));
    config["trusted_proxies"] = json!([LOUD]);
    config["proxy_protocol"] = json!(true);
    let gateway = start_controlled(&network, config, |_| {});
    let named = format!("PROXY TCP4 {QUIET} 10.77.0.1 1 2\r\nGET / HTTP/1.1\r\nHost:");
    let _held = hold(&network, &gateway, &named);
    is_never_penalised(&network, &gateway, &named);
}

#[test]
fn nobody_is_penalised_where_escalation_is_off() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let config = bounded(&upstream, kernel(&json!({ "escalation": "off" })));
    let gateway = start_controlled(&network, config, |_| {});
    let _held = hold(&network, &gateway, "GET / HTTP/1.1\r\nHost:");
    is_never_penalised(&network, &gateway, &get("/"));
    // It is named all the same.
    let told = Api::of(&gateway).get("/v1/sources").json();
    let [pusher] = told["pushing"].as_array().unwrap().as_slice() else { panic!("{told}") };
    assert_eq!(
        (&pusher["source"], &pusher["connections"], &pusher["used"]),
        (&json!(LOUD), &json!(MOST), &json!(0))
    );
    assert!(pusher["refused"].as_u64() >= Some(50), "{told}");
    let scrape = network.gateway.run(|| gateway.scrape());
    assert_eq!(scrape.get("gateway_limit_suspects", &[]), Some(1.0));
}
