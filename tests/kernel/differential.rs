//! Random packets, right and broken, at random times, through both entry points and the model: the same
//! verdicts, and answers that are what they should be.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use gateway::config::{Ceiling, Kernel, Listed};
use gateway::datapath::{Datapath, Entry, Standings, sys};
use gateway_common::policy::FOREVER;
use gateway_common::pressure::{BLOCKING, PENALTIES};
use gateway_common::standing::{Class, Penalty};
use gateway_common::{Action, Address, Family, Verdict};
use gateway_tests::kernel::packet::{ACK, Extension, FIN, Packet, RST, Random, SYN, TCP, UDP};
use gateway_tests::kernel::policy::{budget, networks};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::model::Model;
use crate::reply::Reply;
use crate::{LISTENERS, least_bytes, listeners, load_with_clock, packets};

/// A million packets, half of them through each entry point.
const BATCHES: u64 = 500;
const PACKETS: usize = 1_000;
const SECOND_NS: u64 = 1_000_000_000;
/// Between two batches: long enough for everything to be over that a batch began.
const PAUSE_NS: u64 = 1_000 * SECOND_NS;

/// What a batch is judged by. `start_ns`: when it begins.
fn policy(random: &mut Random, seed: u64, start_ns: u64) -> Kernel {
    let listed = |text: &str, seconds: u64, watched| Listed {
        network: text.parse().unwrap(),
        until_ns: start_ns + seconds * SECOND_NS,
        watched,
    };
    Kernel {
        allow: networks(&["203.0.113.128/25", "2001:db8:a::/48"]),
        deny: networks(&["203.0.113.0/24", "2001:db8:a:1::/64", "2001:db8:d::/48", "128.0.0.0/2"]),
        allow_listed: vec![listed("203.0.113.6/31", 10, false), listed("2001:db8:d:1::/64", 20, false)],
        deny_listed: vec![
            listed("192.0.2.4/30", 15, false),
            listed("192.0.2.6/31", 5, false),
            listed("10.0.0.0/30", 20, true),
        ],
        trusted: networks(&["10.0.0.7/32", "203.0.113.3/32", "2001:db8:e:3::/64"]),
        cookies: !random.one_in(4),
        strict_fragments: !random.one_in(4),
        ceiling: random
            .one_in(3)
            .then(|| Ceiling { per_second: random.pick(&[1, 20]), burst: random.pick(&[3, 9]) }),
        new_sources_per_second: random.pick(&[1, 5, 1_000]),
        monitored: if random.one_in(4) { random.below(1 << 16) as u32 } else { 0 },
        client_ipv6_prefix: random.pick(&[48, 64]),
        // Another budget than the batch before: every bucket is full again, there as in the model.
        ..budget(random.pick(&[1, 7]), 3 + seed as u32 % 2)
    }
}

