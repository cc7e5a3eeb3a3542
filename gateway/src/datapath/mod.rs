//! The kernel half as the gateway sees it: loaded, given a policy, attached to named interfaces.
//!
//! The server starts it, applies a new policy at each reload and reads the counters at each scrape;
//! dropping it detaches. It holds BPF links and pins nothing, so that the kernel detaches as well when
//! the process dies in any other way. Only this folder knows aya.

mod attach;
mod counters;
mod error;
mod hosts;
mod log;
mod object;
mod policy;
mod program;
pub mod sys;

use std::net::SocketAddr;

use aya::Ebpf;

pub use attach::{Attachment, Hook};
pub use counters::Counters;
pub use error::Error;
pub use hosts::AddressChanges;
pub use program::{Entry, Program, Trial};

use crate::config::Kernel;
use policy::Slots;

/// A kernel half in this kernel, judging by the policy last applied.
pub struct Datapath {
    bpf: Ebpf,
    slots: Slots,
    links: Vec<attach::Link>,
}

impl Datapath {
    /// Loads the kernel half, puts its first policy in force and attaches it to each interface named in
    /// `config`. On an error nothing stays attached.
    pub fn start(config: &Kernel, listeners: &[SocketAddr]) -> Result<Self, Error> {
        let mut datapath = Self::load(config, listeners)?;
        for interface in &config.interfaces {
            datapath.links.push(attach::attach(&mut datapath.bpf, interface, config.mode)?);
        }
        Ok(datapath)
    }

    /// Loads the kernel half and puts its first policy in force, attached to nothing.
    pub fn load(config: &Kernel, listeners: &[SocketAddr]) -> Result<Self, Error> {
        let mut bpf = object::load()?;
        log::follow(&mut bpf);
        let slots = Slots::start(&mut bpf, config, listeners)?;
        Ok(Self { bpf, slots, links: Vec::new() })
    }

    /// Puts another policy in force, for all packets from one moment on. Buckets keep what they hold
    /// unless the budget changed, which fills them; interfaces and mode stay as they were. On an error
    /// the old policy stays in force.
    pub fn apply(&mut self, config: &Kernel, listeners: &[SocketAddr]) -> Result<(), Error> {
        self.slots.apply(&mut self.bpf, config, listeners)
    }

    /// Reads the host's addresses again, for listeners on "any" address; says whether they had changed.
    pub fn refresh(&mut self) -> Result<bool, Error> {
        self.slots.refresh(&mut self.bpf)
    }

    /// Where the kernel half is attached, and how.
    pub fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.links.iter().map(attach::Link::attachment)
    }

    /// Packets and bytes by verdict since the start, summed over CPUs.
    pub fn counters(&self) -> Result<Counters, Error> {
        counters::read(&self.bpf)
    }

    /// An entry point by itself, to run frames through without any interface.
    pub fn program(&mut self, entry: Entry) -> Result<Program, Error> {
        Program::load(&mut self.bpf, entry)
    }
}
