//! `kernel.persist`: what stays while the gateway is away, what the next one takes over, what it forgets.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Instant;

use gateway_tests::gateway::complete;
use gateway_tests::kernel::held::{self, BpfFs, Held, bpftool, wait_until_gone};
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Gateway, PATIENCE, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::failed_upgrade::penalise;
use crate::process::{LOUD, QUIET, config, folder, is_attached, is_served, reaches, refused};

/// A configuration that denies `QUIET` and persists in `bpffs`.
fn persistent(upstream: &Upstream, bpffs: &BpfFs) -> Value {
    let kernel = json!({
        "interfaces": [EDGE], "persist": bpffs.folder(), "deny": [QUIET], "connections_per_second": 1, "burst": 1000
    });
    let mut config = config(upstream, kernel);
    // The same port after a restart.
    config["listen_addr"] = json!("10.77.0.1:8080");
    config
}

fn start(network: &Network, config: &Value) -> Gateway {
    let (directory, file) = folder(&complete(config.clone()));
    network.gateway.run(|| Gateway::run(directory, file, |_| {}))
}

/// Whether anything at all answers a connection request.
fn is_answered(network: &Network, source: &str, place: SocketAddr) -> bool {
    network.clients.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source.parse().unwrap(), 0).into()).unwrap();
        let patience = std::time::Duration::from_millis(300);
        match socket.connect_timeout(&place.into(), patience) {
            Ok(()) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        }
    })
}

/// Whether the stack answers that nobody listens.
fn is_refused(network: &Network, source: &str, place: SocketAddr) -> bool {
    network.clients.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source.parse().unwrap(), 0).into()).unwrap();
        let error = socket.connect_timeout(&place.into(), PATIENCE).expect_err("nobody listens");
        error.kind() == std::io::ErrorKind::ConnectionRefused
    })
}

fn program(bpffs: &BpfFs) -> u64 {
    let link = bpffs.folder().join(format!("xdp-driver-{EDGE}"));
    bpftool(&["link", "show", "pinned", link.to_str().unwrap()])["prog_id"].as_u64().unwrap()
}

/// The identifier of a pinned map.
fn map(bpffs: &BpfFs, name: &str) -> u64 {
    let path = bpffs.folder().join(maps(bpffs)).join(name);
    bpftool(&["map", "show", "pinned", path.to_str().unwrap()])["id"].as_u64().unwrap()
}

/// The folder of maps.
pub fn maps(bpffs: &BpfFs) -> String {
    bpffs.names().into_iter().find(|name| name.starts_with("maps-")).unwrap()
}

fn denied(network: &Network, gateway: &Gateway) -> f64 {
    let scrape = network.gateway.run(|| gateway.scrape());
    scrape.get("gateway_kernel_packets_total", &[("verdict", "denied"), ("family", "ipv4")]).unwrap()
}

#[test]
fn protection_stays_while_the_gateway_is_away() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    let upstream = network.gateway.run(Upstream::ok);
    let config = persistent(&upstream, &bpffs);
    let (mut held, mut buckets) = (Held::new(), BTreeSet::new());
    for (round, (signal, code)) in
        [(Signal::TERM, Some(0)), (Signal::KILL, None), (Signal::TERM, Some(0))].into_iter().enumerate()
    {
        let mut gateway = start(&network, &config);
        let place = gateway.address;
        held.extend(held::by(&gateway));
        assert!(!is_answered(&network, QUIET, place), "denied while it runs, round {round}");
        assert!(is_served(&network, place));
        let before = denied(&network, &gateway);
        gateway.signal(signal);
        assert_eq!(gateway.wait(), code);
        assert!(is_attached(&network), "{signal:?}");
        assert!(!is_answered(&network, QUIET, place), "denied while it is away, round {round}");
        assert!(is_refused(&network, LOUD, place), "by the stack: nobody listens");
        let next = start(&network, &config);
        held.extend(held::by(&next));
        assert!(denied(&network, &next) > before, "the counters went on, round {round}");
        // One map for all rounds: what a source has used up before is used up still.
        buckets.insert(map(&bpffs, "gw_bucket"));
    }
    assert_eq!(buckets.len(), 1);
    // Whoever turns it off turns all of it off.
    let mut off = config.clone();
    off["kernel"]["interfaces"] = json!([]);
    let gateway = start(&network, &off);
    assert!(!is_attached(&network));
    assert_eq!(bpffs.names(), Vec::<String>::new());
    drop(gateway);
    assert!(held.len() > 10, "{held:?}");
    wait_until_gone(&held);
}

