//! The binary with its kernel half, as its operator starts, reloads and ends it.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use gateway::datapath::sys::{LinkType, link_create};
use gateway_tests::gateway::{command, complete, route_to};
use gateway_tests::kernel::bpf::{Constant, XDP_PASS, without_bpf};
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Api, Client, Exit, Gateway, PATIENCE, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::traffic::{connect, connects};

pub const LOUD: &str = "10.77.0.2";
pub const QUIET: &str = "10.77.0.3";

/// A gateway on the gateway's end of the cable, its kernel half judging by `kernel`.
pub fn config(upstream: &Upstream, kernel: Value) -> Value {
    let mut config = route_to(&upstream.url());
    config["listen_addr"] = json!("10.77.0.1:0");
    config["kernel"] = kernel;
    config
}

pub fn budget(per_second: u32, burst: u32) -> Value {
    json!({ "interfaces": [EDGE], "connections_per_second": per_second, "burst": burst })
}

pub fn folder(config: &str) -> (TempDir, std::path::PathBuf) {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("gateway.json");
    std::fs::write(&file, config).unwrap();
    (directory, file)
}

/// Starts in the gateway's namespace; `adjust` may change the command.
pub fn start(network: &Network, config: Value, adjust: impl FnOnce(&mut Command) + Send) -> Gateway {
    let (directory, file) = folder(&complete(config));
    network.gateway.run(|| Gateway::run(directory, file, adjust))
}

/// The same with a control socket.
pub fn start_controlled(
    network: &Network,
    mut config: Value,
    adjust: impl FnOnce(&mut Command) + Send,
) -> Gateway {
    let directory = TempDir::new().unwrap();
    config["control"] = json!({
        "socket": directory.path().join("control.sock"), "state_file": directory.path().join("state.json")
    });
    let file = directory.path().join("gateway.json");
    std::fs::write(&file, complete(config)).unwrap();
    network.gateway.run(|| Gateway::run(directory, file, adjust))
}

/// Starts in the gateway's namespace what is expected to end by itself; `before` stands before the command.
pub fn refused(network: &Network, config: Value, before: &[&str], arguments: &[&str]) -> Exit {
    let (directory, file) = folder(&complete(config));
    let mut command = command(directory.path());
    command.arg("--config").arg(&file).args(arguments);
    if !before.is_empty() {
        under(before, &mut command);
    }
    network.gateway.run(|| Gateway::exit_of(&mut command))
}

/// Puts `words` before the command.
pub fn under(words: &[&str], inner: &mut Command) {
    let mut outer = Command::new(words[0]);
    outer.args(&words[1..]).arg(inner.get_program()).args(inner.get_args()).env("NO_COLOR", "1");
    outer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    *inner = outer;
}

pub fn is_attached(network: &Network) -> bool {
    !network.gateway.xdp_on(EDGE).is_empty()
}

/// Whether a connection from `source` comes about, however long a busy machine takes for it.
pub fn reaches(network: &Network, source: &str, place: SocketAddr) -> bool {
    network.clients.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source.parse().unwrap(), 0).into()).unwrap();
        socket.connect_timeout(&place.into(), PATIENCE).is_ok()
    })
}

/// Requests one page over a connection from the clients' side.
pub fn is_served(network: &Network, place: SocketAddr) -> bool {
    network.clients.run(|| Client::connect(place).get("/").status() == 200)
}

#[test]
fn nothing_stays_attached_after_sigterm_or_sigkill() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    for (signal, code) in [(Signal::TERM, Some(0)), (Signal::KILL, None)] {
        let named = |command: &mut Command| {
            command.args(["--iface", EDGE]);
        };
        let mut gateway = start(&network, config(&upstream, json!({})), named);
        assert!(is_attached(&network) && is_served(&network, gateway.address));
        gateway.signal(signal);
        assert_eq!(gateway.wait(), code, "{signal:?}");
        assert!(!is_attached(&network), "still there after {signal:?}: {}", network.gateway.xdp_on(EDGE));
    }
}

