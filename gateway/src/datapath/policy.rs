//! The policy in the kernel: two slots and a selector.
//!
//! A new policy is written to the slot that is not in force, then the selector flips. Before that slot's
//! predecessor may be written again, every packet that still reads it must be done: `membarrier` waits
//! for them. So no packet is ever judged by half of one policy and half of another.

use std::collections::{BTreeMap, BTreeSet, HashMap as Table};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map};
use gateway_common::limit::Budget;
use gateway_common::maps::{
    ALLOW, BLOCKS, DENY, LISTENERS, MAX_LISTENERS, MAX_NETWORKS, POLICY, PORTS, SELECTOR,
};
use gateway_common::policy::{
    HAS_ALLOW, HAS_CEILING, HAS_DENY, IPV4_HOSTS, Listener, MAY_SEND_COOKIES, Policy, Port, Rule, SLOTS,
    STRICT_FRAGMENTS, Source,
};
use gateway_common::{Family, addr};
use ipnet::IpNet;

use super::error::Error;
use super::{hosts, sys, tries};
use crate::config::Kernel;

const TCP: u16 = 6;
/// Of an interface that tells none: Ethernet's.
const DEFAULT_MTU: u32 = 1500;
/// Headers before a segment's bytes, of IPv4 and IPv6.
const HEADER_BYTES: [u32; 2] = [40, 60];
/// What every host takes (RFC 9293, 3.7.1).
const LEAST_SEGMENT_BYTES: u32 = 536;

/// A policy that is written and not in force, until another one is.
#[must_use]
pub struct Staged {
    slot: u32,
    policy: Policy,
    config: Kernel,
    listeners: Vec<SocketAddr>,
    host: BTreeSet<IpAddr>,
}

/// What a policy puts into maps.
struct Entries {
    places: BTreeMap<SocketAddr, u32>,
    allow: Vec<(IpNet, Rule)>,
    deny: Vec<(IpNet, Rule)>,
}

/// Which slot is in force, and what it was made from.
pub struct Slots {
    in_force: u32,
    generation: u64,
    epoch: u32,
    config: Kernel,
    listeners: Vec<SocketAddr>,
    host: BTreeSet<IpAddr>,
    /// Of the hash by which sources are shed.
    shed_key: [u64; 2],
    segment_bytes: [u16; 2],
    /// Of each slot, the ports that may be open.
    open_ports: [BTreeSet<u16>; SLOTS],
}

impl Slots {
    /// Puts the first policy in force.
    pub fn start(bpf: &mut Ebpf, config: &Kernel, listeners: &[SocketAddr]) -> Result<Self, Error> {
        let (mut slots, first) = Self::begin(bpf, config, listeners)?;
        slots.put_in_force(bpf, first)?;
        Ok(slots)
    }

    /// Writes the first policy; in maps that another gateway has used before, or uses, the next one.
    pub fn begin(bpf: &mut Ebpf, config: &Kernel, listeners: &[SocketAddr]) -> Result<(Self, Staged), Error> {
        let host = hosts::addresses().map_err(Error::Addresses)?;
        let config = config.clone();
        let random = RandomState::new();
        let mut slots = Self {
            in_force: 1,
            generation: 0,
            epoch: 0,
            segment_bytes: [0; 2],
            config,
            listeners: listeners.to_vec(),
            host,
            shed_key: [random.hash_one(0), random.hash_one(1)],
            open_ports: Default::default(),
        };
        slots.go_on(bpf)?;
        let (config, host) = (slots.config.clone(), slots.host.clone());
        let first = slots.write(bpf, config, listeners, host)?;
        Ok((slots, first))
    }

    /// Takes up what is in force in the maps, if anything is. Buckets go on where the budget is the same.
    fn go_on(&mut self, bpf: &mut Ebpf) -> Result<(), Error> {
        let (selected, before) = selected(bpf)?;
        if before.generation != 0 {
            let next = policy(&self.config, &[]);
            let of = |policy: &Policy| (policy.budget, policy.ceiling, policy.source_mask);
            let same = of(&before) == of(&next);
            self.in_force = selected;
            self.open_ports = [0, 1].map(|_| (0..=u16::MAX).collect());
            self.generation = before.generation;
            self.epoch = before.epoch.wrapping_add((!same).into());
        }
        Ok(())
    }

    pub fn apply(&mut self, bpf: &mut Ebpf, config: &Kernel, listeners: &[SocketAddr]) -> Result<(), Error> {
        let staged = self.stage(bpf, config, listeners)?;
        self.put_in_force(bpf, staged)
    }

