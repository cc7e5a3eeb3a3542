//! The embedded object: checked for, and loaded into the kernel with its maps.
//!
//! Says what the host lacks before aya does, since the kernel answers everything with EPERM or EINVAL.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader};
use gateway_common::maps::{WITH_CLOCK, WITH_COOKIES};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::error::{Error, chain, errno};
use super::pins::Pins;
use super::sys;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gateway-ebpf"));

/// Capabilities that loading and attaching takes, by their bit.
const CAPABILITIES: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
/// Holds all of the above by itself, except `CAP_NET_ADMIN`.
const CAP_SYS_ADMIN: u32 = 21;

/// What the object is told when it is loaded.
pub struct Options {
    /// Time is what `gw_clock` says.
    pub with_clock: bool,
    /// As [`has_cookies`] says.
    pub with_cookies: bool,
}

impl Options {
    /// Of this host. To be made while there are privileges: without them it would seem to have no cookies.
    pub fn new(with_clock: bool) -> Self {
        Self { with_clock, with_cookies: has_cookies() }
    }
}

/// Whether the kernel can make and check SYN cookies for XDP: from 6.0 on, where it is built to.
pub fn has_cookies() -> bool {
    const HELPERS: [BpfHelper; 4] = [
        BpfHelper::BPF_FUNC_tcp_raw_gen_syncookie_ipv4,
        BpfHelper::BPF_FUNC_tcp_raw_gen_syncookie_ipv6,
        BpfHelper::BPF_FUNC_tcp_raw_check_syncookie_ipv4,
        BpfHelper::BPF_FUNC_tcp_raw_check_syncookie_ipv6,
    ];
    HELPERS.into_iter().all(|helper| is_helper_supported(ProgramType::Xdp, helper).unwrap_or(false))
}

/// Opens what an earlier gateway has pinned in `folder`; `held`: its lock, where that gateway hands it over.
pub fn pins(folder: &Path, held: Option<OwnedFd>) -> Result<Pins, Error> {
    check_host()?;
    Pins::open(folder, OBJECT, held)
}

/// Creates the maps, or takes those that are pinned; programs are loaded when they are first attached or
/// tried.
pub fn load(options: &Options, pins: Option<&Pins>) -> Result<Ebpf, Error> {
    check_host()?;
    load_this(OBJECT, options, pins)
}

fn load_this(object: &[u8], options: &Options, pins: Option<&Pins>) -> Result<Ebpf, Error> {
    let (cookies, clock) = (u8::from(options.with_cookies), u8::from(options.with_clock));
    let mut loader = EbpfLoader::new();
    loader.override_global(WITH_COOKIES, &cookies, true).override_global(WITH_CLOCK, &clock, true);
    for (name, path) in pins.iter().flat_map(|pins| pins.maps()) {
        loader.map_pin_path(name, path);
    }
    loader.load(object).map_err(|error| match errno(&error) {
        Some(libc::EPERM) => Error::no_permission(),
        _ => Error::Refused { program: "gateway-ebpf", reason: chain(&error) },
    })
}

/// Says what is missing, before the kernel answers with nothing but a number.
fn check_host() -> Result<(), Error> {
    if OBJECT.is_empty() {
        return Err(Error::NotBuiltIn);
    }
    sys::probe().map_err(Error::NoBpf)?;
    let missing = missing_capabilities(effective_capabilities());
    if !missing.is_empty() {
        return Err(Error::Capability { missing: missing.join(", ") });
    }
    // Kernels before 5.11 count map memory against this limit; later ones ignore it.
    let unlimited = Rlimit { current: None, maximum: None };
    if let Err(error) = setrlimit(Resource::Memlock, unlimited) {
        tracing::debug!(%error, "the locked-memory limit stays");
    }
    Ok(())
}

/// Whether there is anything to load.
pub fn is_built_in() -> bool {
    !OBJECT.is_empty()
}

/// The capabilities that this process lacks for it.
pub fn lacking() -> Vec<&'static str> {
    missing_capabilities(effective_capabilities())
}

fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    let held = |bit: u32| effective >> bit & 1 == 1;
    let covered = |bit: u32| held(bit) || (bit > 31 && held(CAP_SYS_ADMIN));
    CAPABILITIES.iter().filter(|(bit, _)| !covered(*bit)).map(|(_, name)| *name).collect()
}

/// The effective set of this process; all of them where /proc cannot say, and the kernel will.
fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::policy::Slots;
    use super::*;
    use crate::config;

    /// The object with two names of one length changed for each other, as it is where they mean something else.
    fn with_swapped(first: &str, second: &str) -> Vec<u8> {
        assert_eq!(first.len(), second.len());
        let mut object = OBJECT.to_vec();
        for at in 0..=object.len() - first.len() {
            let place = &mut object[at..at + first.len()];
            if place == first.as_bytes() {
                place.copy_from_slice(second.as_bytes());
            } else if place == second.as_bytes() {
                place.copy_from_slice(first.as_bytes());
            }
        }
        object
    }

    #[test]
    fn the_object_of_another_build_is_named_as_that() {
        let options = Options::new(false);
        let config =
            config::parse(r#"{ "routes": [{ "path": "/", "backend": "http://a" }] }"#, "test").unwrap();
        for (first, second, map) in [
            // No such map; one of another kind; one with values of another size.
            ("gw_ports", "gw_gates", "gw_ports"),
            ("gw_bucket", "gw_policy", "gw_policy"),
            ("gw_ports", "gw_state", "gw_ports"),
        ] {
            let mut bpf = load_this(&with_swapped(first, second), &options, None).unwrap();
            let error = Slots::start(&mut bpf, &config.kernel, &["192.0.2.1:80".parse().unwrap()]);
            assert_eq!(
                error.err().map(|error| error.to_string()),
                Some(format!(
                    "the kernel half in this binary is of another build, by its map {map}: run \
                     `cargo xtask build-ebpf`, then build the gateway again"
                )),
            );
        }
        let mut bpf = load_this(OBJECT, &options, None).unwrap();
        Slots::start(&mut bpf, &config.kernel, &[]).unwrap();
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(missing_capabilities(u64::MAX).is_empty());
        assert!(missing_capabilities(1 << 12 | 1 << 38 | 1 << 39).is_empty());
        assert!(missing_capabilities(1 << 12 | 1 << CAP_SYS_ADMIN).is_empty());
        assert_eq!(missing_capabilities(1 << CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_capabilities(0), ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
    }
}
