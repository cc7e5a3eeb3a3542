//! Whom the kernel half lets pass, whatever userspace has found out: found by bisection, since under a flood each
//! refusal asks, and the lists may be long.
//!
//! Pure. `Sources` asks; a reload and each change of the lists makes a new one.

use std::net::{IpAddr, Ipv6Addr};

use gateway_common::policy::{FOREVER, Rule, TRUSTED};
use ipnet::IpNet;

use super::tries;
use crate::config::Kernel;

/// A policy in force, and whom it exempts.
pub struct InForce {
    pub config: Kernel,
    exempt: Exempt,
}

impl InForce {
    pub fn of(config: Kernel) -> Self {
        let exempt = Exempt::of(tries::rules(&config.allow, &config.allow_listed, &config.trusted));
        Self { config, exempt }
    }

    /// Whether all packets of `peer`, an address in its canonical form, pass at that time.
    pub fn exempts(&self, peer: IpAddr, now_ns: u64) -> bool {
        now_ns < self.exempt.until_ns(peer)
    }
}

/// From each of these addresses on, up to the next: exempt before that time, in monotonic nanoseconds.
struct Exempt(Vec<(IpAddr, u64)>);

impl Exempt {
    /// `rules`: a network before those inside it, each with the life of the longest-lived of all around it.
    fn of(rules: Vec<(IpNet, Rule)>) -> Self {
        let mut exempt = Self(Vec::new());
        let mut around: Vec<(IpNet, u64)> = Vec::new();
        for (network, rule) in rules {
            exempt.leave(&mut around, |outer| outer.contains(&network));
            let until_ns = if rule.flags & TRUSTED != 0 { FOREVER } else { rule.until_ns };
            exempt.push(network.network(), until_ns);
            around.push((network, until_ns));
        }
        exempt.leave(&mut around, |_| false);
        exempt
    }

    /// Ends the innermost networks, up to one that goes on.
    fn leave(&mut self, around: &mut Vec<(IpNet, u64)>, goes_on: impl Fn(&IpNet) -> bool) {
        while let Some((inner, _)) = around.pop_if(|(network, _)| !goes_on(network)) {
            let outer_ns = around.last().map_or(0, |(_, until_ns)| *until_ns);
            if let Some(next) = after(inner.broadcast()) {
                self.push(next, outer_ns);
            }
        }
    }

    fn push(&mut self, start: IpAddr, until_ns: u64) {
        self.0.pop_if(|(last, _)| *last == start);
        self.0.push((start, until_ns));
    }

    fn until_ns(&self, address: IpAddr) -> u64 {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        after.checked_sub(1).map_or(0, |place| self.0[place].1)
    }
}

/// The next address, in their order: all of IPv4 come before those of IPv6.
fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => Some(match v4.to_bits().checked_add(1) {
            Some(next) => IpAddr::V4(next.into()),
            None => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|next| IpAddr::V6(next.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Listed, parse};

    const NOW_NS: u64 = 1_000;

    fn kernel() -> Kernel {
        parse(r#"{ "routes": [{ "path": "/", "backend": "http://a" }] }"#, "test").unwrap().kernel
    }

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn whoever_a_list_holds_for_as_long_as_it_says() {
        let listed =
            |text: &str, until_ns, watched| Listed { network: text.parse().unwrap(), until_ns, watched };
        let in_force = InForce::of(Kernel {
            allow: networks(&["10.1.0.0/16", "255.255.255.0/24", "ffff::/16"]),
            trusted: networks(&["10.0.0.7/32", "2001:db8::/32"]),
            allow_listed: vec![
                listed("10.0.0.0/8", NOW_NS + 1, false),
                listed("11.0.0.0/8", NOW_NS, false),
                listed("12.0.0.0/8", NOW_NS + 1, true),
                listed("10.1.2.0/24", 7, false),
            ],
            ..kernel()
        });
        for (address, now, later) in [
            ("9.255.255.255", false, false),
            ("10.0.0.0", true, false),
            ("10.0.0.6", true, false),
            ("10.0.0.7", true, true),
            ("10.0.0.8", true, false),
            ("10.1.2.3", true, true),
            ("10.1.255.255", true, true),
            ("10.2.0.0", true, false),
            ("10.255.255.255", true, false),
            ("11.0.0.1", false, false),
            ("12.0.0.1", false, false),
            ("255.255.255.255", true, true),
            ("::", false, false),
            ("2001:db8::1", true, true),
            ("2001:db9::", false, false),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true, true),
        ] {
            let exempts = |now_ns| in_force.exempts(address.parse().unwrap(), now_ns);
            assert_eq!((exempts(NOW_NS), exempts(NOW_NS + 1)), (now, later), "{address}");
        }
    }

    /// Beside a search of all lists: any three networks among the last four addresses, each in any list.
    #[test]
    fn it_is_what_a_search_finds() {
        const KINDS: [&str; 5] = ["allowed", "trusted", "listed", "ended", "on trial"];
        const FIRST: u32 = u32::MAX - 3;
        let networks = [(0, 30), (0, 31), (2, 31), (0, 32), (1, 32), (2, 32), (3, 32)];
        let network =
            |(host, length): (u32, u8)| IpNet::new(IpAddr::V4((FIRST + host).into()), length).unwrap();
        let all: Vec<_> = networks.into_iter().flat_map(|of| KINDS.map(|kind| (network(of), kind))).collect();
        let kernel = kernel();
        for one in 0..all.len() {
            for two in 0..=one {
                for three in 0..=two {
                    let entries = [all[one], all[two], all[three]];
                    let mut config = kernel.clone();
                    for (network, kind) in entries {
                        let listed = |until_ns| Listed { network, until_ns, watched: kind == "on trial" };
                        match kind {
                            "allowed" => config.allow.push(network),
                            "trusted" => config.trusted.push(network),
                            "ended" => config.allow_listed.push(listed(NOW_NS)),
                            _ => config.allow_listed.push(listed(NOW_NS + 1)),
                        }
                    }
                    let in_force = InForce::of(config);
                    for address in (FIRST - 1..=u32::MAX).map(|bits| IpAddr::V4(bits.into())) {
                        let holds = |(network, kind): &(IpNet, &str)| {
                            ["allowed", "trusted", "listed"].contains(kind) && network.contains(&address)
                        };
                        let found = entries.iter().any(holds);
                        assert_eq!(in_force.exempts(address, NOW_NS), found, "{address}, {entries:?}");
                    }
                }
            }
        }
    }
}
