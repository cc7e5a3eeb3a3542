//! A program that gives each packet the next source and hands it on: what one call of BPF_PROG_TEST_RUN repeats is
//! then the packets of many sources in turn, one right behind the other as a flood's are.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::bpf::{self, Instruction};

/// Where the last two bytes of an IPv4 packet's source lie.
const SOURCE_END: i16 = 14 + 14;

pub struct Turning {
    program: OwnedFd,
    /// Holds the program that judges; the one above ends without it.
    _next: OwnedFd,
}

impl Turning {
    /// `sources` is how many take turns: a power of two, and the block's that the packet's own source is in. `next`
    /// judges their packets.
    pub fn before(next: BorrowedFd<'_>, sources: u16) -> io::Result<Self> {
        // Who hands on and who is handed must both take packets in several pieces, or neither.
        Self::load(next, sources, bpf::XDP_HAS_FRAGS).or_else(|_| Self::load(next, sources, 0))
    }

    fn load(next: BorrowedFd<'_>, sources: u16, flags: u32) -> io::Result<Self> {
        let array = bpf::program_array()?;
        let last = i32::from(sources) - 1;
        let op = Instruction::new;
        let program = [
            op(0x61, 0x12, 0, 0),                         // r2 = context.data
            op(0x61, 0x13, 4, 0),                         // r3 = context.data_end
            op(0xbf, 0x24, 0, 0),                         // r4 = r2
            op(0x07, 0x04, 0, i32::from(SOURCE_END) + 2), // r4 += the end of the source
            op(0x2d, 0x34, 10, 0),                        // beyond r3: abort
            op(0x69, 0x24, SOURCE_END, 0),                // r4 = the two bytes
            op(0xdc, 0x04, 0, 16),                        // as a number
            op(0x07, 0x04, 0, 1),                         // the next
            op(0x57, 0x04, 0, last),                      // or the first
            op(0xdc, 0x04, 0, 16),                        // as on the wire
            op(0x6b, 0x42, SOURCE_END, 0),                // back into the packet
            op(0x18, 0x12, 0, array.as_raw_fd()),         // r2 = the array, by its descriptor;
            op(0x00, 0x00, 0, 0),                         // two instructions
            op(0xb7, 0x03, 0, 0),                         // r3 = its first place
            op(0x85, 0x00, 0, 12),                        // bpf_tail_call
            op(0xb7, 0x00, 0, 0),                         // abort: r0 = XDP_ABORTED
            op(0x95, 0x00, 0, 0),                         // exit
        ];
        let program = bpf::load(&program, *b"turning\0\0\0\0\0\0\0\0\0", flags)?;
        bpf::put_program(array.as_fd(), next)?;
        Ok(Self { program, _next: array })
    }
}

impl AsFd for Turning {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}
