//! How an endpoint is doing, for the whole process: breaker, score, checks, ejection, slow start, and whether
//! its operator has drained it.
//!
//! What a request needs to know is one word that is read and hardly ever written. Everything else lies
//! behind a lock that only results of an endpoint in trouble, failures, and the clock take: a success of
//! an endpoint that is well writes nothing here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::balancer::WHOLE;
use super::breaker::{Breaker, Change, Reason, State, Ticket, Verdict};
use super::outlier::{Sample, Why};
use super::window::Window;
use crate::config::{Config, DEFAULT_HEALTH_DECAY, HealthCheck};

/// What is read on a request's path: the share in thousandths (bits 0 to 15), these flags, and the
/// breaker's epoch (from bit 32 on).
#[derive(Clone, Copy, Debug)]
pub struct Word(u64);

/// There is more to know, behind the lock.
const WATCHED: u64 = 1 << 16;
/// A probe is wanted.
const PROBE: u64 = 1 << 17;
/// By checks or ejection; asked all the same where too few of a cluster are well.
const DOWN: u64 = 1 << 18;
/// By its operator: its share is 0, and what is kept for it is let go.
const DRAINED: u64 = 1 << 19;

impl Word {
    pub fn share(self) -> u32 {
        (self.0 & 0xffff) as u32
    }

    pub fn wants_probe(self) -> bool {
        self.0 & PROBE != 0
    }

    pub fn is_down(self) -> bool {
        self.0 & DOWN != 0
    }

    pub fn is_drained(self) -> bool {
        self.0 & DRAINED != 0
    }

    fn is_watched(self) -> bool {
        self.0 & WATCHED != 0
    }
}

pub struct Health {
    /// For the log.
    name: String,
    word: AtomicU64,
    watched: Mutex<Watched>,
}

/// What of the configuration concerns an endpoint's health.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    breaker: Option<crate::config::CircuitBreaker>,
    decay: f64,
    slow_start: Duration,
    ejection_time: Duration,
}

impl Rules {
    pub fn of(config: &Config) -> Self {
        let section = config.circuit_breaker.as_ref();
        Self {
            breaker: section.filter(|section| section.enabled).cloned(),
            decay: section.map_or(DEFAULT_HEALTH_DECAY, |section| section.health_decay),
            slow_start: config.upstreams.slow_start,
            ejection_time: config.upstreams.ejection_time,
        }
    }
}

/// Why a request may not go to an endpoint, or to any of several; what may end soonest is the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// By its breaker, which may admit the next after so long.
    For(Duration),
    /// By its operator, for nobody knows how long.
    Drained,
}

struct Watched {
    rules: Rules,
    breaker: Option<Breaker>,
    /// From 0 to 1.
    score: f64,
    /// When time last mended the score.
    mended: Instant,
    /// Checks that say it is down.
    failing_checks: Vec<HealthCheck>,
    ejected_until: Option<Instant>,
    drained: bool,
    /// In a row: each lasts longer.
    ejections: u32,
    /// When one of them was last forgotten.
    forgiven: Instant,
    /// When it joined or came back, until it has its whole share.
    risen: Option<Instant>,
    /// For comparison with others.
    window: Window,
    counts: Counts,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    /// By the state entered and the reason.
    changes: BTreeMap<(&'static str, &'static str), u64>,
    ejections: BTreeMap<&'static str, u64>,
    checks_failed: u64,
}

/// What metrics say of an endpoint.
#[derive(Clone, Debug)]
pub struct Report {
    pub state: State,
    pub score: f64,
    pub share: f64,
    pub probes: usize,
    /// The checks that are made find it well.
    pub checked_well: bool,
    pub ejected: bool,
    pub drained: bool,
    pub changes: BTreeMap<(&'static str, &'static str), u64>,
    pub ejections: BTreeMap<&'static str, u64>,
    pub checks_failed: u64,
}

/// A score as good as 1.
const NEARLY_ONE: f64 = 0.999;
/// The least part of its requests that a bad score leaves an endpoint, to mend it by.
const LEAST_SHARE: f64 = 0.05;
/// Where a slow start begins.
const FIRST_SHARE: f64 = 0.1;
/// Of time: mends a score as one success does.
const MENDS: Duration = Duration::from_secs(1);
const COMPARED: Duration = Duration::from_secs(10);
/// An ejection is no longer than so many times the first.
const LONGEST_EJECTION: u32 = 10;

impl Health {
    /// `successes`: their sum so far; `joined`: it comes to a cluster that serves already, and starts slowly.
    pub fn new(name: String, rules: Rules, now: Instant, successes: u64, joined: bool) -> Self {
        let watched = Watched {
            breaker: rules.breaker.clone().map(|rules| Breaker::new(rules, now, successes)),
            rules,
            score: 1.0,
            mended: now,
            failing_checks: Vec::new(),
            ejected_until: None,
            drained: false,
            ejections: 0,
            forgiven: now,
            risen: joined.then_some(now),
            window: Window::new(COMPARED, now, successes),
            counts: Counts::default(),
        };
        let word = AtomicU64::new(watched.word(now).0);
        Self { name, word, watched: Mutex::new(watched) }
    }