/// Connects from `QUIET` without a pause; counts the requests sent and those that met an answer.
pub struct Traffic {
    pub sent: AtomicU64,
    pub answered: AtomicU64,
    pub stop: AtomicBool,
}

impl Traffic {
    const UNDER_WAY: usize = 128;

    pub fn new() -> Self {
        Self { sent: AtomicU64::new(0), answered: AtomicU64::new(0), stop: AtomicBool::new(false) }
    }

    pub fn run(&self, place: SocketAddr) {
        let source = SocketAddr::new(QUIET.parse().unwrap(), 0);
        let mut under_way = VecDeque::new();
        let settle = |socket: Socket| {
            let is_refused = socket.take_error().unwrap().is_some();
            if is_refused || socket.peer_addr().is_ok() {
                self.answered.fetch_add(1, SeqCst);
            }
        };
        while !self.stop.load(SeqCst) {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
            socket.bind(&source.into()).unwrap();
            let error = socket.connect(&place.into()).expect_err("it is not waited for");
            assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
            self.sent.fetch_add(1, SeqCst);
            under_way.push_back(socket);
            if under_way.len() > Self::UNDER_WAY {
                settle(under_way.pop_front().unwrap());
            }
        }
        under_way.into_iter().for_each(settle);
    }

    /// Waits until some more requests have been sent.
    pub fn wait_for_more(&self) {
        let (started, before) = (Instant::now(), self.sent.load(SeqCst));
        while self.sent.load(SeqCst) < before + 2 * Self::UNDER_WAY as u64 {
            assert!(started.elapsed() < PATIENCE, "no traffic");
            std::thread::yield_now();
        }
    }
}

#[test]
fn twenty_programs_replace_each_other_and_no_packet_is_unjudged() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    let upstream = network.gateway.run(Upstream::ok);
    let config = persistent(&upstream, &bpffs);
    let mut gateway = start(&network, &config);
    let place = gateway.address;
    let traffic = Traffic::new();
    let (mut held, mut programs) = (held::by(&gateway), vec![program(&bpffs)]);
    std::thread::scope(|scope| {
        scope.spawn(|| network.clients.run(|| traffic.run(place)));
        for round in 0..20 {
            traffic.wait_for_more();
            if round % 2 == 0 {
                gateway.signal(Signal::KILL);
                assert_eq!(gateway.wait(), None);
                // Another contract: the next one makes maps of its own.
                if round % 4 == 0 {
                    let elsewhere = bpffs.folder().join("maps-of-another-build");
                    fs::rename(bpffs.folder().join(maps(&bpffs)), elsewhere).unwrap();
                }
            } else {
                gateway.signal(Signal::TERM);
                assert_eq!(gateway.wait(), Some(0));
            }
            traffic.wait_for_more();
            gateway = start(&network, &config);
            traffic.wait_for_more();
            held.extend(held::by(&gateway));
            programs.push(program(&bpffs));
            let names = bpffs.names();
            assert_eq!(names.len(), 2, "one link, one folder of maps: {names:?}");
            assert!(!names.contains(&"maps-of-another-build".to_owned()));
        }
        traffic.stop.store(true, SeqCst);
    });
    assert_eq!(traffic.answered.load(SeqCst), 0, "of {} packets", traffic.sent.load(SeqCst));
    programs.dedup();
    assert_eq!(programs.len(), 21, "each start brought a program of its own");
    wait_until_gone(&programs[..20].iter().map(|id| ("prog", *id)).collect());

    drop(gateway);
    assert!(is_attached(&network));
    fs::remove_dir_all(bpffs.folder()).unwrap();
    wait_until_gone(&held);
    assert!(!is_attached(&network));
}

