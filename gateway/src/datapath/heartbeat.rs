//! The thread that keeps the kernel half told: whom it is to slow or block, whom it may trust, how the gateway
//! fares, and that there is somebody who says so. When it stops, shedding and cookies stop by themselves.
//!
//! `kernel` starts one. It hears of sources through [`Sources`]; it decides nothing itself.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use aya::maps::{Array, MapData, PerCpuArray};
use gateway_common::addr::{self, Mask};
use gateway_common::counters::cell;
use gateway_common::maps::{COUNTERS, POLICY, SELECTOR};
use gateway_common::policy::{Charged, Holder, Policy, SLOTS};
use gateway_common::pressure::{BLOCKING, PENALTIES};
use gateway_common::standing::{BLOCKED, OF_CONNECTIONS, Penalty};
use gateway_common::{Address, Count, Family, Verdict};

use super::cookies::{Arming, Stack};
use super::error::Error;
use super::exempt::InForce;
use super::penalties::Sentence;
use super::sources::{Figures, Sources, Suspect};
use super::standings::{Standings, own};
use super::{pressure, sys};

/// How often it looks at the counters, and says that it is there.
const BEAT: Duration = Duration::from_millis(50);
/// What it says holds for so long.
const HOLDS_NS: u64 = 1_000_000_000;
/// Workers close a blocked source's connections no longer than until so long before its packets pass again: a beat
/// that is late would have them close the first of its new ones.
const LETS_GO_NS: u64 = 1_000_000_000;
/// Sources it has come to know are written this often.
const KNOWN_EVERY_NS: u64 = 1_000_000_000;

pub struct Heartbeat {
    standings: Standings,
    counters: PerCpuArray<MapData, Count>,
    selector: Array<MapData, u32>,
    policies: Array<MapData, Policy>,
    in_force: Arc<ArcSwap<InForce>>,
    sources: Weak<Sources>,
    arming: Arming,
    /// `None`: there is nobody to have the stack take cookies.
    stack: Option<Stack>,
    armed: bool,
    can_arm: bool,
    known_at_ns: u64,
    /// How the sources of the penalties were cut.
    client_mask: Mask,
}

impl Heartbeat {
    /// `stack`: the child that has the stack take cookies, where this kernel can send any.
    pub fn new(
        bpf: &aya::Ebpf,
        in_force: Arc<ArcSwap<InForce>>,
        sources: &Arc<Sources>,
        stack: Option<Stack>,
    ) -> Result<Self, Error> {
        let mut this = Self {
            standings: Standings::open(bpf)?,
            counters: own(bpf, COUNTERS)?.try_into().map_err(Error::map(COUNTERS))?,
            selector: own(bpf, SELECTOR)?.try_into().map_err(Error::map(SELECTOR))?,
            policies: own(bpf, POLICY)?.try_into().map_err(Error::map(POLICY))?,
            in_force,
            sources: Arc::downgrade(sources),
            arming: Arming::default(),
            stack,
            armed: false,
            can_arm: true,
            known_at_ns: 0,
            client_mask: [0; 4],
        };
        this.client_mask = this.mask_before()?;
        let now = sys::monotonic_ns();
        // Of a gateway before this one, where maps persist.
        for (source, penalty) in this.standings.penalties()? {
            this.standings.mark(&source)?;
            sources.sentences().take_up(source.into(), &penalty);
        }
        this.release(sources, now)?;
        let wanted = this.wanted()?;
        this.arming.begin(wanted);
        sources.watch(this.in_force.clone());
        Ok(this)
    }

    /// Starts the thread; it ends when nobody else holds the sources, or nobody is to be told.
    pub fn start(self) -> io::Result<()> {
        std::thread::Builder::new().name("heartbeat".to_owned()).spawn(move || self.run()).map(|_| ())
    }

    fn run(mut self) {
        let mut told = false;
        while let Some(sources) = self.sources.upgrade().filter(|sources| sources.is_watched()) {
            let penalised = sources.listen(BEAT);
            let mut beat = || {
                let now = sys::monotonic_ns();
                // What cannot be written, of one source or at one step, keeps none of the others.
                let punished =
                    penalised.iter().map(|(suspect, sentence)| self.punish(suspect, sentence, &sources));
                let punished = punished.fold(Ok(()), Result::and);
                let rest =
                    [self.release(&sources, now), self.introduce(&sources, now), self.report(&sources, now)];
                rest.into_iter().fold(punished, Result::and)
            };
            match beat() {
                Ok(()) => told = false,
                // The kernel half goes on by what it was told last, and forgets it in its time.
                Err(error) if !std::mem::replace(&mut told, true) => {
                    tracing::error!(%error, "the kernel half cannot be kept told");
                }
                Err(_) => {}
            }
        }
    }

    fn punish(&mut self, suspect: &Suspect, sentence: &Sentence, sources: &Sources) -> Result<(), Error> {
        let Sentence { since_ns, until_ns, .. } = *sentence;
        let (source, level) = (suspect.address, sentence.level());
        let penalty = Penalty {
            until_ns,
            since_ns,
            hits: 0,
            rule: suspect.rule,
            level,
            refused: suspect.refused,
            ignored: suspect.ignored,
        };
        let attention = if level == BLOCKED { PENALTIES | BLOCKING } else { PENALTIES };
        self.standings.penalise(source.into(), penalty, attention)?;
        sources.block(since_ns + LETS_GO_NS);
        let seconds = (until_ns - since_ns) / 1_000_000_000;
        let Suspect { refused, ignored, rule, .. } = suspect;
        let why = if *rule == OF_CONNECTIONS {
            "it goes on opening connections beyond connections.max_per_source"
        } else {
            "it ignores its refusals"
        };
        tracing::info!(%source, level, seconds, refused, ignored, rule, "penalised: {why}");
        Ok(())
    }

