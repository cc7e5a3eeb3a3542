//! Clients that ignore their refusals, and those that do not: what becomes of their connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gateway_tests::client::get;
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Client, Gateway, Upstream};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{LOUD, QUIET, config, start};
use crate::traffic::{connect, connects};
use crate::upgrade::{follow, upgradable};

const CONNECTIONS: usize = 64;
/// Longer than any penalty that a test waits for.
const PENALTY_PATIENCE: Duration = Duration::from_secs(90);
/// A connection that stood when its source was dropped, and of which the gateway knows nothing yet, is never answered:
/// well short of the penalty, which is to be met by the next one.
const ABUSER_PATIENCE: Duration = Duration::from_secs(5);

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

/// Asks over every connection again and again, opens anew what was closed, and ends when nothing is let in any more.
struct Abuse {
    answers: usize,
    /// Connections that a refusal said it would close.
    closed: usize,
    longest_wait: u64,
    took: Duration,
}

fn ignore_refusals(network: &Network, source: &str, place: SocketAddr) -> (Abuse, Vec<Client>) {
    let connect = || {
        let mut client = Client::over(connect(network, source, place)?);
        client.stream().set_read_timeout(Some(ABUSER_PATIENCE)).unwrap();
        Some(client)
    };
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| connect().expect("it is let in")).collect();
    let start = Instant::now();
    let mut abuse = Abuse { answers: 0, closed: 0, longest_wait: 0, took: Duration::ZERO };
    loop {
        for slot in 0..CONNECTIONS {
            let client = &mut clients[slot];
            let answer = client.try_send(get("/")).and_then(|()| client.try_response("GET")).ok();
            abuse.answers += usize::from(answer.is_some());
            let wait = answer.as_ref().and_then(|answer| answer.field("retry-after"));
            abuse.longest_wait = abuse.longest_wait.max(wait.map_or(0, |wait| wait.parse().unwrap()));
            let closed = answer.as_ref().is_some_and(|answer| answer.field("connection").is_some());
            abuse.closed += usize::from(closed);
            abuse.took = start.elapsed();
            assert!(abuse.took < PENALTY_PATIENCE, "it is still served");
            if closed || answer.is_none() {
                let Some(next) = connect() else { return (abuse, clients) };
                clients[slot] = next;
            }
        }
    }
}

#[test]
fn abusers_on_keepalive_connections_are_gone_while_a_neighbour_is_served() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, limited(&upstream, "drop"), |_| {});
    let place = gateway.address;
    let done = AtomicBool::new(false);
    let abusers = thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let mut asked = 0;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(client(&network, QUIET, place).get("/free").status(), 200, "request {asked}");
                asked += 1;
            }
            asked
        });
        let (Abuse { answers, .. }, abusers) = ignore_refusals(&network, LOUD, place);
        assert!(answers > CONNECTIONS, "closed before they could ignore anything: {answers}");
        done.store(true, Ordering::Relaxed);
        assert!(neighbour.join().unwrap() > 0);
        abusers
    });
    assert_blocked(&network, &gateway);
    // Every connection that it had is closed: it may still say why.
    let begin = Instant::now();
    for mut abuser in abusers {
        while abuser.try_send(get("/")).is_ok() && abuser.try_response("GET").is_ok() {
            assert!(begin.elapsed() < PENALTY_PATIENCE, "it is still served");
        }
    }
    assert_forgiven(&network, &gateway);
}

/// Nobody is told by such a limit to wait longer than a second.
fn start_limited_each_second(network: &Network, upstream: &Upstream) -> Gateway {
    let mut config = limited(upstream, "drop");
    config["routes"][0]["rate_limits"][0]["per"] = json!("second");
    start(network, config, |_| {})
}

#[test]
fn a_flood_past_a_limit_of_each_second_is_sent_away_and_then_dropped() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start_limited_each_second(&network, &upstream);
    let (abuse, _) = ignore_refusals(&network, LOUD, gateway.address);
    assert_eq!(abuse.longest_wait, 5);
    assert!(abuse.closed > CONNECTIONS / 2, "{} connections closed", abuse.closed);
    assert!(abuse.took < Duration::from_secs(20), "{:?}", abuse.took);
    assert_blocked(&network, &gateway);
    assert_forgiven(&network, &gateway);
}

