//! Sources without a penalty are not looked up, those that have one are, and two that share a mark do not end each
//! other's penalty.

use std::net::{IpAddr, Ipv4Addr};

use aya::maps::{Array, Map, MapData};
use gateway::datapath::Entry;
use gateway_common::maps::MARKS;
use gateway_common::pressure::{BLOCKING, PENALTIES};
use gateway_common::standing::{BLOCKED, Mark, Penalty};
use gateway_common::{Address, Verdict};
use gateway_tests::kernel::held;
use gateway_tests::kernel::packet::Packet;
use gateway_tests::kernel::policy::open;

use crate::load;

const PENALTY: Penalty =
    Penalty { until_ns: u64::MAX, since_ns: 0, hits: 0, rule: 1, level: BLOCKED, refused: 60, ignored: 50 };

fn nth(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n))
}

fn mark(source: IpAddr) -> Mark {
    Mark::of(&source.into())
}

/// The map of this process.
pub fn marks() -> Array<MapData, u64> {
    let ids = held::by_process(std::process::id()).into_iter().filter(|(kind, _)| *kind == "map");
    let mut maps = ids.map(|(_, id)| MapData::from_id(id as u32).unwrap());
    let found = maps.find(|map| map.info().unwrap().name_as_str() == Some(MARKS)).expect("it is loaded");
    Map::from_map_data(found).unwrap().try_into().unwrap()
}

#[test]
fn a_shared_mark_stays_until_both_penalties_are_over() {
    let mut datapath = load(&open());
    let mut standings = datapath.standings().unwrap();
    let marks = marks();
    let first = nth(0);
    let of_the_same = |n: &u32| mark(nth(*n)) == mark(first);
    let second = nth((1..).find(of_the_same).unwrap());
    let third = nth((1..).filter(of_the_same).nth(1).unwrap());
    // Of the same word, and with a bit of its own.
    let beside = nth((1..).find(|n| mark(nth(*n)).word() == mark(first).word() && !of_the_same(n)).unwrap());
    let mut penalised = vec![first, second, beside];
    for source in &penalised {
        standings.penalise((*source).into(), PENALTY, PENALTIES | BLOCKING).unwrap();
    }
    let bits = |sources: &[IpAddr]| sources.iter().fold(0, |bits, source| bits | mark(*source).bit());
    loop {
        for source in [first, second, third, beside] {
            let verdict = if penalised.contains(&source) { Verdict::Penalised } else { Verdict::Pass };
            let before = datapath.counters().unwrap().packets(verdict);
            let packet = Packet::syn(source, "198.18.0.1".parse().unwrap(), 80).bytes();
            datapath.program(Entry::Xdp).unwrap().run(&packet, 1).unwrap();
            assert_eq!(datapath.counters().unwrap().packets(verdict), before + 1, "{source}, {penalised:?}");
        }
        assert_eq!(marks.get(&mark(first).word(), 0).unwrap(), bits(&penalised), "{penalised:?}");
        if penalised.is_empty() {
            return;
        }
        let over: Address = penalised.remove(0).into();
        let others: Vec<_> = penalised.iter().copied().map(Address::from).collect();
        standings.lift(&[over], &others).unwrap();
    }
}

/// A gateway and its successor have the same maps for a moment, and neither knows all penalties of the other.
#[test]
fn a_mark_that_another_gateway_has_set_stays() {
    let datapath = load(&open());
    let [mut ours, mut theirs] = [(); 2].map(|()| datapath.standings().unwrap());
    let first = nth(0);
    let is_beside = |n: &u32| mark(nth(*n)).word() == mark(first).word() && mark(nth(*n)) != mark(first);
    let second = nth((1..).find(is_beside).unwrap());
    ours.penalise(first.into(), PENALTY, PENALTIES | BLOCKING).unwrap();
    theirs.penalise(second.into(), PENALTY, PENALTIES | BLOCKING).unwrap();
    ours.lift(&[first.into()], &[]).unwrap();
    assert_eq!(marks().get(&mark(first).word(), 0).unwrap(), mark(second).bit());
}
