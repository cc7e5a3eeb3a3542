//! The allow and deny lists as the kernel half's tries take them: one rule for each network.
//!
//! `policy` writes what this makes. A trie finds only the longest network that holds a source, so an entry
//! that has ended would hide a shorter one that has not: each rule has the life of the longest-lived of all
//! that cover it. Pure.

use std::net::Ipv4Addr;

use gateway_common::policy::{Blocks, FOREVER, HAS_ALLOW, HAS_DENY, Rule, TRUSTED};
use ipnet::IpNet;

use crate::config::{Listed, unmapped};

/// A block of IPv4 addresses has this many bits.
const BLOCK_BITS: u32 = 16;

/// Networks and their rules. `listed` and `trusted` come behind `always` in the numbering of the rules.
pub fn rules(always: &[IpNet], listed: &[Listed], trusted: &[IpNet]) -> Vec<(IpNet, Rule)> {
    let rule =
        |until_ns, watched_until_ns, flags| Rule { index: 0, flags, until_ns, watched_until_ns, hits: 0 };
    let always = always.iter().map(|network| (*network, rule(FOREVER, 0, 0)));
    let listed = listed.iter().map(|listed| match listed.watched {
        false => (listed.network, rule(listed.until_ns, 0, 0)),
        true => (listed.network, rule(0, listed.until_ns, 0)),
    });
    let trusted = trusted.iter().map(|network| (*network, rule(0, 0, TRUSTED)));
    let mut rules: Vec<(IpNet, Rule)> = always
        .chain(listed)
        .chain(trusted)
        .zip(0..)
        .map(|((network, rule), index)| (unmapped(network).trunc(), Rule { index, ..rule }))
        .collect();
    // A network before those inside it; of equals the first one's index stays.
    rules.sort_by_key(|(network, _)| (network.addr(), network.prefix_len()));
    let mut around: Vec<(IpNet, Rule)> = Vec::new();
    let mut merged: Vec<(IpNet, Rule)> = Vec::with_capacity(rules.len());
    for (network, rule) in rules {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&network)) {
            around.pop();
        }
        let rule = match around.last() {
            Some((_, outer)) => longest(rule, outer),
            None => rule,
        };
        match merged.last_mut() {
            Some((last, of_last)) if *last == network => {
                *of_last = Rule { index: of_last.index.min(rule.index), ..longest(rule, of_last) };
            }
            Some(_) | None => merged.push((network, rule)),
        }
        around.push((network, rule));
    }
    merged
}

/// The blocks of IPv4 addresses that these lists have networks in.
pub fn blocks(allow: &[(IpNet, Rule)], deny: &[(IpNet, Rule)]) -> Blocks {
    let mut blocks = Blocks::NONE;
    for (list, networks) in [(HAS_ALLOW, allow), (HAS_DENY, deny)] {
        for (network, _) in networks {
            let IpNet::V4(network) = network else { continue };
            let block = |address: Ipv4Addr| address.to_bits() >> BLOCK_BITS;
            for block in block(network.network())..=block(network.broadcast()) {
                blocks.mark((block << BLOCK_BITS).to_be(), list);
            }
        }
    }
    blocks
}

