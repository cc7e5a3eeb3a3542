//! The kernel half: entry points for XDP and TC over one judgement, and the one exit where every
//! verdict is counted and turned into an action.
//!
//! It judges packets by their headers and never reads a payload. Whatever it does not understand, and
//! whatever fails inside it, passes. Built by `cargo xtask build-ebpf`, embedded in the gateway.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![feature(asm_experimental_arch)]
#![allow(internal_features)]

mod admit;
mod cookie;
mod entry;
mod maps;
mod packet;

use gateway_common::Action;

use crate::admit::Court;
use crate::packet::Frame;

/// Judges one frame and counts the verdict.
#[inline(always)]
fn judge_frame<F: Frame>(frame: &F) -> Action {
    // No policy can only mean a program attached before userspace wrote one.
    let Some((slot, policy)) = maps::policy() else { return Action::Pass };
    // Before the frame is changed into an answer.
    let bytes = frame.length();
    let (verdict, family) = packet::judge(frame, &Court { frame, slot, policy });
    maps::count(verdict, family, bytes);
    #[cfg(feature = "log")]
    frame.log(verdict);
    verdict.action(policy.monitored)
}
