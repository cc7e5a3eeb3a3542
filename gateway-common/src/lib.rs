//! The contract of both halves: every type that crosses a BPF map, the verdicts, and the arithmetic
//! of the bucket and of shedding. The kernel half compiles it for BPF, the userspace half for the host.
//!
//! It holds no pointers into packets, no map handles and no I/O.

#![no_std]

pub mod addr;
pub mod counters;
pub mod limit;
pub mod maps;
#[cfg(feature = "user")]
mod pod;
pub mod policy;
pub mod pressure;
pub mod standing;
pub mod verdict;

pub use addr::{Address, Family};
pub use counters::Count;
pub use verdict::{Action, Verdict};
