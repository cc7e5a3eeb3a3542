//! Each map filled to its brim, and the words of pressure left to themselves: nobody is refused for it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use gateway::config::Kernel;
use gateway::datapath::{Datapath, Entry, Fill};
use gateway_common::maps::{
    ALLOW, BUCKET, DENY, KNOWN, LISTENERS as LISTENING, MAX_KNOWN, MAX_LISTENERS, MAX_NETWORKS,
    MAX_PENALTIES, MAX_SOURCES, PENALTY,
};
use gateway_common::policy::SLOTS;
use gateway_common::pressure::{BLOCKING, PENALTIES};
use gateway_common::standing::{BLOCKED, Class, Mark, Penalty};
use gateway_common::{Address, Verdict};
use gateway_tests::kernel::packet::Packet;
use gateway_tests::kernel::policy::{budget, networks, open};
use ipnet::IpNet;

use crate::marks::marks;
use crate::{LISTENERS, listeners, load, load_with_clock};

const SECOND_NS: u64 = 1_000_000_000;

fn nth(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n))
}

fn syn(source: IpAddr) -> Vec<u8> {
    Packet::syn(source, "198.18.0.1".parse().unwrap(), 80).bytes()
}

fn fill_of(fills: &[Fill], map: &str) -> Fill {
    *fills.iter().find(|fill| fill.map == map).unwrap()
}

/// Both slots count, and of a listener its address twice: with its port, and without for fragments.
#[test]
fn the_fill_of_each_map_is_told() {
    let policy = Kernel {
        allow: networks(&["192.0.2.0/24"]),
        deny: networks(&["198.51.100.0/24", "203.0.113.0/24"]),
        ..open()
    };
    let mut datapath = load(&policy);
    let filled = |datapath: &Datapath| datapath.fill().unwrap().map(|fill| (fill.map, fill.entries));
    let none = [(PENALTY, 0), (KNOWN, 0), (BUCKET, 0)];
    let lists = |listeners, allow, deny| [(LISTENING, listeners), (ALLOW, allow), (DENY, deny)];
    assert_eq!(filled(&datapath), [lists(4, 1, 2), none].concat()[..]);
    datapath.apply(&Kernel { allow: Vec::new(), ..policy }, &listeners(&LISTENERS[..1])).unwrap();
    datapath.standings().unwrap().know(nth(1).into(), Class::Known, u64::MAX).unwrap();
    let some = [(PENALTY, 0), (KNOWN, 1), (BUCKET, 0)];
    assert_eq!(filled(&datapath), [lists(4 + 2, 1, 2 + 2), some].concat()[..]);
}

#[test]
fn more_sources_than_there_are_buckets_all_pass() {
    const SOURCES: u32 = MAX_SOURCES as u32 + 20_000;
    let mut datapath = load_with_clock(&Kernel { new_sources_per_second: 1_000_000, ..budget(1, 1) });
    datapath.set_clock(SECOND_NS).unwrap();
    let program = datapath.program(Entry::Xdp).unwrap();
    for n in 0..SOURCES {
        program.run(&syn(nth(n)), 1).unwrap();
    }
    assert_eq!(datapath.counters().unwrap().packets(Verdict::Pass), u64::from(SOURCES));
    let fill = fill_of(&datapath.fill().unwrap(), BUCKET);
    assert_eq!(fill.most, MAX_SOURCES as u64);
    assert!((fill.most / 2..=fill.most).contains(&fill.entries), "{fill:?}");
}

