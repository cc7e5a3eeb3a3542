//! Interfaces that go down, vanish and return; several of them; and hooks that somebody else holds.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use gateway::config::Kernel;
use gateway::datapath::Datapath;
use gateway::datapath::sys::{LinkType, link_create};
use gateway_tests::kernel::bpf::{Constant, XDP_PASS};
use gateway_tests::kernel::held::BpfFs;
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::kernel::policy::open;
use gateway_tests::{Gateway, Upstream};
use serde_json::{Value, json};

use crate::process::{LOUD, QUIET, config, is_attached, is_served, reaches, refused, start};
use crate::traffic::connect;

fn denying(upstream: &Upstream, interfaces: &[&str]) -> Value {
    let mut config = config(upstream, json!({ "interfaces": interfaces, "deny": [QUIET, "10.78.0.3"] }));
    // Every address: what is ours follows the interfaces.
    config["listen_addr"] = json!("0.0.0.0:0");
    config
}

/// Lays the cable anew, as the test's network had it.
fn lay_cable(network: &Network, name: &str) {
    let clients = network.clients.name();
    network.gateway.ip(&["link", "add", name, "type", "veth", "peer", "name", "client", "netns", clients]);
    for address in [LOUD, QUIET] {
        network.clients.ip(&["address", "add", &format!("{address}/24"), "dev", "client"]);
    }
    network.clients.ip(&["link", "set", "client", "up"]);
    network.gateway.ip(&["address", "add", "10.77.0.1/24", "dev", name]);
    network.gateway.ip(&["link", "set", name, "up"]);
}

/// Waits until `wanted` holds of the gauge of one interface; that of all is 1 while one of them is attached.
fn wait_until_attached(network: &Network, gateway: &Gateway, interface: &str, wanted: bool) {
    network.gateway.run(|| {
        gateway.wait_for_metrics("attached or not", |metrics| {
            let labels = [("interface", interface)];
            let of_all = metrics.get("gateway_kernel_attached", &[]);
            let of_each = metrics.get("gateway_kernel_interface_attached", &[]);
            assert_eq!(of_all > Some(0.0), of_each > Some(0.0), "{metrics}");
            metrics.get("gateway_kernel_interface_attached", &labels) == Some(f64::from(u8::from(wanted)))
        });
    });
}

fn check_judged(network: &Network, gateway: &Gateway) {
    let place = SocketAddr::new("10.77.0.1".parse().unwrap(), gateway.address.port());
    assert!(connect(network, QUIET, place).is_none(), "the denied");
    assert!(reaches(network, LOUD, place), "its neighbour");
}

/// Without a capability, as everything after the start.
#[test]
fn an_interface_that_vanishes_is_protected_again_when_it_returns() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    let upstream = network.gateway.run(Upstream::ok);
    let mut config = denying(&upstream, &[EDGE]);
    config["kernel"]["persist"] = json!(bpffs.folder());
    let gateway = start(&network, config, |_| {});
    check_judged(&network, &gateway);
    for _ in 0..3 {
        network.gateway.ip(&["link", "del", EDGE]);
        wait_until_attached(&network, &gateway, EDGE, false);
        gateway.log.wait_for("an interface is gone");
        assert!(!bpffs.names().contains(&format!("xdp-driver-{EDGE}")), "{:?}", bpffs.names());
        lay_cable(&network, EDGE);
        wait_until_attached(&network, &gateway, EDGE, true);
        gateway.log.wait_for("an interface has returned");
        assert!(is_attached(&network));
        // The address came after the interface; it is ours once that is known, too.
        let started = std::time::Instant::now();
        let place = SocketAddr::new("10.77.0.1".parse().unwrap(), gateway.address.port());
        while connect(&network, QUIET, place).is_some() {
            assert!(started.elapsed() < gateway_tests::PATIENCE, "its address is not ours again");
        }
        check_judged(&network, &gateway);
        assert!(bpffs.names().contains(&format!("xdp-driver-{EDGE}")), "{:?}", bpffs.names());
    }
}

#[test]
fn one_that_goes_down_and_up_stays_protected() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, denying(&upstream, &[EDGE]), |_| {});
    let program = network.gateway.xdp_on(EDGE);
    for _ in 0..3 {
        network.gateway.ip(&["link", "set", EDGE, "down"]);
        network.gateway.ip(&["link", "set", EDGE, "up"]);
        check_judged(&network, &gateway);
    }
    assert_eq!(network.gateway.xdp_on(EDGE), program);
    wait_until_attached(&network, &gateway, EDGE, true);
}

