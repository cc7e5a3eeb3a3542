//! A worker's connections, what ended them, and how it keeps up.

use std::sync::atomic::AtomicU64;

use super::Cell;

/// One worker's counts of its own.
#[derive(Default)]
#[repr(align(128))]
pub struct Worker {
    pub accepted: Cell,
    pub accept_errors: Cell,
    /// Connections closed since their PROXY header was missing, malformed or not to be believed.
    pub proxy_headers_refused: Cell,
    pub open: Cell,
    /// Requests under way, whatever their routes.
    pub under_way: Cell,
    pub parked: Cell,
    /// Tasks of its runtime.
    pub tasks: Cell,
    /// Connections closed at once, since there are too many in all, or of their source.
    pub refused_in_all: Cell,
    pub refused_of_source: Cell,
    pub ended: Ended,
    /// Connections that were asked to go and have not gone yet.
    pub leaving: Cell,
    /// Other workers ask this one to let connections go until there are less than this; 0: they do not.
    pub room_wanted: AtomicU64,
    /// Microseconds by which its clock's last tick came late, and when that was, since the registry was made.
    pub late_us: Cell,
    pub ticked_us: Cell,
    /// Lines of the access log for which there was no room.
    pub log_dropped: Cell,
}

/// Connections that were ended before their clients wanted to, by the bound they met.
#[derive(Default)]
pub struct Ended {
    /// Made room for another.
    pub evicted: Cell,
    /// A head was not there in time.
    pub head: Cell,
    /// Nothing was asked for too long.
    pub idle: Cell,
    /// A body stood still, or moved too slowly.
    pub stalled: Cell,
    pub slow: Cell,
    /// Had as many requests as one may.
    pub requests: Cell,
}

impl Ended {
    /// With the names they have in metrics.
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("evicted", self.evicted.get()),
            ("head", self.head.get()),
            ("idle", self.idle.get()),
            ("stalled", self.stalled.get()),
            ("slow", self.slow.get()),
            ("requests", self.requests.get()),
        ]
    }
}