#[test]
fn known_sources_and_penalties_to_the_brim() {
    let mut datapath = load_with_clock(&open());
    datapath.set_clock(SECOND_NS).unwrap();
    let mut standings = datapath.standings().unwrap();
    for n in 0..MAX_KNOWN as u32 + 1_000 {
        standings.know(Address::from(nth(n)), Class::Known, 9 * SECOND_NS).unwrap();
    }
    let until = |until_ns| Penalty {
        until_ns,
        since_ns: SECOND_NS,
        hits: 0,
        rule: 1,
        level: BLOCKED,
        refused: 60,
        ignored: 50,
    };
    let mut penalise = |n| standings.penalise(nth(n).into(), until(9 * SECOND_NS), PENALTIES | BLOCKING);
    let mark = |n| Mark::of(&nth(n).into());
    // One with a mark of its own, and one that shares somebody's.
    let [newcomer, another] = [0, 1].map(|n| 2 * MAX_PENALTIES as u32 + n);
    let sources: Vec<u32> = (0..).filter(|n| mark(*n) != mark(newcomer)).take(MAX_PENALTIES).collect();
    sources.iter().for_each(|n| penalise(*n).unwrap());
    // One more is an error that is told, and changes nothing for anybody.
    let marks = marks();
    let is_marked = |n| marks.get(&mark(n).word(), 0).unwrap() & mark(n).bit() != 0;
    let before = [newcomer, another].map(is_marked);
    assert_eq!(before, [false, true]);
    assert!([newcomer, another].iter().all(|n| penalise(*n).is_err()));
    assert_eq!([newcomer, another].map(is_marked), before);
    let fills = datapath.fill().unwrap();
    assert_eq!(fill_of(&fills, PENALTY).entries, MAX_PENALTIES as u64);
    assert!(fill_of(&fills, KNOWN).entries <= MAX_KNOWN as u64);
    let program = datapath.program(Entry::Xdp).unwrap();
    for (source, verdict) in [
        (nth(sources[0]), Verdict::Penalised),
        (nth(sources[MAX_PENALTIES - 1]), Verdict::Penalised),
        (nth(newcomer), Verdict::Pass),
        (nth(another), Verdict::Pass),
    ] {
        let before = datapath.counters().unwrap().packets(verdict);
        program.run(&syn(source), 1).unwrap();
        assert_eq!(datapath.counters().unwrap().packets(verdict), before + 1, "{source}");
    }
    // Of another policy the penalties know nothing.
    datapath.set_clock(9 * SECOND_NS).unwrap();
    let before = datapath.counters().unwrap().packets(Verdict::Pass);
    program.run(&syn(nth(sources[0])), 1).unwrap();
    assert_eq!(datapath.counters().unwrap().packets(Verdict::Pass), before + 1, "its penalty is over");
}

#[test]
fn a_list_that_does_not_fit_leaves_the_old_policy() {
    let mut datapath = load(&open());
    let most = (MAX_NETWORKS / SLOTS) as u32;
    let networks = |count: u32| (0..count).map(|n| IpNet::from(nth(n))).collect::<Vec<_>>();
    let place = listeners(&LISTENERS);
    let error = datapath.apply(&Kernel { deny: networks(most + 1), ..open() }, &place).unwrap_err();
    assert!(error.to_string().contains("65537 networks in kernel.deny"), "{error}");
    let program = datapath.program(Entry::Xdp).unwrap();
    program.run(&syn(nth(1)), 1).unwrap();
    assert_eq!(datapath.counters().unwrap().packets(Verdict::Pass), 1);
    datapath.apply(&Kernel { deny: networks(most), ..open() }, &place).unwrap();
    program.run(&syn(nth(most - 1)), 1).unwrap();
    program.run(&syn(nth(most)), 1).unwrap();
    let counters = datapath.counters().unwrap();
    assert_eq!((counters.packets(Verdict::Denied), counters.packets(Verdict::Pass)), (1, 2));
}

