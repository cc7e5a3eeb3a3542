//! Real sockets across namespaces, through the kernel half in driver mode on a veth.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use gateway::config::{Kernel, KernelMode};
use gateway::datapath::{AddressChanges, Datapath, Error, Hook, sys};
use gateway_common::Verdict;
use gateway_tests::kernel::bpf::{Constant, XDP_PASS};
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::kernel::policy::{budget, networks, open};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};

/// Long for a round trip over a veth, short of the second after which a lost SYN is sent again.
const PATIENCE: Duration = Duration::from_millis(300);

fn on_edge(policy: Kernel) -> Kernel {
    Kernel { interfaces: vec![EDGE.to_owned()], ..policy }
}

/// A server in the gateway's namespace that echoes one byte at a time until its client leaves.
fn echo(network: &Network, address: &str) -> SocketAddr {
    let listener = network.gateway.run(|| TcpListener::bind(address)).unwrap();
    let place = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    place
}

/// Connects from one address of the clients' namespace; `None` when nothing answered.
pub fn connect(network: &Network, source: &str, place: SocketAddr) -> Option<TcpStream> {
    try_connect(network, source, place).ok()
}

/// The same; whoever is not answered has timed out, and whoever is refused right after is reset.
pub fn try_connect(network: &Network, source: &str, place: SocketAddr) -> io::Result<TcpStream> {
    network.clients.run(|| {
        let source = SocketAddr::new(source.parse().unwrap(), 0);
        let socket = Socket::new(Domain::for_address(source), Type::STREAM, None).unwrap();
        socket.bind(&source.into()).unwrap();
        socket.connect_timeout(&place.into(), PATIENCE).map(|()| socket.into())
    })
}

pub fn connects(network: &Network, source: &str, place: SocketAddr, times: usize) -> usize {
    (0..times).filter(|_| connect(network, source, place).is_some()).count()
}

fn answers(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"x").unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

fn start(network: &Network, policy: &Kernel, place: SocketAddr) -> Result<Datapath, Error> {
    network.gateway.run(|| Datapath::start(policy, &[place], None))
}

fn hooks(datapath: &Datapath) -> Vec<Hook> {
    datapath.attachments().map(|(attachment, _)| attachment.hook).collect()
}

/// Who is past its rate is dropped, who is not is served; a reload raises the rate and loses nobody.
fn one_loud_client(mode: KernelMode, hook: Hook, ours: &str, loud: &str, quiet: &str) {
    let network = Network::new();
    let place = echo(&network, ours);
    let policy = on_edge(Kernel { mode, ..budget(1, 5) });
    let mut datapath = start(&network, &policy, place).unwrap();
    assert_eq!(hooks(&datapath), [hook]);

    let begin = Instant::now();
    let mut kept = connect(&network, loud, place).expect("the first of five");
    let served = 1 + connects(&network, loud, place, 14);
    let earned = begin.elapsed().as_secs() as usize + 1;
    assert!((5..=5 + earned).contains(&served), "{served} of a burst of 5");
    assert_eq!(connects(&network, quiet, place, 5), 5, "the quiet client");
    let dropped = datapath.counters().unwrap().packets(Verdict::OverBudget);
    assert!(dropped >= 15 - served as u64, "{dropped} dropped");
    answers(&mut kept);

    network
        .gateway
        .run(|| datapath.apply(&Kernel { mode, ..on_edge(budget(1_000, 1_000)) }, &[place]))
        .unwrap();
    assert_eq!(hooks(&datapath), [hook], "a reload attaches nothing anew");
    assert_eq!(connects(&network, loud, place, 50), 50, "after the reload");
    assert_eq!(datapath.counters().unwrap().packets(Verdict::OverBudget), dropped);
    answers(&mut kept);
}

#[test]
fn a_loud_client_is_dropped_while_another_is_served() {
    one_loud_client(KernelMode::Auto, Hook::Driver, "10.77.0.1:0", "10.77.0.2", "10.77.0.3");
}

#[test]
fn the_same_in_generic_mode() {
    one_loud_client(KernelMode::Generic, Hook::Generic, "10.77.0.1:0", "10.77.0.2", "10.77.0.3");
}

#[test]
fn the_same_at_tc() {
    one_loud_client(KernelMode::Tc, Hook::Tcx, "10.77.0.1:0", "10.77.0.2", "10.77.0.3");
}

