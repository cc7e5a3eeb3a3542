//! An API gateway: this half judges requests, the eBPF half judges packets.
//!
//! ARCHITECTURE.md tells how the modules hang together; dependencies point one way.

pub mod config;
pub mod metrics;
pub mod path;
pub mod proxy;
pub mod route;
pub mod snapshot;
pub mod timer;
pub mod upstream;
