//! The endpoints that a route's requests go to, and how the next one is chosen.
//!
//! Shared by all workers; what a worker has of its own (turns, dice) it brings along.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::HeaderValue;

use super::Endpoint;
use super::balancer::{Balancer, Turns, View, WHOLE};
use super::breaker::Ticket;
use super::budget::Budget;
use super::dice::Dice;
use super::health::{Refused, Word};
use super::outlier;
use crate::config;

pub struct Cluster {
    pub config: config::Cluster,
    /// For metrics.
    pub name: String,
    /// What a route calls it upstream where no endpoint is chosen yet.
    pub authority: HeaderValue,
    pub members: Vec<Member>,
    /// Names without an address, and why.
    pub unresolved: Vec<String>,
    pub budget: Arc<Budget>,
    /// `None` where there is nothing to choose.
    balancer: Option<Balancer>,
    mood: AtomicU8,
}

pub struct Member {
    pub endpoint: Arc<Endpoint>,
    /// Index into the snapshot's endpoints.
    pub index: usize,
    pub weight: u32,
}

/// Too few members are well to leave the others out.
const PANIC: u8 = 1;
/// A probe is wanted.
const PROBING: u8 = 2;

/// What a choice depends on besides the endpoints.
pub struct Asked<'a> {
    /// Of the request, hashed, where the policy has a key.
    pub key: u64,
    /// Members that were tried: others are preferred.
    pub tried: &'a [usize],
    /// It may be sent again, so that it may go where it is likely to fail.
    pub expendable: bool,
    /// Until a probe counts as lost.
    pub lost_after: Duration,
}

impl Cluster {
    pub fn new(
        config: config::Cluster,
        name: String,
        members: Vec<Member>,
        unresolved: Vec<String>,
        budget: Arc<Budget>,
    ) -> Self {
        let weighted = members.iter().map(|member| (member.endpoint.name.as_str(), member.weight));
        let balancer = (members.len() > 1).then(|| Balancer::new(config.policy.clone(), weighted));
        let authority = HeaderValue::try_from(config.members[0].backend.to_string())
            .expect("the configuration admits host names and ports only");
        Self { config, name, authority, members, unresolved, budget, balancer, mood: AtomicU8::new(0) }
    }

    /// Chooses a member and has its breaker's leave. `load`: requests under way at a member.
    pub fn choose(
        &self,
        asked: &Asked<'_>,
        load: impl Fn(usize) -> u64,
        turns: &mut Turns,
        dice: &Dice,
    ) -> Result<(usize, Ticket), Refused> {
        let Some(balancer) = &self.balancer else {
            return match self.members.first() {
                Some(_) => self.admit(0, asked, true).map(|ticket| (0, ticket)),
                None => Err(Refused::For(Duration::ZERO)),
            };
        };
        let mood = self.mood.load(Relaxed);
        if mood & PROBING != 0
            && asked.expendable
            && let Some(chosen) = self.probe(asked)
        {
            return Ok(chosen);
        }
        // Others first; those tried before rather than none; those that are not well rather than none.
        let mut refused = Vec::new();
        for (panic, again) in [(mood & PANIC != 0, false), (true, false), (true, true)] {
            loop {
                let view = |at: usize| {
                    let word = self.members[at].endpoint.health.word();
                    let out = word.is_down() && !panic
                        || !again && asked.tried.contains(&at)
                        || refused.contains(&at);
                    View { share: if out { 0 } else { word.share() }, load: load(at) }
                };
                let Some(at) = balancer.pick(view, asked.key, turns, dice) else { break };
                match self.admit(at, asked, self.is_alone(at)) {
                    Ok(ticket) => return Ok((at, ticket)),
                    Err(_) => refused.push(at),
                }
            }
        }
        self.last_resort(asked)
    }

    /// Whether none but this member has a share, and not all of its own.
    fn is_alone(&self, at: usize) -> bool {
        let share = |at: usize| self.members[at].endpoint.health.word().share();
        share(at) < WHOLE && (0..self.members.len()).all(|other| other == at || share(other) == 0)
    }

    /// No member has a share: a probe, if one is wanted, or how long to wait for one.
    fn last_resort(&self, asked: &Asked<'_>) -> Result<(usize, Ticket), Refused> {
        let mut soonest = Refused::Drained;
        for at in 0..self.members.len() {
            match self.admit(at, asked, true) {
                Ok(ticket) => return Ok((at, ticket)),
                Err(refused) => soonest = soonest.min(refused),
            }
        }
        Err(soonest)
    }

    fn probe(&self, asked: &Asked<'_>) -> Option<(usize, Ticket)> {
        (0..self.members.len())
            .filter(|at| self.members[*at].endpoint.health.word().wants_probe() && !asked.tried.contains(at))
            .find_map(|at| Some((at, self.admit(at, asked, false).ok()?)))
    }

    fn admit(&self, at: usize, asked: &Asked<'_>, alone: bool) -> Result<Ticket, Refused> {
        let endpoint = &self.members[at].endpoint;
        endpoint.health.admit(asked.lost_after, alone, || endpoint.successes())
    }

    /// Requests under way at all its endpoints.
    pub fn active(&self) -> u64 {
        self.members.iter().map(|member| member.endpoint.active()).sum()
    }

    /// Sees how its members are: called by one worker at each tick.
    pub fn tick(&self, rules: &config::Upstreams) {
        let words = self.members.iter().map(|member| member.endpoint.health.word());
        // Whether few are well is a question about those that are to serve.
        let words: Vec<Word> = words.filter(|word| !word.is_drained()).collect();
        let well = words.iter().filter(|word| !word.is_down()).count();
        let panic = (well as f64) < words.len() as f64 * rules.panic_threshold;
        let probing = words.iter().any(|word| word.wants_probe());
        self.mood.store(if panic { PANIC } else { 0 } | if probing { PROBING } else { 0 }, Relaxed);
    }

    /// Once a second: leaves out a member that does much worse than the others, if enough stay.
    pub fn compare(&self, rules: &config::Upstreams, now: Instant) {
        if self.balancer.is_none() || !rules.ejection {
            return;
        }
        let judged: Vec<&Member> = self
            .members
            .iter()
            .filter(|member| {
                let word = member.endpoint.health.word();
                !word.is_down() && word.share() > 0
            })
            .collect();
        let samples: Vec<_> = judged.iter().map(|member| member.endpoint.sample()).collect();
        let worst = outlier::worst(&samples);
        for (at, member) in judged.iter().enumerate() {
            if worst.is_none_or(|(worst, _)| worst != at) {
                member.endpoint.health.forgive(now);
            }
        }
        let stay = judged.len().saturating_sub(1);
        if let Some((at, why)) = worst
            && stay > 0
            && stay as f64 >= self.members.len() as f64 * rules.panic_threshold
        {
            judged[at].endpoint.health.eject(why, now);
        }
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
