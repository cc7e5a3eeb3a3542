//! What a route's limits would say to a client now, without taking anything from it.
//!
//! For `explain`; requests are decided in `mod`.

use std::net::IpAddr;

use http::HeaderMap;

use super::quota::{Left, Refused, State};
use super::store::Place;
use super::{Held, Keys, Limits, MAX_RULES, Rules, key};
use crate::config::LimitKey;

/// One rule before one client.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Index into the route's rules.
    pub rule: usize,
    /// What a request would meet: what is left, or a refusal.
    pub answer: Result<Left, Refused>,
}

impl Limits {
    /// Those of `rules` that count by client or by route alone: for the others it takes a whole request.
    pub fn look(&self, rules: &Rules, client: IpAddr, now_ns: u64) -> Vec<Look> {
        let known = |parts: &[LimitKey]| {
            parts.iter().all(|part| match part {
                LimitKey::Client | LimitKey::Route => true,
                LimitKey::Header(_) | LimitKey::Query(_) => false,
            })
        };
        let known: Vec<bool> = rules.keys().map(known).collect();
        let mut keys = Keys::default();
        let none = HeaderMap::new();
        let request = key::Request { client, route: rules.route, headers: &none, query: None };
        self.read(&mut keys, rules, &request);
        let mut held = Held::<MAX_RULES>::lock(&self.shards, rules, &keys);
        let asked = rules.iter().enumerate().filter(|(_, rule)| known[rule.key]);
        let look = |(index, rule): (usize, &super::Rule)| {
            let (key, hash) = keys.get(rule.key);
            let shard = held.shard(rule.key);
            let place = shard.look(hash ^ rule.mix, rule.number, key);
            // Who is not there has its whole quota.
            let state = place.map_or_else(State::default, |place| shard.get(place));
            let quota = rule.quota(place.unwrap_or(Place::Own(0)));
            Look { rule: index, answer: quota.take(state, now_ns).map(|_| quota.left(state, now_ns)) }
        };
        asked.map(look).collect()
    }
}