#[test]
fn a_denied_client_over_ipv6_reaches_only_a_monitor() {
    let network = Network::new();
    let place = echo(&network, "[fd77::1]:0");
    let denied = on_edge(Kernel { deny: networks(&["fd77::/64"]), ..open() });
    let mut datapath = start(&network, &denied, place).unwrap();
    assert!(connect(&network, "fd77::2", place).is_none());
    network.gateway.run(|| datapath.apply(&Kernel { monitored: u32::MAX, ..denied }, &[place])).unwrap();
    answers(&mut connect(&network, "fd77::2", place).expect("a monitor drops nothing"));
    assert!(datapath.counters().unwrap().packets(Verdict::Denied) >= 2);
}

#[test]
fn nothing_stays_attached() {
    let network = Network::new();
    let place = "10.77.0.1:80".parse().unwrap();
    let datapath = start(&network, &on_edge(open()), place).unwrap();
    assert_ne!(network.gateway.xdp_on(EDGE), "");
    drop(datapath);
    assert_eq!(network.gateway.xdp_on(EDGE), "");
    // Nor does a start that fails at its second interface.
    let half = Kernel { interfaces: vec![EDGE.to_owned(), "nowhere0".to_owned()], ..open() };
    let error = start(&network, &half, place).err().expect("there is no such interface");
    assert_eq!(
        error.to_string(),
        "no network interface named \"nowhere0\": `ip link` lists those of this host"
    );
    assert_eq!(network.gateway.xdp_on(EDGE), "");
}

#[test]
fn loopback_takes_generic_mode() {
    let network = Network::new();
    let place = "127.0.0.1:80".parse().unwrap();
    let lo = |mode| Kernel { interfaces: vec!["lo".to_owned()], mode, ..open() };
    let datapath = start(&network, &lo(KernelMode::Auto), place).unwrap();
    assert_eq!(hooks(&datapath), [Hook::Generic]);
    drop(datapath);
    let error = start(&network, &lo(KernelMode::Driver), place).err().expect("loopback has no driver mode");
    assert!(matches!(&error, Error::Attach { .. }), "{error}");
    assert!(error.to_string().contains("kernel.mode \"generic\" works"), "{error}");
}

#[test]
fn somebody_elses_program_is_left_alone() {
    let network = Network::new();
    let place: SocketAddr = echo(&network, "10.77.0.1:0");
    let theirs = Constant::load(XDP_PASS).unwrap();
    let index = network.gateway.index(EDGE);
    for flags in [1 << 1, 1 << 2] {
        let link = network.gateway.run(|| sys::link_create(theirs.as_fd(), index, sys::LinkType::Xdp, flags));
        let link = link.unwrap();
        let before = network.gateway.xdp_on(EDGE);
        let error = start(&network, &on_edge(open()), place).err().expect("the hook is taken");
        assert!(matches!(&error, Error::Occupied { .. }), "{error}");
        assert_eq!(network.gateway.xdp_on(EDGE), before);
        // Behind it, at TC, there is room.
        let tc = on_edge(Kernel { mode: KernelMode::Tc, deny: networks(&["10.77.0.3/32"]), ..open() });
        let datapath = start(&network, &tc, place).unwrap();
        assert!(connect(&network, "10.77.0.2", place).is_some());
        assert!(connect(&network, "10.77.0.3", place).is_none());
        drop((datapath, link));
    }
}

/// A listener on "any" address stands for the host's own, also for those that come later.
#[test]
fn any_address_follows_the_host() {
    let network = Network::new();
    let place = echo(&network, "0.0.0.0:0");
    let at = |address: &str| SocketAddr::new(address.parse::<IpAddr>().unwrap(), place.port());
    let changes = network.gateway.run(AddressChanges::new).unwrap();
    let mut datapath =
        start(&network, &on_edge(Kernel { deny: networks(&["10.77.0.3/32"]), ..open() }), place).unwrap();
    assert!(connect(&network, "10.77.0.3", at("10.77.0.1")).is_none());
    assert!(!network.gateway.run(|| datapath.refresh()).unwrap(), "nothing has changed yet");

    network.gateway.ip(&["address", "add", "10.77.0.100/24", "dev", EDGE]);
    let mut watched = [PollFd::new(&changes, PollFlags::IN)];
    let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(poll(&mut watched, Some(&patience)).unwrap(), 1, "the change was not told");
    changes.clear().unwrap();
    assert!(connect(&network, "10.77.0.3", at("10.77.0.100")).is_some(), "not ours before the refresh");
    assert!(network.gateway.run(|| datapath.refresh()).unwrap());
    assert!(connect(&network, "10.77.0.3", at("10.77.0.100")).is_none());
}
