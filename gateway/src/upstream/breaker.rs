//! A circuit breaker: whether an endpoint that fails is to be asked at all.
//!
//! Pure: time and chance are arguments. `health` keeps one for each endpoint and locks it; nothing of
//! it is on the path of a request to an endpoint that is well.
//!
//! Closed (requests flow) → Open (refused, for a time that doubles with each relapse) → HalfOpen (a few
//! probes) → Recovering (a growing share) → Closed. Each change begins an epoch; what was admitted in an
//! earlier one says nothing about this one.

use std::time::{Duration, Instant};

use super::window::Window;
use crate::config::CircuitBreaker as Rules;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Closed,
    Open,
    HalfOpen,
    Recovering,
}

impl State {
    pub const ALL: [Self; 4] = [Self::Closed, Self::Open, Self::HalfOpen, Self::Recovering];

    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Recovering => "recovering",
        }
    }
}

/// Why it changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `failure_threshold` failures without a success between them.
    Consecutive,
    /// Too large a part of the window's calls failed, or were slow.
    Ratio,
    ProbeFailed,
    /// The time to be open is over.
    Due,
    /// `success_threshold` probes have succeeded.
    ProbesSucceeded,
    /// The share has grown to the whole.
    Ramped,
}

impl Reason {
    pub const ALL: [Self; 6] =
        [Self::Consecutive, Self::Ratio, Self::ProbeFailed, Self::Due, Self::ProbesSucceeded, Self::Ramped];

    pub fn name(self) -> &'static str {
        match self {
            Self::Consecutive => "consecutive_failures",
            Self::Ratio => "failure_ratio",
            Self::ProbeFailed => "probe_failed",
            Self::Due => "due",
            Self::ProbesSucceeded => "probes_succeeded",
            Self::Ramped => "ramped",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub to: State,
    pub reason: Reason,
}

/// What a request is admitted with, and its result is reported with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    epoch: u32,
    /// Of the probe that it is.
    probe: Option<u64>,
}

impl Ticket {
    /// For a request to an endpoint whose breaker has nothing to say.
    pub fn plain(epoch: u32) -> Self {
        Self { epoch, probe: None }
    }

    pub fn is_of(self, epoch: u32) -> bool {
        self.epoch == epoch
    }

    pub fn is_probe(self) -> bool {
        self.probe.is_some()
    }
}

/// How a request went, as far as its endpoint is to blame or to praise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Success,
    Failure,
    /// Counts for the ratio alone: the upstream's 429, a slow answer.
    Soft,
    /// It answered that the client is at fault (4xx), which for a probe is a success.
    Neutral,
    /// Nobody knows: the client left, or the request never got there.
    Unknown,
}

#[derive(Debug)]
struct Probe {
    number: u64,
    /// When its place is free again, whatever became of it.
    lost_at: Instant,
}

#[derive(Debug)]
pub struct Breaker {
    rules: Rules,
    state: State,
    since: Instant,
    epoch: u32,
    consecutive: u32,
    window: Window,
    /// How often it has opened again soon after it had closed.
    relapses: u32,
    /// Of the last time it opened.
    open_for: Duration,
    probes: Vec<Probe>,
    probe_number: u64,
    probe_successes: u32,
    /// Of a lone endpoint's ramp: whole requests that may be admitted.
    credit: f64,
}

/// Of `timeout`: chance adds up to this part of it, so that gateways do not probe in step.
const JITTER: f64 = 0.1;
/// Where the ramp begins.
const FIRST_SHARE: f64 = 0.1;

impl Breaker {
    /// `successes`: their sum so far.
    pub fn new(rules: Rules, now: Instant, successes: u64) -> Self {
        Self {
            state: State::Closed,
            since: now,
            epoch: 0,
            consecutive: 0,
            window: Window::new(rules.window, now, successes),
            relapses: 0,
            open_for: Duration::ZERO,
            probes: Vec::new(),
            probe_number: 0,
            probe_successes: 0,
            credit: 0.0,
            rules,
        }
    }

