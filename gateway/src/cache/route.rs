//! What a route's configuration makes of caching: rules, key parts, conditions.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName};
use rustc_hash::FxHasher;

use super::key::Query;
use super::policy::{Asker, Rules};
use super::select::{self, Selector};
use crate::config;
use crate::config::{Condition, LimitKey};

/// A key that some put into this field is a credential like `Authorization`.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

pub struct Route {
    /// The same for routes that may share what is stored: those of one configuration.
    pub scope: u64,
    pub rules: Rules,
    pub query: Query,
    pub selectors: Arc<[Selector]>,
    pub max_entry_bytes: usize,
    pub stores: bool,
    pub coalesces: bool,
    /// Fields by which limits tell clients apart: credentials like `Authorization`, unless in the key.
    credentials: Vec<HeaderName>,
    bypass: Vec<Condition>,
    no_store: Vec<Condition>,
}

impl Route {
    /// `None`: the route neither stores nor coalesces.
    pub fn new(route: &config::Route, config: &config::Config) -> Option<Self> {
        let coalesces = route.coalesce.unwrap_or(route.enable_cache);
        if !(route.enable_cache || coalesces) {
            return None;
        }
        let own = &route.cache;
        let fields = own.key.headers.iter().cloned().map(Selector::Field);
        let cookies = own.key.cookies.iter().flatten().map(|name| Selector::Cookie(name.as_str().into()));
        let rules = Rules {
            ttl: own.ttl,
            store_set_cookie: own.store_set_cookie,
            authorization_keyed: own.key.headers.contains(&AUTHORIZATION),
            cookies_keyed: own.key.cookies.is_some() || own.key.headers.contains(&COOKIE),
        };
        let common = config.rate_limit.iter().flat_map(|limit| &limit.rules);
        let limited_by = common.chain(&route.rate_limits).flat_map(|rule| &rule.key);
        let credentials = limited_by.filter_map(|part| match part {
            LimitKey::Header(name) => Some(name),
            LimitKey::Client | LimitKey::Route | LimitKey::Query(_) => None,
        });
        let credentials = credentials.filter(|name| !own.key.headers.contains(name)).cloned().collect();
        let mut scope = FxHasher::default();
        (&route.host, &route.path, &route.cluster.members, route.preserve_host, own).hash(&mut scope);
        Some(Self {
            scope: scope.finish(),
            rules,
            query: own.key.query.clone(),
            selectors: fields.chain(cookies).collect(),
            max_entry_bytes: own.max_entry_bytes.unwrap_or(config.cache.max_entry_bytes),
            stores: route.enable_cache,
            coalesces,
            credentials,
            bypass: own.bypass.clone(),
            no_store: own.no_store.clone(),
        })
    }

    /// Whether the request is to have nothing to do with the cache.
    pub fn bypasses(&self, headers: &HeaderMap, query: Option<&str>) -> bool {
        self.bypass.iter().any(|condition| holds(condition, headers, query))
    }

    /// What the request's head says about storing its answer. `caching`: it has fields that a cache asks
    /// about at all.
    pub fn asker(&self, headers: &HeaderMap, query: Option<&str>, caching: bool) -> Asker {
        let has = |name: HeaderName| caching && headers.contains_key(name);
        let api_key = has(X_API_KEY) && !self.selectors.contains(&Selector::Field(X_API_KEY));
        let of_limits = self.credentials.iter().any(|name| headers.contains_key(name));
        Asker {
            authorization: has(AUTHORIZATION) || api_key || of_limits,
            cookie: has(COOKIE),
            no_store: self.no_store.iter().any(|condition| holds(condition, headers, query)),
        }
    }

    /// Whether the request may be one with others: it has no credentials besides those in the key.
    pub fn may_coalesce(&self, asker: Asker) -> bool {
        let Rules { authorization_keyed, cookies_keyed, .. } = self.rules;
        self.coalesces && (authorization_keyed || !asker.authorization) && (cookies_keyed || !asker.cookie)
    }
}

/// Present, and neither empty nor "0".
fn holds(condition: &Condition, headers: &HeaderMap, query: Option<&str>) -> bool {
    let says_so = |value: &[u8]| !value.is_empty() && value != b"0";
    match condition {
        Condition::Header(name) => headers.get_all(name).iter().any(|value| says_so(value.as_bytes())),
        Condition::Cookie(name) => select::cookie(headers, name).is_some_and(says_so),
        Condition::Query(name) => query.into_iter().flat_map(|query| query.split('&')).any(|parameter| {
            let value = parameter.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix('='));
            value.is_some_and(|value| says_so(value.as_bytes()))
        }),
    }
}
