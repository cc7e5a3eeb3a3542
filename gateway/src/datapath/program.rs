//! The entry points, loaded when first wanted: for attaching, or to run a frame without an interface.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use aya::Ebpf;
use aya::programs::{ProgramError, SchedClassifier, Xdp};
use gateway_common::Action;
use gateway_common::maps::{PROGRAM_TC, PROGRAM_XDP, PROGRAM_XDP_FRAGS};

use super::error::{Error, errno};
use super::sys;

/// Where a packet enters the kernel half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    Xdp,
    Tc,
}

/// An entry point in the kernel.
pub struct Program {
    entry: Entry,
    name: &'static str,
    descriptor: OwnedFd,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    pub action: Action,
    /// The frame as it came out.
    pub frame: Vec<u8>,
    /// Mean over the repetitions.
    pub duration: Duration,
}

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// TC's -1.
const TCX_NEXT: u32 = u32::MAX;
const TCX_DROP: u32 = 2;

impl Program {
    /// Loads the entry point if nobody has yet.
    pub(super) fn load(bpf: &mut Ebpf, entry: Entry) -> Result<Self, Error> {
        let (name, program) = match entry {
            Entry::Xdp => {
                let name = load_xdp(bpf)?;
                (name, xdp(bpf, name)?.fd().map(AsFd::as_fd))
            }
            Entry::Tc => {
                load_tc(bpf)?;
                (PROGRAM_TC, tc(bpf)?.fd().map(AsFd::as_fd))
            }
        };
        let program = program.map_err(|error| Error::refused(name, &error))?;
        let refused = |error: io::Error| Error::Refused { program: name, reason: error.to_string() };
        Ok(Self { entry, name, descriptor: program.try_clone_to_owned().map_err(refused)? })
    }

    /// Runs one frame `repeat` times without any interface, as tests and measurements do. It is judged
    /// by the policy in force, charged and counted like any other.
    pub fn run(&self, frame: &[u8], repeat: u32) -> Result<Trial, Error> {
        let refused = |reason| Error::Refused { program: self.name, reason };
        let bytes = frame.len();
        let (answer, frame, duration) = sys::test_run(self.descriptor.as_fd(), frame, repeat)
            .map_err(|error| refused(format!("a frame of {bytes} bytes: {error}")))?;
        let action = match (self.entry, answer) {
            (Entry::Xdp, XDP_PASS) | (Entry::Tc, TCX_NEXT) => Action::Pass,
            (Entry::Xdp, XDP_DROP) | (Entry::Tc, TCX_DROP) => Action::Drop,
            (Entry::Xdp, XDP_TX) => Action::Answer,
            (Entry::Xdp | Entry::Tc, answer) => return Err(refused(format!("it answered with {answer}"))),
        };
        Ok(Trial { action, frame, duration })
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Loads the XDP entry point that this kernel can take and returns its name.
fn load_xdp(bpf: &mut Ebpf) -> Result<&'static str, Error> {
    for name in [PROGRAM_XDP_FRAGS, PROGRAM_XDP] {
        // Nor may it be tried again, once privileges are given up.
        if xdp(bpf, name)?.fd().is_ok() {
            return Ok(name);
        }
    }
    for name in [PROGRAM_XDP_FRAGS, PROGRAM_XDP] {
        match xdp(bpf, name)?.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => return Ok(name),
            // Kernels before 5.18 do not know of packets in several pieces.
            Err(error) if name == PROGRAM_XDP_FRAGS && errno(&error) == Some(libc::EINVAL) => {}
            Err(error) => return Err(Error::refused(name, &error)),
        }
    }
    Err(Error::Refused { program: PROGRAM_XDP, reason: "no entry point fits".to_owned() })
}

fn load_tc(bpf: &mut Ebpf) -> Result<(), Error> {
    match tc(bpf)?.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(()),
        Err(error) => Err(Error::refused(PROGRAM_TC, &error)),
    }
}

fn xdp<'a>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, Error> {
    named(bpf, name)?.try_into().map_err(|error| Error::refused(name, &error))
}

fn tc(bpf: &mut Ebpf) -> Result<&mut SchedClassifier, Error> {
    named(bpf, PROGRAM_TC)?.try_into().map_err(|error| Error::refused(PROGRAM_TC, &error))
}

fn named<'a>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut aya::programs::Program, Error> {
    let absent = || Error::Refused { program: name, reason: "the object does not contain it".to_owned() };
    bpf.program_mut(name).ok_or_else(absent)
}
