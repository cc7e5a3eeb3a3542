//! An API gateway: this half judges requests, the eBPF half judges packets.
//!
//! ARCHITECTURE.md tells how the modules hang together; dependencies point one way.

pub mod admin;
pub mod config;
pub mod datapath;
pub mod downstream;
pub mod kernel;
pub mod metrics;
pub mod mute;
pub mod path;
pub mod proxy;
pub mod reload;
pub mod route;
pub mod server;
pub mod snapshot;
pub mod timer;
pub mod upstream;
pub mod worker;
