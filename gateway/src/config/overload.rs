//! The keys of the sections `overload` and `connections`, and a route's priority.
//!
//! Part of `file`, which calls it.

use std::time::Duration;

use super::document::{Node, Object};
use super::file::ANY_COUNT;
use super::value;

const MAX_CONNECTIONS: u64 = 10_000_000;
const MAX_QUEUE: u64 = 100_000;
/// From less than the gateway takes by itself to more than any host has.
const MEMORY_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 50;
const MAX_BODY_RATE: u64 = 1 << 30;

pub(super) const PRIORITIES: [(&str, Priority); 3] =
    [("low", Priority::Low), ("normal", Priority::Normal), ("high", Priority::High)];

/// Which routes give way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    Low,
    Normal,
    High,
}

/// When requests are refused so that others are served.
#[derive(Clone, Debug, PartialEq)]
pub struct Overload {
    pub enabled: bool,
    /// Requests of a route that may always wait for its upstream.
    pub min_concurrency: u32,
    /// Requests of a route that may queue for a place before its upstream, and for how long.
    pub queue: u32,
    pub queue_timeout: Duration,
    /// How late a worker may come to what is there for it, for a second.
    pub max_delay: Duration,
    /// Normalised prefixes of paths that are never refused.
    pub exempt_paths: Vec<String>,
    /// Bytes the process may take; `None`: as its cgroup or the host allows.
    pub max_memory_bytes: Option<u64>,
}

/// What a client may do with its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Of all clients; `None`: as the limit on open files allows.
    pub max: Option<u32>,
    /// Of one address.
    pub max_per_source: u32,
    /// Requests on one connection.
    pub max_requests: Option<u32>,
    /// Bytes a second that a client must send or take of a body; 0: any.
    pub min_body_rate: u32,
}

pub(super) fn section(keys: &mut Object<'_>) -> Overload {
    Overload {
        enabled: keys.or("enabled", true, Node::boolean),
        min_concurrency: keys.or("min_concurrency", 64, |node| node.integer(ANY_COUNT)),
        queue: keys.or("queue", 100, |node| node.integer(0..=MAX_QUEUE)),
        queue_timeout: keys.or("queue_timeout", Duration::from_millis(100), Node::duration),
        max_delay: keys.or("max_delay", Duration::from_millis(50), Node::duration),
        exempt_paths: keys.or_empty("exempt_paths", |node| {
            let paths = node.list("a list such as [\"/healthz\"]")?;
            Some(node.distinct(&paths, |node| node.string("a path such as \"/healthz\"", value::route_path)))
        }),
        max_memory_bytes: keys.optional("max_memory_bytes", |node| node.integer(MEMORY_BYTES)),
    }
}

pub(super) fn connections(keys: &mut Object<'_>) -> Connections {
    Connections {
        max: keys.optional("max", |node| node.integer(1..=MAX_CONNECTIONS)),
        max_per_source: keys.or("max_per_source", 1_000, |node| node.integer(ANY_COUNT)),
        max_requests: keys.optional("max_requests", |node| node.integer(ANY_COUNT)),
        min_body_rate: keys.or("min_body_rate", 240, |node| node.integer(0..=MAX_BODY_RATE)),
    }
}

impl Overload {
    /// Whether a normalised path is never refused.
    pub fn exempts(&self, path: &str) -> bool {
        self.exempt_paths.iter().any(|prefix| {
            let rest = path.strip_prefix(prefix.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}