    /// Whether the maps have room for it.
    pub fn fits(config: &Kernel, listeners: &[SocketAddr]) -> Result<(), Error> {
        let host = hosts::addresses().map_err(Error::Addresses)?;
        Entries::of(config, listeners, &host).map(drop)
    }

    /// Writes a policy that nobody goes by yet. On an error nothing is lost: the slot was nobody's.
    pub fn stage(
        &mut self,
        bpf: &mut Ebpf,
        config: &Kernel,
        listeners: &[SocketAddr],
    ) -> Result<Staged, Error> {
        let host = hosts::addresses().map_err(Error::Addresses)?;
        self.write(bpf, config.clone(), listeners, host)
    }

    /// Goes on after a gateway that has written to these maps as well: any port may be open in the slot that is not in
    /// force, and its policy may be in force in the place of this one's.
    pub fn reclaim(&mut self, bpf: &mut Ebpf) -> Result<(), Error> {
        self.open_ports[other(self.in_force) as usize] = (0..=u16::MAX).collect();
        if selected(bpf)?.1.generation == self.generation {
            return Ok(());
        }
        self.go_on(bpf)?;
        self.apply(bpf, &self.config.clone(), &self.listeners.clone())
    }

    /// What the policy in force was made from.
    pub fn config(&self) -> &Kernel {
        &self.config
    }

    /// The slot in force.
    pub fn slot(&self) -> u32 {
        self.in_force
    }

    pub fn refresh(&mut self, bpf: &mut Ebpf) -> Result<bool, Error> {
        let host = hosts::addresses().map_err(Error::Addresses)?;
        let changed = host != self.host || segment_bytes(&self.config.interfaces) != self.segment_bytes;
        if changed {
            let staged = self.write(bpf, self.config.clone(), &self.listeners.clone(), host)?;
            self.put_in_force(bpf, staged)?;
        }
        Ok(changed)
    }

    pub fn policy(&self, bpf: &Ebpf) -> Result<Policy, Error> {
        let slots = Array::<_, Policy>::try_from(map(bpf, POLICY)?).map_err(Error::map(POLICY))?;
        slots.get(&self.in_force, 0).map_err(Error::map(POLICY))
    }

    fn write(
        &mut self,
        bpf: &mut Ebpf,
        config: Kernel,
        listeners: &[SocketAddr],
        host: BTreeSet<IpAddr>,
    ) -> Result<Staged, Error> {
        let slot = other(self.in_force);
        let Entries { places, allow, deny } = Entries::of(&config, listeners, &host)?;
        let ipv4_hosts = ipv4_hosts(&places);
        write_listeners(bpf, slot, &places)?;
        write_ports(bpf, slot, &places, &ipv4_hosts, &mut self.open_ports[slot as usize])?;
        write_blocks(bpf, slot, &allow, &deny)?;
        write_networks(bpf, ALLOW, slot, &allow)?;
        write_networks(bpf, DENY, slot, &deny)?;
        let budget = |config: &Kernel| {
            let Kernel { connections_per_second, connection_burst, ipv6_prefix, ceiling, .. } = config;
            (*connections_per_second, *connection_burst, *ipv6_prefix, *ceiling)
        };
        let epoch = self.epoch.wrapping_add((budget(&config) != budget(&self.config)).into());
        let lists = [(!allow.is_empty(), HAS_ALLOW), (!deny.is_empty(), HAS_DENY)];
        let policy = Policy {
            generation: self.generation + 1,
            epoch,
            shed_key: self.shed_key,
            segment_bytes: segment_bytes(&config.interfaces),
            ipv4_hosts: in_memory(&ipv4_hosts),
            ..policy(&config, &lists)
        };
        array(bpf, POLICY)?.set(slot, policy, 0).map_err(Error::map(POLICY))?;
        Ok(Staged { slot, policy, config, listeners: listeners.to_vec(), host })
    }

    /// One store, and every packet from then on is judged by it.
    pub fn put_in_force(&mut self, bpf: &mut Ebpf, staged: Staged) -> Result<(), Error> {
        let Staged { slot, policy, config, listeners, host } = staged;
        array(bpf, SELECTOR)?.set(0, slot, 0).map_err(Error::map(SELECTOR))?;
        self.in_force = slot;
        self.generation = policy.generation;
        self.epoch = policy.epoch;
        self.segment_bytes = policy.segment_bytes;
        self.config = config;
        self.listeners = listeners;
        self.host = host;
        if let Err(error) = sys::wait_for_readers() {
            // The new policy is in force all the same; only a reload within microseconds could meet one.
            tracing::warn!(%error, "membarrier failed: packets still under the old policy were not awaited");
        }
        Ok(())
    }
}

