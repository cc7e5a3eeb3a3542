//! Where requests go: clusters of endpoints, how they are doing, and each worker's pools of connections.
//!
//! The proxy has a [`Cluster`] choose an endpoint, takes a [`Lease`] on it, sends one request over it and
//! reads one response. Nothing here knows of routes, clients or failure statuses.

mod arena;
pub mod balancer;
pub mod breaker;
pub mod budget;
mod chunked;
pub mod cluster;
pub mod dice;
pub mod dns;
mod endpoint;
pub mod health;
pub mod hop;
mod outgoing;
pub mod outlier;
mod pool;
pub mod probe;
pub mod resolve;
mod response;
mod slots;
mod stream;
mod window;

use std::io;

use bytes::Bytes;
use http_body::Frame;

pub use arena::Arena;
pub use cluster::Cluster;
pub use endpoint::Endpoint;
pub use outgoing::Outgoing;
pub use pool::{ConnectError, Lease, Pool, Unanswered};

/// What an upstream said that is not HTTP, or not safe to pass on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

/// A piece of a response's body; `None`: its end.
pub type Piece<E> = Option<Result<Frame<Bytes>, Error<E>>>;

/// Why an exchange over a connection failed. `E`: what the request's body fails with.
#[derive(Debug, thiserror::Error)]
pub enum Error<E> {
    /// The client's part: the request's body was wrong or not sent to its end.
    #[error("the request's body failed: {0}")]
    Request(E),
    #[error("the upstream closed the connection before a response")]
    Closed,
    #[error("the upstream's response is cut short")]
    Cut,
    #[error("the upstream's response is malformed: {0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Io(io::Error),
}

impl<E> From<io::Error> for Error<E> {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
