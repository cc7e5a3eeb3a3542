//! The embedded object: checked for, and loaded into the kernel with its maps.
//!
//! Says what the host lacks before aya does, since the kernel answers everything with EPERM or EINVAL.

use std::fs;

use aya::{Ebpf, EbpfLoader};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::error::{Error, chain, errno};
use super::sys;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gateway-ebpf"));

/// Capabilities that loading and attaching takes, by their bit.
const CAPABILITIES: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
/// Holds all of the above by itself, except `CAP_NET_ADMIN`.
const CAP_SYS_ADMIN: u32 = 21;

/// Creates the maps; programs are loaded when they are first attached or tried.
pub fn load() -> Result<Ebpf, Error> {
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
    EbpfLoader::new().load(OBJECT).map_err(|error| match errno(&error) {
        Some(libc::EPERM) => Error::no_permission(),
        _ => Error::Refused { program: "gateway-ebpf", reason: chain(&error) },
    })
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
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert!(missing_capabilities(u64::MAX).is_empty());
        assert!(missing_capabilities(1 << 12 | 1 << 38 | 1 << 39).is_empty());
        assert!(missing_capabilities(1 << 12 | 1 << CAP_SYS_ADMIN).is_empty());
        assert_eq!(missing_capabilities(1 << CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_capabilities(0), ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
    }
}