impl Entries {
    fn of(config: &Kernel, listeners: &[SocketAddr], host: &BTreeSet<IpAddr>) -> Result<Self, Error> {
        let places = hosts::expand(listeners, host);
        let allow = tries::rules(&config.allow, &config.allow_listed, &config.trusted);
        let deny = tries::rules(&config.deny, &config.deny_listed, &[]);
        let bounds = [
            // Each address once more, for fragments that show no port.
            ("addresses to listen on", places.len(), MAX_LISTENERS / SLOTS / 2),
            ("networks in kernel.allow and trusted_proxies", allow.len(), MAX_NETWORKS / SLOTS),
            ("networks in kernel.deny", deny.len(), MAX_NETWORKS / SLOTS),
        ];
        match bounds.into_iter().find(|(_, count, most)| count > most) {
            Some((what, count, most)) => Err(Error::TooMany { what, count, most }),
            None => Ok(Self { places, allow, deny }),
        }
    }
}

/// The slot in force, and its policy.
fn selected(bpf: &mut Ebpf) -> Result<(u32, Policy), Error> {
    let selected = array(bpf, SELECTOR)?.get(&0, 0).map_err(Error::map(SELECTOR))?;
    let policy = array(bpf, POLICY)?.get(&selected, 0).map_err(Error::map(POLICY))?;
    Ok((selected, policy))
}

fn other(slot: u32) -> u32 {
    (slot + 1) % SLOTS as u32
}

/// What the configuration says; the rest is the slots' own.
fn policy(config: &Kernel, lists: &[(bool, u32)]) -> Policy {
    let flags = [
        (config.strict_fragments, STRICT_FRAGMENTS),
        (config.ceiling.is_some(), HAS_CEILING),
        (config.cookies, MAY_SEND_COOKIES),
    ];
    let set = lists.iter().chain(&flags).filter(|(set, _)| *set);
    let ceiling = config.ceiling.map_or((1, 1), |ceiling| (ceiling.per_second, ceiling.burst));
    let new_sources = config.new_sources_per_second;
    Policy {
        generation: 0,
        budget: Budget::new(config.connections_per_second, config.connection_burst),
        new_sources: Budget::new(new_sources, new_sources),
        ceiling: Budget::new(ceiling.0, ceiling.1),
        shed_key: [0; 2],
        source_mask: addr::mask(config.ipv6_prefix),
        client_mask: addr::mask(config.client_ipv6_prefix),
        flags: set.fold(0, |flags, (_, flag)| flags | flag),
        monitored: config.monitored,
        epoch: 0,
        segment_bytes: [0; 2],
        ipv4_hosts: [0; IPV4_HOSTS],
    }
}

/// The IPv4 addresses that listen, if the policy has room for all of them.
fn ipv4_hosts(places: &BTreeMap<SocketAddr, u32>) -> BTreeSet<Ipv4Addr> {
    let hosts: BTreeSet<Ipv4Addr> = places.keys().filter_map(ipv4).collect();
    if hosts.len() <= IPV4_HOSTS { hosts } else { BTreeSet::new() }
}