#[test]
fn several_are_protected_and_one_that_leaves_takes_nothing_along() {
    let network = Network::new();
    let (gateway, clients) = (&network.gateway, &network.clients);
    gateway.ip(&["link", "add", "edge1", "type", "veth", "peer", "name", "client1", "netns", clients.name()]);
    gateway.ip(&["address", "add", "10.78.0.1/24", "dev", "edge1"]);
    gateway.ip(&["link", "set", "edge1", "up"]);
    clients.ip(&["link", "set", "client1", "up"]);
    for last in [2, 3] {
        clients.ip(&["address", "add", &format!("10.78.0.{last}/24"), "dev", "client1"]);
    }
    let upstream = gateway.run(Upstream::ok);
    let running = start(&network, denying(&upstream, &[EDGE, "edge1"]), |_| {});
    let second = SocketAddr::new("10.78.0.1".parse().unwrap(), running.address.port());
    let check_second = || {
        assert!(connect(&network, "10.78.0.3", second).is_none());
        assert!(reaches(&network, "10.78.0.2", second));
    };
    check_judged(&network, &running);
    check_second();
    gateway.ip(&["link", "del", EDGE]);
    wait_until_attached(&network, &running, EDGE, false);
    wait_until_attached(&network, &running, "edge1", true);
    check_second();
    assert!(is_served(&network, second));
}

/// What an answer with a cookie announces fits into the interface as it is now.
#[test]
fn the_segment_size_follows_the_interface() {
    let network = Network::new();
    let policy = Kernel { interfaces: vec![EDGE.to_owned()], ..open() };
    let place: SocketAddr = "10.77.0.1:80".parse().unwrap();
    let mut datapath = network.gateway.run(|| Datapath::start(&policy, &[place], None)).unwrap();
    for (mtu, wanted) in [(1_500, [1_460, 1_440]), (1_400, [1_360, 1_340])] {
        network.gateway.ip(&["link", "set", EDGE, "mtu", &mtu.to_string()]);
        network.gateway.run(|| datapath.refresh()).unwrap();
        assert_eq!(datapath.policy().unwrap().segment_bytes, wanted, "{mtu}");
    }
}

/// It is said loudly, served all the same, and tried again until it works.
#[test]
fn one_that_returns_with_somebody_elses_program_is_waited_for() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, denying(&upstream, &[EDGE]), |_| {});
    network.gateway.ip(&["link", "del", EDGE]);
    wait_until_attached(&network, &gateway, EDGE, false);
    lay_cable(&network, "elsewhere");
    let theirs = Constant::load(XDP_PASS).unwrap();
    let index = network.gateway.index("elsewhere");
    let link = network.gateway.run(|| link_create(theirs.as_fd(), index, LinkType::Xdp, 0)).unwrap();
    network.gateway.ip(&["link", "set", "elsewhere", "name", EDGE]);
    let told = gateway.log.wait_for("NOT PROTECTED");
    assert!(told.contains("another program holds its XDP hook"), "{told}");
    let place = SocketAddr::new("10.77.0.1".parse().unwrap(), gateway.address.port());
    assert!(is_served(&network, place), "it proxies");
    drop(link);
    wait_until_attached(&network, &gateway, EDGE, true);
    check_judged(&network, &gateway);
}

/// A second gateway on the same interface is told so, at XDP and at TC; on another hook there is room.
#[test]
fn a_second_gateway_is_told_of_the_first() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    for (mode, hook) in [("auto", "XDP"), ("tc", "TC")] {
        let mut config = denying(&upstream, &[EDGE]);
        config["kernel"]["mode"] = json!(mode);
        let first = start(&network, config.clone(), |_| {});
        let exit = refused(&network, config, &[], &[]);
        assert_eq!(exit.code, Some(3), "{:#?}", exit.lines);
        let told = format!("another gateway holds its {hook} hook, by program ");
        assert!(matches!(exit.lines.as_slice(), [line] if line.contains(&told)), "{:#?}", exit.lines);
        check_judged(&network, &first);
    }
}

/// What a gateway that is gone has pinned is named, for a start that does not take it over.
#[test]
fn a_pinned_link_is_named_as_a_gateways() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    let upstream = network.gateway.run(Upstream::ok);
    let mut config = denying(&upstream, &[EDGE]);
    config["kernel"]["persist"] = json!(bpffs.folder());
    drop(start(&network, config.clone(), |_| {}));
    config["kernel"].as_object_mut().unwrap().remove("persist");
    let exit = refused(&network, config, &[], &[]);
    let told = "if none runs, its link is pinned: start with its kernel.persist, or remove that folder";
    assert!(matches!(exit.lines.as_slice(), [line] if line.contains(told)), "{:#?}", exit.lines);
}
