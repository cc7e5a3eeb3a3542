//! The admin API: what a running gateway tells of itself and lets be changed, as HTTP over a Unix socket that only its
//! owner may open.
//!
//! `router` is the table of what there is; `serve` finds out who asks, and has a file for each thing asked for; `client`
//! is the other end, which the verbs of `cli` use. A gateway that is to follow this one asks at the same socket, in a
//! way of its own. Times are seconds of the Unix clock.

mod access;
mod client;
mod config;
mod endpoints;
pub mod explain;
pub mod figures;
mod kernel;
mod lists;
mod openapi;
mod problem;
mod process;
mod profile;
mod purge;
pub mod router;
mod serve;
mod socket;
mod sources;
pub mod status;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) use client::converse;
pub use client::{AskError, Request, ask, fetch};
pub use config::Effective;
pub use endpoints::{Drained, Endpoint, Endpoints};
pub use explain::Explanation;
pub use kernel::KernelHalf;
pub use lists::{Added, Done, Entries, Listed};
pub use process::{Level, Reloaded};
pub use profile::Seconds;
pub use purge::Purged;
pub use serve::{Control, Places};
pub use socket::{BindError, Socket};
pub use sources::{LoudSource, PushingSource, SuspectSource, TopSources};
pub use status::Status;

/// The line of a gateway that is to follow this one; `handover` has what comes then.
pub const HAND_OVER: &str = "hand_over";
/// How long either end waits for what the other has at hand.
const PATIENCE: Duration = Duration::from_secs(10);

/// Seconds of the Unix clock.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A time of the monotonic clock, of which it is `now_ns`, in seconds of the Unix clock.
fn on_the_clock(ns: u64, now_ns: u64, unix_now: u64) -> u64 {
    const SECOND_NS: u64 = 1_000_000_000;
    match ns.checked_sub(now_ns) {
        Some(ahead) => unix_now.saturating_add(ahead.div_ceil(SECOND_NS)),
        None => unix_now.saturating_sub((now_ns - ns) / SECOND_NS),
    }
}