fn ipv4(place: &SocketAddr) -> Option<Ipv4Addr> {
    match place.ip().to_canonical() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn in_memory(hosts: &BTreeSet<Ipv4Addr>) -> [u32; IPV4_HOSTS] {
    let mut words = [0; IPV4_HOSTS];
    for (word, host) in words.iter_mut().zip(hosts) {
        *word = u32::from_ne_bytes(host.octets());
    }
    words
}

/// Makes the slot's ports exactly those of `places`. `open`: those that may be open in it. `hosts`: the IPv4
/// addresses that the policy itself holds.
fn write_ports(
    bpf: &mut Ebpf,
    slot: u32,
    places: &BTreeMap<SocketAddr, u32>,
    hosts: &BTreeSet<Ipv4Addr>,
    open: &mut BTreeSet<u16>,
) -> Result<(), Error> {
    let failed = Error::map(PORTS);
    let mut ports = array::<Port>(bpf, PORTS)?;
    let mut at: BTreeMap<u16, (u32, BTreeSet<Ipv4Addr>)> = BTreeMap::new();
    for (place, listener) in places {
        at.entry(place.port()).or_insert((*listener, BTreeSet::new())).1.extend(ipv4(place));
    }
    let closed = open.iter().filter(|port| !at.contains_key(port));
    for port in closed {
        ports.set(Port::place(slot, *port), Port(0), 0).map_err(&failed)?;
    }
    for (port, (listener, at)) in &at {
        // Of several listeners at a port only the map knows which is whose.
        let one = places.iter().all(|(place, other)| place.port() != *port || other == listener);
        let port = (Port::place(slot, *port), Port::new(*listener, one && !hosts.is_empty() && at == hosts));
        ports.set(port.0, port.1, 0).map_err(&failed)?;
    }
    *open = at.into_keys().collect();
    Ok(())
}

/// What fits into a packet on all of these interfaces.
fn segment_bytes(interfaces: &[String]) -> [u16; 2] {
    let mtu = interfaces.iter().filter_map(|name| sys::mtu(name).ok()).min().unwrap_or(DEFAULT_MTU);
    HEADER_BYTES.map(|headers| {
        let bytes = mtu.saturating_sub(headers).max(LEAST_SEGMENT_BYTES);
        u16::try_from(bytes).unwrap_or(u16::MAX)
    })
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
        for port in [place.port(), 0] {
            let key = Listener { slot, address: place.ip().into(), port, protocol: TCP };
            map.insert(key, *index, 0).map_err(&failed)?;
        }
    }
    Ok(())
}

/// Makes the slot's blocks exactly those of the lists' networks.
fn write_blocks(
    bpf: &mut Ebpf,
    slot: u32,
    allow: &[(IpNet, Rule)],
    deny: &[(IpNet, Rule)],
) -> Result<(), Error> {
    array(bpf, BLOCKS)?.set(slot, tries::blocks(allow, deny), 0).map_err(Error::map(BLOCKS))
}

/// Makes the slot's part of a list exactly `rules`; those that the other slot has too keep their hits.
fn write_networks(
    bpf: &mut Ebpf,
    name: &'static str,
    slot: u32,
    rules: &[(IpNet, Rule)],
) -> Result<(), Error> {
    let failed = Error::map(name);
    let mut trie = LpmTrie::<_, Source, Rule>::try_from(map_mut(bpf, name)?).map_err(&failed)?;
    let (mut old, mut hits) = (Vec::new(), Table::new());
    for entry in trie.iter() {
        let (key, rule) = entry.map_err(&failed)?;
        if u32::from(key.data().slot) == slot {
            old.push(key);
        } else {
            hits.insert((key.prefix_len(), key.data().address()), rule.hits);
        }
    }
    for key in old {
        trie.remove(&key).map_err(&failed)?;
    }
    for (network, rule) in rules {
        let key = trie_key(slot, *network);
        let hits = hits.get(&(key.prefix_len(), key.data().address())).copied().unwrap_or_default();
        trie.insert(&key, Rule { hits, ..*rule }, 0).map_err(&failed)?;
    }
    Ok(())
}

fn trie_key(slot: u32, network: IpNet) -> Key<Source> {
    let family = if network.addr().is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let bits = Source::bits(network.prefix_len().into());
    Key::new(bits, Source::new(slot, family, network.addr().into()))
}

pub fn array<'a, V: aya::Pod>(
    bpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<Array<&'a mut aya::maps::MapData, V>, Error> {
    Array::try_from(map_mut(bpf, name)?).map_err(Error::map(name))
}

pub fn map<'a>(bpf: &'a Ebpf, name: &'static str) -> Result<&'a Map, Error> {
    bpf.map(name).ok_or_else(|| absent(name))
}

pub fn map_mut<'a>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Map, Error> {
    bpf.map_mut(name).ok_or_else(|| absent(name))
}

fn absent(map: &'static str) -> Error {
    Error::OtherBuild { map }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_becomes_a_key_of_its_own_family() {
        let rows = [
            ("10.0.0.0/8", "10.0.0.0", Family::Ipv4, 32 + 8),
            ("0.0.0.0/0", "0.0.0.0", Family::Ipv4, 32),
            ("::/0", "::", Family::Ipv6, 32),
            ("2001:db8::/32", "2001:db8::", Family::Ipv6, 32 + 32),
        ];
        for (text, address, family, bits) in rows {
            let key = trie_key(1, text.parse().unwrap());
            let address = address.parse::<IpAddr>().unwrap().into();
            assert_eq!((key.prefix_len(), key.data()), (bits, Source::new(1, family, address)), "{text}");
            assert_eq!(key.data().address(), address, "{text}");
        }
    }
}
