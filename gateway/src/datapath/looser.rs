//! The looser of two policies, field by field: what is in force while a reload goes from one to the other.
//!
//! Between the kernel half's change and userspace's a source may be judged by either configuration, so it
//! meets neither's refusals alone: whoever passes under one of them passes. Pure.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;

use crate::config::{Ceiling, Kernel, Listed};

/// A policy that refuses nobody whom `before` or `next` would let pass.
pub fn looser(before: &Kernel, next: &Kernel) -> Kernel {
    Kernel {
        // Neither changes without a restart.
        interfaces: next.interfaces.clone(),
        mode: next.mode,
        persist: next.persist.clone(),
        connections_per_second: before.connections_per_second.max(next.connections_per_second),
        connection_burst: before.connection_burst.max(next.connection_burst),
        // The longer, the fewer share a budget.
        ipv6_prefix: before.ipv6_prefix.max(next.ipv6_prefix),
        allow: union(&before.allow, &next.allow),
        deny: common(&before.deny, &next.deny),
        allow_listed: before.allow_listed.iter().chain(&next.allow_listed).copied().collect(),
        deny_listed: common_listed(&before.deny_listed, &next.deny_listed),
        monitored: before.monitored | next.monitored,
        new_sources_per_second: before.new_sources_per_second.max(next.new_sources_per_second),
        // An answer with a cookie refuses nobody; without one a known source beyond its budget is dropped.
        cookies: before.cookies || next.cookies,
        strict_fragments: before.strict_fragments && next.strict_fragments,
        ceiling: before.ceiling.zip(next.ceiling).map(|(one, other)| Ceiling {
            per_second: one.per_second.max(other.per_second),
            burst: one.burst.max(other.burst),
        }),
        escalation: before.escalation.min(next.escalation),
        shedding: before.shedding && next.shedding,
        trusted: union(&before.trusted, &next.trusted),
        client_ipv6_prefix: before.client_ipv6_prefix.max(next.client_ipv6_prefix),
    }
}

/// What either list covers.
fn union(one: &[IpNet], other: &[IpNet]) -> Vec<IpNet> {
    let has: HashSet<&IpNet> = one.iter().collect();
    one.iter().chain(other.iter().filter(|network| !has.contains(network))).copied().collect()
}

/// What both lists cover: the networks of each that the other covers whole. Two networks either lie one in
/// the other or have nothing in common.
fn common(one: &[IpNet], other: &[IpNet]) -> Vec<IpNet> {
    let (in_one, in_other): (HashSet<IpNet>, HashSet<IpNet>) =
        (one.iter().map(IpNet::trunc).collect(), other.iter().map(IpNet::trunc).collect());
    let of_one = one.iter().filter(|network| is_covered(network, &in_other));
    let of_other = other.iter().filter(|network| !in_one.contains(&network.trunc()));
    of_one.chain(of_other.filter(|network| is_covered(network, &in_one))).copied().collect()
}

/// Entries of both lists, each to the earlier end.
fn common_listed(one: &[Listed], other: &[Listed]) -> Vec<Listed> {
    let until: HashMap<_, _> =
        other.iter().map(|listed| ((listed.network, listed.watched), listed.until_ns)).collect();
    let common = one.iter().filter_map(|listed| {
        let until_ns = *until.get(&(listed.network, listed.watched))?;
        Some(Listed { until_ns: listed.until_ns.min(until_ns), ..*listed })
    });
    common.collect()
}

