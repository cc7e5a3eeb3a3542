//! Where requests go: endpoints, and each worker's pool of connections to them.
//!
//! The proxy checks out a [`Lease`] on a stream, sends one request over it and reads one response.
//! Nothing here knows of routes, clients or failure statuses.

mod endpoint;
mod interim;
mod pool;
mod wire;

pub use endpoint::Endpoint;
pub use pool::{ConnectError, Lease, Pool, SendError};
