//! The kernel half's place in the process: started, given each new policy, counted, or done without.
//!
//! A policy is what the configuration says and what was said at run time, together. What the host lacks
//! is said once, loudly, and the gateway proxies all the same; what the operator named wrongly (no such
//! interface, a taken hook) is an error.

mod figures;
mod fill;
mod reading;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use prometheus::proto::{MetricFamily, MetricType};

use fill::Counted;
pub use reading::Reading;

use crate::admin::metrics::{family, number};
use crate::config;
use crate::datapath::cookies::Stack;
use crate::datapath::{
    self, Account, Attachment, Bequest, Datapath, Error, Hook, InterfaceChange, Sources, Staged,
};
use crate::lists::{self, List, Lists};
use crate::privileges::Identity;

/// The kernel half, if it runs, and the lists that it judges by; shared with the metrics port and the
/// control socket.
#[derive(Clone)]
pub struct Kernel {
    state: Arc<Mutex<State>>,
    listener: SocketAddr,
    /// How the heartbeat stands.
    sources: Arc<OnceLock<Arc<Sources>>>,
}

struct State {
    datapath: Option<Datapath>,
    counted: Counted,
    /// What the host or the build lacks for it.
    lacking: Option<String>,
    config: config::Kernel,
    lists: Lists,
    state_file: Option<PathBuf>,
}

/// The kernel half between two configurations: nobody else changes it meanwhile.
#[must_use]
pub struct Loosened<'a> {
    state: MutexGuard<'a, State>,
    next: config::Kernel,
    staged: Option<Staged>,
}

/// Why the lists stay as they were.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Kernel(#[from] Error),
    #[error(transparent)]
    File(#[from] lists::Error),
}

