//! The kernel half as the gateway sees it: loaded, given a policy, attached to named interfaces.
//!
//! The server starts it, applies a new policy at each reload and reads the counters at each scrape;
//! dropping it detaches. It holds BPF links, so that the kernel detaches as well when the process dies in any
//! other way; only what `kernel.persist` pins stays. Only this folder knows aya.

mod account;
mod attach;
mod bequest;
pub mod cookies;
mod counters;
mod doctor;
mod error;
mod exempt;
mod fill;
mod heartbeat;
mod hosts;
mod inherit;
mod interface;
mod known;
mod log;
mod looser;
mod marks;
mod object;
mod penalties;
mod pins;
mod policy;
mod pressure;
mod program;
mod sources;
mod standings;
pub mod sys;
mod tries;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aya::Ebpf;
use gateway_common::maps::{ALLOW, CLOCK, DENY};
use gateway_common::policy::Policy;
use ipnet::IpNet;

pub use account::{Account, until_ns};
pub use attach::{Attachment, Hook};
pub use bequest::{Bequest, Piece};
pub use counters::Counters;
pub use doctor::{Finding, State, examine};
pub use error::Error;
pub use fill::{Fill, Loud, MAPS};
pub use hosts::AddressChanges;
pub use known::Served;
pub use penalties::Sentences;
pub use policy::Staged;
pub use program::{Entry, Program, Trial};
pub use sources::{Figures, Sources, Suspect};
pub use standings::Standings;

use crate::config::Kernel;
use cookies::Stack;
use exempt::InForce;
use looser::looser;
use pins::Pins;
use policy::Slots;

/// A kernel half in this kernel, judging by the policy last applied.
pub struct Datapath {
    bpf: Ebpf,
    slots: Slots,
    links: Vec<attach::Link>,
    pins: Option<Pins>,
    /// For the heartbeat, which follows it.
    in_force: Arc<ArcSwap<InForce>>,
    has_cookies: bool,
    /// Until it judges.
    succession: Option<Succession>,
}

/// What waits until this gateway judges: until then everything is as the gateway before has it.
struct Succession {
    first: Staged,
    left: Vec<attach::Pinned>,
    /// For maps that are not the same.
    bequest: Option<Bequest>,
}

/// What became of an interface since somebody looked.
#[derive(Debug)]
pub enum InterfaceChange {
    Left(String),
    Returned(Attachment),
    /// It is there again, and cannot be attached to.
    Refused(Error),
    /// It is attached to again, for no longer than this process.
    Unpinned(Error),
}

impl Datapath {
    /// Loads the kernel half, attaches it to each interface named in `config` and puts its first policy in force.
    /// With `config.persist` it goes on where the gateway before it left off. On an error nothing new stays
    /// attached, and what an earlier gateway has left goes on as it was. `bequest`: what a running gateway hands
    /// over, which goes on judging until [`Self::take_over`].
    pub fn start(
        config: &Kernel,
        listeners: &[SocketAddr],
        mut bequest: Option<Bequest>,
    ) -> Result<Self, Error> {
        let (held, follows) = (bequest.as_mut().and_then(Bequest::lock), bequest.is_some());
        let pins = config.persist.as_deref().map(|folder| object::pins(folder, held)).transpose()?;
        let options = object::Options::new(false);
        let prepared = Self::prepare(&options, config, listeners, pins.as_ref(), bequest);
        let (bpf, slots, links, succession) =
            prepared.inspect_err(|_| pins.iter().for_each(Pins::abandon))?;
        let in_force = Arc::new(ArcSwap::from_pointee(InForce::of(config.clone())));
        let (has_cookies, succession) = (options.with_cookies, Some(succession));
        let mut this = Self { bpf, slots, links, pins, in_force, has_cookies, succession };
        if !follows {
            this.take_over().inspect_err(|_| this.pins.iter().for_each(Pins::abandon))?;
        }
        Ok(this)
    }

