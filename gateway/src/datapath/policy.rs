//! The policy in the kernel: two slots and a selector.
//!
//! A new policy is written to the slot that is not in force, then the selector flips. Before that slot's
//! predecessor may be written again, every packet that still reads it must be done: `membarrier` waits
//! for them. So no packet is ever judged by half of one policy and half of another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map};
use gateway_common::limit::Budget;
use gateway_common::maps::{ALLOW, DENY, LISTENERS, MAX_LISTENERS, MAX_NETWORKS, POLICY, SELECTOR};
use gateway_common::policy::{HAS_ALLOW, HAS_DENY, Listener, MONITOR, Policy, Rule, SLOTS, Source};
use gateway_common::{Address, Family, addr};
use ipnet::IpNet;

use super::error::Error;
use super::{hosts, sys};
use crate::config::Kernel;

const TCP: u16 = 6;

/// Which slot is in force, and what it was made from.
pub struct Slots {
    in_force: u32,
    generation: u64,
    epoch: u32,
    config: Kernel,
    listeners: Vec<SocketAddr>,
    host: BTreeSet<IpAddr>,
}

impl Slots {
    /// Puts the first policy in force.
    pub fn start(bpf: &mut Ebpf, config: &Kernel, listeners: &[SocketAddr]) -> Result<Self, Error> {
        let host = hosts::addresses().map_err(Error::Addresses)?;
        let config = config.clone();
        let mut slots =
            Self { in_force: 1, generation: 0, epoch: 0, config, listeners: listeners.to_vec(), host };
        let (config, host) = (slots.config.clone(), slots.host.clone());
        slots.write(bpf, config, listeners, host)?;
        Ok(slots)
    }

    pub fn apply(&mut self, bpf: &mut Ebpf, config: &Kernel, listeners: &[SocketAddr]) -> Result<(), Error> {
        let host = hosts::addresses().map_err(Error::Addresses)?;
        self.write(bpf, config.clone(), listeners, host)
    }

    pub fn refresh(&mut self, bpf: &mut Ebpf) -> Result<bool, Error> {
        let host = hosts::addresses().map_err(Error::Addresses)?;
        let changed = host != self.host;
        if changed {
            self.write(bpf, self.config.clone(), &self.listeners.clone(), host)?;
        }
        Ok(changed)
    }

    fn write(
        &mut self,
        bpf: &mut Ebpf,
        config: Kernel,
        listeners: &[SocketAddr],
        host: BTreeSet<IpAddr>,
    ) -> Result<(), Error> {
        let slot = (self.in_force + 1) % SLOTS as u32;
        let places = hosts::expand(listeners, &host);
        let bounds = [
            ("addresses to listen on", places.len(), MAX_LISTENERS / SLOTS),
            ("networks in kernel.allow", config.allow.len(), MAX_NETWORKS / SLOTS),
            ("networks in kernel.deny", config.deny.len(), MAX_NETWORKS / SLOTS),
        ];
        for (what, count, most) in bounds {
            if count > most {
                return Err(Error::TooMany { what, count, most });
            }
        }
        write_listeners(bpf, slot, &places)?;
        write_networks(bpf, ALLOW, slot, &config.allow)?;
        write_networks(bpf, DENY, slot, &config.deny)?;
        let budget =
            |config: &Kernel| (config.connections_per_second, config.connection_burst, config.ipv6_prefix);
        let epoch = self.epoch.wrapping_add((budget(&config) != budget(&self.config)).into());
        let policy = policy(&config, self.generation + 1, epoch);
        array(bpf, POLICY)?.set(slot, policy, 0).map_err(Error::map(POLICY))?;
        array(bpf, SELECTOR)?.set(0, slot, 0).map_err(Error::map(SELECTOR))?;
        self.in_force = slot;
        self.generation = policy.generation;
        self.epoch = epoch;
        self.config = config;
        self.listeners = listeners.to_vec();
        self.host = host;
        if let Err(error) = sys::wait_for_readers() {
            // The new policy is in force all the same; only a reload within microseconds could meet one.
            tracing::warn!(%error, "membarrier failed: packets still under the old policy were not awaited");
        }
        Ok(())
    }
}

