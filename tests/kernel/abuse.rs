//! Clients that ignore their refusals, and those that do not: what becomes of their connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gateway_tests::client::get;
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Client, Gateway, Upstream};
use serde_json::{Value, json};

use crate::process::{LOUD, QUIET, config, start};
use crate::traffic::{connect, connects};

const CONNECTIONS: usize = 64;
/// Longer than any penalty that a test waits for.
const PENALTY_PATIENCE: Duration = Duration::from_secs(90);

/// `/` takes five requests a minute of each client, `/free` any number.
fn limited(upstream: &Upstream, escalation: &str) -> Value {
    let kernel = json!({
        "interfaces": [EDGE],
        "escalation": escalation,
        "connections_per_second": 100_000,
        "burst": 100_000
    });
    let mut config = config(upstream, kernel);
    let rule = json!([{ "name": "five", "limit": 5, "per": "minute" }]);
    config["routes"][0]["rate_limits"] = rule;
    let free = json!({ "path": "/free", "backend": upstream.url() });
    config["routes"].as_array_mut().unwrap().push(free);
    config
}

fn client(network: &Network, source: &str, place: SocketAddr) -> Client {
    Client::over(connect(network, source, place).expect("it is let in"))
}

fn penalised(network: &Network, gateway: &Gateway) -> f64 {
    let scrape = network.gateway.run(|| gateway.scrape());
    scrape.get("gateway_kernel_packets_total", &[("verdict", "penalised")]).expect("it is exported")
}

/// Asks over every connection again and again until none is left; how many answers came.
fn ignore_refusals(clients: &mut Vec<Client>) -> usize {
    let (start, mut answers) = (Instant::now(), 0);
    while !clients.is_empty() {
        assert!(start.elapsed() < PENALTY_PATIENCE, "{} are still served", clients.len());
        clients.retain_mut(|client| {
            let answered = client.try_send(get("/")).is_ok() && client.try_response("GET").is_ok();
            answers += usize::from(answered);
            answered
        });
    }
    answers
}

#[test]
fn abusers_on_keepalive_connections_are_gone_while_a_neighbour_is_served() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, limited(&upstream, "drop"), |_| {});
    let place = gateway.address;
    let mut abusers: Vec<Client> = (0..CONNECTIONS).map(|_| client(&network, LOUD, place)).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let mut asked = 0;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(client(&network, QUIET, place).get("/free").status(), 200, "request {asked}");
                asked += 1;
            }
            asked
        });
        let answers = ignore_refusals(&mut abusers);
        assert!(answers > CONNECTIONS, "closed before they could ignore anything: {answers}");
        done.store(true, Ordering::Relaxed);
        assert!(neighbour.join().unwrap() > 0);
    });
    // Not even a new connection gets through, and it is told why.
    assert!(connect(&network, LOUD, place).is_none());
    assert!(penalised(&network, &gateway) > 0.0);
    let line = gateway.log.wait_for("level=2");
    assert!(line.contains(LOUD), "{line}");

    // It comes back by itself.
    let begin = Instant::now();
    while connect(&network, LOUD, place).is_none() {
        assert!(begin.elapsed() < PENALTY_PATIENCE, "it stays shut out");
    }
    assert_eq!(client(&network, LOUD, place).get("/free").status(), 200);
}

#[test]
fn slow_leaves_connections_alone_and_cuts_the_budget_to_a_tenth() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let mut config = limited(&upstream, "slow");
    config["kernel"]["connections_per_second"] = json!(1);
    config["kernel"]["burst"] = json!(100);
    let gateway = start(&network, config, |_| {});
    let place = gateway.address;
    let mut abuser = client(&network, LOUD, place);
    while penalised_sources(&network, &gateway, "1") == 0.0 {
        abuser.get("/");
    }
    // Of a hundred at once ten, less what it has opened already; a tenth a second is earned back.
    let served = connects(&network, LOUD, place, 30);
    assert!((5..=12).contains(&served), "{served}");
    assert_eq!(connects(&network, QUIET, place, 30), 30);
    assert_eq!(abuser.get("/free").status(), 200, "the connection it has");
    assert!(penalised(&network, &gateway) >= 18.0);
}

fn penalised_sources(network: &Network, gateway: &Gateway, level: &str) -> f64 {
    let scrape = network.gateway.run(|| gateway.scrape());
    scrape.get("gateway_kernel_penalties", &[("level", level)]).expect("it is exported")
}

/// Sixty-four connections of one client that waits as it is told, for as long as the longest tells it.
#[test]
fn who_waits_as_told_is_never_dropped() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let mut config = limited(&upstream, "drop");
    config["routes"][0]["rate_limits"][0]["per"] = json!("second");
    let gateway = start(&network, config, |_| {});
    let place = gateway.address;
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| client(&network, LOUD, place)).collect();
    let mut refused = 0;
    for round in 0..5 {
        for client in &mut clients {
            client.send(get("/"));
        }
        let answers: Vec<_> = clients.iter_mut().map(Client::response).collect();
        let waits = answers.iter().filter(|answer| answer.status() == 429);
        let waits = waits.map(|answer| answer.field("retry-after").unwrap().parse::<f64>().unwrap());
        let (count, longest) = waits.fold((0, 0.0_f64), |(n, longest), wait| (n + 1, longest.max(wait)));
        assert!(count < CONNECTIONS, "round {round}: nobody was served");
        refused += count;
        network.gateway.run(|| gateway.pass_time(longest));
    }
    assert!(refused > 2 * CONNECTIONS, "{refused}");
    let scrape = network.gateway.run(|| gateway.scrape());
    let ignored = scrape.get("gateway_limit_ignored_refusals_total", &[]).expect("it is exported");
    assert_eq!((ignored as u64, penalised(&network, &gateway) as u64), (0, 0));
    assert_eq!(connects(&network, LOUD, place, 20), 20);
}

/// Whoever its clients are, a trusted proxy is not penalised for them.
#[test]
fn a_trusted_proxy_is_never_penalised() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let mut config = limited(&upstream, "drop");
    config["trusted_proxies"] = json!([LOUD]);
    config["kernel"]["burst"] = json!(1);
    config["kernel"]["connections_per_second"] = json!(1);
    let gateway = start(&network, config, |_| {});
    let place = gateway.address;
    let mut proxy = client(&network, LOUD, place);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(4) {
        assert!(matches!(proxy.get("/").status(), 200 | 429));
    }
    assert_eq!(connects(&network, LOUD, place, 20), 20, "far beyond the budget");
    assert_eq!(penalised(&network, &gateway) as u64, 0);
}
