//! A binary upgrade that fails under `kernel.persist`, where both gateways have the same maps: the one that was asked
//! goes on as if nobody had asked, by its own policy, from the first packet to the last.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;

use gateway::config::Kernel;
use gateway::datapath::{Datapath, sys};
use gateway_common::Address;
use gateway_common::maps::PENALTY;
use gateway_common::standing::{BLOCKED, Penalty};
use gateway_tests::gateway::complete;
use gateway_tests::kernel::held::BpfFs;
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::kernel::policy::{budget, networks, open};
use gateway_tests::{Gateway, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::persist::{Traffic, maps};
use crate::process::{LOUD, QUIET, config, is_served, start};

const PENALISED: &str = "10.77.0.4";
const OF_ANOTHER_BUILD: &str = "maps-of-another-build";

/// A gateway that denies `QUIET`.
fn settings(upstream: &Upstream, bpffs: &BpfFs, directory: &TempDir) -> Value {
    let kernel = json!({
        "interfaces": [EDGE], "persist": bpffs.folder(), "deny": [QUIET], "connections_per_second": 1, "burst": 1000
    });
    let mut config = config(upstream, kernel);
    config["listen_addr"] = json!("10.77.0.1:8080");
    let path = |name| directory.path().join(name);
    config["control"] = json!({ "socket": path("control.sock"), "state_file": path("state.json") });
    config
}

/// What the kernel half does to `source` now.
fn verdict(gateway: &Gateway, source: &str) -> Value {
    gateway.ask(&["explain", source, "--json"]).json()["kernel"]["verdict"].clone()
}

fn rename_maps(bpffs: &BpfFs) {
    let folder = bpffs.folder();
    fs::rename(folder.join(maps(bpffs)), folder.join(OF_ANOTHER_BUILD)).unwrap();
}

/// Blocks a source for an hour, as a gateway does that is then killed.
pub fn penalise(bpffs: &BpfFs, source: &str) {
    const HOUR_NS: u64 = 3_600_000_000_000;
    let now = sys::monotonic_ns();
    let penalty = Penalty {
        until_ns: now + HOUR_NS,
        since_ns: now,
        hits: 0,
        rule: 0,
        level: BLOCKED,
        refused: 70,
        ignored: 60,
    };
    let source: std::net::IpAddr = source.parse().unwrap();
    bpffs.map::<Address, Penalty>(PENALTY).insert(Address::from(source), penalty, 0).unwrap();
}

/// In the same maps, and as a build with another contract, which has maps of its own.
#[test]
fn a_successor_that_dies_leaves_policy_penalties_and_maps_as_they_were() {
    for other_contract in [false, true] {
        let (network, bpffs, directory) = (Network::new(), BpfFs::mount(), TempDir::new().unwrap());
        let upstream = network.gateway.run(Upstream::ok);
        let mut settings = settings(&upstream, &bpffs, &directory);
        let mut gateway = start(&network, settings.clone(), |_| {});
        let place = gateway.address;
        penalise(&bpffs, PENALISED);
        gateway.signal(Signal::KILL);
        assert_eq!(gateway.wait(), None);
        gateway = start(&network, settings.clone(), |_| {});
        assert_eq!(verdict(&gateway, PENALISED), "penalised");
        if other_contract {
            rename_maps(&bpffs);
        }
        let (pinned, program) = (bpffs.names(), network.gateway.xdp_on(EDGE));

        // Another address, nobody denied or penalised, another budget; in the end it cannot write its lists.
        let mut other = settings.clone();
        other["listen_addr"] = json!("10.77.0.1:8081");
        other["kernel"]["deny"] = json!([]);
        other["kernel"]["burst"] = json!(5);
        other["kernel"]["escalation"] = json!("off");
        other["control"]["state_file"] = json!(directory.path().join("nowhere/state.json"));
        let file = directory.path().join("other.json");
        fs::write(&file, complete(other)).unwrap();
        let traffic = Traffic::new();
        std::thread::scope(|scope| {
            scope.spawn(|| network.clients.run(|| traffic.run(place)));
            traffic.wait_for_more();
            let exit = network.gateway.run(|| Gateway::exit_of(&mut gateway.upgrade(&file)));
            assert_eq!(exit.code, Some(3), "{exit:?}");
            gateway.log.wait_for("no other gateway follows; this one goes on");
            traffic.wait_for_more();
            // Both slots are written once more, while packets are judged.
            settings["kernel"]["allow"] = json!([LOUD]);
            gateway.write(settings.clone());
            gateway.log.wait_for("configuration reloaded");
            assert_eq!(gateway.ask(&["deny", "add", "203.0.113.1"]).code, Some(0));
            traffic.wait_for_more();
            traffic.stop.store(true, SeqCst);
        });
        assert_eq!(traffic.answered.load(SeqCst), 0, "of {} packets", traffic.sent.load(SeqCst));
        assert_eq!((bpffs.names(), network.gateway.xdp_on(EDGE)), (pinned, program));
        assert_eq!(
            [QUIET, LOUD, PENALISED].map(|source| verdict(&gateway, source)),
            ["denied", "allowed", "penalised"]
        );
        assert!(is_served(&network, place));

        gateway.signal(Signal::KILL);
        assert_eq!(gateway.wait(), None);
        let gateway = start(&network, settings, |_| {});
        assert_eq!(verdict(&gateway, PENALISED), "penalised", "the maps were still there");
    }
}

/// A successor writes to the slot that is not in force: nobody else may meanwhile.
#[test]
fn what_comes_while_a_successor_starts_waits_until_it_is_known_who_serves() {
    let (network, bpffs, directory) = (Network::new(), BpfFs::mount(), TempDir::new().unwrap());
    let upstream = network.gateway.run(Upstream::ok);
    let mut settings = settings(&upstream, &bpffs, &directory);
    let gateway = start(&network, settings.clone(), |_| {});
    let mut stream = UnixStream::connect(directory.path().join("control.sock")).unwrap();
    stream.write_all(b"\"hand_over\"\n").unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert!(line.contains("gw_bucket"), "{line}");

    settings["kernel"]["deny"] = json!([LOUD]);
    gateway.write(settings);
    gateway.signal(Signal::HUP);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| gateway.ask(&["reload"]));
        // Long after it would have been carried out.
        for _ in 0..20 {
            assert_eq!(gateway.ask(&["deny", "add", "203.0.113.2"]).code, Some(1), "it may change nothing");
            assert_eq!(verdict(&gateway, QUIET), "denied");
        }
        drop(stream);
        assert_eq!(asked.join().unwrap().code, Some(0));
    });
    let line = gateway.log.wait_for("this one goes on");
    assert!(line.contains("WARN"), "{line}");
    gateway.log.wait_for("configuration reloaded");
    assert_eq!(verdict(&gateway, LOUD), "denied");
}

