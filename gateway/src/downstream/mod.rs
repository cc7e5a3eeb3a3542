//! Where requests come from: listeners, and the connections accepted on them.
//!
//! Only this module touches a client's socket. What a request means is the proxy's business.

mod admission;
mod connection;
mod crowd;
mod framing;
mod head;
mod io;
pub mod listener;
mod of_source;
mod plain;
mod proxy_protocol;
mod ranks;
mod warm;

pub use connection::{DRAIN_GRACE, Origin, serve};
pub use crowd::{Affordable, Crowd};
pub use warm::Warm;