fn policy(config: &Kernel, generation: u64, epoch: u32) -> Policy {
    let flags = [
        (config.monitor, MONITOR),
        (!config.allow.is_empty(), HAS_ALLOW),
        (!config.deny.is_empty(), HAS_DENY),
    ];
    Policy {
        generation,
        budget: Budget::new(config.connections_per_second, config.connection_burst),
        ipv6_mask: addr::mask(config.ipv6_prefix),
        flags: flags.into_iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag),
        epoch,
    }
}

/// Makes the slot's listeners exactly `places`.
fn write_listeners(bpf: &mut Ebpf, slot: u32, places: &BTreeMap<SocketAddr, u32>) -> Result<(), Error> {
    let failed = Error::map(LISTENERS);
    let mut map = HashMap::<_, Listener, u32>::try_from(map_mut(bpf, LISTENERS)?).map_err(&failed)?;
    let old: Vec<Listener> = map
        .keys()
        .filter(|key| !matches!(key, Ok(key) if key.slot != slot))
        .collect::<Result<_, _>>()
        .map_err(&failed)?;
    for key in old {
        map.remove(&key).map_err(&failed)?;
    }
    for (place, index) in places {
        let key = Listener { slot, address: place.ip().into(), port: place.port(), protocol: TCP };
        map.insert(key, *index, 0).map_err(&failed)?;
    }
    Ok(())
}

/// Makes the slot's part of a list exactly `networks`.
fn write_networks(bpf: &mut Ebpf, name: &'static str, slot: u32, networks: &[IpNet]) -> Result<(), Error> {
    let failed = Error::map(name);
    let mut trie = LpmTrie::<_, Source, Rule>::try_from(map_mut(bpf, name)?).map_err(&failed)?;
    let ours = Family::ALL.map(|family| Source::new(slot, family, Address::from_words([0; 4])).scope);
    let mut old = Vec::new();
    for key in trie.keys() {
        let key = key.map_err(&failed)?;
        if ours.contains(&key.data().scope) {
            old.push(key);
        }
    }
    for key in old {
        trie.remove(&key).map_err(&failed)?;
    }
    for (index, network) in (0..).zip(networks) {
        trie.insert(&trie_key(slot, *network), Rule { index }, 0).map_err(&failed)?;
    }
    Ok(())
}

fn trie_key(slot: u32, network: IpNet) -> Key<Source> {
    let network = unmapped(network).trunc();
    let family = if network.addr().is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let bits = Source::prefix_bits(family, network.prefix_len());
    Key::new(bits, Source::new(slot, family, network.addr().into()))
}

/// `::ffff:10.0.0.0/104` is a way to write 10.0.0.0/8.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(mapped) = network else { return network };
    let address = mapped.addr().to_ipv4_mapped().filter(|_| mapped.prefix_len() >= 96);
    match address {
        Some(address) => IpNet::new(address.into(), mapped.prefix_len() - 96).expect("at most 128 - 96 bits"),
        None => network,
    }
}

fn array<'a, V: aya::Pod>(
    bpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<Array<&'a mut aya::maps::MapData, V>, Error> {
    Array::try_from(map_mut(bpf, name)?).map_err(Error::map(name))
}

pub fn map<'a>(bpf: &'a Ebpf, name: &'static str) -> Result<&'a Map, Error> {
    bpf.map(name).ok_or_else(|| absent(name))
}

fn map_mut<'a>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Map, Error> {
    bpf.map_mut(name).ok_or_else(|| absent(name))
}

fn absent(map: &'static str) -> Error {
    Error::Map { map, reason: "the object does not define it".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_becomes_a_key_of_its_own_family() {
        let rows = [
            ("10.1.2.3/8", "10.0.0.0", 0x100, 32 + 96 + 8),
            ("0.0.0.0/0", "0.0.0.0", 0x100, 32 + 96),
            ("::/0", "::", 0x101, 32),
            ("2001:db8::1/32", "2001:db8::", 0x101, 32 + 32),
            ("::ffff:10.0.0.0/104", "10.0.0.0", 0x100, 32 + 96 + 8),
        ];
        for (text, address, scope, bits) in rows {
            let key = trie_key(1, text.parse().unwrap());
            let expected = Source { scope, address: address.parse::<IpAddr>().unwrap().into() };
            assert_eq!((key.prefix_len(), key.data()), (bits, expected), "{text}");
        }
    }
}
