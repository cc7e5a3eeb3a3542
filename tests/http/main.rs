//! HTTP through a running gateway: what issue and semantics promise, one file per promise.

mod bad_input;
mod bodies;
mod connections;
mod errors;
mod headers;
mod limits;
mod metrics;
mod mutations;
mod paths;
mod quick_start;
mod reload;
mod routing;
mod shutdown;
mod start;
mod upstreams;
