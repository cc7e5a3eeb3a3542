//! An API gateway: this half judges requests, the eBPF half judges packets.
//!
//! ARCHITECTURE.md tells how the modules hang together; dependencies point one way.

pub mod access;
pub mod admin;
pub mod cache;
pub mod cli;
pub mod config;
pub mod control;
pub mod datapath;
pub mod downstream;
pub mod guard;
pub mod handover;
pub mod kernel;
pub mod limit;
pub mod lines;
pub mod lists;
pub mod logging;
pub mod metrics;
pub mod overload;
pub mod path;
pub mod pipe;
pub mod privileges;
pub mod proxy;
pub mod reload;
pub mod route;
pub mod server;
pub mod snapshot;
pub mod socket;
pub mod text;
pub mod timer;
pub mod upkeep;
pub mod upstream;
pub mod worker;
