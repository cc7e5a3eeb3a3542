//! A configuration's judgement of recorded requests: its routes, limits and penalties, by the log's own clock.
//!
//! The decisions are those that serve requests: they take the time as an argument. What a log does not tell is not
//! judged: connections, requests at once, headers, how well upstreams do.

use http::HeaderMap;
use rustc_hash::FxHashMap;

use super::record::Record;
use crate::config::{Config, Escalation, LimitKey};
use crate::datapath::Sentences;
use crate::limit::refusals::Refusal;
use crate::limit::{Keys, key};
use crate::metrics::Registry;
use crate::path;
use crate::proxy::identity::{Identity, is_trusted};
use crate::snapshot::Snapshot;
use crate::upstream::resolve::Names;

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Served,
    /// By the rule of this name, on this route.
    Limited {
        route: String,
        rule: String,
    },
    /// The kernel half drops what its source sends.
    Dropped,
    NoRoute,
    MethodNotAllowed {
        route: String,
    },
}

impl Fate {
    /// Whether it is the gateway's policy that keeps it from being served.
    pub fn is_refused(&self) -> bool {
        *self != Self::Served
    }

    pub fn name(&self) -> String {
        match self {
            Self::Served => "served".to_owned(),
            Self::Limited { route, rule } => format!("limited {route} {rule}"),
            Self::Dropped => "dropped by a penalty".to_owned(),
            Self::NoRoute => "no route".to_owned(),
            Self::MethodNotAllowed { route } => format!("method not allowed {route}"),
        }
    }
}

pub struct Stage {
    snapshot: Snapshot,
    keys: Keys,
    sentences: Sentences,
    /// Until when the kernel half drops a source's packets.
    blocked: FxHashMap<std::net::IpAddr, u64>,
    begun_ms: Option<u64>,
    pub slowed: u64,
    pub blocks: u64,
}

/// The clock of limits does not begin at nothing: what is full at first has been so for long.
const BEFORE_NS: u64 = 100_000 * 1_000_000_000;

impl Stage {
    pub fn new(config: Config) -> Self {
        let snapshot = Snapshot::build(config, &Names::default(), None, &Registry::new(1));
        let (keys, sentences, blocked) = Default::default();
        Self { snapshot, keys, sentences, blocked, begun_ms: None, slowed: 0, blocks: 0 }
    }

    /// Rules that count by what a log does not have; here they count by client.
    pub fn blind(&self) -> Vec<String> {
        let unseen = |keys: &[LimitKey]| keys.iter().any(|key| matches!(key, LimitKey::Header(_)));
        let mut blind = Vec::new();
        for route in &self.snapshot.routes {
            let specs: Vec<_> = route.limits.keys().collect();
            let rules = route.limits.iter().filter(|rule| unseen(specs[rule.key]));
            blind.extend(rules.map(|rule| format!("{} {}", route.label, rule.name())));
        }
        blind
    }

    /// Records are to come in the order of their times.
    pub fn judge(&mut self, record: &Record) -> Fate {
        let begun = *self.begun_ms.get_or_insert(record.at_ms);
        let now = BEFORE_NS + record.at_ms.saturating_sub(begun) * 1_000_000;
        let (snapshot, config) = (&self.snapshot, &self.snapshot.config);
        let source = Identity::of_peer(record.peer, record.relayed, config.client_ipv6_prefix);
        let is_source = source.is_peer
            && source.address == record.client
            && !is_trusted(record.peer, &config.trusted_proxies);
        if is_source && self.blocked.get(&source.address).is_some_and(|&until| now < until) {
            return Fate::Dropped;
        }
        let Some(asked) = &record.asked else { return Fate::Served };
        let path = path::normalise(&asked.path).unwrap_or_else(|_| asked.path.as_str().into());
        let Some(index) = snapshot.table.find(&asked.host, &path) else { return Fate::NoRoute };
        let route = &snapshot.routes[index];
        if !route.admits(&asked.method) {
            return Fate::MethodNotAllowed { route: route.label.clone() };
        }
        if route.limits.is_empty() {
            return Fate::Served;
        }
        let (rules, limits) = (&route.limits, &*snapshot.limits);
        let (headers, query) = (HeaderMap::new(), asked.query.as_deref());
        let request = key::Request { client: record.client, route: rules.route, headers: &headers, query };
        limits.read(&mut self.keys, rules, &request);
        let Err(denial) = limits.decide(rules, &self.keys, now, 0, None) else {
            limits.refusals.other(source.address, false, now);
            return Fate::Served;
        };
        let rule = rules.rule(denial.rule);
        let fate = Fate::Limited { route: route.label.clone(), rule: rule.policy(denial.part).to_owned() };
        if is_source && rule.client_alone {
            // A log does not tell connections apart: each has its own, and no flood is seen in them.
            let (source, rule, wait_s) = (source.address, rule.number, denial.wait_s);
            let refusal = Refusal { source, route: rules.route, rule, wait_s, again: false };
            if limits.refusals.refused(refusal, now).suspect.is_some() {
                let escalation = config.kernel.escalation;
                // Without interfaces there is no kernel half to tell.
                let escalation =
                    if config.kernel.interfaces.is_empty() { Escalation::Off } else { escalation };
                let sentence = self.sentences.pass(source, escalation, now);
                match sentence {
                    Some(sentence) if sentence.blocks() => {
                        self.blocks += 1;
                        self.blocked.insert(source, sentence.until_ns);
                    }
                    Some(_) => self.slowed += 1,
                    None => {}
                }
            }
        } else if is_source {
            limits.refusals.other(source.address, true, now);
        }
        fate
    }
}
