//! Names of the entry points, names and sizes of the maps. gateway-ebpf's `entry` and `maps` define them.
//!
//! The kernel cuts a name after 15 bytes; `gw_` keeps `bpftool map dump name` from finding another's.

/// XDP, packets in one piece.
pub const PROGRAM_XDP: &str = "gw_xdp";
/// XDP, packets in one or several pieces.
pub const PROGRAM_XDP_FRAGS: &str = "gw_xdp_frags";
/// TC ingress.
pub const PROGRAM_TC: &str = "gw_tc";

pub const SELECTOR: &str = "gw_selector";
pub const POLICY: &str = "gw_policy";
pub const LISTENERS: &str = "gw_listeners";
pub const ALLOW: &str = "gw_allow";
pub const DENY: &str = "gw_deny";
pub const BUCKET: &str = "gw_bucket";
pub const COUNTERS: &str = "gw_verdicts";

/// Listening addresses of both slots.
pub const MAX_LISTENERS: usize = 4_096;
/// Networks of both slots, in each of the two lists.
pub const MAX_NETWORKS: usize = 131_072;
/// Sources whose bucket is remembered; 23 MB.
pub const MAX_SOURCES: usize = 262_144;
