//! What workers and the heartbeat tell each other about sources of packets.
//!
//! It is there without a kernel half too: workers go by what is known of sources where room is short, and nobody else
//! listens. Locks are held for a moment; nothing here is on the path of a request that is neither the first of its
//! connection nor refused.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use gateway_common::standing::{BLOCKED, Class};
use gateway_common::verdict::Verdict;
use rustc_hash::FxHashSet;

use super::exempt::InForce;
use super::known::{Acquaintances, Served};
use super::penalties::{Sentence, Sentences};
use super::sys;
use crate::config::Kernel;

/// Messages that wait for a heartbeat which does not come are no more than this.
const MOST_WAITING: usize = 65_536;
/// Entered before others have their turn with the lock.
const ENTERED_AT_ONCE: usize = 256;

#[derive(Default)]
pub struct Sources {
    /// The kernel half's, where there is one.
    in_force: OnceLock<Arc<ArcSwap<InForce>>>,
    /// Another gateway's by now.
    is_left: AtomicBool,
    is_parting: AtomicBool,
    sentences: Mutex<Sentences>,
    acquaintances: Mutex<Acquaintances>,
    inbox: Mutex<Vec<(Suspect, Sentence)>>,
    comes: Condvar,
    blocked: ArcSwap<FxHashSet<IpAddr>>,
    changes: AtomicU64,
    /// As the bits of a float.
    pressure: AtomicU64,
    figures: Mutex<Figures>,
}

/// A source that ignores its refusals, or pushes against the bound on its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// As userspace tells clients apart.
    pub address: IpAddr,
    /// The number of the rule that refused last, or `OF_CONNECTIONS`.
    pub rule: u32,
    /// Of the last ten seconds.
    pub refused: u32,
    pub ignored: u32,
}

/// How the heartbeat stands, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Penalised sources of level 1 and 2.
    pub penalised: [u64; 2],
    /// Of 65,536 sources of each class.
    pub shed: [u16; Class::ALL.len()],
    pub cookies_armed: bool,
}

impl Figures {
    /// Share of the sources of each class that is shed.
    pub fn shed_ratios(&self) -> [f64; Class::ALL.len()] {
        self.shed.map(|level| f64::from(level) / 65_536.0)
    }
}

impl Sources {
    /// Somebody listens from now on, and penalises by what is `in_force`.
    pub(super) fn watch(&self, in_force: Arc<ArcSwap<InForce>>) {
        self.in_force.get_or_init(|| in_force);
        self.acquaintances().follow(true);
    }

    /// Nobody is to be told any more: another gateway tells the kernel half.
    pub fn unwatch(&self) {
        self.is_left.store(true, Relaxed);
        self.acquaintances().follow(false);
    }

    /// Nobody is penalised until a successor, which reads the penalties that there are, has followed or given up: what
    /// came after it had read them would be lost.
    pub fn part(&self, parting: bool) {
        self.is_parting.store(parting, Relaxed);
    }

    pub(super) fn is_watched(&self) -> bool {
        self.in_force.get().is_some() && !self.is_left.load(Relaxed)
    }

    /// Penalises a suspect where that is due, and wakes the heartbeat: it is to be in force within milliseconds.
    /// Whether the source's connections are to end, so that the refusal itself can say so. `peer`: who sends the packets.
    pub fn suspect(&self, suspect: Suspect, peer: IpAddr) -> bool {
        let source = suspect.address;
        let Some(in_force) = self.in_force_for(peer) else { return false };
        let config = &in_force.config;
        let mut inbox = self.inbox();
        if inbox.len() >= MOST_WAITING || self.is_parting.load(Relaxed) {
            return false;
        }
        let sentence = self.sentences().pass(source, config.escalation, sys::monotonic_ns());
        let Some(sentence) = sentence else { return false };
        inbox.push((suspect, sentence));
        self.comes.notify_one();
        sentence.level() == BLOCKED && drops(config)
    }

    /// Whether the kernel half refuses new connections of `peer` beyond its budget.
    pub fn bounds(&self, peer: IpAddr) -> bool {
        let refuses = |config: &Kernel| config.monitored & Verdict::OverBudget.bit() == 0;
        self.in_force_for(peer).is_some_and(|in_force| refuses(&in_force.config))
    }

    /// Whether the connections of `peer` end, whose source is among the blocked.
    pub fn ends(&self, peer: IpAddr) -> bool {
        self.in_force_for(peer).is_some()
    }

    /// What the kernel half does to `peer`, an address in full, for one of a blocked network may be allowed; `None`:
    /// there is none, or it lets all of its packets pass.
    fn in_force_for(&self, peer: IpAddr) -> Option<arc_swap::Guard<Arc<InForce>>> {
        let in_force = self.in_force.get().filter(|_| self.is_watched())?.load();
        (!in_force.exempts(peer.to_canonical(), sys::monotonic_ns())).then_some(in_force)
    }

    pub(super) fn sentences(&self) -> MutexGuard<'_, Sentences> {
        self.sentences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a worker has heard of sources.
    pub fn served(&self, heard: &[(IpAddr, Served)]) {
        let now_ns = sys::monotonic_ns();
        for heard in heard.chunks(ENTERED_AT_ONCE) {
            let mut acquaintances = self.acquaintances();
            heard.iter().for_each(|(source, served)| acquaintances.enter(*source, *served, now_ns));
        }
    }

    /// How well a source is known, as userspace tells clients apart.
    pub fn class(&self, source: IpAddr) -> Class {
        self.acquaintances().class(source, sys::monotonic_ns())
    }

