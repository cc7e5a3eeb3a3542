//! The kernel half in a real kernel: packets in, verdicts out; then real sockets across namespaces.
//!
//! They need root, and an object from `cargo xtask build-ebpf`; without either they fail and say so.

// clippy.toml allows it in test functions only; here every function is a test's.
#![allow(clippy::unwrap_used)]

mod abuse;
mod account;
mod arming;
mod bucket;
mod control;
mod cookies;
mod differential;
mod doctor;
mod failed_upgrade;
mod flood;
mod footprint;
mod full;
mod headers;
mod interfaces;
mod introductions;
mod marks;
mod memory;
mod metrics;
mod model;
mod monitor;
mod persist;
mod pressure;
mod privileges;
mod process;
mod prompt;
mod pushing;
mod reload;
mod reload_faults;
mod reply;
mod stalls;
mod traffic;
mod upgrade;
mod verdicts;

use std::collections::HashMap;
use std::net::SocketAddr;

use gateway::config::Kernel;
use gateway::datapath::{Counters, Datapath, Entry};
use gateway_common::{Family, Verdict};

/// The listeners of tests that need no sockets.
const LISTENERS: [&str; 2] = ["198.18.0.1:80", "[2001:db8::1]:80"];

fn load(policy: &Kernel) -> Datapath {
    Datapath::load(policy, &listeners(&LISTENERS)).unwrap_or_else(|error| panic!("{error}"))
}

fn load_with_clock(policy: &Kernel) -> Datapath {
    Datapath::load_with_clock(policy, &listeners(&LISTENERS)).unwrap_or_else(|error| panic!("{error}"))
}

fn listeners(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Packets by verdict and family.
fn packets(counters: &Counters) -> HashMap<(Verdict, Family), u64> {
    counters.iter().map(|(verdict, family, count)| ((verdict, family), count.packets)).collect()
}

/// The least that the kernel's test run takes of a frame: an Ethernet header, and at TC a whole IP header
/// behind it where the type says so.
fn least_bytes(entry: Entry, frame: &[u8]) -> usize {
    match (entry, frame[12], frame[13]) {
        (Entry::Xdp, _, _) => 14,
        (Entry::Tc, 0x08, 0x00) => 14 + 20,
        (Entry::Tc, 0x86, 0xdd) => 14 + 40,
        (Entry::Tc, _, _) => 15,
    }
}