    /// By which penalties were passed that are there already: that of the policy before the first.
    fn mask_before(&self) -> Result<Mask, Error> {
        let slot = self.selector.get(&0, 0).map_err(Error::map(SELECTOR))?;
        let policy = |slot| self.policies.get(&slot, 0).map_err(Error::map(POLICY));
        let (first, before) = (policy(slot)?, policy((slot + 1) % SLOTS as u32)?);
        Ok(if before.generation == 0 { first.client_mask } else { before.client_mask })
    }

    /// Ends what is over.
    fn release(&mut self, sources: &Sources, now_ns: u64) -> Result<(), Error> {
        let in_force = self.in_force.load();
        let (escalation, prefix) = (in_force.config.escalation, in_force.config.client_ipv6_prefix);
        drop(in_force);
        let (mask, mut over) = (addr::mask(prefix), Vec::new());
        if std::mem::replace(&mut self.client_mask, mask) != mask {
            // Cut otherwise, a source is another: the first of a larger network would stand for all of it.
            over = sources.sentences().end_ipv6();
            sources.block(now_ns + LETS_GO_NS);
        }
        // Workers are to hear of it first.
        sources.sentences().bound(escalation, now_ns + LETS_GO_NS);
        over.extend(sources.sentences().over(now_ns));
        if !over.is_empty() {
            let addresses: Vec<Address> = over.iter().copied().map(Address::from).collect();
            let kept: Vec<Address> = sources.sentences().kept().map(Address::from).collect();
            self.standings.lift(&addresses, &kept)?;
        }
        for source in over {
            tracing::info!(%source, "penalty over");
        }
        let others = self.standings.attention()? & !(PENALTIES | BLOCKING);
        let attention = sources.sentences().attention(now_ns);
        self.standings.attend(others | attention)
    }

    /// Writes whom workers have served, once in a while.
    fn introduce(&mut self, sources: &Sources, now_ns: u64) -> Result<(), Error> {
        if now_ns < self.known_at_ns + KNOWN_EVERY_NS {
            return Ok(());
        }
        self.known_at_ns = now_ns;
        let changed = sources.acquaintances().changed();
        if changed.is_empty() {
            return Ok(());
        }
        let slot = self.selector.get(&0, 0).map_err(Error::map(SELECTOR))?;
        let policy = self.policies.get(&slot, 0).map_err(Error::map(POLICY))?;
        let introduced = changed.into_iter().map(|(source, class, until_ns)| {
            let address = match source {
                IpAddr::V4(_) => Address::from(source),
                IpAddr::V6(_) => Address::from(source).masked(&policy.source_mask),
            };
            let holder = Holder::new(address, policy.epoch, Charged::Requests);
            let known = self.standings.know(source.into(), class, until_ns);
            known.and(self.standings.open_bucket(holder, now_ns))
        });
        // They are named once: none may stand in another's way.
        introduced.fold(Ok(()), Result::and)
    }

    /// Says how the gateway fares, for a second.
    fn report(&mut self, sources: &Sources, now_ns: u64) -> Result<(), Error> {
        let until_ns = now_ns + HOLDS_NS;
        let in_force = self.in_force.load_full();
        let config = &in_force.config;
        let levels = if config.shedding { pressure::levels(sources.pressure()) } else { [0; 3] };
        self.standings.shed(levels, pressure::epoch(now_ns), until_ns)?;
        let wanted = self.wanted()?;
        // Where they are only counted, nothing of the host is changed for them.
        let sends = config.cookies && config.monitored & Verdict::CookieSent.bit() == 0;
        let arm = self.arming.judge(wanted, now_ns) && sends;
        let can = self.switch(arm);
        self.standings.can_arm(can.then_some(until_ns))?;
        // One that is about to be armed leaves what a gateway before this one has armed.
        if self.armed || !(arm && can) {
            self.standings.arm(self.armed.then_some(until_ns), now_ns)?;
        }
        sources.block(now_ns + LETS_GO_NS);
        let penalised = sources.sentences().by_level(now_ns);
        sources.show(Figures { penalised, shed: levels, cookies_armed: self.armed });
        Ok(())
    }

    /// Has the stack take cookies, or no more: time and again, for a gateway before this one may have put the host's
    /// setting back meanwhile. Whether it can; where it does not, none are sent.
    fn switch(&mut self, arm: bool) -> bool {
        let Some(stack) = &mut self.stack else { return false };
        let armed = match stack.turn(arm) {
            Ok(armed) => armed,
            Err(error) => {
                tracing::warn!(%error, "the stack takes no SYN cookies: none are sent from here on");
                (self.stack, self.armed) = (None, false);
                return false;
            }
        };
        let can = armed || stack.is_at_hand();
        if armed != self.armed {
            let what = if armed { "armed: more new sources than may come" } else { "disarmed" };
            tracing::info!("SYN cookies {what}");
        }
        if can != self.can_arm && !can {
            tracing::warn!(
                "no SYN cookies until the child that switches net.ipv4.tcp_syncookies answers, and nobody else sets it"
            );
        }
        (self.armed, self.can_arm) = (armed, can);
        can
    }

    /// How many requests ever were worth a cookie.
    fn wanted(&self) -> Result<u64, Error> {
        let mut sum = 0;
        for verdict in [Verdict::Flooded, Verdict::CookieSent, Verdict::Seed] {
            for family in [Family::Ipv4, Family::Ipv6] {
                let of_cpus = self.counters.get(&cell(verdict, family), 0).map_err(Error::map(COUNTERS))?;
                sum += of_cpus.iter().map(|count| count.packets).sum::<u64>();
            }
        }
        Ok(sum)
    }
}
