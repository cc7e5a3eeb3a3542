//! Reloads of a gateway with its kernel half: one policy or the other for every packet, never half of each,
//! and nothing left behind.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Instant;

use aya::maps::{MapData, PerCpuArray};
use gateway_common::counters::cell;
use gateway_common::maps::COUNTERS;
use gateway_common::{Count, Family, Verdict};
use gateway_tests::kernel::held::{self, wait_until_gone};
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Client, Gateway, PATIENCE, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::flood::Forger;
use crate::process::{LOUD, QUIET, config, reaches, start};
use crate::traffic::connect;

const RELOADS: u64 = 1_000;
/// From one configuration to another and back.
const TURNS: u32 = 20;
/// Networks that the kernel takes milliseconds to be told, or to forget: long enough for a request in between.
const MANY: u32 = 3_000;

fn verdicts(network: &Network, gateway: &Gateway, verdict: &str) -> f64 {
    let scrape = network.gateway.run(|| gateway.scrape());
    scrape.get("gateway_kernel_packets_total", &[("verdict", verdict), ("family", "ipv4")]).unwrap()
}

/// Connects from `LOUD` over and over; every connection must come about.
fn keep_connecting(network: &Network, place: SocketAddr, stop: &AtomicBool, made: &AtomicU64) {
    network.clients.run(|| {
        while !stop.load(SeqCst) {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(LOUD.parse().unwrap(), 0).into()).unwrap();
            // So that thousands of closed ones do not use up the ports.
            socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
            socket.connect_timeout(&place.into(), PATIENCE).expect("it is within both policies");
            made.fetch_add(1, SeqCst);
        }
    });
}

/// Under either policy `LOUD` passes: by the allow list under one, which denies it as well and grants it
/// nothing, by its budget under the other. Under a mixture it would be denied, or over its budget.
#[test]
fn a_thousand_reloads_judge_no_packet_by_two_policies() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let strict = json!({
        "interfaces": [EDGE], "allow": [LOUD], "deny": ["10.77.0.0/24"], "connections_per_second": 1, "burst": 1
    });
    let open = json!({ "interfaces": [EDGE], "connections_per_second": 1_000_000, "burst": 1_000_000 });
    let mut gateway = start(&network, config(&upstream, open.clone()), |_| {});
    let place = gateway.address;
    let held = held::by(&gateway);
    let (stop, made) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| keep_connecting(&network, place, &stop, &made));
        // Also when the test fails.
        let _stop = Stop(&stop);
        for reload in 0..RELOADS {
            let kernel = if reload % 2 == 0 { &strict } else { &open };
            gateway.replace(config(&upstream, kernel.clone()));
            gateway.signal(Signal::HUP);
            gateway.log.wait_for("configuration reloaded");
        }
    });
    assert!(made.load(SeqCst) > 100, "{} connections", made.load(SeqCst));
    for verdict in ["denied", "over_budget"] {
        assert_eq!(verdicts(&network, &gateway, verdict).to_bits(), 0f64.to_bits(), "{verdict}");
    }
    assert!(verdicts(&network, &gateway, "allowed") > 0.0 && verdicts(&network, &gateway, "pass") > 0.0);
    let told = network.gateway.run(|| gateway.scrape());
    let succeeded = told.get("gateway_config_reloads_total", &[("result", "success")]).unwrap();
    assert!(succeeded >= RELOADS as f64, "{succeeded}");

    assert_eq!(held::by(&gateway), held, "programs, maps and links are those of the start");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    wait_until_gone(&held);
}

/// Packets that the deny list has met, read without asking the gateway: it answers after a reload, not during one.
struct Denied(PerCpuArray<MapData, Count>);

impl Denied {
    fn packets(&self) -> u64 {
        let of_cpus = self.0.get(&cell(Verdict::Denied, Family::Ipv4), 0).unwrap();
        of_cpus.iter().map(|count| count.packets).sum()
    }
}

/// From a configuration that lets `LOUD` in to one that denies it, and back. Once its packets are dropped, every
/// request meets the stricter one; once a request meets the other, they are let in. So the kernel changes after
/// userspace where it becomes stricter, and before it where it does not.
#[test]
fn the_kernel_is_never_stricter_than_userspace_at_that_moment() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let of = |path: &str, deny: Value| {
        let mut config = config(&upstream, json!({ "interfaces": [EDGE], "deny": deny }));
        config["routes"][0]["path"] = json!(path);
        config
    };
    let others = (0..MANY).map(|n| Ipv4Addr::from_bits(0x6440_0000 + n).to_string());
    let denied = [LOUD.to_owned()].into_iter().chain(others).collect::<Vec<_>>();
    let (open, strict) = (of("/open", json!([])), of("/strict", json!(denied)));
    let gateway = start(&network, open.clone(), |_| {});
    let denied = Denied(held::map(&gateway, COUNTERS));
    let mut knocking = Forger::new(&network, gateway.address);
    let mut client = Client::over(connect(&network, QUIET, gateway.address).unwrap());
    let change = |config: &Value| {
        gateway.replace(config.clone());
        gateway.signal(Signal::HUP);
        Instant::now()
    };
    for turn in 0..TURNS {
        let (before, begun) = (denied.packets(), change(&strict));
        let mut drops = false;
        while !drops {
            assert!(begun.elapsed() < PATIENCE, "turn {turn}: it does not become stricter");
            knocking.send(LOUD.parse().unwrap());
            drops = denied.packets() > before;
            let status = client.get("/strict").status();
            assert!(!drops || status == 200, "turn {turn}: it drops, and a request meets {status}");
        }
        let begun = change(&open);
        while client.get("/open").status() != 200 {
            assert!(begun.elapsed() < PATIENCE, "turn {turn}: it does not change back");
        }
        let before = denied.packets();
        assert!(reaches(&network, LOUD, gateway.address), "turn {turn}: it is not open");
        assert_eq!(denied.packets(), before, "turn {turn}: it is open, and drops");
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