/// Links and maps of the gateway before go once it has left, also where the one that follows may reach their folder by
/// no path any more.
#[test]
fn what_a_successor_does_not_need_goes_when_it_is_followed() {
    let (network, bpffs, directory) = (Network::new(), BpfFs::mount(), TempDir::new().unwrap());
    network.gateway.ip(&["link", "add", "spare", "type", "veth", "peer", "name", "reraps"]);
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let upstream = network.gateway.run(Upstream::ok);
    let mut settings = settings(&upstream, &bpffs, &directory);
    settings["user"] = json!("nobody");
    settings["kernel"]["interfaces"] = json!([EDGE, "spare"]);
    let file = directory.path().join("gateway.json");
    fs::write(&file, complete(settings.clone())).unwrap();
    let mut gateway = network.gateway.run(|| Gateway::run(directory, file, |_| {}));
    penalise(&bpffs, PENALISED);
    rename_maps(&bpffs);
    assert!(!network.gateway.xdp_on("spare").is_empty());

    settings["kernel"]["interfaces"] = json!([EDGE]);
    gateway.write(settings);
    let next = network.gateway.run(|| gateway.followed(|_| {}));
    assert_eq!(gateway.wait(), Some(0));
    assert_eq!(bpffs.names(), [maps(&bpffs), format!("xdp-driver-{EDGE}")]);
    assert_ne!(maps(&bpffs), OF_ANOTHER_BUILD);
    assert_eq!(network.gateway.xdp_on("spare"), "");
    assert_eq!([QUIET, PENALISED].map(|source| verdict(&next, source)), ["denied", "penalised"]);
}

/// The other one had heard nothing for too long, took over, and is gone.
#[test]
fn one_that_had_taken_over_is_followed_by_the_one_before_again() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    let listeners: [SocketAddr; 1] = ["10.77.0.1:8080".parse().unwrap()];
    let ours = Kernel {
        interfaces: vec![EDGE.to_owned()],
        persist: Some(bpffs.folder()),
        deny: networks(&["10.77.0.3/32"]),
        ..budget(1, 10)
    };
    let theirs = Kernel { interfaces: ours.interfaces.clone(), persist: ours.persist.clone(), ..open() };
    network.gateway.run(|| {
        let mut before = Datapath::start(&ours, &listeners, None).unwrap();
        let program = network.gateway.xdp_on(EDGE);
        // It has changed its own policy too, so that the very slot is in force that was.
        for changes in 0..2 {
            let (policy, bequest) = (before.policy().unwrap(), before.bequest().unwrap());
            let mut next =
                Datapath::start(&theirs, &["10.77.0.1:8081".parse().unwrap()], Some(bequest)).unwrap();
            assert_eq!(before.policy().unwrap(), policy, "until it takes over");
            next.take_over().unwrap();
            for _ in 0..changes {
                next.apply(&theirs, &[]).unwrap();
            }
            assert_ne!(network.gateway.xdp_on(EDGE), program);
            drop(next);
            before.reclaim().unwrap();
            assert_eq!(network.gateway.xdp_on(EDGE), program);
            let told = before.account(QUIET.parse().unwrap()).unwrap();
            assert_eq!(told.verdict, gateway_common::Verdict::Denied);
            let now = before.policy().unwrap();
            assert_eq!((now.budget, now.flags), (policy.budget, policy.flags));
            assert!(now.generation > policy.generation);
        }
    });
}
