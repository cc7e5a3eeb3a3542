//! A binary upgrade with a kernel half: its links move to the successor's program between two packets, and what
//! it has learned goes along.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;

use gateway_tests::gateway::complete;
use gateway_tests::kernel::held::{self, BpfFs, Held, wait_until_gone};
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Gateway, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::persist::Traffic;
use crate::process::{LOUD, QUIET, config, is_attached, is_served, start};
use crate::traffic::connects;

pub fn upgradable(upstream: &Upstream, directory: &TempDir, kernel: Value) -> Value {
    let mut config = config(upstream, kernel);
    let path = |name| directory.path().join(name);
    config["control"] = json!({ "socket": path("control.sock"), "state_file": path("state.json") });
    config
}

pub fn follow(network: &Network, gateway: &mut Gateway) -> Gateway {
    let next = network.gateway.run(|| gateway.followed(|_| {}));
    assert_eq!(gateway.wait(), Some(0));
    next
}

/// While processes follow each other without a pause, no packet of a denied source meets an answer; in the end
/// nothing of any of them is left in the kernel.
#[test]
fn no_packet_is_unjudged_while_gateways_follow_each_other() {
    for (persist, mode) in [(false, "auto"), (true, "auto"), (false, "tc")] {
        let (network, bpffs, directory) = (Network::new(), BpfFs::mount(), TempDir::new().unwrap());
        let upstream = network.gateway.run(Upstream::ok);
        let mut kernel = json!({
            "interfaces": [EDGE], "mode": mode, "deny": [QUIET], "connections_per_second": 1, "burst": 1000
        });
        if persist {
            kernel["persist"] = json!(bpffs.folder());
        }
        let mut gateway = start(&network, upgradable(&upstream, &directory, kernel), |_| {});
        let (place, traffic, mut held) = (gateway.address, Traffic::new(), Held::new());
        held.extend(held::by(&gateway));
        std::thread::scope(|scope| {
            scope.spawn(|| network.clients.run(|| traffic.run(place)));
            for _ in 0..3 {
                traffic.wait_for_more();
                gateway = follow(&network, &mut gateway);
                traffic.wait_for_more();
                assert!(is_served(&network, place));
                held.extend(held::by(&gateway));
            }
            traffic.stop.store(true, SeqCst);
        });
        assert_eq!(traffic.answered.load(SeqCst), 0, "of {} packets", traffic.sent.load(SeqCst));
        gateway.signal(Signal::TERM);
        assert_eq!(gateway.wait(), Some(0));
        if persist {
            assert!(is_attached(&network));
            std::fs::remove_dir_all(bpffs.folder()).unwrap();
        }
        wait_until_gone(&held);
    }
}

/// What a source has spent is spent, under an unchanged budget.
#[test]
fn a_source_gets_no_second_burst() {
    let (network, directory) = (Network::new(), TempDir::new().unwrap());
    let upstream = network.gateway.run(Upstream::ok);
    let kernel = json!({ "interfaces": [EDGE], "connections_per_second": 1, "burst": 20 });
    let mut settings = upgradable(&upstream, &directory, kernel);
    let mut gateway = start(&network, settings.clone(), |_| {});
    let place = gateway.address;
    assert!(connects(&network, LOUD, place, 40) < 40, "past its budget");
    gateway = follow(&network, &mut gateway);
    // A token or two come back in the time that an upgrade takes, not as many as are asked for.
    assert!(connects(&network, LOUD, place, 20) < 20, "still past it");
    settings["kernel"]["burst"] = json!(200);
    gateway.write(settings);
    let gateway = follow(&network, &mut gateway);
    assert_eq!(connects(&network, LOUD, place, 40), 40, "another budget begins full");
    drop(gateway);
}

/// A successor that is killed after its program took the links: the gateway that was asked takes them back.
#[test]
fn a_successor_that_dies_gives_the_links_back() {
    let (network, directory) = (Network::new(), TempDir::new().unwrap());
    let upstream = network.gateway.run(Upstream::ok);
    let kernel = json!({ "interfaces": [EDGE], "deny": [QUIET] });
    let settings = upgradable(&upstream, &directory, kernel);
    let gateway = start(&network, settings.clone(), |_| {});
    let place = gateway.address;
    let program = || network.gateway.xdp_on(EDGE);
    let ours = program();
    assert!(!ours.is_empty());

    // It finds its control file unwritable after the kernel half has begun: the last thing that can fail.
    let mut other = settings;
    other["control"]["state_file"] = json!(directory.path().join("nowhere/state.json"));
    let file = directory.path().join("other.json");
    std::fs::write(&file, complete(other)).unwrap();
    let exit = network.gateway.run(|| Gateway::exit_of(&mut gateway.upgrade(&file)));
    assert_eq!(exit.code, Some(3), "{exit:?}");
    gateway.log.wait_for("no other gateway follows; this one goes on");
    assert_eq!(program(), ours);
    assert!(is_served(&network, place));
    let before = denied(&network, &gateway);
    assert_eq!(connects(&network, QUIET, place, 1), 0);
    assert!(denied(&network, &gateway) > before, "it is this gateway's maps that count");

    // One that only asks and hangs up.
    let mut stream = UnixStream::connect(directory.path().join("control.sock")).unwrap();
    stream.write_all(b"\"hand_over\"\n").unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert!(line.contains(EDGE) && line.contains("gw_bucket"), "{line}");
    drop(stream);
    gateway.log.wait_for("no other gateway follows; this one goes on");
    assert_eq!(program(), ours);
    assert!(is_served(&network, place));
}

fn denied(network: &Network, gateway: &Gateway) -> f64 {
    let scrape = network.gateway.run(|| gateway.scrape());
    scrape.get("gateway_kernel_packets_total", &[("verdict", "denied"), ("family", "ipv4")]).unwrap()
}