    pub fn word(&self) -> Word {
        Word(self.word.load(Relaxed))
    }

    /// Goes on under the rules and checks of another configuration.
    pub fn configure(&self, rules: Rules, checks: &[&HealthCheck], now: Instant, successes: u64) {
        let mut watched = self.lock();
        watched.failing_checks.retain(|failing| checks.contains(&failing));
        if rules != watched.rules {
            watched.breaker = match (watched.breaker.take(), rules.breaker.clone()) {
                (Some(mut breaker), Some(rules)) => {
                    breaker.set_rules(rules, now, successes);
                    Some(breaker)
                }
                (None, Some(rules)) => Some(Breaker::new(rules, now, successes)),
                (_, None) => None,
            };
            watched.rules = rules;
        }
        self.publish(&watched, now);
    }

    /// Lets a request through, or says how long to wait. `lost_after`: until a probe counts as lost;
    /// `alone`: no other endpoint can take the request; `successes`: their sum so far.
    pub fn admit(
        &self,
        lost_after: Duration,
        alone: bool,
        successes: impl FnOnce() -> u64,
    ) -> Result<Ticket, Refused> {
        let word = self.word();
        if !word.is_watched() {
            return Ok(Ticket::plain((word.0 >> 32) as u32));
        }
        let (now, mut watched) = (Instant::now(), self.lock());
        if watched.drained {
            return Err(Refused::Drained);
        }
        let Some(breaker) = &mut watched.breaker else { return Ok(Ticket::plain(0)) };
        let change = breaker.tick(now, successes());
        let admitted = breaker.admit(now, now + lost_after, alone);
        self.note(&mut watched, change);
        self.publish(&watched, now);
        admitted.map_err(Refused::For)
    }

    /// How long until it may let a request through.
    pub fn wait(&self) -> Duration {
        let (now, watched) = (Instant::now(), self.lock());
        watched.breaker.as_ref().map_or(Duration::ZERO, |breaker| breaker.wait(now))
    }

    /// Takes the result of a request; `chance` is in [0, 1).
    pub fn settle(&self, ticket: Ticket, verdict: Verdict, successes: impl FnOnce() -> u64, chance: f64) {
        let mattered = match verdict {
            Verdict::Success => ticket.is_probe() || self.word().is_watched(),
            Verdict::Neutral | Verdict::Unknown => ticket.is_probe(),
            Verdict::Failure | Verdict::Soft => true,
        };
        if !mattered {
            return;
        }
        let (now, successes, mut watched) = (Instant::now(), successes(), self.lock());
        let current = watched.breaker.as_ref().is_none_or(|breaker| ticket.is_of(breaker.epoch()));
        if current {
            let decay = watched.rules.decay;
            match verdict {
                Verdict::Success => watched.mend(1.0),
                Verdict::Failure => {
                    watched.score *= decay;
                    watched.mended = now;
                    watched.window.roll(now, successes);
                    watched.window.fail();
                }
                Verdict::Soft | Verdict::Neutral | Verdict::Unknown => {}
            }
        }
        let breaker = watched.breaker.as_mut();
        let change = breaker.and_then(|breaker| breaker.report(ticket, verdict, now, successes, chance));
        self.note(&mut watched, change);
        self.publish(&watched, now);
    }

    /// What time brings about: called by one worker at each of its clock's ticks.
    pub fn tick(&self, now: Instant, successes: u64) {
        let mut watched = self.lock();
        watched.window.roll(now, successes);
        let change = watched.breaker.as_mut().and_then(|breaker| breaker.tick(now, successes));
        self.note(&mut watched, change);
        watched.mend_by_time(now);
        if watched.ejected_until.is_some_and(|until| now >= until) {
            watched.ejected_until = None;
            watched.risen = Some(now);
            tracing::info!(upstream = self.name, "ejection is over");
        }
        if watched.risen.is_some_and(|risen| now >= risen + watched.rules.slow_start) {
            watched.risen = None;
        }
        self.publish(&watched, now);
    }

    /// A check of it has come to another result.
    pub fn checked(&self, check: &HealthCheck, well: bool, now: Instant) {
        let mut watched = self.lock();
        watched.failing_checks.retain(|failing| failing != check);
        match well {
            false => watched.failing_checks.push(check.clone()),
            true if watched.failing_checks.is_empty() => watched.risen = Some(now),
            true => {}
        }
        self.publish(&watched, now);
    }

    /// One check of it has failed.
    pub fn count_failed_check(&self) {
        self.lock().counts.checks_failed += 1;
    }

