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
pub const PORTS: &str = "gw_ports";
pub const LISTENERS: &str = "gw_listeners";
pub const BLOCKS: &str = "gw_blocks";
pub const ALLOW: &str = "gw_allow";
pub const DENY: &str = "gw_deny";
pub const PENALTY: &str = "gw_penalty";
pub const MARKS: &str = "gw_marks";
pub const KNOWN: &str = "gw_known";
pub const BUCKET: &str = "gw_bucket";
pub const FLOOD: &str = "gw_flood";
pub const STATE: &str = "gw_state";
pub const CLOCK: &str = "gw_clock";
pub const COUNTERS: &str = "gw_verdicts";

/// Constant of the object: whether this kernel has the helpers for SYN cookies.
pub const WITH_COOKIES: &str = "WITH_COOKIES";
/// Constant of the object: whether time is what `gw_clock` says, as tests have it.
pub const WITH_CLOCK: &str = "WITH_CLOCK";

/// Listening addresses of both slots.
pub const MAX_LISTENERS: usize = 4_096;
/// Networks of both slots, in each of the two lists.
pub const MAX_NETWORKS: usize = 131_072;
/// Sources whose bucket is remembered; 29 MB.
pub const MAX_SOURCES: usize = 262_144;
/// Penalised sources; 8 MB.
pub const MAX_PENALTIES: usize = 65_536;
/// Known sources; 6 MB.
pub const MAX_KNOWN: usize = 65_536;

/// Place of the budget of new sources in `gw_flood`; the last seeds of the listeners follow.
pub const NEW_SOURCES: u32 = 0;
/// Listeners with a seed of their own; a power of two. Beyond that two share one.
pub const SEEDS: u32 = 64;
