//! The hooks: one entry point each, and how a frame's bytes are read there.
//!
//! All pointer code of the kernel half is here and in `maps`. `judge_frame` does the rest. The names have a
//! prefix because `xdp` alone is a section's name already, and because `bpftool prog` shows them.

#![allow(unsafe_code)]

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use gateway_common::Action;

use crate::packet::{Answer, Frame, Segment};
use crate::{cookie, judge_frame};

/// TC's "I have no opinion": programs after this one still run.
const TC_NEXT: i32 = -1;
const TC_DROP: i32 = 2;

/// XDP on drivers and frames that keep a packet in one piece.
#[xdp]
fn gw_xdp(context: XdpContext) -> u32 {
    xdp_action(&context)
}

/// The same where a packet may lie in several pieces: MTUs beyond a page, from Linux 5.18.
#[xdp(frags)]
fn gw_xdp_frags(context: XdpContext) -> u32 {
    xdp_action(&context)
}

/// TC ingress, where somebody else holds the XDP hook.
#[classifier]
fn gw_tc(context: TcContext) -> i32 {
    match judge_frame(&context) {
        // This hook answers nothing.
        Action::Pass | Action::Answer => TC_NEXT,
        Action::Drop => TC_DROP,
    }
}

#[inline(always)]
fn xdp_action(context: &XdpContext) -> u32 {
    match judge_frame(context) {
        Action::Pass => XDP_PASS,
        Action::Drop => XDP_DROP,
        Action::Answer => XDP_TX,
    }
}

impl Frame for XdpContext {
    const ANSWERS: bool = true;

    #[inline(always)]
    fn answer(&self, request: &Segment, segment_bytes: u16, may_have_socket: bool) -> Answer {
        cookie::answer(self, request, segment_bytes, may_have_socket)
    }

    #[inline(always)]
    fn is_of_connection(&self, segment: &Segment) -> bool {
        cookie::is_of_connection(self, segment)
    }

    #[inline(always)]
    fn has_cookie(&self, segment: &Segment) -> bool {
        cookie::is_returned(segment)
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let start = self.data() + offset;
        if start + N * 4 > self.data_end() {
            return None;
        }
        // By halves: a frame begins at an even address, and its IP header 14 bytes behind that.
        let half = |place: usize| {
            // SAFETY: it lies before `data_end`, which is where the verifier, too, ends what may be read; even, since the
            // start of the frame and `offset` are.
            u32::from(unsafe { *((start + place * 2) as *const u16) })
        };
        let mut words = [0; N];
        for (place, word) in words.iter_mut().enumerate() {
            *word = half(place * 2) | half(place * 2 + 1) << 16;
        }
        Some(words)
    }

    #[inline(always)]
    fn length(&self) -> u64 {
        (self.data_end() - self.data()) as u64
    }

    #[cfg(feature = "log")]
    #[inline(always)]
    fn log(&self, verdict: gateway_common::Verdict) {
        aya_log_ebpf::debug!(self, "{}", verdict.row().name);
    }
}

impl Frame for TcContext {
    /// It sees merged packets, and none can be sent back.
    const ANSWERS: bool = false;

    #[inline(always)]
    fn answer(&self, _: &Segment, _: u16, _: bool) -> Answer {
        Answer::Impossible
    }

    #[inline(always)]
    fn is_of_connection(&self, _: &Segment) -> bool {
        false
    }

    #[inline(always)]
    fn has_cookie(&self, _: &Segment) -> bool {
        false
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        // By helper and not by pointer: a merged or fragmented skb keeps its bytes in several places.
        self.load::<[u32; N]>(offset).ok()
    }

    #[inline(always)]
    fn length(&self) -> u64 {
        self.len().into()
    }

    #[cfg(feature = "log")]
    #[inline(always)]
    fn log(&self, verdict: gateway_common::Verdict) {
        aya_log_ebpf::debug!(self, "{}", verdict.row().name);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: never reached: a panic that could be would leave a branch without an exit, and the
    // verifier refuses such a program.
    unsafe { core::hint::unreachable_unchecked() }
}

/// The kernel opens some of its helpers to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
