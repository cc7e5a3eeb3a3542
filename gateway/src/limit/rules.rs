//! The rules of one route, as the configuration has them: the gateway's own and the route's.
//!
//! Built with each snapshot. What they count lies in [`Limits`] under numbers that outlive it.

use std::fmt::Write as _;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::Limits;
use super::cluster::Terms;
use super::concurrency::Caps;
use super::quota::{Left, Part, Quota};
use super::store::Place;
use crate::config::{self, Config, LimitKey, LimitPeriod, LimitRule, OnFailure};
use crate::metrics::{self, Registry};

/// Of the gateway, of the route, and the one that `rate_limit_per_minute` stands for.
pub const MAX_RULES: usize = 2 * config::MAX_LIMIT_RULES + 1;

pub struct Rules {
    rules: Vec<Rule>,
    /// The distinct keys of the rules: most routes have one.
    keys: Vec<Vec<LimitKey>>,
    /// For keys that name the route: of its label, and so the same on every gateway.
    pub route: u64,
    /// How many rules count together with other gateways, and whether any is leased.
    shared: usize,
    leased: bool,
    /// The `RateLimit-Policy` field: every rule that is enforced.
    pub policies: String,
    pub caps: Caps,
}

pub struct Rule {
    /// Whatever keeps it keeps its counts: route, name, period and key.
    pub number: u32,
    /// Spreads the rules of one key over their shard.
    pub mix: u64,
    /// Index into the keys.
    pub key: usize,
    pub shadow: bool,
    /// The key is the client's address alone: its refusals say something about that address.
    pub client_alone: bool,
    pub forgotten_after_ns: u64,
    /// What is counted together with other gateways; `None`: the rule is this one's own.
    pub cluster: Option<Arc<Terms>>,
    /// The limit as it is written.
    whole: Quota,
    /// What this gateway grants by itself.
    quota: Quota,
    shared: Quota,
    name: String,
    burst_name: String,
    /// One cell for each worker.
    pub cells: Arc<[metrics::Limit]>,
}

impl Rules {
    /// Those that hold for `route`, in this order: the gateway's, `rate_limit_per_minute`, the route's list.
    pub fn new(
        limits: &Limits,
        config: &Config,
        route: &config::Route,
        label: &str,
        registry: &Registry,
    ) -> Self {
        let enabled = config.rate_limit.as_ref().is_none_or(|section| section.enabled);
        let mut rules = Self {
            rules: Vec::new(),
            keys: Vec::new(),
            route: xxh3_64(label.as_bytes()),
            shared: 0,
            leased: false,
            policies: String::new(),
            caps: Caps::default(),
        };
        if !enabled {
            return rules;
        }
        let global = config.rate_limit.iter().flat_map(|section| &section.rules).map(|rule| ("*", rule));
        let short = per_minute(config, route);
        let store = config.rate_limit.as_ref().and_then(|section| section.store.as_ref());
        let gateways = store.map_or(1, |store| store.gateways);
        let own = short.iter().chain(&route.rate_limits).map(|rule| (label, rule));
        for (scope, rule) in global.chain(own) {
            let cells = registry.limits.member(&format!("{label} {}", rule.name));
            let terms = Terms::new(rule, scope, registry.workers.len()).map(Arc::new);
            rules.add(rule, scope, limits, cells, terms.map(|terms| (terms, gateways)));
        }
        let shared: Vec<_> = rules.rules.iter().filter_map(|rule| rule.cluster.as_ref()).collect();
        (rules.shared, rules.leased) = (shared.len(), shared.iter().any(|terms| terms.lease > 1));
        let anywhere = config.rate_limit.as_ref().and_then(|section| section.max_concurrent_per_client);
        let scopes = [("*", anywhere), (label, route.max_concurrent_per_client)];
        let scopes = scopes.into_iter().filter_map(|(scope, limit)| {
            limit.map(|limit| (limits.number(format!("concurrency {scope}")), limit))
        });
        rules.caps = Caps {
            route: route.max_concurrent.map(|limit| (limits.route(label), limit)),
            clients: scopes.collect(),
        };
        rules
    }