    /// Gives it no further requests, or gives it some again, few at first; whether that is news.
    pub fn drain(&self, drained: bool, now: Instant) -> bool {
        let mut watched = self.lock();
        let changed = std::mem::replace(&mut watched.drained, drained) != drained;
        if changed && !drained {
            watched.risen = Some(now);
        }
        self.publish(&watched, now);
        changed
    }

    /// Leaves it out for a while, for `why`.
    pub fn eject(&self, why: Why, now: Instant) {
        let mut watched = self.lock();
        watched.ejections = (watched.ejections + 1).min(LONGEST_EJECTION);
        let time = watched.rules.ejection_time * watched.ejections;
        watched.ejected_until = Some(now + time);
        watched.forgiven = now + time;
        *watched.counts.ejections.entry(why.name()).or_default() += 1;
        tracing::warn!(upstream = self.name, reason = why.name(), seconds = time.as_secs_f64(), "ejected");
        self.publish(&watched, now);
    }

    /// It does as well as the others: for each time as long as the first ejection, one is forgotten.
    pub fn forgive(&self, now: Instant) {
        let mut watched = self.lock();
        if now >= watched.forgiven + watched.rules.ejection_time {
            watched.ejections = watched.ejections.saturating_sub(1);
            watched.forgiven = now;
        }
    }

    /// Failures and calls of the last seconds; `wait` is known elsewhere.
    pub fn sample(&self, successes: u64, wait: Option<f64>) -> Sample {
        let (failures, calls) = self.lock().window.sums(successes);
        Sample { calls, failures, wait }
    }

    pub fn report(&self) -> Report {
        let watched = self.lock();
        let breaker = watched.breaker.as_ref();
        Report {
            state: breaker.map_or(State::Closed, Breaker::state),
            score: watched.score,
            share: f64::from(self.word().share()) / f64::from(WHOLE),
            probes: breaker.map_or(0, Breaker::probes),
            checked_well: watched.failing_checks.is_empty(),
            ejected: watched.ejected_until.is_some(),
            drained: watched.drained,
            changes: watched.counts.changes.clone(),
            ejections: watched.counts.ejections.clone(),
            checks_failed: watched.counts.checks_failed,
        }
    }

    fn note(&self, watched: &mut Watched, change: Option<Change>) {
        let Some(Change { to, reason }) = change else { return };
        *watched.counts.changes.entry((to.name(), reason.name())).or_default() += 1;
        let (upstream, state, reason_name) = (&self.name, to.name(), reason.name());
        match reason {
            Reason::Consecutive | Reason::Ratio | Reason::ProbeFailed => {
                tracing::warn!(upstream, state, reason = reason_name, "circuit breaker");
            }
            Reason::Due | Reason::ProbesSucceeded | Reason::Ramped => {
                tracing::info!(upstream, state, reason = reason_name, "circuit breaker");
            }
        }
    }

    /// Under the lock, so that what was published last is what is so.
    fn publish(&self, watched: &Watched, now: Instant) {
        self.word.store(watched.word(now).0, Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    fn word(&self, now: Instant) -> Word {
        let breaker = self.breaker.as_ref();
        let epoch = u64::from(breaker.map_or(0, Breaker::epoch)) << 32;
        if self.drained {
            return Word(DRAINED | WATCHED | epoch);
        }
        let rising = self.risen.map_or(1.0, |risen| {
            let passed = now.saturating_duration_since(risen).as_secs_f64();
            FIRST_SHARE + (1.0 - FIRST_SHARE) * (passed / self.rules.slow_start.as_secs_f64()).min(1.0)
        });
        let of_breaker = breaker.map_or(1.0, |breaker| breaker.share(now));
        let share = match of_breaker {
            0.0 => 0,
            of_breaker => {
                let part = of_breaker * self.score.max(LEAST_SHARE) * rising;
                ((part * f64::from(WHOLE)).round() as u64).clamp(1, u64::from(WHOLE))
            }
        };
        let down = !self.failing_checks.is_empty() || self.ejected_until.is_some();
        let quiet =
            self.score >= 1.0 && self.risen.is_none() && !down && breaker.is_none_or(Breaker::is_at_rest);
        let flag = |holds: bool, flag: u64| if holds { flag } else { 0 };
        let flags =
            flag(!quiet, WATCHED) | flag(down, DOWN) | flag(breaker.is_some_and(Breaker::wants_probe), PROBE);
        Word(share | flags | epoch)
    }

    /// So many successes.
    fn mend(&mut self, successes: f64) {
        self.score = 1.0 - (1.0 - self.score) * self.rules.decay.powf(successes);
        if self.score >= NEARLY_ONE {
            self.score = 1.0;
        }
    }

    fn mend_by_time(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.mended);
        let asked = self.breaker.as_ref().is_none_or(|breaker| breaker.share(now) > 0.0);
        self.mended = now;
        if self.score < 1.0 && asked {
            self.mend(passed.as_secs_f64() / MENDS.as_secs_f64());
        }
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
