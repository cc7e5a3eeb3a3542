//! The limiter against plain models: `model` for one key, `decisions` for rules, threads and reloads,
//! `capacity` for more keys than there is room for, `obedience` for those who wait as they are told.

mod capacity;
mod decisions;
mod model;
mod obedience;

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;

use super::*;
use crate::config::{self, Config};
use crate::metrics::Registry;
use key::Request;

const SECOND_NS: u64 = 1_000_000_000;
const WORKERS: usize = 8;

/// xorshift64*; a seed prints with every failure.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}

/// The limiter of a configuration with one route, as the proxy holds it.
struct Rig {
    limits: Arc<Limits>,
    rules: Rules,
    registry: Arc<Registry>,
}

impl Rig {
    /// `route` and `section` are what the route and `rate_limit` hold, as JSON without its braces.
    fn new(route: &str, section: &str) -> Self {
        let config = parse(route, section);
        let (shards, keys) = config.limit_table();
        let (limits, registry) = (Arc::new(Limits::new(shards, keys)), Registry::new(WORKERS));
        let rules = Rules::new(&limits, &config, &config.routes[0], "/", &registry);
        Self { limits, rules, registry }
    }

    fn reload(&mut self, route: &str, section: &str) {
        let config = parse(route, section);
        self.rules = Rules::new(&self.limits, &config, &config.routes[0], "/", &self.registry);
    }

    /// One request of `client` with `x-tenant`, at a time of the rig's choice.
    fn ask(&self, client: u32, tenant: Option<&str>, now_ns: u64) -> Result<Option<Standing>, Denial> {
        self.ask_as(0, client, tenant, now_ns, &mut Keys::default())
    }

    fn ask_as(
        &self,
        worker: usize,
        client: u32,
        tenant: Option<&str>,
        now_ns: u64,
        keys: &mut Keys,
    ) -> Result<Option<Standing>, Denial> {
        let mut headers = HeaderMap::new();
        if let Some(tenant) = tenant {
            headers.insert("x-tenant", tenant.parse().unwrap());
        }
        let client = IpAddr::from(client.to_be_bytes());
        let request = Request { client, route: self.rules.route, headers: &headers, query: None };
        self.limits.read(keys, &self.rules, &request);
        self.limits.decide(&self.rules, keys, now_ns, worker, None)
    }

    /// How many of `tries` at once are admitted.
    fn volley(&self, client: u32, tries: usize, now_ns: u64) -> usize {
        (0..tries).filter(|_| self.ask(client, None, now_ns).is_ok()).count()
    }

    /// The decisions of `rule`: allowed, near, denied, shadow.
    fn decided(&self, rule: &str) -> [u64; 4] {
        let cells = self.registry.limits.member(&format!("/ {rule}"));
        let sum = |read: fn(&crate::metrics::Limit) -> u64| cells.iter().map(read).sum();
        [
            sum(|cells| cells.allowed.get()),
            sum(|cells| cells.near.get()),
            sum(|cells| cells.denied.get()),
            sum(|cells| cells.shadow.get()),
        ]
    }
}

fn parse(route: &str, section: &str) -> Config {
    let route = if route.is_empty() { String::new() } else { format!(", {route}") };
    let text = format!(
        r#"{{ "routes": [{{ "path": "/", "backend": "http://127.0.0.1:1"{route} }}], "rate_limit": {{ {section} }} }}"#
    );
    config::parse(&text, "test").unwrap_or_else(|error| panic!("{error}"))
}