    /// Everything that may fail, while links and maps of an earlier gateway are as it left them.
    fn prepare(
        options: &object::Options,
        config: &Kernel,
        listeners: &[SocketAddr],
        pins: Option<&Pins>,
        mut bequest: Option<Bequest>,
    ) -> Result<(Ebpf, Slots, Vec<attach::Link>, Succession), Error> {
        let mut bpf = object::load(options, pins)?;
        let (mut links, mut left) = (Vec::new(), Vec::new());
        let follows = bequest.is_some();
        for interface in &config.interfaces {
            let find = |pins| attach::find(interface, config.mode, pins, follows);
            let pinned = pins.map(find).transpose()?.flatten();
            let given = bequest.as_mut().map(|bequest| bequest.link(interface, config.mode));
            match pinned.or(given.transpose()?.flatten()) {
                Some(found) => left.push(found),
                None => links.push(attach::attach(&mut bpf, interface, config.mode)?),
            }
        }
        left.iter().try_for_each(|pinned| pinned.load(&mut bpf))?;
        for folder in pins.map(Pins::other_maps).transpose()?.iter().flatten() {
            inherit::inherit(&mut bpf, folder);
        }
        let bequest = bequest.filter(|_| pins.is_none_or(Pins::are_fresh));
        bequest.iter().try_for_each(|bequest| inherit::inherit_policy(&mut bpf, bequest))?;
        let (slots, first) = Slots::begin(&mut bpf, config, listeners)?;
        Ok((bpf, slots, links, Succession { first, left, bequest }))
    }

    /// Judges from now on, in the place of the gateway that has handed over. What fails keeps nothing else: there is
    /// no way back.
    pub fn take_over(&mut self) -> Result<(), Error> {
        let Some(Succession { first, left, bequest }) = self.succession.take() else { return Ok(()) };
        if let Some(bequest) = bequest {
            inherit::inherit_from(&mut self.bpf, &bequest);
        }
        self.slots.put_in_force(&mut self.bpf, first)?;
        let mut taken = Ok(());
        for pinned in left {
            match pinned.take_over(&mut self.bpf) {
                Ok(link) => self.links.push(link),
                Err(error) => taken = taken.and(Err(error)),
            }
        }
        let Some(pins) = &self.pins else { return taken };
        let kept: Vec<_> = self.links.iter().filter_map(|link| link.place(pins)).collect();
        let pinned = pins.clear(&kept).and_then(|()| self.links.iter().try_for_each(|link| link.pin(pins)));
        taken.and(pinned)
    }

    /// What a successor takes over. The links stay this gateway's as well, until either ends.
    pub fn bequest(&self) -> Result<Bequest, Error> {
        Bequest::of(&self.bpf, &self.links, self.pins.as_ref())
    }

    /// Goes on after a successor that did not become ready, or had taken over unheard.
    pub fn reclaim(&mut self) -> Result<(), Error> {
        let Self { bpf, slots, links, .. } = self;
        slots.reclaim(bpf).and(links.iter().try_for_each(|link| link.reclaim(bpf)))
    }

    /// Lets go of what an earlier gateway has left pinned in `folder`.
    pub fn release(folder: &Path) -> Result<(), Error> {
        Pins::release(folder)
    }

    /// Loads the kernel half and puts its first policy in force, attached to nothing.
    pub fn load(config: &Kernel, listeners: &[SocketAddr]) -> Result<Self, Error> {
        Self::load_with(&object::Options::new(false), config, listeners)
    }

    /// The same with a clock that stands at 0 until [`Self::set_clock`] moves it: for tests, which have times as
    /// well as packets to hold against a model.
    pub fn load_with_clock(config: &Kernel, listeners: &[SocketAddr]) -> Result<Self, Error> {
        Self::load_with(&object::Options::new(true), config, listeners)
    }

    fn load_with(
        options: &object::Options,
        config: &Kernel,
        listeners: &[SocketAddr],
    ) -> Result<Self, Error> {
        let mut bpf = object::load(options, None)?;
        let slots = Slots::start(&mut bpf, config, listeners)?;
        let in_force = Arc::new(ArcSwap::from_pointee(InForce::of(config.clone())));
        let has_cookies = options.with_cookies;
        Ok(Self { bpf, slots, links: Vec::new(), pins: None, in_force, has_cookies, succession: None })
    }

