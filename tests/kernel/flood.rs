//! Floods from forged sources: SYN cookies come by themselves, and nobody is locked out.

use std::collections::VecDeque;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gateway::datapath::sys::{LinkType, link_create};
use gateway_tests::kernel::bpf::{Constant, XDP_PASS};
use gateway_tests::kernel::held::BpfFs;
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::kernel::packet::{Packet, Random};
use gateway_tests::{Client, Gateway, Upstream};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use rustix::process::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::process::{LOUD, QUIET, config, start, start_controlled};

/// Long enough for a SYN that is sent again after 1, 3 and 7 s.
const PATIENCE: Duration = Duration::from_secs(30);
pub const SYSCTL: &str = "/proc/sys/net/ipv4/tcp_syncookies";

/// A network whose clients can be answered by XDP: a packet that is sent back over a veth lies in its ring
/// unless the other end takes it out by NAPI, as it does with a program of its own.
pub struct Answering {
    pub network: Network,
    _link: OwnedFd,
    _program: Constant,
}

impl Answering {
    pub fn new() -> Self {
        let network = Network::new();
        network.gateway.ip(&["route", "add", "100.64.0.0/10", "via", LOUD]);
        let program = Constant::load(XDP_PASS).unwrap();
        let index = network.clients.index("client");
        let link =
            network.clients.run(|| link_create(program.as_fd(), index, LinkType::Xdp, 1 << 2)).unwrap();
        Self { network, _link: link, _program: program }
    }

    pub fn counted(&self, gateway: &Gateway, verdict: &str) -> u64 {
        let scrape = self.network.gateway.run(|| gateway.scrape());
        let value = scrape.get("gateway_kernel_packets_total", &[("verdict", verdict)]);
        value.expect("it is exported") as u64
    }

    /// Connects from `source`, however often it takes to ask, and gets a page.
    pub fn is_served(&self, source: &str, place: SocketAddr) -> bool {
        self.network.clients.run(|| {
            let source = SocketAddr::new(source.parse().unwrap(), 0);
            let socket = Socket::new(Domain::for_address(source), Type::STREAM, None).unwrap();
            socket.bind(&source.into()).unwrap();
            socket.connect_timeout(&place.into(), PATIENCE).is_ok()
                && Client::over(socket.into()).get("/").status() == 200
        })
    }

    pub fn syncookies(&self) -> String {
        self.network.gateway.run(|| fs::read_to_string(SYSCTL)).unwrap().trim().to_owned()
    }

    pub fn wait_for_syncookies(&self, value: &str) {
        let start = Instant::now();
        while self.syncookies() != value {
            assert!(start.elapsed() < PATIENCE, "{SYSCTL} is not {value}");
            thread::yield_now();
        }
    }
}

/// Sends connection requests whose sources it makes up, or that of somebody.
pub struct Forger {
    socket: OwnedFd,
    place: SocketAddr,
    random: Random,
}

impl Forger {
    pub fn new(network: &Network, place: SocketAddr) -> Self {
        let raw = || socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW));
        let socket = network.clients.run(raw).unwrap();
        Self { socket, place, random: Random::new(7) }
    }

    pub fn send(&mut self, source: IpAddr) {
        let packet = Packet {
            source_port: 1024 + self.random.below(60_000) as u16,
            sequence: self.random.below(usize::MAX) as u32,
            tcp_options: vec![2, 4, 5, 0xb4],
            ..Packet::syn(source, self.place.ip(), self.place.port())
        };
        // What does not fit into the interface's queue is as good as lost on the way.
        let _ = sendto(&self.socket, &packet.raw(), SendFlags::DONTWAIT, &self.place);
    }

    pub fn send_from_nowhere(&mut self) {
        let host = self.random.below(1 << 22) as u32;
        self.send(IpAddr::V4(Ipv4Addr::from_bits(0x6440_0000 | host)));
    }
}

pub fn kernel(more: Value) -> Value {
    let mut kernel = json!({ "interfaces": [EDGE], "mode": "driver" });
    kernel.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    kernel
}

/// Somebody sends twenty times a known client's budget in its name. It connects every time.
#[test]
fn who_forges_a_known_client_locks_nobody_out() {
    const BUDGET: u32 = 20;
    const FORGED: u32 = 100 * BUDGET;
    let answering = Answering::new();
    let network = &answering.network;
    let upstream = network.gateway.run(Upstream::ok);
    let budget = kernel(json!({ "connections_per_second": BUDGET, "burst": BUDGET }));
    let gateway = start(network, config(&upstream, budget), |_| {});
    let place = gateway.address;
    assert!(answering.is_served(QUIET, place));
    network.gateway.run(|| {
        gateway.wait_for_metrics("it is known", |metrics| {
            metrics.get("gateway_kernel_entries", &[("map", "gw_known")]) == Some(1.0)
        });
    });
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut forger = Forger::new(network, place);
            let (begin, mut sent) = (Instant::now(), 0);
            while sent < FORGED {
                if f64::from(sent) < begin.elapsed().as_secs_f64() * f64::from(20 * BUDGET) {
                    forger.send(QUIET.parse().unwrap());
                    sent += 1;
                } else {
                    thread::yield_now();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut asked = 0;
        while !done.load(Ordering::Relaxed) {
            assert!(answering.is_served(QUIET, place), "connection {asked}");
            asked += 1;
        }
        assert!(asked > 1);
    });
    assert!(answering.counted(&gateway, "cookie_sent") > 0);
    assert!(answering.counted(&gateway, "cookie_accepted") > 0);
}

