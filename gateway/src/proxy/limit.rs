//! A request before the rate limits of its route: who asks, what it is told.
//!
//! `answer` calls it once a route is found. What is counted, and how, is `crate::limit`'s; the answer to
//! a refusal is `error`'s.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Local;
use super::error::Failure;
use super::exchange::Exchange;
use crate::config::{DEFAULT_LIMIT_FIELDS, LimitFields, OnFailure};
use crate::datapath;
use crate::limit::cluster::{Asked, Asking, Store};
use crate::limit::fields::{
    self, RATELIMIT, RATELIMIT_POLICY, X_RATELIMIT_LIMIT, X_RATELIMIT_REMAINING, X_RATELIMIT_RESET,
};
use crate::limit::refusals::{Consequence, Refusal, Suspect};
use crate::limit::{Denial, Keys, Rule, Rules, Standing, key};
use crate::lines;
use crate::metrics::Registry;
use crate::snapshot::Snapshot;
use crate::text::number;
use crate::timer::Wheel;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// What a worker keeps for itself: a clone of another's value is a shared count.
pub struct Limiter {
    keys: RefCell<Keys>,
    /// The `RateLimit-Policy` field of each route.
    policies: Vec<HeaderValue>,
}

/// Why a request is refused, and what its 429 says.
pub struct Limited {
    local: Rc<Local>,
    /// Index into the snapshot's routes.
    route: usize,
    denial: Denial,
    /// The source's connections end with this.
    pub is_last: bool,
}

impl Limiter {
    pub fn new(snapshot: &Snapshot) -> Self {
        let policies = snapshot.routes.iter().map(|route| {
            HeaderValue::from_str(&route.limits.policies).expect("names and numbers are visible ASCII")
        });
        Self { keys: RefCell::default(), policies: policies.collect() }
    }
}

/// The store that `snapshot` asks for; `kept` where it is the same.
pub fn store(
    snapshot: &Snapshot,
    worker: usize,
    registry: &Registry,
    wheel: &Rc<Wheel>,
    kept: Option<&Rc<Store>>,
) -> Option<Rc<Store>> {
    let wanted = snapshot.routes.iter().any(|route| route.limits.are_shared());
    let config = snapshot.config.rate_limit.as_ref().and_then(|section| section.store.as_ref());
    let config = config.filter(|_| wanted);
    if let Some(kept) = kept {
        if config.is_some_and(|config| kept.is_of(config)) {
            return Some(kept.clone());
        }
        kept.end();
    }
    let started = Store::start(worker, config?.clone(), snapshot.limits.clone(), registry, wheel.clone());
    started.inspect_err(|error| tracing::error!(%error, "cannot look for the store of rate limits")).ok()
}

/// Takes a place among the requests under way, which is given back with the exchange.
pub fn enter(local: &Local, exchange: &mut Exchange, index: usize) -> Result<(), Failure> {
    let (limits, rules) = (&local.snapshot.limits, &local.snapshot.routes[index].limits);
    if rules.caps.are_some() {
        let permits = rules.caps.enter(&limits.clients, exchange.identity.address);
        exchange.hold(permits.map_err(Failure::Crowded)?);
    }
    Ok(())
}

/// Asks for the rules that gateways share; to be called where there are any.
pub fn ask<'a>(local: &'a Local, exchange: &Exchange, index: usize, parts: &Parts) -> Asking<'a> {
    let (limits, rules) = (&*local.snapshot.limits, &local.snapshot.routes[index].limits);
    let Some(store) = &local.store else { return Asking::Known(Asked::Away) };
    let now = limits.at(exchange.started());
    let mut keys = local.limiter.keys.borrow_mut();
    read(local, exchange, rules, parts, &mut keys);
    // Who is refused here costs the others nothing.
    match limits.refuses(rules, &keys, now) {
        true => Asking::Known(Asked::Skipped),
        false => store.ask(rules, &keys, now),
    }
}

