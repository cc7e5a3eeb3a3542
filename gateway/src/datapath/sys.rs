//! The raw system calls of the kernel half, and all `unsafe` of the gateway.
//!
//! aya has no way to ask for a BPF link and nothing else: where the kernel refuses one it falls back to
//! netlink, whose attachment outlives the process. So links are made here.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

/// What a link ties a program to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    Xdp,
    TcxIngress,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;

/// The part of `union bpf_attr` that BPF_LINK_CREATE reads; the zeros are its optional tail.
#[repr(C)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    tail: [u64; 2],
}

/// The part of `union bpf_attr` that BPF_PROG_TEST_RUN needs.
#[repr(C)]
struct TestRun {
    program: u32,
    answer: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration_ns: u32,
}

/// Attaches a loaded program to an interface; closing the descriptor detaches it.
pub fn link_create(
    program: BorrowedFd<'_>,
    interface: u32,
    kind: LinkType,
    flags: u32,
) -> io::Result<OwnedFd> {
    let attach_type = match kind {
        LinkType::Xdp => BPF_XDP,
        LinkType::TcxIngress => BPF_TCX_INGRESS,
    };
    let program = program.as_raw_fd().cast_unsigned();
    let attributes = LinkCreate { program, interface, attach_type, flags, tail: [0; 2] };
    // SAFETY: the attributes live until the call returns, and their size is the one passed on.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const attributes, size_of::<LinkCreate>())
    };
    let descriptor = checked(result)?;
    // SAFETY: the kernel just opened it for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Runs a loaded program over `frame`: its last answer and the mean time of one run.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<(u32, Duration)> {
    let mut attributes = TestRun {
        program: program.as_raw_fd().cast_unsigned(),
        answer: 0,
        size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
        size_out: 0,
        data_in: frame.as_ptr() as u64,
        data_out: 0,
        repeat,
        duration_ns: 0,
    };
    // SAFETY: attributes and frame live until the call returns; the kernel reads the frame and writes back
    // no more of the attributes than the size says.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<TestRun>()) };
    checked(result)?;
    Ok((attributes.answer, Duration::from_nanos(attributes.duration_ns.into())))
}

/// Whether this kernel answers bpf(2) at all, privileges aside.
pub fn probe() -> io::Result<()> {
    // SAFETY: no attributes, so nothing is read; a kernel with BPF refuses that with EINVAL or EPERM.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, ptr::null::<libc::c_void>(), 0 as libc::c_uint)
    };
    match checked(result) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Returns when every packet that was being judged at the call has been judged.
pub fn wait_for_readers() -> io::Result<()> {
    // SAFETY: the call takes three numbers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    checked(result).map(|_| ())
}

/// The addresses of every interface.
pub fn interface_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let mut first = ptr::null_mut();
    // SAFETY: on success the call has stored the head of a list, which is freed below.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut addresses = BTreeSet::new();
    let mut next = first;
    // SAFETY: `next` walks the list until its null end; the list is ours until `freeifaddrs`.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: an entry's address is null or points to a socket address of the family it names.
        addresses.extend(unsafe { ip_address(entry.ifa_addr) });
    }
    // SAFETY: the list that `getifaddrs` made, freed once; nothing borrowed from it is left.
    unsafe { libc::freeifaddrs(first) };
    Ok(addresses)
}

/// # Safety
/// `address` is null, or points to a socket address as long as its family says.
unsafe fn ip_address(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the caller's promise.
    let family = unsafe { address.as_ref() }?.sa_family;
    match i32::from(family) {
        libc::AF_INET => {
            // SAFETY: the caller's promise, for this family.
            let address = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(IpAddr::V4(Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr))))
        }
        libc::AF_INET6 => {
            // SAFETY: the caller's promise, for this family.
            let address = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(IpAddr::V6(Ipv6Addr::from(address.sin6_addr.s6_addr)))
        }
        _ => None,
    }
}

fn checked(result: libc::c_long) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(i32::MAX)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_one_of_the_hosts() {
        assert!(interface_addresses().unwrap().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
