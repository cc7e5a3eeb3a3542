//! Attaching to an interface: driver mode where the driver can, else generic; or TCX.
//!
//! Always by a BPF link and never by netlink, so that nothing is left behind when the process dies; a link
//! that is pinned stays, and the next gateway moves it to its own program. It takes no capability once
//! the program is loaded: an interface that returns is attached to by an unprivileged process.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use aya::Ebpf;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::interface::{self, Interface};
use super::pins::Pins;
use super::program::{Entry, Program};
use super::sys::{self, LinkType};
use crate::config::KernelMode;

/// Where and how the kernel half is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub interface: String,
    pub hook: Hook,
}

/// The place in the packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
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
    descriptor: OwnedFd,
    /// A gateway before this one had made it.
    taken_over: bool,
    pinned: bool,
}

/// A link of an earlier gateway, with its program.
pub struct Pinned {
    attachment: Attachment,
    descriptor: OwnedFd,
    pinned: bool,
}

const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

impl Link {
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    pub fn was_taken_over(&self) -> bool {
        self.taken_over
    }

    /// Where an earlier gateway has pinned it.
    pub fn place(&self, pins: &Pins) -> Option<PathBuf> {
        self.pinned.then(|| pins.link(&self.attachment.interface, self.attachment.hook))
    }

    /// Has the link outlive the process.
    pub fn pin(&self, pins: &Pins) -> Result<(), Error> {
        if self.pinned {
            return Ok(());
        }
        let path = pins.link(&self.attachment.interface, self.attachment.hook);
        sys::pin(self.descriptor.as_fd(), &path).map_err(|source| pins.failed(source))
    }

    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Puts this program in the place of one that was to follow it.
    pub fn reclaim(&self, bpf: &mut Ebpf) -> Result<(), Error> {
        point(&self.attachment, self.descriptor.as_fd(), bpf)
    }

    /// Whether the interface is still the one that it was attached to, and not gone or another of that name.
    pub fn is_in_place(&self) -> bool {
        let now = index(&self.attachment.interface).ok();
        now.is_some_and(|now| sys::link_interface(self.descriptor.as_fd()).is_ok_and(|then| then == now))
    }
}

impl Hook {
    pub const ALL: [Self; 3] = [Self::Driver, Self::Generic, Self::Tcx];

    /// As names of pins and values of labels have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Driver => "xdp-driver",
            Self::Generic => "xdp-generic",
            Self::Tcx => "tcx",
        }
    }

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
    let (index, hooks) = (index(interface)?, hooks(mode));
    if hooks.contains(&Hook::Tcx) {
        let holders = interface::tcx(interface);
        // There is room behind it, and everything would be charged twice.
        if let Some(holder) = holders.iter().find(|holder| holder.is_gateway()).cloned() {
            let hook = Hook::Tcx.name();
            return Err(Error::Another { interface: interface.to_owned(), hook, holder });
        }
        if let Some(holder) = holders.iter().find(|holder| holder.name.is_none()) {
            tracing::warn!(
                interface,
                "{holder} is at TC before this one, and only CAP_SYS_ADMIN may ask whose it is: should it be another gateway's, \
                 both charge each connection, so stop one (`bpftool net list dev {interface}` names it)"
            );
        }
    }
    let mut reasons = Vec::new();
    for &hook in hooks {
        let program = Program::load(bpf, hook.entry())?;
        match hook.create(program.as_fd(), index) {
            Ok(descriptor) => {
                let attachment = Attachment { interface: interface.to_owned(), hook };
                return Ok(Link { attachment, descriptor, taken_over: false, pinned: false });
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EBUSY | libc::EEXIST) => {
                    return Err(occupied(interface, hook));
                }
                Some(libc::EPERM) => return Err(Error::no_permission()),
                _ => reasons.push(format!("{hook}: {error}{}", advice(hook, &error))),
            },
        }
    }
    Err(Error::Attach { interface: interface.to_owned(), reasons: reasons.join("; ") })
}

/// The pinned link that this interface and mode can go on with. Links to an interface that is gone, and at
/// hooks not asked for, are let go, unless a gateway runs by them.
pub fn find(
    interface: &str,
    mode: KernelMode,
    pins: &Pins,
    are_in_use: bool,
) -> Result<Option<Pinned>, Error> {
    let (index, hooks) = (index(interface)?, hooks(mode));
    let mut found = None;
    for left in pins.left()?.into_iter().filter(|left| left.interface == interface) {
        let failed = |source| pins.failed(source);
        let descriptor = sys::pinned(&left.path).map_err(failed)?;
        let is_in_place = sys::link_interface(descriptor.as_fd()).map_err(failed)? == index;
        if found.is_none() && is_in_place && hooks.contains(&left.hook) {
            let attachment = Attachment { interface: interface.to_owned(), hook: left.hook };
            found = Some(Pinned { attachment, descriptor, pinned: true });
        } else if !are_in_use {
            fs::remove_file(&left.path).map_err(failed)?;
        }
    }
    Ok(found)
}

/// The link that a running gateway hands over, if this interface and mode can go on with it.
pub fn adopt(attachment: Attachment, descriptor: OwnedFd, mode: KernelMode) -> Result<Option<Pinned>, Error> {
    let index = index(&attachment.interface)?;
    let is_in_place = sys::link_interface(descriptor.as_fd()).is_ok_and(|then| then == index);
    let fits = is_in_place && hooks(mode).contains(&attachment.hook);
    Ok(fits.then_some(Pinned { attachment, descriptor, pinned: false }))
}

impl Pinned {
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Loads the program that the link is to move to: that takes privileges.
    pub fn load(&self, bpf: &mut Ebpf) -> Result<(), Error> {
        Program::load(bpf, self.attachment.hook.entry()).map(drop)
    }

    /// Moves the link to this program: from one packet to the next.
    pub fn take_over(self, bpf: &mut Ebpf) -> Result<Link, Error> {
        let Self { attachment, descriptor, pinned } = self;
        point(&attachment, descriptor.as_fd(), bpf)?;
        Ok(Link { attachment, descriptor, taken_over: true, pinned })
    }
}

/// Moves a link to the program of `bpf`.
fn point(attachment: &Attachment, link: BorrowedFd<'_>, bpf: &mut Ebpf) -> Result<(), Error> {
    let program = Program::load(bpf, attachment.hook.entry())?;
    let failed = |error: io::Error| Error::Attach {
        interface: attachment.interface.clone(),
        reasons: format!("the link of the gateway before takes no other program: {error}"),
    };
    sys::link_update(link, program.as_fd()).map_err(failed)
}

fn hooks(mode: KernelMode) -> &'static [Hook] {
    match mode {
        KernelMode::Auto => &[Hook::Driver, Hook::Generic],
        KernelMode::Driver => &[Hook::Driver],
        KernelMode::Generic => &[Hook::Generic],
        KernelMode::Tc => &[Hook::Tcx],
    }
}

/// Says who holds the hook, as far as one may ask.
fn occupied(interface: &str, hook: Hook) -> Error {
    let (name, hook) = (interface.to_owned(), hook.name());
    match Interface::look(interface).ok().and_then(|interface| interface.xdp) {
        Some(holder) if holder.is_gateway() => Error::Another { interface: name, hook, holder },
        holder => Error::Occupied { interface: name, hook, holder },
    }
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
    interface::index(interface).map_err(|_| Error::NoInterface(interface.to_owned()))
}