#[test]
fn a_map_of_another_shape_is_not_used() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    let upstream = network.gateway.run(Upstream::ok);
    let config = persistent(&upstream, &bpffs);
    let mut gateway = start(&network, &config);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    let bucket = bpffs.folder().join(maps(&bpffs)).join("gw_bucket");
    fs::remove_file(&bucket).unwrap();
    let words = ["map", "create", bucket.to_str().unwrap(), "type", "lru_hash", "key", "20", "value", "8"];
    let status = Command::new("bpftool").args(words).args(["entries", "1000", "name", "gw_bucket"]).status();
    assert!(status.unwrap().success());
    let exit = refused(&network, config, &[], &[]);
    assert_eq!(exit.code, Some(3));
    let told = "gw_bucket is no map of this gateway";
    assert!(matches!(exit.lines.as_slice(), [line] if line.contains(told)), "{:#?}", exit.lines);
    assert!(is_attached(&network), "what was there goes on");
}

#[test]
fn what_the_configuration_names_no_more_is_let_go() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    network.gateway.ip(&["link", "add", "spare", "type", "veth", "peer", "name", "reraps"]);
    let upstream = network.gateway.run(Upstream::ok);
    let one = persistent(&upstream, &bpffs);
    let mut two = one.clone();
    two["kernel"]["interfaces"] = json!([EDGE, "spare"]);
    for (config, spare) in [(&two, true), (&one, false), (&two, true)] {
        let mut gateway = start(&network, config);
        assert!(is_attached(&network));
        assert_eq!(!network.gateway.xdp_on("spare").is_empty(), spare);
        gateway.signal(Signal::TERM);
        assert_eq!(gateway.wait(), Some(0));
    }
    // In another mode: the link cannot be kept.
    let mut generic = one.clone();
    generic["kernel"]["mode"] = json!("generic");
    let gateway = start(&network, &generic);
    let links: Vec<_> = bpffs.names().into_iter().filter(|name| !name.starts_with("maps-")).collect();
    assert_eq!(links, [format!("xdp-generic-{EDGE}")]);
    assert!(!is_answered(&network, QUIET, gateway.address));
    drop(gateway);
    // At TC, link and program are of other kinds.
    let mut tc = one.clone();
    tc["kernel"]["mode"] = json!("tc");
    drop(start(&network, &tc));
    assert_eq!(network.gateway.xdp_on(EDGE), "");
    let gateway = start(&network, &tc);
    assert!(bpffs.names().contains(&format!("tcx-{EDGE}")), "{:?}", bpffs.names());
    assert!(!is_answered(&network, QUIET, gateway.address));
    assert!(reaches(&network, LOUD, gateway.address));
}

