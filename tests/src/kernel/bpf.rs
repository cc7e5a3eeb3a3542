//! XDP programs by their instructions. The smallest there are: one constant answer, somebody else's program for the
//! tests, and the bare cost of a program for the measurement. And a process for which there is no BPF.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

/// A program that answers every packet alike.
pub struct Constant(OwnedFd);

pub const XDP_DROP: i32 = 1;
pub const XDP_PASS: i32 = 2;

/// Takes packets that lie in several pieces.
pub(super) const XDP_HAS_FRAGS: u32 = 1 << 5;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const MAP_TYPE_PROG_ARRAY: u32 = 3;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;

/// `struct bpf_insn`.
#[repr(C)]
pub(super) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// `registers`: the source in the high half, the destination in the low one.
    pub(super) const fn new(code: u8, registers: u8, offset: i16, immediate: i32) -> Self {
        Self { code, registers, offset, immediate }
    }
}

/// `bpf_attr` of BPF_PROG_LOAD up to `expected_attach_type`.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// `bpf_attr` of BPF_MAP_CREATE up to `map_flags`.
#[repr(C)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// `bpf_attr` of BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct Update {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Constant {
    pub fn load(answer: i32) -> io::Result<Self> {
        // r0 = answer; exit
        let program = [Instruction::new(0xb7, 0, 0, answer), Instruction::new(0x95, 0, 0, 0)];
        Ok(Self(load(&program, *b"somebody_elses\0\0", 0)?))
    }
}

/// Loads an XDP program.
pub(super) fn load(program: &[Instruction], name: [u8; 16], flags: u32) -> io::Result<OwnedFd> {
    let attributes = Load {
        program_type: PROG_TYPE_XDP,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags,
        name,
        interface: 0,
        attach_type: ATTACH_XDP,
    };
    // SAFETY: the attributes and the program they point to live until the call returns.
    opened(unsafe { bpf(BPF_PROG_LOAD, &attributes) }?)
}

/// An array with room for one program, to be handed on to.
pub(super) fn program_array() -> io::Result<OwnedFd> {
    let attributes =
        Create { map_type: MAP_TYPE_PROG_ARRAY, key_size: 4, value_size: 4, max_entries: 1, flags: 0 };
    // SAFETY: the attributes live until the call returns and point to nothing.
    opened(unsafe { bpf(BPF_MAP_CREATE, &attributes) }?)
}

/// Puts `program` into such an array.
pub(super) fn put_program(array: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (key, value) = (0_u32, program.as_raw_fd());
    let attributes = Update {
        map: array.as_raw_fd().cast_unsigned(),
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    // SAFETY: the attributes, the key and the value live until the call returns.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &attributes) }.map(|_| ())
}

/// # Safety
/// `attributes` are those of the command, and what they point to lives until the call returns.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the caller's promise; the size is theirs.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn opened(descriptor: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel just opened it for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

impl AsFd for Constant {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Lets `command` run as on a kernel that was built without bpf(2).
pub fn without_bpf(command: &mut Command) {
    let statement = |code: u32, jump_if: u8, jump_else: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt: jump_if,
        jf: jump_else,
        k,
    };
    let filter = [
        // The number of the call is the first word of what a filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_bpf as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the kernel copies the filter, which the closure owns, before the call returns.
        let result =
            unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes one system call and allocates nothing.
    unsafe { command.pre_exec(install) };
}
