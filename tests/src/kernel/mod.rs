//! What a test of the kernel half is made of: packets, network namespaces, a policy to start from, and
//! programs that are somebody else's.

pub mod bpf;
pub mod held;
pub mod netns;
pub mod packet;
pub mod policy;
pub mod turning;