    /// `cluster`: what is counted together with how many gateways.
    fn add(
        &mut self,
        rule: &LimitRule,
        scope: &str,
        limits: &Limits,
        cells: Arc<[metrics::Limit]>,
        cluster: Option<(Arc<Terms>, u32)>,
    ) {
        let key = self.keys.iter().position(|key| *key == rule.key).unwrap_or_else(|| {
            self.keys.push(rule.key.clone());
            self.keys.len() - 1
        });
        let whole = Quota::new(rule.limit, rule.period.seconds(), rule.burst);
        let quota = cluster.as_ref().map_or(whole, |(_, gateways)| whole.share(*gateways));
        let number = limits.number(format!("rule {scope} {} {:?} {:?}", rule.name, rule.period, rule.key));
        let rule = Rule {
            number,
            mix: u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            key,
            shadow: rule.shadow,
            client_alone: rule.key == [LimitKey::Client],
            forgotten_after_ns: quota.forgotten_after_ns(),
            cluster: cluster.map(|(terms, _)| terms),
            whole,
            quota,
            shared: quota.shared(),
            name: rule.name.clone(),
            burst_name: config::burst_name(&rule.name),
            cells,
        };
        if !rule.shadow {
            rule.announce(&mut self.policies);
        }
        self.rules.push(rule);
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub fn len(&self) -> usize {
        self.rules.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    pub fn keys(&self) -> impl ExactSizeIterator<Item = &[LimitKey]> {
        self.keys.iter().map(Vec::as_slice)
    }

    /// Of everything that is counted by them.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        let rules = self.rules.iter().map(|rule| rule.number);
        rules.chain(self.caps.clients.iter().map(|(scope, _)| *scope))
    }

    /// Whether a rule counts together with other gateways.
    #[inline]
    pub fn are_shared(&self) -> bool {
        self.shared > 0
    }

    /// Whether requests of any shared rule may be granted ahead.
    pub fn are_leased(&self) -> bool {
        self.leased
    }

    /// Whether all rules are shared: no other has a say.
    pub fn are_all_shared(&self) -> bool {
        self.shared == self.rules.len()
    }

    /// The terms of a rule that is shared.
    pub fn terms(&self, index: usize) -> &Arc<Terms> {
        self.rules[index].cluster.as_ref().expect("a shared rule")
    }

    /// The rule that a decision names.
    pub fn rule(&self, index: usize) -> &Rule {
        &self.rules[index]
    }
}

impl Rule {
    /// What holds for the state at `place`.
    pub fn quota(&self, place: Place) -> &Quota {
        match place {
            Place::Own(_) => &self.quota,
            Place::Shared(_) => &self.shared,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of the window's policy, or of the burst's.
    pub fn policy(&self, part: Part) -> &str {
        match part {
            Part::Window => &self.name,
            Part::Burst => &self.burst_name,
        }
    }

    /// How many requests that policy has.
    pub fn limit(&self, part: Part) -> u32 {
        self.whole.of(part)
    }

    /// Whether its refusal counts: not of a rule that only watches, nor where other gateways' counts decide, be it
    /// that the store has `said` so, be it that nobody is to be refused without it.
    #[inline]
    pub fn refuses(&self, said: bool) -> bool {
        let local = |terms: &Arc<Terms>| !said && terms.on_failure != OnFailure::Allow;
        !self.shadow && self.cluster.as_ref().is_none_or(local)
    }

    /// What is left of the limit, as the store says: see [`Quota::told`].
    pub fn told(&self, part: Part, count: u32, pause_us: u64) -> Left {
        self.whole.told(part, count, pause_us)
    }

    /// Appends the rule's policies in the form of `RateLimit-Policy`.
    fn announce(&self, policies: &mut String) {
        let window = Some((&self.name, self.whole.limit(), self.whole.period_s()));
        let burst = self.whole.burst().zip(self.whole.burst_period_s());
        let burst = burst.map(|(burst, seconds)| (&self.burst_name, burst, seconds));
        for (name, quota, seconds) in window.into_iter().chain(burst) {
            let comma = if policies.is_empty() { "" } else { ", " };
            write!(policies, "{comma}\"{name}\";q={quota};w={seconds}").expect("a string takes everything");
        }
    }
}

/// The rule that `rate_limit_per_minute` and `burst_size` stand for. A route that lists rules of its own
/// has no need of the default.
fn per_minute(config: &Config, route: &config::Route) -> Option<LimitRule> {
    let section = config.rate_limit.as_ref();
    let default = section.and_then(|section| section.default_rate_per_minute);
    let default = default.filter(|_| route.rate_limits.is_empty());
    Some(LimitRule {
        name: config::DEFAULT_RULE.to_owned(),
        limit: route.rate_limit_per_minute.or(default)?,
        period: LimitPeriod::Minute,
        burst: route.burst_size.or_else(|| section.and_then(|section| section.burst_size)),
        key: vec![LimitKey::Client],
        shadow: false,
        cluster: None,
    })
}
