//! A gateway that is short of memory and has refused requests in vain: its kernel half keeps strangers away, whoever
//! is proven is served, and when there is memory again everybody is.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use gateway_common::Address;
use gateway_common::maps::KNOWN;
use gateway_common::standing::{Class, Known};
use gateway_tests::kernel::held::BpfFs;
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Client, Gateway, PATIENCE, Upstream};
use serde_json::{Value, json};

use crate::process::{QUIET, config, start};
use crate::traffic::connect;

/// Requests that prove a source.
const MANY: usize = 100;
const STRANGERS: usize = 8;
/// Memory in use, of what there may be: half as much again as where requests begin to be refused. All strangers are
/// shed then, half of the known, and none of the proven.
const USED: f64 = 1.5 * 0.85;

fn metric(network: &Network, gateway: &Gateway, name: &str, labels: &[(&str, &str)]) -> f64 {
    network.gateway.run(|| gateway.scrape()).get(name, labels).expect("it is exported")
}

fn shed_packets(network: &Network, gateway: &Gateway) -> f64 {
    metric(network, gateway, "gateway_kernel_packets_total", &[("verdict", "shed"), ("family", "ipv4")])
}

/// Waits until all strangers are shed, or none is.
fn wait_for_shed(network: &Network, gateway: &Gateway, all: bool) {
    network.gateway.run(|| {
        gateway.wait_for_metrics("the kernel half's share of strangers", |metrics| {
            let shed = |class| {
                metrics.get("gateway_kernel_shed_ratio", &[("class", class)]).expect("it is exported")
            };
            (if all { shed("unknown") > 0.999 } else { shed("unknown") <= 0.0 }) && shed("proven") <= 0.0
        });
    });
}

/// How many of some strangers, each with an address of its own, are let in at their first attempt.
fn strangers(network: &Network, place: SocketAddr) -> usize {
    let sources = (1..=STRANGERS).map(|n| format!("10.78.0.{n}"));
    sources.filter(|source| connect(network, source, place).is_some()).count()
}

fn requests(client: &mut Client, times: usize) {
    for n in 0..times {
        assert_eq!(client.get("/").status(), 200, "request {n}");
    }
}

#[test]
fn strangers_are_shed_while_the_gateway_is_short_and_no_longer() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    network.add_strangers();
    let upstream = network.gateway.run(Upstream::ok);
    let mut config = config(&upstream, json!({ "interfaces": [EDGE], "persist": bpffs.folder() }));
    config["workers"] = json!(1);
    let gateway = start(&network, config.clone(), |_| {});
    let place = gateway.address;
    let come = || Client::over(connect(&network, QUIET, place).expect("it is let in"));
    // What is told of them, the last when their connection ends.
    requests(&mut come(), MANY);
    let (known, source) = (bpffs.map::<Address, Known>(KNOWN), QUIET.parse::<IpAddr>().unwrap());
    let begin = Instant::now();
    while known.get(&source.into(), 0).map_or(true, |known| known.class != Class::Proven as u32) {
        assert!(begin.elapsed() < PATIENCE, "it has not proven itself");
        std::thread::yield_now();
    }
    assert_eq!(strangers(&network, place), STRANGERS, "while the gateway is at ease");
    let mut kept = come();
    requests(&mut kept, 1);

    let bytes = gateway.memory_kib("VmRSS") as f64 * 1024.0 / USED;
    let overload = |bytes: u64| -> Value {
        json!({ "max_delay": "1h", "max_memory_bytes": bytes, "min_concurrency": 2 })
    };
    config["overload"] = overload(bytes as u64);
    gateway.replace(config.clone());
    wait_for_shed(&network, &gateway, true);
    let before = shed_packets(&network, &gateway);
    // Each new connection of a gateway that is short has another go that nobody uses.
    for n in 0..2 * MANY {
        let mut next = come();
        requests(&mut next, 1);
        kept = next;
        if n % MANY == 0 {
            assert_eq!(strangers(&network, place), 0, "while it is short");
        }
    }
    requests(&mut kept, MANY);
    assert!(shed_packets(&network, &gateway) >= before + 2.0 * STRANGERS as f64);

    config["overload"] = overload(1 << 40);
    gateway.replace(config);
    wait_for_shed(&network, &gateway, false);
    let before = shed_packets(&network, &gateway);
    assert_eq!(strangers(&network, place), STRANGERS, "when it is at ease again");
    requests(&mut kept, MANY);
    assert_eq!(shed_packets(&network, &gateway).total_cmp(&before), std::cmp::Ordering::Equal);
}