#[test]
fn a_folder_that_cannot_serve_ends_it() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    let upstream = network.gateway.run(Upstream::ok);
    let check = |config: &Value, told: &str| {
        let mut config = config.clone();
        config["listen_addr"] = json!("10.77.0.1:0");
        let exit = refused(&network, config, &[], &[]);
        assert_eq!(exit.code, Some(3), "{:#?}", exit.lines);
        assert!(matches!(exit.lines.as_slice(), [line] if line.contains(told)), "{told}: {:#?}", exit.lines);
    };
    let config = persistent(&upstream, &bpffs);
    let elsewhere = TempDir::new().unwrap();
    let mut wrong = config.clone();
    wrong["kernel"]["persist"] = json!(elsewhere.path().join("gateway"));
    check(&wrong, "not on a BPF file system: `mount -t bpf bpf /sys/fs/bpf`");
    assert!(!is_attached(&network));
    let gateway = start(&network, &config);
    check(&config, "another gateway holds it");
    assert!(reaches(&network, LOUD, gateway.address));
    drop(gateway);

    // A start that fails at its second interface leaves what was there, and nothing of its own.
    let mut half = config.clone();
    half["kernel"]["interfaces"] = json!([EDGE, "nowhere0"]);
    check(&half, "no network interface named \"nowhere0\"");
    assert!(is_attached(&network) && !is_answered(&network, QUIET, "10.77.0.1:8080".parse().unwrap()));
    fs::remove_dir_all(bpffs.folder()).unwrap();
    assert!(!is_attached(&network));
    check(&half, "no network interface named \"nowhere0\"");
    assert!(!is_attached(&network));
    assert_eq!(bpffs.names(), Vec::<String>::new());
}

#[test]
fn it_persists_for_an_unprivileged_user_too() {
    use std::os::unix::fs::PermissionsExt;
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    let upstream = network.gateway.run(Upstream::ok);
    let mut config = persistent(&upstream, &bpffs);
    config["user"] = json!("nobody");
    let run = || {
        let (directory, file) = folder(&complete(config.clone()));
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        network.gateway.run(|| Gateway::run(directory, file, |_| {}))
    };
    let mut gateway = run();
    let first = program(&bpffs);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    let gateway = run();
    assert_ne!(program(&bpffs), first);
    assert!(!is_answered(&network, QUIET, gateway.address) && is_served(&network, gateway.address));
}

/// Little-endian words as bpftool takes them.
fn bytes(words: &[u64]) -> Vec<String> {
    words.iter().flat_map(|word| word.to_le_bytes()).map(|byte| byte.to_string()).collect()
}

/// A penalty outlives the gateway that has given it, in the same maps and in those of another contract, and
/// is told with what it has cost.
#[test]
fn penalties_are_carried_over() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    let upstream = network.gateway.run(Upstream::ok);
    let files = TempDir::new().unwrap();
    let mut config = persistent(&upstream, &bpffs);
    config["control"] = json!({
        "socket": files.path().join("control.sock"), "state_file": files.path().join("state.json")
    });
    let mut gateway = start(&network, &config);
    let place = gateway.address;
    assert!(reaches(&network, LOUD, place));

    // As the gateway itself writes it: blocked for an hour.
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let now_s = uptime.split('.').next().unwrap().parse::<u64>().unwrap();
    let (since, until) = (now_s * 1_000_000_000, (now_s + 3_600) * 1_000_000_000);
    let path = bpffs.folder().join(maps(&bpffs)).join("gw_penalty");
    let key = ["0"; 10].into_iter().chain(["255", "255", "10", "77", "0", "2"]).map(str::to_owned);
    let value = bytes(&[until, since, 0, 2 << 32, 60 << 32 | 70]);
    let words = [
        vec!["map", "update", "pinned", path.to_str().unwrap(), "key"]
            .into_iter()
            .map(str::to_owned)
            .collect(),
        key.collect(),
        vec!["value".to_owned()],
        value,
    ]
    .concat();
    assert!(Command::new("bpftool").args(words).status().unwrap().success());

    let ids = |gateway: &Gateway| {
        held::by(gateway).into_iter().filter(|(kind, _)| *kind == "map").collect::<Held>()
    };
    for other_contract in [false, true] {
        let before = ids(&gateway);
        gateway.signal(Signal::KILL);
        assert_eq!(gateway.wait(), None);
        if other_contract {
            fs::rename(bpffs.folder().join(maps(&bpffs)), bpffs.folder().join("maps-of-another-build"))
                .unwrap();
        }
        gateway = start(&network, &config);
        assert_eq!(ids(&gateway).is_disjoint(&before), other_contract, "the maps are others");
        assert!(!is_answered(&network, LOUD, place), "blocked");
        assert!(reaches(&network, "10.77.0.5", place), "its neighbour");
        let told = gateway.ask(&["explain", LOUD, "--json"]).json()["kernel"].clone();
        assert_eq!((&told["verdict"], &told["level"]), (&json!("penalised"), &json!(2)));
        assert!(told["refused"].as_u64() > Some(0), "{told}");
        let seconds = told["until"].as_u64().unwrap() - told["since"].as_u64().unwrap();
        assert!((3_598..=3_602).contains(&seconds), "{seconds}");
        assert!(told["rule"].as_str().unwrap().contains("60 of 70 refusals"), "{told}");
    }
    // An allow is stronger.
    assert_eq!(gateway.ask(&["allow", "add", LOUD]).code, Some(0));
    assert!(reaches(&network, LOUD, place));
}