/// Whoever follows goes on with it: dropped for what is left of its time, by the same rule, and let in at its end.
#[test]
fn a_penalty_goes_on_in_the_gateway_that_follows() {
    let (network, directory) = (Network::new(), TempDir::new().unwrap());
    let upstream = network.gateway.run(Upstream::ok);
    let kernel = limited(&upstream, "drop")["kernel"].take();
    let mut config = upgradable(&upstream, &directory, kernel);
    config["routes"] = limited(&upstream, "drop")["routes"].take();
    let mut gateway = start(&network, config, |_| {});
    let place = gateway.address;
    ignore_refusals(&network, LOUD, place);
    assert_blocked(&network, &gateway);
    let explain = |gateway: &Gateway| gateway.ask(&["explain", LOUD, "--json"]).json()["kernel"].take();
    let before = explain(&gateway);
    assert_eq!((&before["verdict"], &before["level"]), (&json!("penalised"), &json!(2)));

    let gateway = follow(&network, &mut gateway);
    assert!(connect(&network, LOUD, place).is_none(), "it is let in by another gateway");
    assert_eq!(connects(&network, QUIET, place, 5), 5, "its neighbour");
    let after = explain(&gateway);
    for key in ["verdict", "level", "rule", "dropped"] {
        assert_eq!(after[key], before[key], "{key}: {after}");
    }
    let time = |told: &Value, key: &str| told[key].as_u64().unwrap();
    for key in ["since", "until"] {
        // Of the monotonic clock, told in whole seconds of another.
        assert!(time(&after, key).abs_diff(time(&before, key)) <= 1, "{key}: {before} and {after}");
    }
    assert!(time(&after, "refused") > time(&before, "refused"), "{before} and {after}");
    assert_eq!(penalised_sources(&network, &gateway, "2") as u64, 1);

    assert_forgiven(&network, &gateway);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now + 1 >= time(&before, "until"), "{now}: {before}");
    let line = gateway.log.wait_for("penalty over");
    assert!(line.contains(LOUD), "{line}");
    assert_eq!(explain(&gateway)["verdict"], json!("pass"));
}

/// Not even a new connection gets through, and it is told why.
fn assert_blocked(network: &Network, gateway: &Gateway) {
    assert!(connect(network, LOUD, gateway.address).is_none());
    assert!(penalised(network, gateway) > 0.0);
    let line = gateway.log.wait_for("level=2");
    assert!(line.contains(LOUD), "{line}");
}

/// It comes back by itself.
fn assert_forgiven(network: &Network, gateway: &Gateway) {
    let begin = Instant::now();
    while connect(network, LOUD, gateway.address).is_none() {
        assert!(begin.elapsed() < PENALTY_PATIENCE, "it stays shut out");
    }
    assert_eq!(client(network, LOUD, gateway.address).get("/free").status(), 200);
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
        // Ninety a second at most are no flood, whose connections would end.
        network.gateway.run(|| gateway.pass_time(0.011));
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
    let gateway = start_limited_each_second(&network, &upstream);
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

/// Hundreds of workers share sixty-four connections and wait as they are told: they look like a flood, are sent away,
/// and come back. What was closed is opened again.
#[test]
fn workers_that_share_connections_and_wait_as_told_are_never_dropped() {
    const TURNS: usize = 5;
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start_limited_each_second(&network, &upstream);
    let place = gateway.address;
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| client(&network, LOUD, place)).collect();
    for round in 0..4 {
        let mut longest = 0.0_f64;
        for slot in (0..TURNS).flat_map(|_| 0..CONNECTIONS) {
            let answer = clients[slot].get("/");
            if answer.status() == 429 {
                longest = longest.max(answer.field("retry-after").unwrap().parse().unwrap());
            }
            if answer.field("connection").is_some() {
                clients[slot] = client(&network, LOUD, place);
            }
        }
        assert_eq!(longest as u64, 5, "round {round}: sent away");
        network.gateway.run(|| gateway.pass_time(longest));
    }
    assert_eq!(penalised_sources(&network, &gateway, "1") as u64, 0);
    assert_eq!(penalised(&network, &gateway) as u64, 0);
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

/// Whoever ignores its refusals behind a load balancer that `trusted_proxies` forgot, it is not penalised for that: by
/// what it sends it can be told from a client that floods as much.
#[test]
fn what_looks_like_a_forgotten_load_balancer_is_never_penalised() {
    const SAYS: [&str; 2] = ["X-Forwarded-For: 198.51.100.7", "Via: 1.1 balancer"];
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, limited(&upstream, "drop"), |_| {});
    let place = gateway.address;
    let requests = SAYS.map(|field| get("/").replace("\r\n\r\n", &format!("\r\n{field}\r\n\r\n")));
    let mut balancer: Vec<Client> = (0..CONNECTIONS).map(|_| client(&network, LOUD, place)).collect();
    let mut refused_once_each = || {
        let asked = balancer.iter_mut().zip(requests.iter().cycle());
        asked
            .map(|(client, request)| client.send(request).response().status())
            .filter(|status| *status == 429)
            .count()
    };
    thread::scope(|scope| {
        let abuser = scope.spawn(|| ignore_refusals(&network, QUIET, place).0);
        let mut refused = 0;
        while !abuser.is_finished() {
            refused += refused_once_each();
        }
        let abuse = abuser.join().unwrap();
        while refused < abuse.answers {
            refused += refused_once_each();
        }
    });
    let line = gateway.log.wait_for("level=2");
    assert!(line.contains(QUIET), "{line}");
    network.gateway.run(|| {
        gateway.wait_for_metrics("the abuser's penalty is the only one", |metrics| {
            let sources =
                ["1", "2"].map(|level| metrics.get("gateway_kernel_penalties", &[("level", level)]));
            sources == [Some(0.0), Some(1.0)]
        });
    });
    assert_eq!(connects(&network, LOUD, place, 20), 20);
}
