//! The keys of rate limits: the section `rate_limit`, and the list of rules that it and a route may hold.
//!
//! Part of `file`, which calls it.

use std::ops::RangeInclusive;

use super::document::{Node, Object};
use super::file::ANY_COUNT;
use super::value::{closest, quote};
use super::{
    CONCURRENCY, DEFAULT_LIMIT_FIELDS, DEFAULT_MAX_KEYS, DEFAULT_RULE, DEFAULT_SHARDS, LimitFields, LimitKey,
    LimitPeriod, LimitRule, MAX_LIMIT_RULES, RateLimit, Store, store,
};

const MAX_SHARDS: usize = 65_536;
const MAX_KEYS: RangeInclusive<u64> = 1_000..=100_000_000;
const LONGEST_NAME_BYTES: usize = 40;
/// What the key `api_key` stands for.
const API_KEY_HEADER: &str = "x-api-key";

const PERIODS: [(&str, LimitPeriod); 4] = [
    ("second", LimitPeriod::Second),
    ("minute", LimitPeriod::Minute),
    ("hour", LimitPeriod::Hour),
    ("day", LimitPeriod::Day),
];

const FIELDS: [(&str, LimitFields); 3] =
    [("always", LimitFields::Always), ("near", LimitFields::Near), ("refused", LimitFields::Refused)];

pub(super) fn section(keys: &mut Object<'_>) -> RateLimit {
    // Before the rules, some of which need it.
    let store = store::section(keys);
    let section = RateLimit {
        enabled: keys.or("enabled", true, Node::boolean),
        burst_size: keys.optional("burst_size", |node| node.integer(ANY_COUNT)),
        default_rate_per_minute: keys.optional("default_rate_per_minute", |node| node.integer(ANY_COUNT)),
        num_shards: keys.or("num_shards", DEFAULT_SHARDS, |node| node.power_of_two(MAX_SHARDS)),
        max_keys: keys.or("max_keys", DEFAULT_MAX_KEYS, |node| node.integer(MAX_KEYS)),
        rules: keys.or_empty("rules", |node| rules(node, None, store.as_ref())),
        max_concurrent_per_client: keys.optional("max_concurrent_per_client", |node| node.integer(ANY_COUNT)),
        fields: keys.choice("fields", DEFAULT_LIMIT_FIELDS, "choice", &FIELDS),
        legacy_fields: keys.or("legacy_fields", false, Node::boolean),
        store,
    };
    if section.max_keys < section.num_shards {
        let shards = section.num_shards;
        keys.fault("max_keys", format!("is less than one for each shard: write at least {shards}"));
    }
    section
}

/// A list of rules with names of their own; a route's may not have the names of the section's either.
pub(super) fn rules(
    node: &Node<'_>,
    section: Option<&RateLimit>,
    store: Option<&Store>,
) -> Option<Vec<LimitRule>> {
    let elements = node.list("a list of rules")?;
    let elements = node.at_most(MAX_LIMIT_RULES, elements, "rules", "each costs every request")?;
    let mut rules: Vec<LimitRule> = Vec::with_capacity(elements.len());
    for element in &elements {
        let read = |keys: &mut Object<'_>| {
            let rule = rule(keys, store)?;
            if rules.iter().any(|other| other.name == rule.name) {
                keys.fault("name", "another rule of this list has this name: give each its own");
                return None;
            }
            if section.is_some_and(|section| section.rules.iter().any(|other| other.name == rule.name)) {
                keys.fault("name", "a rule of `rate_limit.rules` has this name: give each its own");
                return None;
            }
            Some(rule)
        };
        rules.extend(element.object(read).flatten());
    }
    Some(rules)
}

fn rule(keys: &mut Object<'_>, store: Option<&Store>) -> Option<LimitRule> {
    let name = keys.required("name", "\"daily\"", |node| node.string("a name such as \"daily\"", name));
    let limit = keys.required("limit", "1000", |node| node.integer(ANY_COUNT));
    let period = keys.required("per", "\"minute\"", |node| node.choice("period", &PERIODS));
    let burst: Option<u32> = keys.optional("burst", |node| node.integer(ANY_COUNT));
    if let (Some(burst), Some(limit)) = (burst, limit)
        && burst > limit
    {
        keys.fault(
            "burst",
            format!("is more than the limit of {limit}: write less, or the same rate over a longer period"),
        );
    }
    keys.note("key", &"client");
    let a_key = |node: &Node<'_>| node.string(A_KEY, key);
    let keys_together = |node: &Node<'_>| {
        let parts = node.filled_list("a list of keys", "leave it out to count by client")?;
        Some(node.distinct(&parts, a_key))
    };
    let key =
        keys.optional("key", |node| node.list_or(keys_together, |node| a_key(node).map(|one| vec![one])));
    let shadow = keys.or("shadow", false, Node::boolean);
    let cluster = store::rule(keys, limit, burst, store);
    Some(LimitRule {
        name: name?,
        limit: limit?,
        period: period?,
        burst,
        key: key.unwrap_or_else(|| vec![LimitKey::Client]),
        shadow,
        cluster,
    })
}

const A_KEY: &str = "a key such as \"client\" or \"header:X-Tenant\"";

/// What names a policy in a structured field, a label and a problem's body alike.
fn name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.is_empty() || text.len() > LONGEST_NAME_BYTES || !text.bytes().all(allowed) {
        return Err(format!(
            "{} is no rule's name: write up to {LONGEST_NAME_BYTES} letters, digits, \"-\", \"_\" or \".\"",
            quote(text)
        ));
    }
    let taken = match text {
        DEFAULT_RULE => "rate_limit_per_minute",
        CONCURRENCY => "a limit of requests at once",
        _ if text == "burst" || text.ends_with("-burst") => "a rule's burst",
        _ => return Ok(text.to_owned()),
    };
    Err(format!("{} is what the gateway calls {taken}: choose another name", quote(text)))
}

fn key(text: &str) -> Result<LimitKey, String> {
    const WORDS: [&str; 3] = ["client", "route", "api_key"];
    match (text, text.split_once(':')) {
        ("client", _) => Ok(LimitKey::Client),
        ("route", _) => Ok(LimitKey::Route),
        ("api_key", _) => header(API_KEY_HEADER),
        (_, Some(("header", name))) => header(name),
        (_, Some(("query", name))) if !name.is_empty() => Ok(LimitKey::Query(name.to_owned())),
        _ => {
            let advice = match closest(text, &WORDS) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => "known are client, route, api_key, header:NAME, query:NAME".to_owned(),
            };
            Err(format!("unknown key {}: {advice}", quote(text)))
        }
    }
}

fn header(name: &str) -> Result<LimitKey, String> {
    let name = name.to_ascii_lowercase().parse();
    name.map(LimitKey::Header)
        .map_err(|_| "names no header: write one such as \"header:X-Tenant\"".to_owned())
}
