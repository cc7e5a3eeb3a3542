//! The configuration of caching and coalescing: what all routes share, and what each says for itself.

use std::time::Duration;

use http::HeaderName;

use super::document::{Node, Object};
use super::value;

/// The bound on all that is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Cache {
    pub max_bytes: usize,
    /// Of one response, for routes that say nothing else; at most a shard's share of `max_bytes`.
    pub max_entry_bytes: usize,
    /// A power of two.
    pub shards: usize,
}

/// What a route says of its own caching.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub struct RouteCache {
    /// In place of the lifetime that a response states or that would be guessed.
    pub ttl: Option<Duration>,
    pub max_entry_bytes: Option<usize>,
    pub store_set_cookie: bool,
    pub key: KeyParts,
    pub bypass: Vec<Condition>,
    pub no_store: Vec<Condition>,
}

/// What the key of a stored response is made of, besides method, host and path.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub struct KeyParts {
    pub query: Query,
    pub headers: Vec<HeaderName>,
    /// `None`: a `Cookie` is a credential; otherwise these count and no other.
    pub cookies: Option<Vec<String>>,
}

/// Which query parameters count, and whether their order does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Query {
    /// Only these, where it is set.
    pub keep: Option<Vec<String>>,
    /// All but these.
    pub ignore: Vec<String>,
    pub sort: bool,
}

/// Something in a request that is there, and neither empty nor `0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    Header(HeaderName),
    Cookie(String),
    Query(String),
}

const MAX_BYTES: std::ops::RangeInclusive<u64> = 1024 * 1024..=1 << 44;
const ENTRY_BYTES: std::ops::RangeInclusive<u64> = 1024..=1 << 40;
const MAX_SHARDS: usize = 1024;

pub(super) fn cache(keys: &mut Object<'_>) -> Cache {
    let max_bytes = keys.or("max_bytes", 256 << 20, |node| node.integer(MAX_BYTES));
    let shards = keys.or("shards", 16, |node| node.power_of_two(MAX_SHARDS));
    let share = max_bytes / shards;
    let max_entry_bytes = keys.or("max_entry_bytes", share.min(8 << 20), |node| node.integer(ENTRY_BYTES));
    if max_entry_bytes > share {
        let message = format!(
            "{max_entry_bytes} is more than a shard holds, which is {share}: lower it, or raise `max_bytes`, or take fewer `shards`"
        );
        let key = if keys.has("max_entry_bytes") { "max_entry_bytes" } else { "shards" };
        keys.fault(key, message);
    }
    Cache { max_bytes, max_entry_bytes, shards }
}

/// `share`: bytes that a shard holds.
pub(super) fn route(keys: &mut Object<'_>, share: usize) -> RouteCache {
    RouteCache {
        ttl: keys.optional("ttl", Node::duration),
        max_entry_bytes: keys.optional("max_entry_bytes", |node| {
            let bytes = node.integer(ENTRY_BYTES)?;
            if bytes <= share {
                return Some(bytes);
            }
            node.fault(format!(
                "{bytes} is more than a shard of the cache holds, which is {share}: lower it, or raise `cache.max_bytes`, or take fewer `cache.shards`"
            ))
        }),
        store_set_cookie: keys.or("store_set_cookie", false, Node::boolean),
        key: KeyParts {
            query: keys.section("key_query", query),
            headers: keys.or_empty("key_headers", |node| {
                distinct(node, "a name such as \"Accept-Language\"", value::header)
            }),
            cookies: keys.optional("key_cookies", names),
        },
        bypass: keys.or_empty("bypass", conditions),
        no_store: keys.or_empty("no_store", conditions),
    }
}

fn query(keys: &mut Object<'_>) -> Query {
    Query {
        keep: keys.optional("keep", names),
        ignore: keys.or_empty("ignore", names),
        sort: keys.or("sort", false, Node::boolean),
    }
}

fn names(node: &Node<'_>) -> Option<Vec<String>> {
    distinct(node, "a name such as \"page\"", value::parameter)
}

fn conditions(node: &Node<'_>) -> Option<Vec<Condition>> {
    distinct(node, "a condition such as \"header:x-preview\"", condition)
}

fn condition(text: &str) -> Result<Condition, String> {
    match text.split_once(':') {
        Some(("header", name)) => value::header(name).map(Condition::Header),
        Some(("cookie", name)) => value::parameter(name).map(Condition::Cookie),
        Some(("query", name)) => value::parameter(name).map(Condition::Query),
        Some(_) | None => Err(format!(
            "{} is no condition: write \"header:NAME\", \"cookie:NAME\" or \"query:NAME\"",
            value::quote(text)
        )),
    }
}

fn distinct<T: PartialEq>(
    node: &Node<'_>,
    expected: &str,
    parse: fn(&str) -> Result<T, String>,
) -> Option<Vec<T>> {
    let elements = node.list("a list of strings")?;
    Some(node.distinct(&elements, |node| node.string(expected, parse)))
}