    /// Goes on under other rules, in the state it is in.
    pub fn set_rules(&mut self, rules: Rules, now: Instant, successes: u64) {
        if rules.window != self.rules.window {
            self.window = Window::new(rules.window, now, successes);
        }
        self.rules = rules;
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Probes under way.
    pub fn probes(&self) -> usize {
        self.probes.len()
    }

    /// Whether nothing that has happened is still remembered, but for the state.
    pub fn is_at_rest(&self) -> bool {
        self.state == State::Closed && self.consecutive == 0
    }

    /// What is due at `now`, request or not.
    pub fn tick(&mut self, now: Instant, successes: u64) -> Option<Change> {
        self.window.roll(now, successes);
        self.probes.retain(|probe| probe.lost_at > now);
        match self.state {
            State::Open if now >= self.opens_until() => {
                Some(self.enter(State::HalfOpen, Reason::Due, now, successes))
            }
            State::Recovering if self.ramp(now) >= 1.0 => {
                Some(self.enter(State::Closed, Reason::Ramped, now, successes))
            }
            State::Closed | State::Open | State::HalfOpen | State::Recovering => None,
        }
    }

    /// Whether one more probe may go out, a `tick` at `now` before this.
    pub fn wants_probe(&self) -> bool {
        self.state == State::HalfOpen && self.probes.len() < self.rules.half_open_requests
    }

    /// How long until a request may be admitted, as far as time decides.
    pub fn wait(&self, now: Instant) -> Duration {
        match self.state {
            State::Open => self.opens_until().saturating_duration_since(now),
            State::Closed | State::HalfOpen | State::Recovering => Duration::ZERO,
        }
    }

    /// The part of its usual requests that it is to get, from 0 to 1; a lone endpoint's are refused by
    /// `admit` instead.
    pub fn share(&self, now: Instant) -> f64 {
        match self.state {
            State::Closed => 1.0,
            State::Open | State::HalfOpen => 0.0,
            State::Recovering => FIRST_SHARE + (1.0 - FIRST_SHARE) * self.ramp(now),
        }
    }

    /// Admits a request or says how long to wait, a `tick` at `now` before this. `lost_at`: when a probe
    /// counts as lost; `alone`: no other endpoint can take what this one refuses.
    pub fn admit(&mut self, now: Instant, lost_at: Instant, alone: bool) -> Result<Ticket, Duration> {
        let ticket = Ticket { epoch: self.epoch, probe: None };
        match self.state {
            State::Closed => Ok(ticket),
            State::Open => Err(self.wait(now)),
            State::HalfOpen if self.wants_probe() => {
                self.probe_number += 1;
                self.probes.push(Probe { number: self.probe_number, lost_at });
                Ok(Ticket { probe: Some(self.probe_number), ..ticket })
            }
            // Those under way decide.
            State::HalfOpen => Err(Duration::ZERO),
            State::Recovering if !alone => Ok(ticket),
            State::Recovering => {
                self.credit += steps(self.ramp(now));
                if self.credit < 1.0 {
                    return Err(Duration::ZERO);
                }
                self.credit -= 1.0;
                Ok(ticket)
            }
        }
    }

    /// Takes the result of an admitted request; `chance` is in [0, 1).
    pub fn report(
        &mut self,
        ticket: Ticket,
        verdict: Verdict,
        now: Instant,
        successes: u64,
        chance: f64,
    ) -> Option<Change> {
        if ticket.epoch != self.epoch {
            return None;
        }
        if let Some(number) = ticket.probe {
            return self.report_probe(number, verdict, now, successes, chance);
        }
        self.window.roll(now, successes);
        match verdict {
            Verdict::Success => {
                self.consecutive = 0;
                return None;
            }
            Verdict::Neutral | Verdict::Unknown => return None,
            Verdict::Failure => self.consecutive = self.consecutive.saturating_add(1),
            Verdict::Soft => {}
        }
        self.window.fail();
        let (failures, calls) = self.window.sums(successes);
        let volume = calls >= u64::from(self.rules.minimum_requests);
        let reason = if self.consecutive >= self.rules.failure_threshold {
            Reason::Consecutive
        } else if volume && failures as f64 >= calls as f64 * self.rules.failure_ratio {
            Reason::Ratio
        } else {
            return None;
        };
        Some(self.open(reason, now, successes, chance))
    }

    fn report_probe(
        &mut self,
        number: u64,
        verdict: Verdict,
        now: Instant,
        successes: u64,
        chance: f64,
    ) -> Option<Change> {
        // One that counts as lost has no say any more.
        let place = self.probes.iter().position(|probe| probe.number == number)?;
        self.probes.swap_remove(place);
        match verdict {
            Verdict::Success | Verdict::Neutral => {
                self.probe_successes += 1;
                let enough = self.probe_successes >= self.rules.success_threshold;
                enough.then(|| self.enter(State::Recovering, Reason::ProbesSucceeded, now, successes))
            }
            Verdict::Failure | Verdict::Soft => Some(self.open(Reason::ProbeFailed, now, successes, chance)),
            Verdict::Unknown => None,
        }
    }

    fn open(&mut self, reason: Reason, now: Instant, successes: u64, chance: f64) -> Change {
        let held = self.state == State::Closed && now.saturating_duration_since(self.since) >= self.open_for;
        self.relapses = if held { 0 } else { self.relapses.saturating_add(1) };
        let longest = self.rules.max_timeout;
        let doubled = 2_u32.saturating_pow(self.relapses.min(31));
        let plain = self.rules.timeout.saturating_mul(doubled).min(longest);
        self.open_for = plain.mul_f64(1.0 + JITTER * chance).min(longest.max(self.rules.timeout));
        self.enter(State::Open, reason, now, successes)
    }

    fn enter(&mut self, to: State, reason: Reason, now: Instant, successes: u64) -> Change {
        self.state = to;
        self.since = now;
        self.epoch = self.epoch.wrapping_add(1);
        self.consecutive = 0;
        self.probes.clear();
        self.probe_successes = 0;
        // The first request of a ramp is admitted.
        self.credit = 1.0;
        self.window.restart(now, successes);
        Change { to, reason }
    }

    fn opens_until(&self) -> Instant {
        self.since + self.open_for
    }

    /// How far the ramp has come, from 0 to 1.
    fn ramp(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        (passed / self.rules.recovery.as_secs_f64()).min(1.0)
    }
}

/// The part of its requests that a lone endpoint takes: growing in steps, each long enough to be judged by.
fn steps(ramp: f64) -> f64 {
    match ramp {
        ramp if ramp < 0.25 => 0.1,
        ramp if ramp < 0.5 => 0.25,
        ramp if ramp < 0.75 => 0.5,
        _ => 1.0,
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