/// A known client that wants twenty times its budget itself, and answers its cookies: it is no claim, so few of its
/// requests are worth one.
#[test]
fn a_known_client_that_floods_is_no_claim() {
    const BUDGET: u32 = 20;
    const WANTED: u32 = 100 * BUDGET;
    let answering = Answering::new();
    let network = &answering.network;
    let upstream = network.gateway.run(Upstream::ok);
    let budget = kernel(json!({ "connections_per_second": BUDGET, "burst": BUDGET }));
    let gateway = start_controlled(network, config(&upstream, budget), |_| {});
    let place = gateway.address;
    assert!(answering.is_served(LOUD, place));
    network.gateway.run(|| {
        gateway.wait_for_metrics("it is known", |metrics| {
            metrics.get("gateway_kernel_entries", &[("map", "gw_known")]) == Some(1.0)
        });
    });
    let (begin, done) = (Instant::now(), AtomicBool::new(false));
    let flood = || {
        let mut waiting = VecDeque::new();
        let mut wanted = 0;
        while wanted < WANTED {
            if f64::from(wanted) >= begin.elapsed().as_secs_f64() * f64::from(20 * BUDGET) {
                thread::yield_now();
                continue;
            }
            let source = SocketAddr::new(LOUD.parse().unwrap(), 0);
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&source.into()).unwrap();
            socket.set_nonblocking(true).unwrap();
            // It is on its way; what comes of it is the gateway's to say.
            let _ = socket.connect(&place.into());
            wanted += 1;
            waiting.push_back(socket);
            // Nobody waits for long, so no request is sent again.
            if waiting.len() > 20 {
                waiting.pop_front();
            }
        }
        done.store(true, Ordering::Relaxed);
    };
    thread::scope(|scope| {
        let told = scope.spawn(|| {
            let verdict = || gateway.ask(&["explain", LOUD, "--json"]).json()["kernel"]["verdict"].clone();
            while !done.load(Ordering::Relaxed) {
                if verdict() == "over_budget" {
                    return true;
                }
            }
            false
        });
        network.clients.run(flood);
        assert!(told.join().unwrap(), "`explain` judges as the kernel half does");
    });
    let seconds = begin.elapsed().as_secs_f64();
    assert!(answering.is_served(QUIET, place), "another's connection");
    let counted = |verdict| answering.counted(&gateway, verdict);
    let (sent, accepted) = (counted("cookie_sent"), counted("cookie_accepted"));
    assert!(accepted > 0, "it was taken for a claim at first");
    // A burst of them each second, and a few on their way when that is used up.
    let most = 2.0 * f64::from(BUDGET) * (seconds + 1.0);
    assert!((sent as f64) < most, "{sent} cookies in {seconds} s, {accepted} came back");
    assert!(counted("over_budget") > u64::from(WANTED) / 2);
}

/// A flood from millions of sources: cookies are armed, the good client connects every time, and afterwards
/// everything is as it was.
#[test]
fn a_flood_from_nowhere_leaves_a_good_client_served() {
    const FORGED: usize = 300_000;
    let answering = Answering::new();
    let network = &answering.network;
    let upstream = network.gateway.run(Upstream::ok);
    let few = kernel(json!({ "new_sources_per_second": 100 }));
    let gateway = start(network, config(&upstream, few), |_| {});
    let place = gateway.address;
    let before = answering.syncookies();
    assert_ne!(before, "2");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut forger = Forger::new(network, place);
            (0..FORGED).for_each(|_| forger.send_from_nowhere());
            done.store(true, Ordering::Relaxed);
        });
        let mut asked = 0;
        while !done.load(Ordering::Relaxed) || asked < 50 {
            assert!(answering.is_served(QUIET, place), "connection {asked}");
            asked += 1;
        }
    });
    let sent = answering.counted(&gateway, "cookie_sent");
    let flooded = answering.counted(&gateway, "flooded");
    assert!(sent > 50_000, "{sent} cookies, {flooded} before they were armed");
    gateway.log.wait_for("SYN cookies armed");
    gateway.log.wait_for("SYN cookies disarmed");
    assert_eq!(answering.syncookies(), before);
}

