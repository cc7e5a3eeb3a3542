//! The kernel half: entry points for XDP and TC over one judgement, and the one exit where every
//! verdict is counted and turned into an action.
//!
//! It judges packets by their headers and never reads a payload. Whatever it does not understand, and
//! whatever fails inside it, passes. Built by `cargo xtask build-ebpf`, embedded in the gateway.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod admit;
mod entry;
mod maps;
mod packet;

use gateway_common::Action;
use gateway_common::policy::MONITOR;

use crate::packet::Frame;

/// Judges one frame and counts the verdict.
#[inline(always)]
fn judge(frame: &impl Frame) -> Action {
    // No policy can only mean a program attached before userspace wrote one.
    let Some((slot, policy)) = maps::policy() else { return Action::Pass };
    let parsed = packet::parse(frame);
    let (verdict, family) = match &parsed {
        Ok(request) => (admit::admit(slot, policy, request), request.family),
        Err(unjudged) => (unjudged.verdict, unjudged.family),
    };
    maps::count(verdict, family, frame.length());
    #[cfg(feature = "log")]
    frame.log(verdict);
    verdict.action(policy.has(MONITOR))
}