#[test]
fn more_addresses_than_fit_leave_the_old_policy() {
    let most = (MAX_LISTENERS / SLOTS / 2) as u32;
    let places = |count: u32| (0..count).map(|n| SocketAddr::new(nth(n), 80)).collect::<Vec<_>>();
    let to = |n| Packet::syn("192.0.2.7".parse().unwrap(), nth(n), 80).bytes();
    let told = "1025 addresses to listen on";
    let error = Datapath::load(&open(), &places(most + 1)).err().unwrap();
    assert!(error.to_string().starts_with(told), "{error}");

    let mut datapath = load(&open());
    let program = datapath.program(Entry::Xdp).unwrap();
    let judged = |datapath: &Datapath, frames: &[Vec<u8>]| {
        frames.iter().for_each(|frame| drop(program.run(frame, 1).unwrap()));
        let counters = datapath.counters().unwrap();
        (counters.packets(Verdict::Pass), counters.packets(Verdict::NotOurs))
    };
    let error = datapath.apply(&open(), &places(most + 1)).unwrap_err();
    assert!(error.to_string().starts_with(told), "{error}");
    assert_eq!(
        judged(&datapath, &[syn(nth(1)), to(0)]),
        (1, 1),
        "the address of before, and none of the new"
    );
    // In both slots.
    for _ in 0..SLOTS {
        datapath.apply(&open(), &places(most)).unwrap();
    }
    let fill = fill_of(&datapath.fill().unwrap(), LISTENING);
    assert_eq!((fill.entries, fill.most), (MAX_LISTENERS as u64, MAX_LISTENERS as u64));
    assert_eq!(judged(&datapath, &[to(0), to(most - 1), to(most), syn(nth(1))]), (3, 3));
    let error = datapath.apply(&open(), &places(most + 1)).unwrap_err();
    assert!(error.to_string().starts_with(told), "{error}");
    assert_eq!(judged(&datapath, &[to(most - 1), to(most)]), (4, 4), "a full map is as good as before");
}

/// A gateway that has stopped says nothing more: a second later nobody is shed and no cookie is sent.
#[test]
fn what_userspace_says_ends_by_itself() {
    let policy = Kernel { new_sources_per_second: 1, ..budget(1, 1) };
    let mut datapath = load_with_clock(&policy);
    let mut standings = datapath.standings().unwrap();
    let program = datapath.program(Entry::Xdp).unwrap();
    let mut sources = (0..).map(nth);
    let mut check = |datapath: &mut gateway::datapath::Datapath, now_ns, verdict: Verdict| {
        datapath.set_clock(now_ns).unwrap();
        let before = datapath.counters().unwrap().packets(verdict);
        program.run(&syn(sources.next().unwrap()), 1).unwrap();
        let after = datapath.counters().unwrap().packets(verdict);
        assert_eq!(after, before + 1, "{verdict:?} at {now_ns}: {:?}", datapath.counters());
    };
    let start = 1_000 * SECOND_NS;
    standings.shed([u16::MAX, 0, 0], 0, start + SECOND_NS).unwrap();
    check(&mut datapath, start, Verdict::Shed);
    check(&mut datapath, start + SECOND_NS / 2, Verdict::Shed);
    check(&mut datapath, start + 2 * SECOND_NS, Verdict::Pass);

    let start = 2_000 * SECOND_NS;
    standings.can_arm(Some(start + 2 * SECOND_NS)).unwrap();
    standings.arm(Some(start + SECOND_NS), start).unwrap();
    check(&mut datapath, start, Verdict::Pass);
    check(&mut datapath, start, Verdict::Seed);
    check(&mut datapath, start, Verdict::CookieSent);
    check(&mut datapath, start + SECOND_NS / 2, Verdict::CookieSent);
    check(&mut datapath, start + 2 * SECOND_NS, Verdict::Pass);
    check(&mut datapath, start + 2 * SECOND_NS, Verdict::Flooded);
}

#[test]
fn the_loudest_sources_are_found_without_stopping_anybody() {
    let mut datapath = load(&budget(1, 1));
    let program = datapath.program(Entry::Xdp).unwrap();
    for (n, requests) in [(1, 3_000), (2, 1), (3, 9_000), (4, 6_000)] {
        program.run(&syn(nth(n)), requests).unwrap();
    }
    let loudest = datapath.loudest(2).unwrap();
    let found: Vec<IpAddr> = loudest.iter().map(|loud| loud.source.into()).collect();
    assert_eq!(found, [nth(3), nth(4)]);
    assert!(loudest[0].refused > 8_000 && loudest[1].refused > 5_000, "{loudest:?}");
    // Another budget, and every bucket is full again: each source is named once, for what it met since.
    datapath.apply(&budget(1, 2), &listeners(&LISTENERS)).unwrap();
    assert_eq!(datapath.loudest(2).unwrap(), []);
    program.run(&syn(nth(3)), 9).unwrap();
    let found: Vec<IpAddr> = datapath.loudest(2).unwrap().iter().map(|loud| loud.source.into()).collect();
    assert_eq!(found, [nth(3)]);
}
