//! Names of the entry points, names and sizes of the maps. gateway-ebpf's `entry` and `maps` define them.

/// XDP, packets in one piece.
pub const PROGRAM_XDP: &str = "gateway_xdp";
/// XDP, packets in one or several pieces.
pub const PROGRAM_XDP_FRAGS: &str = "gateway_frags";
/// TC ingress.
pub const PROGRAM_TC: &str = "gateway_tc";

pub const SELECTOR: &str = "SELECTOR";
pub const POLICY: &str = "POLICY";
pub const LISTENERS: &str = "LISTENERS";
pub const ALLOW: &str = "ALLOW";
pub const DENY: &str = "DENY";
pub const BUCKET: &str = "BUCKET";
pub const COUNTERS: &str = "COUNTERS";

/// Listening addresses of both slots.
pub const MAX_LISTENERS: usize = 4_096;
/// Networks of both slots, in each of the two lists.
pub const MAX_NETWORKS: usize = 131_072;
/// Sources whose bucket is remembered; 23 MB.
pub const MAX_SOURCES: usize = 262_144;
