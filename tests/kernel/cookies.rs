//! Who gets a cookie, and what becomes of one that comes back, packet by packet. `flood` has whole connections of it,
//! `differential` the answers' form.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use gateway::config::Kernel;
use gateway::datapath::{Account, Datapath, Entry, Program, Standings, sys};
use gateway_common::Verdict;
use gateway_common::standing::Class;
use gateway_tests::kernel::packet::Packet;
use gateway_tests::kernel::policy::{budget, networks};

use crate::reply::Reply;

const HOUR_NS: u64 = 3_600_000_000_000;
/// Connections that a source has at once; it earns another in a second.
const BURST: usize = 4;
const HOSTS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// A source beyond its budget that is known, so that it gets cookies: the listener's own host, or its /64.
struct Loud {
    policy: Kernel,
    datapath: Datapath,
    program: Program,
    standings: Standings,
    listener: SocketAddr,
}

impl Loud {
    fn towards(listener: SocketAddr) -> Self {
        let policy = Kernel { cookies: true, ..budget(1, BURST as u32) };
        let mut datapath = Datapath::load(&policy, &[listener]).unwrap();
        let program = datapath.program(Entry::Xdp).unwrap();
        let (mut standings, now) = (datapath.standings().unwrap(), sys::monotonic_ns());
        let client = if listener.is_ipv4() { listener.ip() } else { Ipv6Addr::UNSPECIFIED.into() };
        standings.know(client.into(), Class::Known, now + HOUR_NS).unwrap();
        standings.can_arm(Some(now + HOUR_NS)).unwrap();
        standings.arm(Some(now + HOUR_NS), now).unwrap();
        let this = Self { policy, datapath, program, standings, listener };
        let met: Vec<_> = (0..BURST + 4).map(|_| this.judge(&this.request(1))).collect();
        assert!(met.contains(&Verdict::CookieSent), "{met:?}");
        this
    }

    fn request(&self, port: u16) -> Packet {
        let request = Packet::syn(self.listener.ip(), self.listener.ip(), self.listener.port());
        Packet { source_port: port, ..request }
    }

    fn judge(&self, packet: &Packet) -> Verdict {
        let before = self.datapath.counters().unwrap();
        self.program.run(&packet.bytes(), 1).unwrap();
        let after = self.datapath.counters().unwrap();
        let met = Verdict::ALL.into_iter().find(|met| after.packets(*met) > before.packets(*met));
        met.unwrap()
    }

    /// As `explain` has it.
    fn told(&self) -> Account {
        self.datapath.account(self.listener.ip()).unwrap()
    }

    /// What comes back for a cookie.
    fn answer(&self, port: u16) -> Packet {
        let sent = self.program.run(&self.request(port).bytes(), 1).unwrap();
        Reply::read(&sent.frame).unwrap().ack()
    }
}

/// What is left of a connection would leave the answer to a cookie hanging, so the stack sees the request.
#[test]
fn a_request_from_a_port_that_is_used_again_goes_to_the_stack() {
    for host in HOSTS {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let loud = Loud::towards(listener.local_addr().unwrap());
        let mut client = TcpStream::connect(loud.listener).unwrap();
        let again = loud.request(client.local_addr().unwrap().port());
        let (server, _) = listener.accept().unwrap();
        assert_eq!(loud.judge(&again), Verdict::Flooded, "{host}, open");

        // Who closes first keeps what is left of it.
        drop(server);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop(client);
        assert_eq!(loud.judge(&again), Verdict::Flooded, "{host}, closed");

        // Nobody has it cost the stack more than the source's own connections may.
        let passed = (0..100).filter(|_| loud.judge(&again) == Verdict::Flooded).count();
        assert!((BURST - 2..BURST + 8).contains(&passed), "{host}: {passed}");
        assert_eq!(loud.judge(&again), Verdict::OverBudget, "{host}");
    }
}

/// The stack takes them for two minutes.
#[test]
fn cookies_that_come_back_are_charged_after_the_last_was_sent() {
    for host in HOSTS {
        let mut loud = Loud::towards(SocketAddr::new(host, 80));
        let answers: Vec<_> = (0..BURST as u16 + 8).map(|port| loud.answer(2 + port)).collect();
        loud.standings.arm(None, sys::monotonic_ns()).unwrap();
        assert_eq!(loud.judge(&loud.request(1)), Verdict::Flooded);
        let accepted = answers.iter().filter(|answer| loud.judge(answer) == Verdict::CookieAccepted).count();
        assert!((BURST..BURST + 8).contains(&accepted), "{host}: {accepted}");

        // The rest of what came with one that was refused waits with it.
        let rest = Packet { sequence: 7, ..answers[0].clone() };
        let refused_before = loud.told().refused;
        assert_eq!(loud.judge(&rest), Verdict::OverBudget, "{host}");
        let refused = answers.iter().filter(|answer| loud.judge(answer) == Verdict::OverBudget).count();
        assert_eq!(loud.told().refused, refused_before + refused as u64, "{host}");

        loud.standings.arm(None, u64::MAX / 2).unwrap();
        assert_eq!(loud.judge(&answers[BURST]), Verdict::NotOurs, "{host}, when none can be out any more");
    }
}

#[test]
fn a_source_that_is_denied_meanwhile_is_not_let_in_by_its_cookie() {
    for host in HOSTS {
        let mut loud = Loud::towards(SocketAddr::new(host, 80));
        let (first, second) = (loud.answer(2), loud.answer(3));
        assert_eq!(loud.judge(&first), Verdict::CookieAccepted, "{host}");
        let deny = networks(&["127.0.0.0/8", "::1/128"]);
        let policy = Kernel { deny, ..loud.policy.clone() };
        loud.datapath.apply(&policy, &[loud.listener]).unwrap();
        assert_eq!(loud.judge(&second), Verdict::Denied, "{host}");
    }
}