    /// Lets the user that the gateway becomes pin and unpin.
    pub fn give_to(&self, uid: u32, gid: u32) -> Result<(), Error> {
        self.pins.as_ref().map_or(Ok(()), |pins| pins.give_to(uid, gid))
    }

    /// Looks after the interfaces: attaches to those that have returned, and says so.
    pub fn follow_interfaces(&mut self) -> Vec<InterfaceChange> {
        let mut changes = Vec::new();
        let config = self.slots.config();
        let (interfaces, mode) = (config.interfaces.clone(), config.mode);
        for interface in &interfaces {
            let place = self.links.iter().position(|link| link.attachment().interface == *interface);
            match place {
                Some(place) if self.links[place].is_in_place() => continue,
                Some(place) => {
                    let gone = self.links.remove(place);
                    if let Some(pins) = &self.pins {
                        // Nothing is attached by it any more; the next start takes it away at the latest.
                        let _ = fs::remove_file(pins.link(interface, gone.attachment().hook));
                    }
                    changes.push(InterfaceChange::Left(interface.clone()));
                }
                None => {}
            }
            match attach::attach(&mut self.bpf, interface, mode) {
                Ok(link) => {
                    changes.push(InterfaceChange::Returned(link.attachment().clone()));
                    // A folder that the gateway's user cannot reach: it is protected, until the process ends.
                    let pinned = self.pins.as_ref().map_or(Ok(()), |pins| link.pin(pins));
                    changes.extend(pinned.err().map(InterfaceChange::Unpinned));
                    self.links.push(link);
                }
                Err(Error::NoInterface(_)) => {}
                Err(error) => changes.push(InterfaceChange::Refused(error)),
            }
        }
        changes
    }

    /// Moves the clock of a kernel half that was loaded with one.
    pub fn set_clock(&mut self, now_ns: u64) -> Result<(), Error> {
        policy::array(&mut self.bpf, CLOCK)?.set(0, now_ns, 0).map_err(Error::map(CLOCK))
    }

    /// Puts another policy in force, for all packets from one moment on. Buckets keep what they hold
    /// unless the budget changed, which fills them; interfaces and mode stay as they were. On an error
    /// the old policy stays in force.
    pub fn apply(&mut self, config: &Kernel, listeners: &[SocketAddr]) -> Result<(), Error> {
        self.slots.apply(&mut self.bpf, config, listeners)?;
        self.in_force.store(Arc::new(InForce::of(config.clone())));
        Ok(())
    }

    /// Goes from `before`, which is in force, to the looser of it and `next`, and writes `next` beside it, ready for
    /// [`Self::put_in_force`]. On an error `before` stays in force.
    pub fn loosen(
        &mut self,
        before: &Kernel,
        next: &Kernel,
        listeners: &[SocketAddr],
    ) -> Result<Staged, Error> {
        let looser = looser(before, next);
        // Said before anything is written: a way back forgets what entries have met.
        Slots::fits(next, listeners)?;
        Slots::fits(&looser, listeners).map_err(Error::together)?;
        self.apply(&looser, listeners)?;
        self.slots.stage(&mut self.bpf, next, listeners).inspect_err(|_| {
            if let Err(error) = self.apply(before, listeners) {
                tracing::error!(%error, "the kernel half lets pass more than the configuration says");
            }
        })
    }

    /// Puts a policy in force that is written already.
    pub fn put_in_force(&mut self, staged: Staged) -> Result<(), Error> {
        self.slots.put_in_force(&mut self.bpf, staged)?;
        self.in_force.store(Arc::new(InForce::of(self.slots.config().clone())));
        Ok(())
    }

    /// Starts the thread that keeps the kernel half told, for as long as anybody holds `sources`. `stack`: the
    /// child without which no cookies are sent.
    pub fn keep_told(&self, sources: &Arc<Sources>, stack: Option<Stack>) -> Result<(), Error> {
        let heartbeat = heartbeat::Heartbeat::new(&self.bpf, self.in_force.clone(), sources, stack)?;
        heartbeat.start().map_err(Error::Thread)
    }