/// Over either family a connection that began with a cookie is one like any other; a SIGKILL leaves the host's
/// setting as it was.
#[test]
fn a_connection_that_began_with_a_cookie() {
    let answering = Answering::new();
    let network = &answering.network;
    let upstream = network.gateway.run(Upstream::ok);
    for last in 3..9 {
        network.clients.ip(&["address", "add", &format!("fd77::{last}/64"), "dev", "client", "nodad"]);
    }
    let before = answering.syncookies();
    for (listen, sources) in [
        ("10.77.0.1:0", ["10.77.0.2", "10.77.0.3", "10.77.0.4", "10.77.0.5", "10.77.0.6", "10.77.0.7"]),
        ("[fd77::1]:0", ["fd77::3", "fd77::4", "fd77::5", "fd77::6", "fd77::7", "fd77::8"]),
    ] {
        let few = kernel(json!({ "new_sources_per_second": 1, "ipv6_prefix": 128 }));
        let mut config = config(&upstream, few);
        config["listen_addr"] = json!(listen);
        let mut gateway = start(network, config, |_| {});
        let place = gateway.address;
        // New sources one after the other: the first has room, and soon cookies are armed.
        for source in sources.iter().cycle() {
            assert!(answering.is_served(source, place), "{source}");
            if answering.counted(&gateway, "cookie_accepted") > 0 {
                break;
            }
            if answering.counted(&gateway, "flooded") > 0 {
                gateway.log.wait_for("SYN cookies armed");
                break;
            }
        }
        let armed = sources.iter().rev().find(|source| {
            assert!(answering.is_served(source, place), "{source}");
            answering.counted(&gateway, "cookie_accepted") > 0
        });
        assert!(armed.is_some(), "nobody was sent a cookie");
        assert_eq!(answering.syncookies(), "2");
        gateway.signal(Signal::KILL);
        gateway.wait();
        answering.wait_for_syncookies(&before);
    }
}

/// The processes that `gateway` has started.
pub fn children(gateway: &Gateway) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", gateway.id())).unwrap();
    let lists =
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// One gateway follows another, by an upgrade and by a restart with pins, while a flood goes on: cookies are armed
/// again, whoever asks is served, and the host's setting is that of the last one, and in the end what it was.
#[test]
fn cookies_are_armed_again_by_whoever_follows() {
    for is_upgrade in [true, false] {
        let (answering, bpffs, directory) = (Answering::new(), BpfFs::mount(), TempDir::new().unwrap());
        let network = &answering.network;
        let upstream = network.gateway.run(Upstream::ok);
        let mut settings = kernel(json!({ "new_sources_per_second": 100 }));
        if !is_upgrade {
            settings["persist"] = json!(bpffs.folder());
        }
        let mut config = config(&upstream, settings);
        config["listen_addr"] = json!("10.77.0.1:8080");
        let path = |name| directory.path().join(name);
        config["control"] = json!({ "socket": path("control.sock"), "state_file": path("state.json") });
        let mut gateway = start(network, config.clone(), |_| {});
        let (place, before) = (gateway.address, answering.syncookies());
        assert_ne!(before, "2");
        let is_over = AtomicBool::new(false);
        let mut last = thread::scope(|scope| {
            // However a check ends, the flood does.
            let _over = Over(&is_over);
            scope.spawn(|| {
                let mut forger = Forger::new(network, place);
                while !is_over.load(Ordering::Relaxed) {
                    forger.send_from_nowhere();
                }
            });
            gateway.log.wait_for("SYN cookies armed");
            assert!(answering.is_served(QUIET, place));
            let stack = children(&gateway);
            assert_eq!((stack.len(), answering.syncookies().as_str()), (1, "2"));
            let next = if is_upgrade {
                let visits = scope.spawn(|| {
                    let served = |source| answering.is_served(source, place);
                    (0..50).filter(|_| !served(QUIET) || !served(LOUD)).count()
                });
                let next = network.gateway.run(|| gateway.followed(|_| {}));
                assert_eq!(gateway.wait(), Some(0));
                assert_eq!(visits.join().unwrap(), 0, "of 50 visits some were not served");
                next
            } else {
                gateway.signal(Signal::TERM);
                assert_eq!(gateway.wait(), Some(0));
                answering.wait_for_syncookies(&before);
                start(network, config.clone(), |_| {})
            };
            let begin = Instant::now();
            while fs::exists(format!("/proc/{}", stack[0])).unwrap() {
                assert!(begin.elapsed() < PATIENCE, "the child of the one before goes on");
                thread::yield_now();
            }
            // Before it says that it is ready, or after: its log is read to there.
            network.gateway.run(|| {
                next.wait_for_metrics("it arms them", |metrics| {
                    metrics.get("gateway_kernel_cookies_armed", &[]) == Some(1.0)
                });
            });
            answering.wait_for_syncookies("2");
            assert!(answering.is_served(QUIET, place));
            let (sent, begin) = (answering.counted(&next, "cookie_sent"), Instant::now());
            while answering.counted(&next, "cookie_sent") == sent {
                assert!(begin.elapsed() < PATIENCE, "it sends no cookies");
            }
            next
        });
        last.signal(Signal::TERM);
        assert_eq!(last.wait(), Some(0));
        answering.wait_for_syncookies(&before);
    }
}

/// Ends the flood when dropped.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
