//! Where requests come from: listeners, and the connections accepted on them.
//!
//! Only this module touches a client's socket. What a request means is the proxy's business.

mod connection;
mod framing;
mod io;
pub mod listener;
mod warm;

pub use connection::serve;
pub use warm::Warm;
