//! A kernel policy to start from: nothing attached, nobody listed, the defaults of the documentation.

use gateway::config::{Escalation, Kernel, KernelMode};
use ipnet::IpNet;

pub fn open() -> Kernel {
    Kernel {
        interfaces: Vec::new(),
        mode: KernelMode::Auto,
        connections_per_second: 500,
        connection_burst: 2_000,
        ipv6_prefix: 64,
        allow: Vec::new(),
        deny: Vec::new(),
        allow_listed: Vec::new(),
        deny_listed: Vec::new(),
        monitored: 0,
        new_sources_per_second: 1_000_000,
        cookies: true,
        strict_fragments: true,
        ceiling: None,
        escalation: Escalation::Slow,
        shedding: true,
        trusted: Vec::new(),
        client_ipv6_prefix: 64,
        persist: None,
    }
}

/// `open` with a budget of its own.
pub fn budget(per_second: u32, burst: u32) -> Kernel {
    Kernel { connections_per_second: per_second, connection_burst: burst, ..open() }
}

pub fn networks(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|text| text.parse().expect("a network of the test's own")).collect()
}
