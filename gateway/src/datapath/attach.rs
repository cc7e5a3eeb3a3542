//! Attaching to an interface: driver mode where the driver can, else generic; or TCX.
//!
//! Always by a BPF link and never by netlink, so that nothing is left behind when the process dies.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::Ebpf;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use super::error::Error;
use super::program::{Entry, Program};
use super::sys::{self, LinkType};
use crate::config::KernelMode;

/// Where and how the kernel half is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub interface: String,
    pub hook: Hook,
}

/// The place in the packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP in the driver, before the stack has a packet.
    Driver,
    /// XDP in the stack, for drivers that cannot.
    Generic,
    /// TCX ingress.
    Tcx,
}

/// An attachment that ends when this is dropped.
pub struct Link {
    attachment: Attachment,
    _link: OwnedFd,
}

const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

impl Link {
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }
}

impl Hook {
    fn entry(self) -> Entry {
        match self {
            Self::Driver | Self::Generic => Entry::Xdp,
            Self::Tcx => Entry::Tc,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Driver | Self::Generic => "XDP",
            Self::Tcx => "TC",
        }
    }

    fn create(self, program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
        match self {
            Self::Driver => sys::link_create(program, interface, LinkType::Xdp, XDP_FLAGS_DRV_MODE),
            Self::Generic => sys::link_create(program, interface, LinkType::Xdp, XDP_FLAGS_SKB_MODE),
            Self::Tcx => sys::link_create(program, interface, LinkType::TcxIngress, 0),
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Driver => "XDP in driver mode",
            Self::Generic => "XDP in generic mode",
            Self::Tcx => "TCX ingress",
        })
    }
}

/// Attaches to one interface of this thread's network namespace in the first mode it takes.
pub fn attach(bpf: &mut Ebpf, interface: &str, mode: KernelMode) -> Result<Link, Error> {
    let hooks: &[Hook] = match mode {
        KernelMode::Auto => &[Hook::Driver, Hook::Generic],
        KernelMode::Driver => &[Hook::Driver],
        KernelMode::Generic => &[Hook::Generic],
        KernelMode::Tc => &[Hook::Tcx],
    };
    let index = index(interface)?;
    let mut reasons = Vec::new();
    for &hook in hooks {
        let program = Program::load(bpf, hook.entry())?;
        match hook.create(program.as_fd(), index) {
            Ok(link) => {
                let attachment = Attachment { interface: interface.to_owned(), hook };
                return Ok(Link { attachment, _link: link });
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EBUSY | libc::EEXIST) => {
                    return Err(Error::Occupied { interface: interface.to_owned(), hook: hook.name() });
                }
                Some(libc::EPERM) => return Err(Error::no_permission()),
                _ => reasons.push(format!("{hook}: {error}{}", advice(hook, &error))),
            },
        }
    }
    Err(Error::Attach { interface: interface.to_owned(), reasons: reasons.join("; ") })
}

fn advice(hook: Hook, error: &io::Error) -> &'static str {
    match (hook, error.raw_os_error()) {
        (Hook::Tcx, Some(libc::EINVAL)) => " (TCX needs Linux 6.6)",
        (Hook::Driver | Hook::Generic, Some(libc::EINVAL)) => " (XDP links need Linux 5.9)",
        (Hook::Driver, Some(libc::EOPNOTSUPP)) => " (the driver has no XDP; kernel.mode \"generic\" works)",
        (Hook::Driver, _) => " (many drivers want a smaller MTU, LRO off, or spare queues)",
        (Hook::Generic | Hook::Tcx, _) => "",
    }
}

fn index(interface: &str) -> Result<u32, Error> {
    let absent = || Error::NoInterface(interface.to_owned());
    let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None).map_err(|_| absent())?;
    netdevice::name_to_index(any, interface).map_err(|_| absent())
}
