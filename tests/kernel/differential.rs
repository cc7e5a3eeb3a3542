//! Random packets, right and broken, through both entry points and the model: the same verdicts.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use gateway::config::Kernel;
use gateway::datapath::Entry;
use gateway_common::{Family, Verdict};
use gateway_tests::kernel::packet::{ACK, Extension, Packet, Random, SYN, TCP, UDP};
use gateway_tests::kernel::policy::{budget, networks};

use crate::model::Model;
use crate::{LISTENERS, least_bytes, listeners, load, packets};

const BATCHES: u64 = 110;
const PACKETS: usize = 1_000;
/// One connection is earned back in this time, and in the model no time passes.
const STANDSTILL: Duration = Duration::from_secs(1);

fn policy(seed: u64) -> Kernel {
    Kernel {
        allow: networks(&["203.0.113.128/25", "2001:db8:a::/48"]),
        deny: networks(&["203.0.113.0/24", "2001:db8:a:1::/64", "2001:db8:d::/48", "128.0.0.0/2"]),
        ..budget(1, 3 + seed as u32 % 2)
    }
}

fn address(random: &mut Random, ipv4: bool, ours: bool) -> IpAddr {
    let host = random.below(8);
    let text = match (ipv4, ours) {
        (true, true) => random.pick(&["198.18.0.1", "198.18.0.1", "198.18.0.1", "198.18.0.2"]).to_owned(),
        (true, false) => {
            random.pick(&["192.0.2.", "203.0.113.", "203.0.113.20", "10.0.0."]).to_owned() + &host.to_string()
        }
        (false, true) => {
            random.pick(&["2001:db8::1", "2001:db8::1", "2001:db8::1", "2001:db8::2"]).to_owned()
        }
        (false, false) => {
            let network =
                random.pick(&["2001:db8:a:", "2001:db8:d:", "2001:db8:e:", "2001:db8:e:", "::ffff:"]);
            format!("{network}{}::{host}", random.below(4)).replace("::ffff:", "0:0:0:")
        }
    };
    text.parse().unwrap_or_else(|_| panic!("{text}"))
}

fn extension(random: &mut Random) -> Extension {
    let offset = random.pick(&[0, 0, 0, 1, 2, 185]);
    random.pick(&[
        Extension::HopByHop,
        Extension::Routing,
        Extension::Destination,
        Extension::Authentication,
        Extension::Fragment(offset),
        Extension::Unknown(253),
    ])
}

fn frame(random: &mut Random) -> Vec<u8> {
    let ipv4 = random.one_in(2);
    let source = address(random, ipv4, false);
    let mut packet = Packet::syn(source, address(random, ipv4, true), 80);
    if random.one_in(8) {
        packet.port = 81;
    }
    if random.one_in(8) {
        packet.flags = random.pick(&[ACK, SYN | ACK, 0, 0x01, 0x04]);
    }
    packet.vlans = (0..random.pick(&[0, 0, 0, 1, 2, 3])).map(|_| random.pick(&[0x8100, 0x88a8])).collect();
    packet.option_words = random.pick(&[0, 0, 0, 1, 5, 10]);
    packet.fragment = random.pick(&[0, 0, 0x4000, 0x4000, 0x2000, 0x2001, 0x0001, 0x00b9]);
    packet.extensions = (0..random.pick(&[0, 0, 0, 1, 2, 4, 8, 9])).map(|_| extension(random)).collect();
    packet.protocol = random.pick(&[TCP, TCP, TCP, TCP, TCP, TCP, UDP, 59]);
    let mut bytes = packet.bytes();
    if random.one_in(4) {
        for _ in 0..=random.below(3) {
            let place = 12 + random.below(bytes.len() - 12);
            bytes[place] = random.below(256) as u8;
        }
    }
    if random.one_in(6) {
        bytes.truncate(14 + random.below(bytes.len() - 13));
    }
    bytes
}

#[test]
fn random_packets_meet_the_models_verdicts() {
    let mut met: HashMap<(Verdict, Family), u64> = HashMap::new();
    for entry in [Entry::Xdp, Entry::Tc] {
        let mut datapath = load(&policy(0));
        let program = datapath.program(entry).unwrap();
        for seed in 0..BATCHES {
            // Another budget than the batch before: every bucket is full again, there as in the model.
            let policy = policy(seed);
            datapath.apply(&policy, &listeners(&LISTENERS)).unwrap();
            let mut model = Model::new(&policy, &listeners(&LISTENERS));
            let mut random = Random::new(seed);
            let mut expected = packets(&datapath.counters().unwrap());
            let start = Instant::now();
            for place in 0..PACKETS {
                let frame = frame(&mut random);
                if frame.len() < least_bytes(entry, &frame) {
                    continue;
                }
                let (verdict, family) = model.judge(&frame);
                let trial = program.run(&frame, 1).unwrap();
                let action = verdict.action(false);
                assert_eq!(
                    trial.action, action,
                    "seed {seed}, packet {place}, {entry:?}: {verdict:?} {frame:02x?}"
                );
                *expected.entry((verdict, family)).or_default() += 1;
                *met.entry((verdict, family)).or_default() += 1;
            }
            assert!(
                start.elapsed() < STANDSTILL,
                "the machine is too busy for this test: {:?}",
                start.elapsed()
            );
            assert_eq!(packets(&datapath.counters().unwrap()), expected, "seed {seed}, {entry:?}");
        }
    }
    // Otherwise the generator, not the kernel half, would have passed.
    for verdict in Verdict::ALL {
        for family in [Family::Ipv4, Family::Ipv6] {
            let count = met.get(&(verdict, family)).copied().unwrap_or_default();
            assert!(count > 1_000, "only {count} packets were {verdict:?} {family:?}: {met:?}");
        }
    }
}