    pub(super) fn acquaintances(&self) -> MutexGuard<'_, Acquaintances> {
        self.acquaintances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How badly the gateway itself fares, from 0 to 1: what userspace's own refusals did not end.
    pub fn press(&self, pressure: f64) {
        self.pressure.store(pressure.to_bits(), Relaxed);
    }

    pub(super) fn pressure(&self) -> f64 {
        f64::from_bits(self.pressure.load(Relaxed))
    }

    /// Who has been penalised: at once if somebody is, else nobody after `patience`.
    pub(super) fn listen(&self, patience: Duration) -> Vec<(Suspect, Sentence)> {
        let inbox = self.inbox();
        let waited = self.comes.wait_timeout_while(inbox, patience, |inbox| inbox.is_empty());
        let (mut inbox, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *inbox)
    }

    /// Whose connections are to end; counted, so that workers see a change by looking at a number.
    pub fn blocked(&self) -> (u64, Arc<FxHashSet<IpAddr>>) {
        // The number first: a set that is newer than it is looked at once more.
        (self.changes.load(Relaxed), self.blocked.load_full())
    }

    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// Has workers end the connections of those who are still blocked at that time.
    pub(super) fn block(&self, then_ns: u64) {
        let drops = self.in_force.get().is_some_and(|in_force| drops(&in_force.load().config));
        let blocked: FxHashSet<IpAddr> = self.sentences().blocked(then_ns).filter(|_| drops).collect();
        if **self.blocked.load() != blocked {
            self.blocked.store(Arc::new(blocked));
            self.changes.fetch_add(1, Relaxed);
        }
    }

    pub fn figures(&self) -> Figures {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn show(&self, figures: Figures) {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }

    fn inbox(&self) -> MutexGuard<'_, Vec<(Suspect, Sentence)>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether packets of the blocked are dropped, and not only counted.
fn drops(config: &Kernel) -> bool {
    config.monitored & Verdict::Penalised.bit() == 0
}

#[cfg(test)]
mod tests {
    use gateway_common::standing::Penalty;

    use super::*;
    use crate::config::{self, Listed};

    const SUSPECT: &str = "2001:db8::";
    const NEIGHBOUR: &str = "2001:db8::1";
    const ALLOWED: &str = "2001:db8::2";

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Sources of a gateway that blocks, but for what `change` makes of its configuration; one is blocked for an hour.
    fn sources(change: impl FnOnce(&mut Kernel)) -> Sources {
        let text =
            r#"{ "routes": [{ "path": "/", "backend": "http://a" }], "kernel": { "escalation": "drop" } }"#;
        let mut config = config::parse(text, "test").unwrap().kernel;
        change(&mut config);
        let sources = Sources::default();
        sources.watch(Arc::new(ArcSwap::from_pointee(InForce::of(config))));
        let penalty = Penalty {
            until_ns: sys::monotonic_ns() + 600_000_000_000,
            since_ns: sys::monotonic_ns(),
            hits: 0,
            rule: 1,
            level: BLOCKED,
            refused: 60,
            ignored: 50,
        };
        sources.sentences().take_up(address(SUSPECT), &penalty);
        sources.block(sys::monotonic_ns());
        sources
    }

    fn suspects(sources: &Sources, peer: &str) -> bool {
        let suspect = Suspect { address: address("192.0.2.7"), rule: 1, refused: 60, ignored: 50 };
        sources.suspect(suspect, address(peer));
        !sources.listen(Duration::ZERO).is_empty()
    }

    #[test]
    fn whoever_is_allowed_is_neither_penalised_nor_cut_off_whatever_becomes_of_its_network() {
        let listed = |text: &str, watched| Listed {
            network: text.parse().unwrap(),
            until_ns: sys::monotonic_ns() + 600_000_000_000,
            watched,
        };
        let network = || vec!["2001:db8::2/128".parse().unwrap()];
        for (what, change) in [
            (
                "in the configuration",
                &(|config: &mut Kernel| config.allow = network()) as &dyn Fn(&mut Kernel),
            ),
            ("a trusted proxy", &|config: &mut Kernel| config.trusted = network()),
            ("at run time", &|config: &mut Kernel| {
                config.allow_listed = vec![listed("2001:db8::2/128", false)]
            }),
        ] {
            let sources = sources(change);
            assert!(!sources.ends(address(ALLOWED)) && !suspects(&sources, ALLOWED), "{what}");
            assert!(sources.ends(address(NEIGHBOUR)) && suspects(&sources, NEIGHBOUR), "{what}");
        }
        let ended = Listed { until_ns: sys::monotonic_ns(), ..listed("2001:db8::2/128", false) };
        for (what, entry) in [("on trial", listed("2001:db8::2/128", true)), ("ended", ended)] {
            let sources = sources(|config| config.allow_listed = vec![entry]);
            assert!(sources.ends(address(ALLOWED)) && suspects(&sources, ALLOWED), "{what}");
        }
    }

    #[test]
    fn nobody_is_penalised_while_a_successor_takes_over() {
        let sources = sources(|_| {});
        sources.part(true);
        assert!(!suspects(&sources, NEIGHBOUR));
        sources.part(false);
        assert!(suspects(&sources, NEIGHBOUR));
    }

    #[test]
    fn where_penalties_are_only_counted_no_connection_ends() {
        for (monitored, blocked) in [(0, 1), (Verdict::Penalised.bit(), 0), (u32::MAX, 0)] {
            let sources = sources(|config| config.monitored = monitored);
            assert_eq!(sources.blocked().1.len(), blocked, "{monitored:x}");
        }
    }
}