/// Admits the request, or says why not. `asked` is what is known from other gateways.
pub fn admit(
    local: &Rc<Local>,
    exchange: &Exchange,
    index: usize,
    parts: &Parts,
    asked: &Asked,
) -> Result<Option<Standing>, Failure> {
    let (limits, route) = (&*local.snapshot.limits, &local.snapshot.routes[index]);
    let rules = &route.limits;
    let (client, is_source) = (exchange.identity.address, || is_source(exchange, &local.snapshot));
    let said = match asked {
        Asked::Said(said) => Some(said),
        Asked::Skipped => None,
        Asked::Away => {
            go_alone(local, rules)?;
            None
        }
    };
    // Who has no rules and meets nobody that is watched needs no clock.
    let now = match rules.is_empty() && !limits.refusals.are_watched() {
        true => return Ok(None),
        false => limits.at(exchange.started()),
    };
    let decided = if rules.is_empty() {
        Ok(None)
    } else {
        let mut keys = local.limiter.keys.borrow_mut();
        read(local, exchange, rules, parts, &mut keys);
        limits.decide(rules, &keys, now, local.worker, said)
    };
    let mut denial = match decided {
        Ok(standing) => {
            if limits.refusals.are_watched() && is_source() {
                limits.refusals.other(client, false, now);
            }
            return Ok(standing);
        }
        Err(denial) => denial,
    };
    let (rule, mut is_last, is_source) = (rules.rule(denial.rule), false, is_source());
    if is_source && rule.client_alone {
        let waits_until = &exchange.client().waits_until_ns;
        let again = now < waits_until.get();
        let (route, wait_s) = (rules.route, denial.wait_s);
        let refusal = Refusal { source: client, route, rule: rule.number, wait_s, again };
        let Consequence { wait_s, ignored, is_of_flood, suspect } = limits.refusals.refused(refusal, now);
        denial.wait_s = wait_s;
        waits_until.set(now + u64::from(wait_s) * NANOS_PER_SECOND);
        rule.cells[local.worker].ignored.add(u64::from(ignored));
        let (sources, peer) = (&local.snapshot.sources, exchange.client().peer.ip());
        // Where nothing bounds how soon it connects again, a connection costs more than another refusal.
        is_last = is_of_flood && sources.bounds(peer);
        if let Some(Suspect { address, rule, refused, ignored, .. }) = suspect {
            is_last |= sources.suspect(datapath::Suspect { address, rule, refused, ignored }, peer);
        }
    } else if is_source {
        limits.refusals.other(client, true, now);
    }
    Err(Failure::Limited(Limited { local: local.clone(), route: index, denial, is_last }))
}

fn read(local: &Local, exchange: &Exchange, rules: &Rules, parts: &Parts, keys: &mut Keys) {
    let (client, query) = (exchange.identity.address, parts.uri.query());
    let request = key::Request { client, route: rules.route, headers: &parts.headers, query };
    local.snapshot.limits.read(keys, rules, &request);
}

/// Counts what each shared rule does without the store; one of them may refuse.
fn go_alone(local: &Local, rules: &Rules) -> Result<(), Failure> {
    let (mut refused, cells) = (false, &local.registry.store[local.worker]);
    for rule in rules.iter() {
        let Some(terms) = &rule.cluster else { continue };
        cells.alone[terms.on_failure as usize].add(1);
        refused |= terms.on_failure == OnFailure::Refuse && !rule.shadow;
    }
    if refused { Err(Failure::StoreAway) } else { Ok(()) }
}

/// Adds what is left to an admitted request's answer, where that is asked for.
pub fn announce(local: &Local, index: usize, standing: Option<Standing>, fields: &mut HeaderMap) {
    let Some(Standing { rule, part, left, reset_s, near }) = standing else { return };
    let section = local.snapshot.config.rate_limit.as_ref();
    match section.map_or(DEFAULT_LIMIT_FIELDS, |section| section.fields) {
        LimitFields::Always => {}
        LimitFields::Near if near => {}
        LimitFields::Near | LimitFields::Refused => return,
    }
    let rule = local.snapshot.routes[index].limits.rule(rule);
    // Appended, for the upstream may have limits of its own, and the fields are lists.
    fields.append(RATELIMIT_POLICY, local.limiter.policies[index].clone());
    fields.append(RATELIMIT, fields::item(rule.policy(part), left, reset_s));
    if section.is_some_and(|section| section.legacy_fields) {
        for (name, value) in legacy(rule.limit(part), left, reset_s) {
            fields.insert(name, number(value.into()));
        }
    }
}

impl Limited {
    /// The policy that refused.
    pub fn policy(&self) -> &str {
        self.rule().policy(self.denial.part)
    }

    /// Writes what the 429 tells of the limit.
    pub fn announce(&self, lines: &mut Vec<u8>) {
        let (Denial { part, wait_s, .. }, limiter) = (self.denial, &self.local.limiter);
        lines::write_count(lines, b"retry-after: ", wait_s.into());
        lines.extend_from_slice(b"ratelimit: ");
        fields::write_item(self.policy(), 0, wait_s, lines);
        lines.extend_from_slice(lines::END);
        lines::write_known(lines, b"ratelimit-policy: ", limiter.policies[self.route].as_bytes());
        if self.local.snapshot.config.rate_limit.as_ref().is_some_and(|section| section.legacy_fields) {
            let limit = self.rule().limit(part);
            for (name, value) in legacy(limit, 0, wait_s) {
                lines::write_number(lines, &name, value.into());
            }
        }
    }

    fn rule(&self) -> &Rule {
        self.local.snapshot.routes[self.route].limits.rule(self.denial.rule)
    }
}

impl fmt::Debug for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Limited by {}, for {} s", self.policy(), self.denial.wait_s)
    }
}

/// The names that came before the standard's; `Reset` in seconds from now.
fn legacy(limit: u32, left: u32, reset_s: u32) -> [(HeaderName, u32); 3] {
    [(X_RATELIMIT_LIMIT, limit), (X_RATELIMIT_REMAINING, left), (X_RATELIMIT_RESET, reset_s)]
}

/// Whether the packets themselves come from who is counted, and from nobody behind him: refusals then say
/// something about that address.
fn is_source(exchange: &Exchange, snapshot: &Snapshot) -> bool {
    let client = exchange.client();
    exchange.identity.is_peer
        && !client.standing(snapshot).trusted
        && !client.looks_like_forgotten_proxy.get()
}