fn address(random: &mut Random, ipv4: bool, ours: bool) -> IpAddr {
    let host = random.below(8);
    let text = match (ipv4, ours) {
        (true, true) => random.pick(&["198.18.0.1", "198.18.0.1", "198.18.0.1", "198.18.0.2"]).to_owned(),
        (true, false) => {
            random
                .pick(&["192.0.2.", "192.0.2.", "10.0.0.", "10.0.0.", "203.0.113.", "203.0.113.20"])
                .to_owned()
                + &host.to_string()
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
    let more = random.one_in(2);
    random.pick(&[
        Extension::HopByHop,
        Extension::Routing,
        Extension::Destination,
        Extension::Authentication,
        Extension::Fragment(offset, more),
        Extension::Unknown(253),
    ])
}

fn frame(random: &mut Random, entry: Entry) -> Vec<u8> {
    let ipv4 = random.one_in(2);
    let source = address(random, ipv4, false);
    let mut packet = Packet::syn(source, address(random, ipv4, true), 80);
    packet.source_port = 40_000 + random.below(4) as u16;
    packet.sequence = random.pick(&[0, 1, u32::MAX, 0x1234_5678]);
    if random.one_in(16) {
        packet.port = 81;
    }
    if random.one_in(4) {
        packet.flags = random.pick(&[ACK, ACK, SYN | ACK, 0, FIN, RST, RST | ACK, RST | SYN]);
    }
    if random.one_in(2) {
        // Segment size; with scaling and timestamps behind it.
        let size = [2, 4, 5, 0xb4];
        let more = [1, 3, 3, 7, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0];
        packet.tcp_options = if random.one_in(2) { size.to_vec() } else { [&size[..], &more[..]].concat() };
    }
    packet.vlans =
        (0..random.pick(&[0, 0, 0, 0, 0, 0, 1, 1, 2, 3])).map(|_| random.pick(&[0x8100, 0x88a8])).collect();
    packet.option_words = random.pick(&[0, 0, 0, 0, 1, 5, 10]);
    packet.fragment =
        random.pick(&[0, 0, 0, 0x4000, 0x4000, 0x4000, 0x4000, 0x4000, 0x2000, 0x2001, 0x0001, 0x00b9]);
    packet.extensions =
        (0..random.pick(&[0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 9])).map(|_| extension(random)).collect();
    packet.protocol = random.pick(&[TCP, TCP, TCP, TCP, TCP, TCP, TCP, UDP, 59]);
    let mut bytes = packet.bytes();
    if random.one_in(4) {
        // Padding up to the shortest frame, or what a request brings along: at XDP more than lies in one piece.
        let most = if entry == Entry::Xdp { 5_000 } else { 1_000 };
        bytes.resize(bytes.len() + random.pick(&[6, 100, most]), 0);
    }
    if random.one_in(6) {
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

/// The kernel half and the model, told the same.
struct Pair {
    datapath: Datapath,
    standings: Standings,
    model: Model,
}

impl Pair {
    fn advance(&mut self, ns: u64) {
        self.model.now_ns += ns;
        self.datapath.set_clock(self.model.now_ns).unwrap();
    }

    /// Says something new about a source, or about how userspace fares.
    fn tell(&mut self, random: &mut Random, policy: &Kernel) {
        let now = self.model.now_ns;
        let until = now + random.below(5_000) as u64 * 1_000_000;
        let ipv4 = random.one_in(2);
        let source = address(random, ipv4, false);
        let client = match source {
            IpAddr::V4(_) => source,
            IpAddr::V6(address) => {
                let shift = 128 - u32::from(policy.client_ipv6_prefix);
                IpAddr::V6((address.to_bits() >> shift << shift).into())
            }
        };
        match random.below(5) {
            0 => {
                let level = 1 + random.below(2) as u32;
                let penalty = Penalty {
                    until_ns: until,
                    since_ns: now,
                    hits: 0,
                    rule: 7,
                    level,
                    refused: 0,
                    ignored: 0,
                };
                self.standings.penalise(client.into(), penalty, PENALTIES | BLOCKING).unwrap();
                self.model.penalties.insert(client, (level, until));
            }
            1 => {
                self.model.penalties.remove(&client);
                let others: Vec<_> = self.model.penalties.keys().copied().map(Address::from).collect();
                self.standings.lift(&[client.into()], &others).unwrap();
            }
            2 => {
                let class = random.pick(&[Class::Known, Class::Proven]);
                self.standings.know(client.into(), class, until).unwrap();
                self.model.known.insert(client, (class, until));
            }
            3 => {
                let armed = random.one_in(4).then_some(()).is_none().then_some(until);
                self.standings.arm(armed, now).unwrap();
                self.model.armed_until_ns = armed.unwrap_or(0);
                self.model.taking_until_ns =
                    armed.map_or(self.model.taking_until_ns, |until| until + 120 * SECOND_NS);
            }
            _ => {
                let levels = [0, 1, 2].map(|_| random.pick(&[0, 0, 0, 0, 20_000, u16::MAX]));
                let epoch = random.below(4) as u16;
                self.standings.shed(levels, epoch, until).unwrap();
                self.model.shed = levels.map(|level| (level, epoch, until));
            }
        }
    }
}

fn batch(pair: &mut Pair, entry: Entry, seed: u64, met: &mut HashMap<(Verdict, Family), u64>) {
    let mut random = Random::new(seed);
    // A multiple of the words' units, so that no end is met at half of one.
    let start_ns = (seed + 1) * PAUSE_NS;
    let policy = policy(&mut random, seed, start_ns);
    pair.datapath.apply(&policy, &listeners(&LISTENERS)).unwrap();
    let penalties = pair.standings.penalties().unwrap();
    let penalised: Vec<_> = penalties.into_iter().map(|(source, _)| source).collect();
    pair.standings.lift(&penalised, &[]).unwrap();
    pair.standings.arm(None, start_ns).unwrap();
    pair.standings.shed([0; 3], 0, 0).unwrap();
    let can_arm = random.pick(&[
        None,
        Some(start_ns + SECOND_NS),
        Some(start_ns + PAUSE_NS / 2),
        Some(start_ns + PAUSE_NS / 2),
    ]);
    pair.standings.can_arm(can_arm).unwrap();
    let key = pair.datapath.policy().unwrap().shed_key;
    pair.model = Model::new(entry, &policy, &listeners(&LISTENERS)).with_key(key);
    pair.model.can_arm_until_ns = can_arm.unwrap_or(0);
    pair.advance(start_ns);
    let program = pair.datapath.program(entry).unwrap();
    let mut expected = packets(&pair.datapath.counters().unwrap());
    let mut acks: Vec<Vec<u8>> = Vec::new();
    for place in 0..PACKETS {
        if random.one_in(4) {
            let ns = random.pick(&[0, 1, 1_000_000, 50_000_000, 500_000_000]) * random.below(3) as u64;
            pair.advance(ns);
        }
        if random.one_in(10) {
            pair.tell(&mut random, &policy);
        }
        let frame = match acks.len() {
            0 => frame(&mut random, entry),
            known if random.one_in(12) => acks[random.below(known)].clone(),
            _ => frame(&mut random, entry),
        };
        if frame.len() < least_bytes(entry, &frame) {
            continue;
        }
        let (verdict, family) = pair.model.judge(&frame);
        let trial = program.run(&frame, 1).unwrap();
        let action = verdict.action(policy.monitored);
        let told = || format!("seed {seed}, packet {place}, {entry:?}: {verdict:?} {frame:02x?}");
        assert_eq!(trial.action, action, "{}", told());
        if action == Action::Answer {
            let reply = Reply::read(&trial.frame).unwrap_or_else(|fault| panic!("{fault} {}", told()));
            reply.check(&frame).unwrap_or_else(|fault| panic!("{fault}: {:02x?} {}", trial.frame, told()));
            pair.model.returns.insert(reply.returned());
            let mut ack = reply.ack();
            // The stack takes it in whatever wrapping.
            ack.option_words = random.pick(&[0, 0, 1, 10]);
            ack.extensions = (0..random.pick(&[0, 0, 1, 3])).map(|_| Extension::Destination).collect();
            acks.push(ack.bytes());
        }
        *expected.entry((verdict, family)).or_default() += 1;
        *met.entry((verdict, family)).or_default() += 1;
    }
    assert_eq!(packets(&pair.datapath.counters().unwrap()), expected, "seed {seed}, {entry:?}");
}

/// The budget of new sources is each CPU's own.
fn stay_on_one_cpu() {
    let mut one = CpuSet::new();
    one.set(0);
    sched_setaffinity(None, &one).unwrap();
}

fn whole_run(entry: Entry) {
    stay_on_one_cpu();
    let policy = budget(1, 1);
    let mut datapath = load_with_clock(&policy);
    let standings = datapath.standings().unwrap();
    datapath.set_clock(1).unwrap();
    let model = Model::new(entry, &policy, &listeners(&LISTENERS));
    let mut pair = Pair { datapath, standings, model };
    let mut met: HashMap<(Verdict, Family), u64> = HashMap::new();
    for seed in 0..BATCHES {
        batch(&mut pair, entry, seed, &mut met);
    }
    // Otherwise the generator, not the kernel half, would have passed.
    for verdict in Verdict::ALL {
        let xdp_alone = matches!(
            verdict,
            Verdict::CookieSent | Verdict::CookieAccepted | Verdict::Seed | Verdict::OverCeiling
        );
        let least = match verdict {
            // The two need another CPU, and another hook.
            Verdict::Contended => continue,
            _ if xdp_alone && entry == Entry::Tc => continue,
            _ => 100,
        };
        for family in [Family::Ipv4, Family::Ipv6] {
            let count = met.get(&(verdict, family)).copied().unwrap_or_default();
            assert!(count > least, "only {count} packets were {verdict:?} {family:?}: {met:?}");
        }
    }
}

#[test]
fn half_a_million_packets_meet_the_models_verdicts_at_xdp() {
    whole_run(Entry::Xdp);
}

#[test]
fn half_a_million_packets_meet_the_models_verdicts_at_tc() {
    whole_run(Entry::Tc);
}

/// What the clock says when no test moves it.
#[test]
fn the_clock_is_the_hosts() {
    let policy = Kernel {
        deny_listed: vec![
            Listed { network: "192.0.2.1/32".parse().unwrap(), until_ns: FOREVER - 1, watched: false },
            Listed {
                network: "192.0.2.2/32".parse().unwrap(),
                until_ns: sys::monotonic_ns(),
                watched: false,
            },
        ],
        ..budget(1, 9)
    };
    let mut datapath = crate::load(&policy);
    let place: SocketAddr = LISTENERS[0].parse().unwrap();
    for (source, verdict) in [("192.0.2.1", Verdict::Denied), ("192.0.2.2", Verdict::Pass)] {
        let frame = Packet::syn(source.parse().unwrap(), place.ip(), place.port()).bytes();
        let before = datapath.counters().unwrap().packets(verdict);
        datapath.program(Entry::Xdp).unwrap().run(&frame, 1).unwrap();
        assert_eq!(datapath.counters().unwrap().packets(verdict), before + 1, "{source}");
    }
}
