//! Reloads of a gateway with its kernel half: one policy or the other for every packet, never half of each,
//! and nothing left behind.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use gateway_tests::kernel::held::{self, wait_until_gone};
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Gateway, PATIENCE, Upstream};
use rustix::process::Signal;
use serde_json::json;

use crate::process::{LOUD, config, start};

const RELOADS: u64 = 1_000;

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

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
