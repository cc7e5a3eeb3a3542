//! The raw system calls of the kernel half, and all `unsafe` of the gateway, what is not of this module's subject included.
//!
//! aya has no way to ask for a BPF link and nothing else: where the kernel refuses one it falls back to
//! netlink, whose attachment outlives the process. So links are made here.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::time::Duration;

use aya::Pod;
use aya::maps::MapData;

/// Gives back to the kernel what the allocator holds for later: after a peak, nearly all of it.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and locks what it touches.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What a link ties a program to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    Xdp,
    TcxIngress,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
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

/// The part of `union bpf_attr` that BPF_LINK_UPDATE reads.
#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// The part of `union bpf_attr` that BPF_OBJ_PIN and BPF_OBJ_GET read.
#[repr(C)]
struct Pin {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that BPF_OBJ_GET_INFO_BY_FD reads.
#[repr(C)]
struct InfoByDescriptor {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_link_info` as far as links to interfaces fill it.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    _padding: u32,
    interface: u32,
    attach_type: u32,
}

/// The part of `union bpf_attr` that BPF_PROG_QUERY uses, which writes the revision in any case.
#[repr(C)]
#[derive(Default)]
struct Query {
    interface: u32,
    attach_type: u32,
    flags: [u32; 2],
    programs: u64,
    count: u32,
    _padding: u32,
    more: [u64; 3],
    revision: u64,
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

/// The part of `union bpf_attr` that BPF_MAP_LOOKUP_BATCH reads.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
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

/// Ties a link to another program, between one packet and the next.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let number = |descriptor: BorrowedFd<'_>| descriptor.as_raw_fd().cast_unsigned();
    let attributes = LinkUpdate { link: number(link), program: number(program), flags: 0, old_program: 0 };
    // SAFETY: the attributes live until the call returns, and their size is the one passed on.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_UPDATE, &raw const attributes, size_of::<LinkUpdate>())
    };
    checked(result).map(|_| ())
}

/// The number of the interface that a link is tied to; 0: it was, and is gone.
pub fn link_interface(link: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = LinkInfo::default();
    // SAFETY: a `LinkInfo` is integers.
    unsafe { read_info(link, &mut info)? };
    Ok(info.interface)
}

/// The identifiers of the programs at TCX ingress, in their order. It takes `CAP_NET_ADMIN`.
pub fn tcx_ingress(interface: u32) -> io::Result<Vec<u32>> {
    // The kernel takes no more.
    let mut programs = vec![0_u32; 64];
    let mut query = Query {
        interface,
        attach_type: BPF_TCX_INGRESS,
        programs: programs.as_mut_ptr() as u64,
        count: programs.len() as u32,
        ..Query::default()
    };
    // SAFETY: the attributes and the room they name live until the call returns, each of the size passed on.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    checked(result)?;
    programs.truncate(query.count as usize);
    Ok(programs)
}

/// How long a program has run in all, and how often: nothing unless the host counts it
/// (`kernel.bpf_stats_enabled`).
pub fn program_runs(program: BorrowedFd<'_>) -> io::Result<(Duration, u64)> {
    // `struct bpf_prog_info` by its words; the kernel fills what fits.
    const WORDS: usize = 26;
    const RUN_TIME_NS: usize = 24;
    const RUNS: usize = 25;
    let mut info = [0_u64; WORDS];
    // SAFETY: words are integers, and zeros are pointers that the kernel does not follow.
    unsafe { read_info(program, &mut info)? };
    Ok((Duration::from_nanos(info[RUN_TIME_NS]), info[RUNS]))
}

/// Fills `info` with what the kernel tells of a program, map or link.
///
/// # Safety
/// Any bytes make a valid `T`, and pointers that the kernel would follow in it are null.
unsafe fn read_info<T>(of: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let attributes = InfoByDescriptor {
        descriptor: of.as_raw_fd().cast_unsigned(),
        length: size_of::<T>() as u32,
        info: ptr::from_mut(info) as u64,
    };
    // SAFETY: attributes and info live until the call returns; the kernel writes no more of the info than
    // the length says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw const attributes,
            size_of::<InfoByDescriptor>(),
        )
    };
    checked(result).map(|_| ())
}

/// Gives a program, map or link a name in a BPF file system, which keeps it.
pub fn pin(descriptor: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let descriptor = descriptor.as_raw_fd().cast_unsigned();
    let attributes = Pin { path: path.as_ptr() as u64, descriptor, flags: 0 };
    // SAFETY: attributes and path live until the call returns; the path ends in NUL.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, &raw const attributes, size_of::<Pin>()) };
    checked(result).map(|_| ())
}

/// Opens what is pinned there.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Pin { path: path.as_ptr() as u64, descriptor: 0, flags: 0 };
    // SAFETY: attributes and path live until the call returns; the path ends in NUL.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attributes, size_of::<Pin>()) };
    let descriptor = checked(result)?;
    // SAFETY: the kernel just opened it for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Runs a loaded program over `frame`: its last answer, the frame as it came out, and the mean time of one run.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<(u32, Vec<u8>, Duration)> {
    // A program may lengthen what it answers.
    const ROOM_BYTES: usize = 64;
    let mut out = vec![0; frame.len() + ROOM_BYTES];
    let mut attributes = TestRun {
        program: program.as_raw_fd().cast_unsigned(),
        answer: 0,
        size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
        size_out: u32::try_from(out.len()).map_err(io::Error::other)?,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat,
        duration_ns: 0,
    };
    // SAFETY: attributes and both buffers live until the call returns; the kernel reads the one, writes no
    // more into the other than its size says, and writes back no more of the attributes than their size says.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<TestRun>()) };
    checked(result)?;
    out.truncate(attributes.size_out as usize);
    Ok((attributes.answer, out, Duration::from_nanos(attributes.duration_ns.into())))
}

/// Reads a whole map by batches of as many entries as the two slices hold, without stopping who writes it:
/// `read` gets keys and values of each. What comes or goes meanwhile may be missed or met twice.
pub fn map_read<K: Pod, V: Pod>(
    map: &MapData,
    keys: &mut [K],
    values: &mut [V],
    mut read: impl FnMut(&[K], &[V]),
) -> io::Result<()> {
    let shape = map.info().map_err(io::Error::other)?;
    if (shape.key_size() as usize, shape.value_size() as usize) != (size_of::<K>(), size_of::<V>()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let room = u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX);
    // The kernel's own word for where it stopped; hash maps need four bytes, a key's worth is asked for.
    let (mut from, mut to) = ([0_u64; 8], [0_u64; 8]);
    let mut first = true;
    loop {
        let mut attributes = Batch {
            in_batch: if first { 0 } else { from.as_ptr() as u64 },
            out_batch: to.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room,
            map: map.fd().as_fd().as_raw_fd().cast_unsigned(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the slices have room for `count` entries of the map's sizes, which were compared above; any
        // bytes make a valid `Pod`; all of it lives until the call returns.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attributes, size_of::<Batch>())
        };
        let end = match checked(result) {
            Ok(_) => false,
            // The end, with what was left of the map.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let count = attributes.count as usize;
        read(&keys[..count], &values[..count]);
        if end {
            return Ok(());
        }
        first = false;
        from = to;
    }
}

/// The largest packet of an interface of this thread's network namespace, in bytes.
pub fn mtu(interface: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = byte.cast_signed();
    }
    // SAFETY: the request lives until the call returns, its name ends in NUL.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    checked(result.into())?;
    // SAFETY: the call has just written this field of the union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(io::Error::other)
}

/// Lets this process end with its input and by nothing that its parent is told to end by.
pub fn outlive_the_parent() -> io::Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: ignoring a signal installs no handler.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The monotonic clock of packets, in nanoseconds; coarse, as theirs.
pub fn monotonic_ns() -> u64 {
    // rustix reads the kernel's own image for the call, where valgrind has nothing: the C library knows better.
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes one timespec; the clock is there since Linux 2.6.32, so it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
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
