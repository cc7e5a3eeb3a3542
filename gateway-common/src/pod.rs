//! The promise to aya that these types are plain bytes.

#![allow(unsafe_code)]

use aya::Pod;

use crate::addr::Address;
use crate::counters::Count;
use crate::policy::{Blocks, Bucket, Holder, Listener, Policy, Port, Rule, Source};
use crate::standing::{Known, Penalty};

// SAFETY: one array of bytes, so neither padding nor an invalid value.
unsafe impl Pod for Address {}
// SAFETY: one integer.
unsafe impl Pod for Port {}
// SAFETY: one array of integers.
unsafe impl Pod for Blocks {}
// SAFETY: repr(C), two words.
unsafe impl Pod for Count {}
// SAFETY: repr(C), three words.
unsafe impl Pod for Bucket {}
// SAFETY: repr(C), integers and bytes; `policy` asserts that their sizes add up to the whole.
unsafe impl Pod for Listener {}
// SAFETY: as `Listener`.
unsafe impl Pod for Holder {}
// SAFETY: as `Listener`.
unsafe impl Pod for Policy {}
// SAFETY: as `Listener`.
unsafe impl Pod for Rule {}
// SAFETY: as `Listener`.
unsafe impl Pod for Source {}
// SAFETY: repr(C), integers; `standing` asserts that their sizes add up to the whole.
unsafe impl Pod for Penalty {}
// SAFETY: as `Penalty`.
unsafe impl Pod for Known {}