/// Cut shorter, the first of the networks that are one source then would stand for all of them: by a reload, and by a
/// start on maps of a gateway that cut otherwise.
#[test]
fn penalties_of_ipv6_end_where_sources_are_cut_otherwise() {
    let (network, bpffs, files) = (Network::new(), BpfFs::mount(), TempDir::new().unwrap());
    let upstream = network.gateway.run(Upstream::ok);
    let mut config = persistent(&upstream, &bpffs);
    config["listen_addr"] = json!("[::]:8080");
    config["control"] = json!({
        "socket": files.path().join("control.sock"), "state_file": files.path().join("state.json")
    });
    let verdict = |gateway: &Gateway| {
        let told = gateway.ask(&["explain", "fd77::2", "--json"]).json();
        told["kernel"]["verdict"].as_str().map(str::to_owned)
    };
    for by_reload in [true, false] {
        config["client_ipv6_prefix"] = json!(64);
        let mut gateway = start(&network, &config);
        penalise(&bpffs, "fd77::");
        gateway.signal(Signal::KILL);
        assert_eq!(gateway.wait(), None);
        if by_reload {
            gateway = start(&network, &config);
            assert_eq!(verdict(&gateway).as_deref(), Some("penalised"));
            config["client_ipv6_prefix"] = json!(48);
            gateway.write(config.clone());
            gateway.log.wait_for("configuration reloaded");
            gateway.log.wait_for("penalty over");
        } else {
            config["client_ipv6_prefix"] = json!(48);
            gateway = start(&network, &config);
        }
        assert_eq!(verdict(&gateway).as_deref(), Some("pass"), "by a reload: {by_reload}");
        gateway.signal(Signal::TERM);
        assert_eq!(gateway.wait(), Some(0));
        fs::remove_dir_all(bpffs.folder()).unwrap();
    }
}

/// Its folder lies where it can be reached no more by the user that the gateway has become.
#[test]
fn the_link_to_an_interface_that_has_returned_is_pinned_without_privileges() {
    use std::os::unix::fs::PermissionsExt;
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    let add = || network.gateway.ip(&["link", "add", "spare", "type", "veth", "peer", "name", "reraps"]);
    add();
    let upstream = network.gateway.run(Upstream::ok);
    let mut config = persistent(&upstream, &bpffs);
    config["user"] = json!("nobody");
    config["kernel"]["interfaces"] = json!([EDGE, "spare"]);
    let (directory, file) = folder(&complete(config));
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut gateway = network.gateway.run(|| Gateway::run(directory, file, |_| {}));
    fs::set_permissions(bpffs.path(), fs::Permissions::from_mode(0o700)).unwrap();
    network.gateway.ip(&["link", "del", "spare"]);
    gateway.log.wait_for("an interface is gone");
    add();
    gateway.log.wait_for("an interface has returned");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    assert!(!network.gateway.xdp_on("spare").is_empty(), "it stays while the gateway is away");
}
