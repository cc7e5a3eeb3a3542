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

use gateway_common::policy::Policy;
use gateway_common::{Action, Family, Verdict};

use crate::packet::{Frame, Segment};

/// Judges one frame and counts the verdict.
#[inline(always)]
fn judge<F: Frame>(frame: &F) -> Action {
    // No policy can only mean a program attached before userspace wrote one.
    let Some((slot, policy)) = maps::policy() else { return Action::Pass };
    let bytes = frame.length();
    let attention = maps::attention();
    let (verdict, family) = match packet::parse(frame, admit::looks_closer::<F>(policy, attention)) {
        Ok(segment) => {
            let verdict = admit::admit(frame, slot, policy, attention, &segment);
            let answers = F::ANSWERS && verdict == Verdict::CookieSent && !policy.monitors(verdict);
            let done = if answers { answer(frame, policy, &segment) } else { verdict };
            (done, segment.family)
        }
        Err(unjudged) => (unjudged.verdict, unjudged.family),
    };
    maps::count(verdict, family, bytes);
    #[cfg(feature = "log")]
    frame.log(verdict);
    verdict.action(policy.monitored)
}

/// Turns a request into its answer; one that cannot be answered is beyond its budget.
#[inline(always)]
fn answer(frame: &impl Frame, policy: &Policy, request: &Segment) -> Verdict {
    let [ipv4, ipv6] = policy.segment_bytes;
    let segment_bytes = if request.family == Family::Ipv6 { ipv6 } else { ipv4 };
    if frame.answer(request, segment_bytes) { Verdict::CookieSent } else { Verdict::OverBudget }
}
