//! The bench: one load generator, one origin, and the gateway side by side with its peers.
//!
//! `main.rs` runs it for `cargo xtask bench`; tests use the generator and the origin as they are.
//! It measures only what it started itself, on loopback.

pub mod flood;
pub mod instructions;
pub mod load;
pub mod machine;
pub mod metric;
pub mod origin;
pub mod overload;
pub mod poll;
pub mod report;
pub mod scenario;
pub mod side_by_side;
pub mod system;
pub mod usage;