fn longest(rule: Rule, outer: &Rule) -> Rule {
    Rule {
        until_ns: rule.until_ns.max(outer.until_ns),
        watched_until_ns: rule.watched_until_ns.max(outer.watched_until_ns),
        flags: rule.flags | outer.flags,
        ..rule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn listed(text: &str, until_ns: u64, watched: bool) -> Listed {
        Listed { network: network(text), until_ns, watched }
    }

    /// Network, index, until, watched until, flags.
    type Row<'a> = (&'a str, u32, u64, u64, u32);

    #[track_caller]
    fn check(always: &[&str], timed: &[Listed], trusted: &[&str], want: &[Row<'_>]) {
        let parse = |list: &[&str]| list.iter().map(|text| network(text)).collect::<Vec<_>>();
        let found: Vec<(String, Rule)> = rules(&parse(always), timed, &parse(trusted))
            .into_iter()
            .map(|(network, rule)| (network.to_string(), rule))
            .collect();
        let found: Vec<Row<'_>> = found
            .iter()
            .map(|(network, rule)| {
                (network.as_str(), rule.index, rule.until_ns, rule.watched_until_ns, rule.flags)
            })
            .collect();
        assert_eq!(found, want);
    }

    #[test]
    fn an_entry_lives_as_long_as_those_around_it() {
        check(
            &["10.0.0.0/8"],
            &[
                listed("10.1.0.0/16", 5, false),
                listed("11.0.0.0/8", 7, false),
                listed("11.1.0.0/16", 9, false),
            ],
            &[],
            &[
                ("10.0.0.0/8", 0, FOREVER, 0, 0),
                ("10.1.0.0/16", 1, FOREVER, 0, 0),
                ("11.0.0.0/8", 2, 7, 0, 0),
                ("11.1.0.0/16", 3, 9, 0, 0),
            ],
        );
    }

    #[test]
    fn trial_and_trust_are_inherited_too() {
        check(
            &["10.1.1.0/24"],
            &[listed("10.0.0.0/8", 9, true), listed("10.1.0.0/16", 5, false), listed("10.2.0.0/16", 3, true)],
            &["10.1.0.0/16", "192.0.2.1/32"],
            &[
                ("10.0.0.0/8", 1, 0, 9, 0),
                ("10.1.0.0/16", 2, 5, 9, TRUSTED),
                ("10.1.1.0/24", 0, FOREVER, 9, TRUSTED),
                ("10.2.0.0/16", 3, 0, 9, 0),
                ("192.0.2.1/32", 5, 0, 0, TRUSTED),
            ],
        );
    }

    #[test]
    fn the_same_network_twice_is_one_rule() {
        check(
            &["10.1.2.3/8", "::ffff:10.0.0.0/104", "::/0"],
            &[listed("10.0.0.0/8", 5, false)],
            &[],
            &[("10.0.0.0/8", 0, FOREVER, 0, 0), ("::/0", 2, FOREVER, 0, 0)],
        );
    }

    #[test]
    fn a_block_is_marked_by_each_network_in_it_and_around_it() {
        let rules =
            |list: &[&str]| rules(&list.iter().map(|text| network(text)).collect::<Vec<_>>(), &[], &[]);
        let blocks = blocks(
            &rules(&["10.1.2.3/32", "10.4.0.0/14", "2001:db8::/32"]),
            &rules(&["10.1.128.0/17", "128.0.0.0/1", "255.255.0.0/16", "::ffff:11.0.0.0/112"]),
        );
        for (address, lists) in [
            ("10.1.2.4", HAS_ALLOW | HAS_DENY),
            ("10.0.255.255", 0),
            ("10.2.0.0", 0),
            ("10.3.255.255", 0),
            ("10.4.0.0", HAS_ALLOW),
            ("10.7.255.255", HAS_ALLOW),
            ("10.8.0.0", 0),
            ("11.0.9.9", HAS_DENY),
            ("11.1.0.0", 0),
            ("32.1.13.184", 0),
            ("127.255.255.255", 0),
            ("128.0.0.0", HAS_DENY),
            ("255.255.255.255", HAS_DENY),
        ] {
            let word = u32::from_ne_bytes(address.parse::<Ipv4Addr>().unwrap().octets());
            assert_eq!(blocks.lists(word), lists, "{address}");
        }
    }

    /// Against looking through the whole list for each address.
    #[test]
    fn the_longest_network_answers_for_all_that_hold_a_source() {
        let mut state = 7_u64;
        let mut random = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        for _ in 0..200 {
            let entries: Vec<Listed> = (0..random(30))
                .map(|_| {
                    let address = std::net::Ipv4Addr::from_bits((random(4) << 30 | random(16) << 24) as u32);
                    let network = IpNet::new(address.into(), random(12) as u8).unwrap();
                    Listed { network, until_ns: 1 + random(9), watched: random(3) == 0 }
                })
                .collect();
            let merged = rules(&[], &entries, &[]);
            for source in (0..64_u32).map(|n| std::net::IpAddr::from((n << 26).to_be_bytes())) {
                let until = |watched| {
                    let holding = entries.iter().filter(|entry| entry.watched == watched);
                    let ends = holding.filter(|entry| entry.network.contains(&source));
                    ends.map(|entry| entry.until_ns).max().unwrap_or_default()
                };
                let found = merged.iter().filter(|(network, _)| network.contains(&source));
                let found = found.max_by_key(|(network, _)| network.prefix_len());
                let found = found.map_or((0, 0), |(_, rule)| (rule.until_ns, rule.watched_until_ns));
                assert_eq!(found, (until(false), until(true)), "{source} in {entries:?}");
            }
        }
    }
}
