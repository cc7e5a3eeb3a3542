//! Tables: a packet, the verdict it must meet, its action and its counter, at both entry points.

use gateway::config::Kernel;
use gateway::datapath::{Datapath, Entry};
use gateway_common::{Family, Verdict};
use gateway_tests::kernel::packet::{ACK, Extension, Packet, SYN, UDP};
use gateway_tests::kernel::policy::{budget, networks, open};

use crate::model::Model;
use crate::{LISTENERS, least_bytes, listeners, load};

type Row = (&'static str, Packet, Verdict, Family);

const ENTRIES: [Entry; 2] = [Entry::Xdp, Entry::Tc];

fn v4() -> Packet {
    Packet::syn("192.0.2.7".parse().unwrap(), "198.18.0.1".parse().unwrap(), 80)
}

fn v6() -> Packet {
    Packet::syn("2001:db8:7::7".parse().unwrap(), "2001:db8::1".parse().unwrap(), 80)
}

fn from(source: &str) -> Packet {
    let source: std::net::IpAddr = source.parse().unwrap();
    Packet { source, ..if source.is_ipv4() { v4() } else { v6() } }
}

/// The one door: runs `frame` through `entry`, holds action, counter, bytes and model against `verdict`.
fn check(
    datapath: &mut Datapath,
    entry: Entry,
    policy: &Kernel,
    name: &str,
    frame: &[u8],
    (verdict, family): (Verdict, Family),
) {
    let before = datapath.counters().unwrap();
    let trial = datapath
        .program(entry)
        .and_then(|program| program.run(frame, 1))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let after = datapath.counters().unwrap();
    for ((cell, other, was), (_, _, is)) in before.iter().zip(after.iter()) {
        let here = (cell, other) == (verdict, family);
        let expected = if here { (1, frame.len() as u64) } else { (0, 0) };
        let counted = (is.packets - was.packets, is.bytes - was.bytes);
        assert_eq!(counted, expected, "{name}, {entry:?}: {} {}", cell.row().name, other.name());
    }
    assert_eq!(trial.action, verdict.action(policy.monitored), "{name}, {entry:?}: {verdict:?}");
}

fn check_all(policy: &Kernel, rows: &[Row]) {
    for entry in ENTRIES {
        let mut datapath = load(policy);
        let mut model = Model::new(entry, policy, &listeners(&LISTENERS));
        for (name, packet, verdict, family) in rows {
            let frame = packet.bytes();
            check(&mut datapath, entry, policy, name, &frame, (*verdict, *family));
            assert_eq!(model.judge(&frame), (*verdict, *family), "the model on {name}");
        }
    }
}

#[test]
fn what_is_a_connection_request_to_us() {
    use Extension::{Authentication, Destination, HopByHop, Routing, Unknown};
    use Family::{Ipv4, Ipv6, Other};
    use Verdict::{Fragment, LaterFragment, Malformed, NotOurs, Pass};
    let fragment = |offset| vec![Extension::Fragment(offset, true)];
    let rows: Vec<Row> = vec![
        ("v4", v4(), Pass, Ipv4),
        ("v4, other port", Packet { port: 81, ..v4() }, NotOurs, Ipv4),
        ("v4, port zero", Packet { port: 0, ..v4() }, NotOurs, Ipv4),
        ("v4, other address", Packet { destination: "198.18.0.2".parse().unwrap(), ..v4() }, NotOurs, Ipv4),
        ("v4, ACK", Packet { flags: ACK, ..v4() }, NotOurs, Ipv4),
        ("v4, SYN and ACK", Packet { flags: SYN | ACK, ..v4() }, NotOurs, Ipv4),
        ("v4, no flags", Packet { flags: 0, ..v4() }, NotOurs, Ipv4),
        ("v4, SYN and others", Packet { flags: 0xef & !ACK, ..v4() }, Pass, Ipv4),
        ("v4, UDP", Packet { protocol: UDP, ..v4() }, NotOurs, Ipv4),
        ("v4, VLAN", Packet { vlans: vec![0x8100], ..v4() }, Pass, Ipv4),
        ("v4, QinQ", Packet { vlans: vec![0x88a8, 0x8100], ..v4() }, Pass, Ipv4),
        ("v4, three tags", Packet { vlans: vec![0x88a8, 0x8100, 0x8100], ..v4() }, NotOurs, Other),
        ("v4, one word of options", Packet { option_words: 1, ..v4() }, Pass, Ipv4),
        ("v4, all options", Packet { option_words: 10, ..v4() }, Pass, Ipv4),
        ("v4, options and VLAN", Packet { option_words: 3, vlans: vec![0x8100], ..v4() }, Pass, Ipv4),
        ("v4, header too short", Packet { ip_words: Some(4), ..v4() }, Malformed, Ipv4),
        ("v4, header beyond the frame", Packet { ip_words: Some(15), ..v4() }, Malformed, Ipv4),
        ("v4, says version 6", Packet { version: 6, ..v4() }, Malformed, Ipv4),
        ("v4, TCP header too short", Packet { tcp_words: 4, ..v4() }, Malformed, Ipv4),
        ("v4, do not fragment", Packet { fragment: 0x4000, ..v4() }, Pass, Ipv4),
        ("v4, first fragment", Packet { fragment: 0x2000, ..v4() }, Pass, Ipv4),
        ("v4, fragment at 1", Packet { fragment: 0x2001, ..v4() }, Fragment, Ipv4),
        (
            "v4, fragment at 1 to another address",
            Packet { fragment: 0x2001, destination: "198.18.0.2".parse().unwrap(), ..v4() },
            NotOurs,
            Ipv4,
        ),
        ("v4, later fragment", Packet { fragment: 0x0002, ..v4() }, LaterFragment, Ipv4),
        ("ARP", Packet { ethertype: Some(0x0806), ..v4() }, NotOurs, Other),
        ("v6", v6(), Pass, Ipv6),
        ("v6, other port", Packet { port: 81, ..v6() }, NotOurs, Ipv6),
        ("v6, other address", Packet { destination: "2001:db8::2".parse().unwrap(), ..v6() }, NotOurs, Ipv6),
        ("v6, ACK", Packet { flags: ACK, ..v6() }, NotOurs, Ipv6),
        ("v6, UDP", Packet { protocol: UDP, ..v6() }, NotOurs, Ipv6),
        ("v6, VLAN", Packet { vlans: vec![0x8100], ..v6() }, Pass, Ipv6),
        ("v6, QinQ", Packet { vlans: vec![0x88a8, 0x8100], ..v6() }, Pass, Ipv6),
        ("v6, says version 4", Packet { version: 4, ..v6() }, Malformed, Ipv6),
        (
            "v6, each extension",
            Packet { extensions: vec![HopByHop, Destination, Routing, Authentication], ..v6() },
            Pass,
            Ipv6,
        ),
        ("v6, eight extensions", Packet { extensions: vec![Destination; 8], ..v6() }, Pass, Ipv6),
        ("v6, nine extensions", Packet { extensions: vec![Destination; 9], ..v6() }, Malformed, Ipv6),
        ("v6, unknown extension", Packet { extensions: vec![HopByHop, Unknown(253)], ..v6() }, NotOurs, Ipv6),
        ("v6, no next header", Packet { protocol: 59, ..v6() }, NotOurs, Ipv6),
        ("v6, first fragment", Packet { extensions: fragment(0), ..v6() }, Pass, Ipv6),
        ("v6, fragment at 1", Packet { extensions: fragment(1), ..v6() }, Fragment, Ipv6),
        ("v6, later fragment", Packet { extensions: fragment(2), ..v6() }, LaterFragment, Ipv6),
        (
            "v6, later fragment of a chain",
            Packet { extensions: vec![HopByHop, Extension::Fragment(1, true), Destination], ..v6() },
            NotOurs,
            Ipv6,
        ),
        ("v6, TCP header too short", Packet { tcp_words: 0, ..v6() }, Malformed, Ipv6),
        ("v6 from a mapped address", from("::ffff:192.0.2.7"), Malformed, Ipv6),
        (
            "v6 to a mapped address",
            Packet { destination: "::ffff:198.18.0.1".parse().unwrap(), ..v6() },
            Malformed,
            Ipv6,
        ),
    ];
    check_all(&open(), &rows);
}

#[test]
fn lists_in_their_order() {
    use Family::{Ipv4, Ipv6};
    use Verdict::{Allowed, Denied, NotOurs, Pass};
    let policy = Kernel {
        allow: networks(&["203.0.113.128/25", "2001:db8:a::/48", "192.0.2.200/32"]),
        deny: networks(&[
            "203.0.113.0/24",
            "2001:db8:a:1::/64",
            "2001:db8:d::/48",
            "192.0.2.200/32",
            "10.0.0.0/8",
        ]),
        ..open()
    };
    let rows: Vec<Row> = vec![
        ("neither", from("192.0.2.7"), Pass, Ipv4),
        ("denied", from("203.0.113.127"), Denied, Ipv4),
        ("allowed inside a denied network", from("203.0.113.128"), Allowed, Ipv4),
        ("allowed and denied alike", from("192.0.2.200"), Allowed, Ipv4),
        ("the neighbour", from("192.0.2.201"), Pass, Ipv4),
        ("first of a network", from("10.0.0.0"), Denied, Ipv4),
        ("last of a network", from("10.255.255.255"), Denied, Ipv4),
        ("one past it", from("11.0.0.0"), Pass, Ipv4),
        ("denied, to another port", Packet { port: 81, ..from("10.0.0.1") }, NotOurs, Ipv4),
        ("denied, within a connection", Packet { flags: ACK, ..from("10.0.0.1") }, NotOurs, Ipv4),
        ("v6 neither", from("2001:db8:b::1"), Pass, Ipv6),
        ("v6 denied", from("2001:db8:d:ffff::1"), Denied, Ipv6),
        ("v6, a deny inside an allow", from("2001:db8:a:1::1"), Allowed, Ipv6),
    ];
    check_all(&policy, &rows);
    // A monitor says the same and drops nothing.
    check_all(&Kernel { monitored: u32::MAX, ..policy }, &rows);
}

#[test]
fn all_of_one_family_is_not_all_of_the_other() {
    use Verdict::{Denied, Pass};
    let rows = |v4: Verdict, v6: Verdict| {
        vec![("v4", from("192.0.2.7"), v4, Family::Ipv4), ("v6", from("2001:db8:7::7"), v6, Family::Ipv6)]
    };
    check_all(&Kernel { deny: networks(&["::/0"]), ..open() }, &rows(Pass, Denied));
    check_all(&Kernel { deny: networks(&["0.0.0.0/0"]), ..open() }, &rows(Denied, Pass));
    check_all(&Kernel { deny: networks(&["0.0.0.0/0", "::/0"]), ..open() }, &rows(Denied, Denied));
}

#[test]
fn a_budget_is_one_sources_own() {
    use Family::{Ipv4, Ipv6};
    use Verdict::{NotOurs, OverBudget, Pass};
    let policy = Kernel { ipv6_prefix: 56, ..budget(1, 3) };
    let rows: Vec<Row> = vec![
        ("first", from("192.0.2.7"), Pass, Ipv4),
        ("second", from("192.0.2.7"), Pass, Ipv4),
        ("not ours costs nothing", Packet { port: 81, ..from("192.0.2.7") }, NotOurs, Ipv4),
        ("an ACK costs nothing", Packet { flags: ACK, ..from("192.0.2.7") }, NotOurs, Ipv4),
        ("third", from("192.0.2.7"), Pass, Ipv4),
        ("fourth", from("192.0.2.7"), OverBudget, Ipv4),
        ("the neighbour", from("192.0.2.6"), Pass, Ipv4),
        ("a connection it has", Packet { flags: ACK, ..from("192.0.2.7") }, NotOurs, Ipv4),
        ("fifth", from("192.0.2.7"), OverBudget, Ipv4),
        ("v6, one host", from("2001:db8:1::1"), Pass, Ipv6),
        ("v6, its neighbour pays too", from("2001:db8:1::2"), Pass, Ipv6),
        ("v6, within the prefix", from("2001:db8:1:ff:1::"), Pass, Ipv6),
        ("v6, used up", from("2001:db8:1:80::"), OverBudget, Ipv6),
        ("v6, another prefix", from("2001:db8:1:100::"), Pass, Ipv6),
    ];
    check_all(&policy, &rows);
    check_all(&Kernel { monitored: u32::MAX, ..policy }, &rows);
}

/// Cut at every byte: what is still there decides, and nothing is ever dropped for being short.
#[test]
fn truncated_at_every_byte() {
    let chain = vec![
        Extension::HopByHop,
        Extension::Authentication,
        Extension::Fragment(0, false),
        Extension::Destination,
    ];
    let whole = [
        v4(),
        Packet { option_words: 4, vlans: vec![0x88a8, 0x8100], ..v4() },
        v6(),
        Packet { extensions: chain, vlans: vec![0x8100], ..v6() },
    ];
    let policy = open();
    for entry in ENTRIES {
        let mut datapath = load(&policy);
        for packet in &whole {
            let frame = packet.bytes();
            let tags = packet.vlans.len() * 4;
            for length in least_bytes(entry, &frame)..=frame.len() {
                let family = if packet.source.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
                let expected = if length == frame.len() {
                    (Verdict::Pass, family)
                } else if length < 14 + tags {
                    (Verdict::Malformed, Family::Other)
                } else {
                    (Verdict::Malformed, family)
                };
                let name = format!("{packet:?} cut to {length} of {}", frame.len());
                check(&mut datapath, entry, &policy, &name, &frame[..length], expected);
                let modelled = Model::new(entry, &policy, &listeners(&LISTENERS)).judge(&frame[..length]);
                assert_eq!(modelled, expected, "the model on {name}");
            }
        }
    }
}

/// A policy is replaced as a whole, slot by slot, and back again.
#[test]
fn a_new_policy_leaves_nothing_of_the_old() {
    let mut datapath = load(&open());
    let denied = Kernel { deny: networks(&["192.0.2.0/24"]), ..open() };
    let allowed = Kernel { allow: networks(&["192.0.2.0/24"]), ..open() };
    let elsewhere = listeners(&["198.18.0.1:81"]);
    for round in 0..3 {
        for (policy, expected) in
            [(&denied, Verdict::Denied), (&allowed, Verdict::Allowed), (&open(), Verdict::Pass)]
        {
            datapath.apply(policy, &listeners(&LISTENERS)).unwrap();
            let name = format!("round {round}");
            check(&mut datapath, Entry::Xdp, policy, &name, &v4().bytes(), (expected, Family::Ipv4));
        }
        datapath.apply(&denied, &elsewhere).unwrap();
        check(&mut datapath, Entry::Tc, &denied, "moved", &v4().bytes(), (Verdict::NotOurs, Family::Ipv4));
    }
}