#[test]
fn a_reload_that_raises_the_rate_loses_no_connection() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, config(&upstream, budget(1, 3)), |_| {});
    let place = gateway.address;
    let mut kept = network.clients.run(|| Client::connect(place));
    assert_eq!(kept.get("/").status(), 200);
    assert!(connects(&network, LOUD, place, 12) < 12, "past its rate");
    assert!(connect(&network, QUIET, place).is_some());
    let dropped = || {
        let scrape = network.gateway.run(|| gateway.scrape());
        let labels = [("verdict", "over_budget"), ("family", "ipv4")];
        scrape.get("gateway_kernel_packets_total", &labels).expect("it is exported")
    };
    assert!(dropped() > 0.0);

    gateway.write(config(&upstream, budget(1_000, 1_000)));
    gateway.log.wait_for("reloaded");
    let before = dropped();
    assert_eq!(connects(&network, LOUD, place, 50), 50, "after the reload");
    assert_eq!(dropped().total_cmp(&before), std::cmp::Ordering::Equal);
    assert_eq!(kept.get("/").status(), 200, "the connection from before");
}

#[test]
fn no_kernel_leaves_it_off() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let off = |command: &mut Command| {
        command.arg("--no-kernel");
    };
    let gateway = start(&network, config(&upstream, budget(1, 1)), off);
    assert!(!is_attached(&network));
    assert!((0..5).all(|_| is_served(&network, gateway.address)));
}

/// What the host lacks is one loud line, and the admin API's answer to why; the gateway proxies all the same.
#[test]
fn without_the_means_it_proxies_and_says_so() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let check = |lacking: &str, adjust: &(dyn Fn(&mut Command) + Sync)| {
        let gateway = start_controlled(&network, config(&upstream, budget(1, 1)), adjust);
        assert!(!is_attached(&network), "{lacking}");
        assert!((0..5).all(|_| is_served(&network, gateway.address)), "{lacking}");
        let told = Api::of(&gateway).get("/v1/kernel").json();
        assert_eq!((&told["running"], &told["figures"]), (&json!(false), &Value::Null), "{lacking}");
        assert!(told["why_not"].as_str().is_some_and(|why| why.contains(lacking)), "{lacking}: {told}");
        // The log was waited through to "ready" before; this line came earlier, so read it all at the end.
        gateway.signal(Signal::TERM);
        let lines = gateway.log.to_end();
        let loud: Vec<_> = lines.iter().filter(|line| line.contains("NO KERNEL PROTECTION")).collect();
        assert!(matches!(loud.as_slice(), [line] if line.contains(lacking)), "{lacking}: {lines:#?}");
    };
    check("CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF", &|command| {
        under(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"], command);
    });
    for (lacking, set) in [
        ("needs CAP_PERFMON:", "--bounding-set=-perfmon,-sys_admin"),
        ("needs CAP_BPF:", "--bounding-set=-bpf,-sys_admin"),
        ("needs CAP_NET_ADMIN:", "--bounding-set=-net_admin"),
    ] {
        check(lacking, &|command| under(&["setpriv", set], command));
    }
    // A user namespace holds every capability, and the kernel honours none of them.
    check("user namespace withholds", &|command| under(&["unshare", "--user", "--map-root-user"], command));
    check("this kernel has no BPF", &without_bpf);
}

/// What the operator named wrongly is one clear line and an exit code, and nothing is left attached.
#[test]
fn what_is_named_wrongly_ends_it() {
    const CANNOT_START: Option<i32> = Some(3);
    const INVALID: Option<i32> = Some(1);
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let check = |kernel: Value, arguments: &[&str], code: Option<i32>, told: &str| {
        let before = network.gateway.xdp_on(EDGE);
        let exit = refused(&network, config(&upstream, kernel), &[], arguments);
        assert_eq!(exit.code, code, "{:#?}", exit.lines);
        let lines = exit.lines.iter().filter(|line| line.contains(told)).count();
        assert_eq!(lines, 1, "not one line of {told:?}: {:#?}", exit.lines);
        assert_eq!(network.gateway.xdp_on(EDGE), before, "{told}");
    };
    check(json!({}), &["--iface", "nowhere0"], CANNOT_START, "no network interface named \"nowhere0\"");
    check(budget(1, 1), &["--iface", "nowhere0"], CANNOT_START, "no network interface named \"nowhere0\"");
    check(json!({ "interfaces": [EDGE], "deny": ["10.0.0.0/33"] }), &[], INVALID, "10.0.0.0/33");

    let theirs = Constant::load(XDP_PASS).unwrap();
    let index = network.gateway.index(EDGE);
    let link = network.gateway.run(|| link_create(theirs.as_fd(), index, LinkType::Xdp, 0)).unwrap();
    assert!(is_attached(&network));
    check(budget(1, 1), &[], CANNOT_START, "another program holds its XDP hook");
    drop(link);
}