impl Kernel {
    /// Attaches to the configured interfaces. `listener`: where the proxy listens; `lists`: what was said
    /// at run time before, and the file that keeps it; `bequest`: what a running gateway hands over, which judges
    /// until [`Self::take_over`].
    pub fn start(
        config: &config::Kernel,
        listener: SocketAddr,
        lists: Lists,
        state_file: Option<PathBuf>,
        bequest: Option<Bequest>,
    ) -> Result<Self, Error> {
        let mut state = State {
            datapath: None,
            counted: Counted::default(),
            lacking: None,
            config: config.clone(),
            lists,
            state_file,
        };
        if config.interfaces.is_empty() {
            // Whoever turns it off does not mean what an earlier gateway has left to go on.
            config.persist.as_deref().map_or(Ok(()), Datapath::release)?;
        } else {
            let follows = bequest.is_some();
            match Datapath::start(&state.policy(), &[listener], bequest) {
                Ok(datapath) => {
                    if !follows {
                        announce(&datapath);
                    }
                    state.datapath = Some(datapath);
                }
                Err(error) if host_lacks(&error) => {
                    tracing::warn!("NO KERNEL PROTECTION, proxying without it: {error}");
                    state.lacking = Some(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        let sources = Arc::default();
        Ok(Self { state: Arc::new(Mutex::new(state)), listener, sources })
    }

    /// The child that has the stack take SYN cookies, where they can be sent: to be started while there are
    /// privileges, for it needs some of them for itself.
    pub fn start_stack(&self) -> Option<Stack> {
        let state = self.lock();
        let mut attached = state.datapath.iter().flat_map(Datapath::attachments);
        if attached.all(|(attachment, _)| attachment.hook == Hook::Tcx) {
            return None;
        }
        if !state.datapath.as_ref().is_some_and(Datapath::has_cookies) {
            tracing::warn!(
                "no SYN cookies for XDP, which came with Linux 6.0: spoofed floods reach the stack"
            );
            return None;
        }
        let failed = |error: &io::Error| tracing::warn!(%error, "no SYN cookies: the child does not start");
        Stack::start().inspect_err(failed).ok()
    }

    /// Keeps the kernel half told of sources and of how the gateway fares, by a thread: so after privileges are
    /// given up.
    pub fn keep_told(&self, sources: &Arc<Sources>, stack: Option<Stack>) -> Result<(), Error> {
        let Some(datapath) = &self.lock().datapath else { return Ok(()) };
        datapath.keep_told(sources, stack)?;
        self.sources.get_or_init(|| sources.clone());
        Ok(())
    }

    /// Passes the development variant's log on, by a thread: so after privileges are given up.
    pub fn follow_log(&self) {
        if let Some(datapath) = &mut self.lock().datapath {
            datapath.follow_log();
        }
    }

    pub fn is_running(&self) -> bool {
        self.lock().datapath.is_some()
    }

    /// The configured interfaces by name, and whether the kernel half is on each; empty where it does not run.
    pub fn interfaces(&self) -> Vec<(String, bool)> {
        let state = self.lock();
        let interfaces = state.datapath.iter().flat_map(Datapath::interfaces);
        interfaces.map(|(name, attached)| (name.to_owned(), attached)).collect()
    }

    /// The first half of a reload: from here on the kernel half refuses nobody whom the old or the new
    /// configuration lets pass, and the new policy lies ready. On an error the old policy stays in force.
    pub fn loosen(&self, next: &config::Kernel) -> Result<Loosened<'_>, Error> {
        let (mut state, listener) = (self.lock(), self.listener);
        let (before, after) = (state.policy(), state.policy_of(next));
        let datapath = state.datapath.as_mut();
        let staged = datapath.map(|datapath| datapath.loosen(&before, &after, &[listener])).transpose()?;
        Ok(Loosened { state, next: next.clone(), staged })
    }

    /// Changes the lists, for the kernel and on disk; on an error both stay as they were. What is over by
    /// `now`, in seconds of the Unix clock, goes as well.
    pub fn change<T>(&self, now: u64, change: impl FnOnce(&mut Lists) -> T) -> Result<T, ChangeError> {
        let mut state = self.lock();
        let before = state.lists.clone();
        state.lists.expire(now);
        let result = change(&mut state.lists);
        if state.lists == before {
            return Ok(result);
        }
        let changed = state.enforce(self.listener).map_err(ChangeError::from);
        match changed.and_then(|()| state.save().map_err(ChangeError::from)) {
            Ok(()) => Ok(result),
            Err(error) => {
                state.lists = before;
                if let Err(error) = state.enforce(self.listener) {
                    tracing::error!(%error, "the kernel half judges by a list that could not be kept");
                }
                Err(error)
            }
        }
    }

    /// Writes the lists as they are: whether they can be kept is known at the start.
    pub fn save(&self) -> Result<(), lists::Error> {
        self.lock().save()
    }

    /// The lists made at run time.
    pub fn lists(&self) -> Lists {
        self.lock().lists.clone()
    }

    /// The packets that each network of a list has met; empty where the kernel half does not run.
    pub fn hits(&self, list: List) -> Result<BTreeMap<IpNet, u64>, Error> {
        let state = self.lock();
        state.datapath.as_ref().map_or_else(
            || Ok(BTreeMap::new()),
            |datapath| match list {
                List::Allow => datapath.allow_hits(),
                List::Deny => datapath.deny_hits(),
            },
        )
    }

    /// What the kernel half holds about a source; `None`: it does not run.
    pub fn account(&self, source: IpAddr) -> Option<Result<Account, Error>> {
        self.lock().datapath.as_ref().map(|datapath| datapath.account(source))
    }

    /// The host's addresses or interfaces have changed.
    pub fn refresh(&self) {
        let mut state = self.lock();
        let Some(datapath) = &mut state.datapath else { return };
        for change in datapath.follow_interfaces() {
            match change {
                InterfaceChange::Left(interface) => {
                    tracing::warn!(interface, "an interface is gone, and with it the kernel half on it");
                }
                InterfaceChange::Returned(Attachment { interface, hook }) => {
                    tracing::info!(interface, %hook, "an interface has returned: kernel half attached");
                }
                InterfaceChange::Unpinned(error) => {
                    tracing::warn!(%error, "the kernel half on it ends with this process");
                }
                InterfaceChange::Refused(error) => {
                    tracing::error!(%error, "an interface has returned and is NOT PROTECTED");
                }
            }
        }
        if let Err(error) = datapath.refresh() {
            tracing::error!(%error, "the kernel half keeps judging by the host's former addresses");
        }
    }

    /// Whether an interface is configured and the kernel half is not on it: its return, or the end of
    /// whoever holds its hook, may come untold.
    pub fn is_incomplete(&self) -> bool {
        let state = self.lock();
        state.datapath.as_ref().is_some_and(|datapath| datapath.interfaces().any(|(_, attached)| !attached))
    }

    /// Lets the user that the gateway becomes go on with what is pinned.
    pub fn give_to(&self, identity: &Identity) -> Result<(), Error> {
        let state = self.lock();
        state.datapath.as_ref().map_or(Ok(()), |datapath| datapath.give_to(identity.uid(), identity.gid()))
    }

    /// What a successor takes over; `None`: the kernel half does not run. Nobody is penalised until [`Self::leave`] or
    /// [`Self::reclaim`].
    pub fn bequest(&self) -> Result<Option<Bequest>, Error> {
        self.sources.get().inspect(|sources| sources.part(true));
        self.lock().datapath.as_ref().map(Datapath::bequest).transpose()
    }

    /// Judges from now on, in the place of a gateway that has left; keeps the kernel half told as well.
    pub fn take_over(&self, sources: &Arc<Sources>, stack: Option<Stack>) -> Result<(), Error> {
        let take_over = |datapath: &mut Datapath| {
            let taken = datapath.take_over();
            announce(datapath);
            taken
        };
        let taken = self.lock().datapath.as_mut().map_or(Ok(()), take_over);
        taken.and(self.keep_told(sources, stack))
    }

    /// A successor judges from now on.
    pub fn leave(&self) {
        self.sources.get().inspect(|sources| sources.unwatch());
    }

    /// Judges again, after a successor that may have begun to.
    pub fn reclaim(&self) -> Result<(), Error> {
        let reclaimed = self.lock().datapath.as_mut().map_or(Ok(()), Datapath::reclaim);
        self.sources.get().inspect(|sources| sources.part(false));
        reclaimed
    }

    /// Detaches, unless it is to persist; packets pass unjudged from then on.
    pub fn stop(self) {
        self.lock().datapath = None;
    }

    /// Packets and bytes by verdict, for the metrics port.
    pub fn metrics(&self) -> Vec<MetricFamily> {
        let mut state = self.lock();
        let State { datapath, counted, lists, .. } = &mut *state;
        let gauge = |labels: &[(&str, &str)], value: usize| number(MetricType::GAUGE, labels, value as f64);
        let judges = datapath.iter().flat_map(Datapath::attachments).next().is_some();
        let attached = gauge(&[], judges.into());
        let listed =
            [List::Allow, List::Deny].map(|list| gauge(&[("list", list.name())], lists.get(list).len()));
        let mut families = vec![
            family(
                "gateway_kernel_attached",
                "Whether the kernel half judges packets of any interface.",
                MetricType::GAUGE,
                vec![attached],
            ),
            family(
                "gateway_control_entries",
                "Networks allowed or denied at run time.",
                MetricType::GAUGE,
                listed.into(),
            ),
        ];
        let interfaces = datapath.iter().flat_map(Datapath::interfaces);
        families.push(family(
            "gateway_kernel_interface_attached",
            "Whether packets of this interface are judged: not while it is away, or somebody else holds its hook.",
            MetricType::GAUGE,
            interfaces.map(|(name, attached)| gauge(&[("interface", name)], attached.into())).collect(),
        ));
        let figures = self.sources.get().map(|sources| sources.figures());
        match datapath.as_ref().map(|datapath| figures::families(datapath, counted, figures)) {
            Some(Ok(more)) => families.extend(more),
            Some(Err(error)) => tracing::warn!(%error, "the kernel half's figures cannot be read"),
            None => {}
        }
        families
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loosened<'_> {
    /// The second half, once userspace goes by the new configuration: one store.
    pub fn tighten(mut self) -> Result<(), Error> {
        self.state.config = self.next;
        let ready = self.state.datapath.as_mut().zip(self.staged);
        ready.map_or(Ok(()), |(datapath, staged)| datapath.put_in_force(staged))
    }
}

impl State {
    fn policy(&self) -> config::Kernel {
        self.policy_of(&self.config)
    }

    /// A configuration with the lists made at run time.
    fn policy_of(&self, config: &config::Kernel) -> config::Kernel {
        let mut policy = config.clone();
        let unix_now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // With their ends, so that the kernel half ends them when there is no gateway to do it.
        let listed = |list| {
            self.lists.get(list).iter().map(|(network, entry)| config::Listed {
                network: *network,
                until_ns: datapath::until_ns(entry.until, unix_now),
                watched: entry.trial,
            })
        };
        policy.allow_listed.extend(listed(List::Allow));
        policy.deny_listed.extend(listed(List::Deny));
        policy
    }

    fn enforce(&mut self, listener: SocketAddr) -> Result<(), Error> {
        let policy = self.policy();
        self.datapath.as_mut().map_or(Ok(()), |datapath| datapath.apply(&policy, &[listener]))
    }

    fn save(&self) -> Result<(), lists::Error> {
        self.state_file.as_ref().map_or(Ok(()), |file| self.lists.save(file))
    }
}

fn announce(datapath: &Datapath) {
    for (Attachment { interface, hook }, taken_over) in datapath.attachments() {
        tracing::info!(interface, %hook, taken_over, "kernel half attached");
    }
}

/// Whether it is the host or the build that cannot, rather than the configuration that is wrong.
fn host_lacks(error: &Error) -> bool {
    match error {
        Error::NotBuiltIn | Error::Capability { .. } | Error::NoBpf(_) | Error::Refused { .. } => true,
        Error::NoInterface(_)
        | Error::Occupied { .. }
        | Error::Another { .. }
        | Error::Attach { .. }
        | Error::TooMany { .. }
        | Error::TooManyTogether { .. }
        | Error::NoBpfFs(_)
        | Error::Held(_)
        | Error::Persist { .. }
        | Error::Shape { .. }
        | Error::Map { .. }
        | Error::OtherBuild { .. }
        | Error::Thread(_)
        | Error::Addresses(_) => false,
    }
}