    /// Whether this kernel has what SYN cookies take.
    pub fn has_cookies(&self) -> bool {
        self.has_cookies
    }

    /// Reads the host's addresses again, for listeners on "any" address, and the interfaces' MTU; says whether they had
    /// changed.
    pub fn refresh(&mut self) -> Result<bool, Error> {
        self.slots.refresh(&mut self.bpf)
    }

    /// The policy in force, as the kernel half has it.
    pub fn policy(&self) -> Result<Policy, Error> {
        self.slots.policy(&self.bpf)
    }

    /// Shows what the development variant of the kernel half says, on a thread of its own.
    pub fn follow_log(&mut self) {
        log::follow(&mut self.bpf);
    }

    /// Each configured interface, and whether the kernel half is attached to it.
    pub fn interfaces(&self) -> impl Iterator<Item = (&str, bool)> {
        let is_attached = |name: &str| self.attachments().any(|(attachment, _)| attachment.interface == name);
        let configured = &self.slots.config().interfaces;
        configured.iter().map(move |name| (name.as_str(), is_attached(name)))
    }

    /// Where the kernel half is attached, and how; true: by the link of the gateway before.
    pub fn attachments(&self) -> impl Iterator<Item = (&Attachment, bool)> {
        let left = self.succession.iter().flat_map(|succession| &succession.left);
        let left = left.map(|pinned| (pinned.attachment(), true));
        self.links.iter().map(|link| (link.attachment(), link.was_taken_over())).chain(left)
    }

    /// Packets and bytes by verdict since the start, summed over CPUs.
    pub fn counters(&self) -> Result<Counters, Error> {
        counters::read(&self.bpf)
    }

    /// What a connection request of `source` would meet now.
    pub fn account(&self, source: IpAddr) -> Result<Account, Error> {
        let Self { bpf, slots, has_cookies, .. } = self;
        account::read(bpf, slots.config(), slots.slot(), &self.policy()?, *has_cookies, source)
    }

    /// The packets that each network of the allow list in force has met.
    pub fn allow_hits(&self) -> Result<BTreeMap<IpNet, u64>, Error> {
        account::hits(&self.bpf, ALLOW, self.slots.slot())
    }

    /// The same of the deny list.
    pub fn deny_hits(&self) -> Result<BTreeMap<IpNet, u64>, Error> {
        account::hits(&self.bpf, DENY, self.slots.slot())
    }

    /// How long the kernel half has run and how often, where the host counts that.
    pub fn runs(&self) -> Result<(Duration, u64), Error> {
        let loaded = self.bpf.programs().filter_map(|(_, program)| program.fd().ok());
        let mut sum = (Duration::ZERO, 0);
        for program in loaded {
            let runs = sys::program_runs(program.as_fd());
            let (time, runs) =
                runs.map_err(|error| Error::Refused { program: "gateway-ebpf", reason: error.to_string() })?;
            sum = (sum.0 + time, sum.1 + runs);
        }
        Ok(sum)
    }

    /// How full the maps are whose entries come and go.
    pub fn fill(&self) -> Result<[Fill; MAPS], Error> {
        fill::read(&self.bpf)
    }

    /// The sources whose connection requests were refused most often, the loudest first.
    pub fn loudest(&self, most: usize) -> Result<Vec<Loud>, Error> {
        fill::loudest(&self.bpf, self.policy()?.epoch, most)
    }

    /// What is told the kernel half between two policies, for the one thread that tells it.
    pub fn standings(&self) -> Result<Standings, Error> {
        Standings::open(&self.bpf)
    }

    /// An entry point by itself, to run frames through without any interface.
    pub fn program(&mut self, entry: Entry) -> Result<Program, Error> {
        Program::load(&mut self.bpf, entry)
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        if self.succession.is_some() {
            self.pins.iter().for_each(Pins::abandon);
        }
    }
}