fn is_covered(network: &IpNet, by: &HashSet<IpNet>) -> bool {
    (0..=network.prefix_len()).any(|length| {
        let around = IpNet::new(network.addr(), length).expect("no longer than the network's own prefix");
        by.contains(&around.trunc())
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::config::{Escalation, KernelMode};

    fn policy(per_second: u32, allow: Vec<IpNet>, deny: Vec<IpNet>) -> Kernel {
        Kernel {
            interfaces: Vec::new(),
            mode: KernelMode::Auto,
            connections_per_second: per_second,
            connection_burst: 1_000 - per_second,
            ipv6_prefix: 64,
            allow,
            deny,
            persist: None,
            allow_listed: Vec::new(),
            deny_listed: Vec::new(),
            monitored: 0,
            new_sources_per_second: per_second,
            cookies: true,
            strict_fragments: per_second == 100,
            ceiling: Some(Ceiling { per_second, burst: per_second }),
            escalation: if per_second == 100 { Escalation::Drop } else { Escalation::Slow },
            shedding: per_second == 100,
            trusted: Vec::new(),
            client_ipv6_prefix: 64,
        }
    }

    fn networks(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn field_by_field() {
        let before =
            Kernel { ipv6_prefix: 48, ..policy(100, networks(&["10.0.0.0/8"]), networks(&["::/0"])) };
        let next =
            Kernel { monitored: 6, ..policy(300, networks(&["11.0.0.0/8"]), networks(&["2001:db8::/32"])) };
        for (one, other) in [(&before, &next), (&next, &before)] {
            let looser = looser(one, other);
            assert_eq!((looser.connections_per_second, looser.connection_burst), (300, 900));
            assert_eq!((looser.ipv6_prefix, looser.monitored, looser.new_sources_per_second), (64, 6, 300));
            assert_eq!((looser.strict_fragments, looser.shedding), (false, false));
            assert_eq!(looser.ceiling, Some(Ceiling { per_second: 300, burst: 300 }));
            assert_eq!(looser.escalation, Escalation::Slow);
            let mut allow = looser.allow;
            allow.sort();
            assert_eq!(allow, networks(&["10.0.0.0/8", "11.0.0.0/8"]));
            assert_eq!(looser.deny, networks(&["2001:db8::/32"]));
        }
        assert_eq!(looser(&before, &before), before);
    }

    #[test]
    fn cookies_are_sent_where_either_sends_them() {
        let with = |cookies| Kernel { cookies, ..policy(100, Vec::new(), Vec::new()) };
        for (before, next, looser_has) in
            [(false, false, false), (false, true, true), (true, false, true), (true, true, true)]
        {
            assert_eq!(looser(&with(before), &with(next)).cookies, looser_has, "{before}, {next}");
        }
    }

    #[test]
    fn entries_of_both_stay_to_the_earlier_end() {
        let listed =
            |text: &str, until_ns, watched| Listed { network: text.parse().unwrap(), until_ns, watched };
        let of = |deny_listed| Kernel { deny_listed, ..policy(1, Vec::new(), Vec::new()) };
        let before = of(vec![
            listed("10.0.0.1/32", 5, false),
            listed("10.0.0.2/32", 5, false),
            listed("10.0.0.3/32", 5, true),
        ]);
        let next = of(vec![
            listed("10.0.0.2/32", 4, false),
            listed("10.0.0.1/32", 9, false),
            listed("10.0.0.3/32", 5, false),
        ]);
        let common = [listed("10.0.0.1/32", 5, false), listed("10.0.0.2/32", 4, false)];
        assert_eq!(looser(&before, &next).deny_listed, common);
    }

    /// Against membership itself, over every address of a small world.
    #[test]
    fn it_allows_what_either_allows_and_denies_what_both_deny() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut below = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        for round in 0..500 {
            let mut list = || -> Vec<IpNet> {
                (0..below(6))
                    .map(|_| {
                        let address = IpAddr::from([10, 0, 0, below(32) as u8]);
                        IpNet::new(address, 26 + below(7) as u8).unwrap().trunc()
                    })
                    .collect()
            };
            let before = policy(1, list(), list());
            let next = policy(1, list(), list());
            let looser = looser(&before, &next);
            for last in 0..=64 {
                let source = IpAddr::from([10, 0, 0, last]);
                let in_list = |list: &[IpNet]| list.iter().any(|network| network.contains(&source));
                assert_eq!(
                    (in_list(&looser.allow), in_list(&looser.deny)),
                    (
                        in_list(&before.allow) || in_list(&next.allow),
                        in_list(&before.deny) && in_list(&next.deny)
                    ),
                    "round {round}, {source}: {before:?}, {next:?}"
                );
            }
        }
    }
}
