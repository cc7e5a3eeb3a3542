//! The configuration of upstreams: a route's endpoints, how they are chosen, checked, retried and given up on.
//!
//! Part of `file`, which calls it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::document::{Node, Object};
use super::file::ANY_COUNT;
use super::value;
use super::{Backend, CircuitBreaker, Cluster, HashKey, HealthCheck, Member, Policy, Retry, Upstreams};

const MAX_ENDPOINTS: usize = 256;
const MAX_WEIGHT: u64 = 100;
const MAX_ATTEMPTS: u64 = 10;
const MAX_PROBES: u64 = 100;
const MAX_NAME_SERVERS: usize = 8;
const DNS_PORT: u16 = 53;
const MAX_BODY_BYTES: u64 = 16 << 20;

const POLICIES: [(&str, Policy); 3] = [
    ("least_requests", Policy::LeastRequests),
    ("round_robin", Policy::RoundRobin),
    ("hash", Policy::Hash(HashKey::Client)),
];

const A_URL: &str = "a URL such as \"http://127.0.0.1:3001\"";

/// One URL, or an object with several.
pub(super) fn backend(node: &Node<'_>) -> Option<Cluster> {
    if node.is_object() {
        return node.object(cluster).flatten();
    }
    let backend = node.string("a URL such as \"http://127.0.0.1:3001\", or an object", value::backend)?;
    Some(Cluster { members: vec![Member { backend, weight: 1 }], policy: Policy::LeastRequests })
}

fn cluster(keys: &mut Object<'_>) -> Option<Cluster> {
    let members = keys.required("endpoints", "[ \"http://127.0.0.1:3001\" ]", |node| {
        let nodes = node.list("a list of URLs")?;
        if nodes.is_empty() {
            return node.fault("is empty: name at least one URL");
        }
        if nodes.len() > MAX_ENDPOINTS {
            return node.fault(format!(
                "has {} endpoints, and {MAX_ENDPOINTS} is the most: put them behind one name",
                nodes.len()
            ));
        }
        let mut members: Vec<Member> = Vec::with_capacity(nodes.len());
        for node in &nodes {
            match member(node) {
                Some(member) if members.iter().any(|other| other.backend == member.backend) => {
                    node.fault::<()>("stands in this list already: give it a weight instead");
                }
                Some(member) => members.push(member),
                None => {}
            }
        }
        Some(members)
    });
    let policy = keys.choice("balancer", Policy::LeastRequests, "balancer", &POLICIES);
    let key = keys.optional("hash_key", |node| node.string(A_KEY, hash_key));
    let policy = match (policy, key) {
        (Policy::Hash(_), Some(key)) => Policy::Hash(key),
        (Policy::LeastRequests | Policy::RoundRobin, Some(_)) => {
            keys.fault(
                "hash_key",
                "is for the balancer \"hash\": add \"balancer\": \"hash\", or leave it out",
            );
            return None;
        }
        (policy, None) => {
            if policy == Policy::Hash(HashKey::Client) {
                keys.note("hash_key", &"client");
            }
            policy
        }
    };
    Some(Cluster { members: members?, policy })
}

fn member(node: &Node<'_>) -> Option<Member> {
    if node.is_object() {
        return node.object(weighted).flatten();
    }
    let backend: Backend = node.string(
        "a URL such as \"http://127.0.0.1:3001\", or an object with `url` and `weight`",
        value::backend,
    )?;
    Some(Member { backend, weight: 1 })
}

fn weighted(keys: &mut Object<'_>) -> Option<Member> {
    let backend =
        keys.required("url", "\"http://127.0.0.1:3001\"", |node| node.string(A_URL, value::backend));
    let weight = keys.or("weight", 1, |node| node.integer(1..=MAX_WEIGHT));
    Some(Member { backend: backend?, weight })
}

const A_KEY: &str = "a key such as \"client\" or \"header:X-Tenant\"";

fn hash_key(text: &str) -> Result<HashKey, String> {
    match (text, text.split_once(':')) {
        ("client", _) => Ok(HashKey::Client),
        ("path", _) => Ok(HashKey::Path),
        (_, Some(("header", name))) => value::header(name).map(HashKey::Header),
        (_, Some(("cookie", name))) => value::parameter(name).map(HashKey::Cookie),
        (_, Some(("query", name))) => value::parameter(name).map(HashKey::Query),
        _ => {
            let advice = match value::closest(text, &["client", "path"]) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => "known are client, path, header:NAME, cookie:NAME, query:NAME".to_owned(),
            };
            Err(format!("unknown key {}: {advice}", value::quote(text)))
        }
    }
}

/// True or false, or an object.
pub(super) fn health_check(node: &Node<'_>) -> Option<Option<HealthCheck>> {
    match node.is_object() {
        true => node.object(check).map(Some),
        false => Some(node.boolean_or("an object")?.then(HealthCheck::default)),
    }
}

fn check(keys: &mut Object<'_>) -> HealthCheck {
    let default = HealthCheck::default();
    let interval = keys.or("interval", default.interval, Node::duration);
    let check = HealthCheck {
        path: keys
            .or("path", default.path, |node| node.string("a path such as \"/health\"", value::check_path)),
        interval,
        timeout: keys.or("timeout", default.timeout.min(interval), Node::duration),
        failures: keys.or("failures", default.failures, |node| node.integer(ANY_COUNT)),
        successes: keys.or("successes", default.successes, |node| node.integer(ANY_COUNT)),
        statuses: keys.optional("statuses", statuses),
    };
    if check.timeout > check.interval {
        keys.fault("timeout", "a check must be over before the next: make `timeout` at most `interval`");
    }
    check
}

/// What a route says of retries. `several`: its backend has several endpoints.
pub(super) fn retry(keys: &mut Object<'_>, several: bool) -> Retry {
    let attempts = keys.or("attempts", u32::from(several), |node| node.integer(0..=MAX_ATTEMPTS));
    if attempts == 0 {
        for key in ["statuses", "max_body_bytes"] {
            keys.warn(key, "has no effect: nothing is sent again, for `attempts` is 0");
        }
    }
    Retry {
        attempts,
        per_try_timeout: keys.optional("per_try_timeout", Node::duration),
        statuses: keys.or("statuses", vec![502, 503, 504], statuses),
        max_body_bytes: keys.or("max_body_bytes", 64 * 1024, |node| node.integer(0..=MAX_BODY_BYTES)),
    }
}

fn statuses(node: &Node<'_>) -> Option<Vec<u16>> {
    let mut statuses = Vec::new();
    for node in node.list("a list such as [502, 503]")? {
        match node.integer(200..=599) {
            Some(status) if statuses.contains(&status) => {
                node.fault::<()>("stands in this list already: remove it");
            }
            Some(status) => statuses.push(status),
            None => {}
        }
    }
    Some(statuses)
}

pub(super) fn circuit_breaker(keys: &mut Object<'_>) -> CircuitBreaker {
    let seconds = Duration::from_secs;
    let timeout = keys.or("timeout_seconds", seconds(60), Node::duration);
    let default_most = timeout.saturating_mul(10).min(value::LONGEST);
    let max_timeout = keys.optional("max_timeout_seconds", Node::duration);
    if max_timeout.is_some_and(|most| most < timeout) {
        keys.fault("max_timeout_seconds", "is less than `timeout_seconds`: write at least as much");
    }
    keys.note("max_timeout_seconds", &default_most);
    CircuitBreaker {
        enabled: keys.or("enabled", true, Node::boolean),
        failure_threshold: keys.or("failure_threshold", 5, |node| node.integer(ANY_COUNT)),
        success_threshold: keys.or("success_threshold", 3, |node| node.integer(ANY_COUNT)),
        timeout,
        max_timeout: max_timeout.unwrap_or(default_most),
        failure_ratio: keys.or("failure_ratio", 0.5, Node::fraction),
        minimum_requests: keys.or("minimum_requests", 20, |node| node.integer(ANY_COUNT)),
        window: keys.or("window_seconds", seconds(10), |node| {
            let window = node.duration()?;
            // A bucket is a tenth, and the clock that moves them on ticks twenty times a second.
            if window < seconds(1) {
                return node.fault("is too short to judge by: write at least \"1s\"");
            }
            Some(window)
        }),
        slow_call: keys.optional("slow_call_seconds", |node| {
            let slow = node.duration()?;
            if slow < Duration::from_millis(200) {
                return node.fault("is less than can be told apart: write at least \"200ms\"");
            }
            Some(slow)
        }),
        half_open_requests: keys.or("half_open_requests", 3, |node| node.integer(1..=MAX_PROBES)),
        recovery: keys.or("recovery_seconds", seconds(10), Node::duration),
        health_decay: keys.or("health_decay", super::DEFAULT_HEALTH_DECAY, Node::fraction),
    }
}

fn resolver(node: &Node<'_>) -> Option<Vec<SocketAddr>> {
    let nodes = node.list("a list such as [\"10.0.0.2\", \"10.0.0.3:5353\"]")?;
    if nodes.is_empty() {
        return node.fault("is empty: name a server, or leave it out to ask those of the host");
    }
    if nodes.len() > MAX_NAME_SERVERS {
        return node.fault(format!(
            "has {} servers, and {MAX_NAME_SERVERS} is the most: leave some out",
            nodes.len()
        ));
    }
    let mut servers = Vec::with_capacity(nodes.len());
    for node in &nodes {
        match node.string("an IP address such as \"10.0.0.2\" or \"10.0.0.3:5353\"", name_server) {
            Some(server) if servers.contains(&server) => {
                node.fault::<()>("stands in this list already: remove it");
            }
            server => servers.extend(server),
        }
    }
    Some(servers)
}

/// An address, with or without a port.
fn name_server(text: &str) -> Result<SocketAddr, String> {
    let addr = match text.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, DNS_PORT)),
        Err(_) => text.parse::<SocketAddr>().map_err(|_| ()),
    };
    addr.ok().filter(|addr| addr.port() != 0).ok_or_else(|| {
        let examples = "\"10.0.0.2\", \"10.0.0.2:5353\" or \"[fd00::2]:5353\"";
        format!("{} is no address of a name server: write one like {examples}", value::quote(text))
    })
}

pub(super) fn upstreams(keys: &mut Object<'_>) -> Upstreams {
    let seconds = Duration::from_secs;
    Upstreams {
        max_connections: keys.optional("max_connections", |node| node.integer(1..=1_000_000)),
        max_age: keys.or("max_age", seconds(3_600), Node::duration),
        keepalive: keys.or("keepalive", seconds(30), |node| {
            let keepalive = node.duration()?;
            if keepalive < seconds(1) {
                return node.fault("is less than the system can do: write at least \"1s\"");
            }
            Some(keepalive)
        }),
        user_timeout: keys.or("user_timeout", seconds(30), Node::duration),
        resolver: keys.optional("resolver", resolver).unwrap_or_default(),
        resolve_every: keys.optional("resolve_every", Node::duration),
        slow_start: keys.or("slow_start", seconds(10), Node::duration),
        panic_threshold: keys.or("panic_threshold", 0.5, Node::fraction),
        ejection: keys.or("ejection", true, Node::boolean),
        ejection_time: keys.or("ejection_time", seconds(30), Node::duration),
        retry_percent: keys.or("retry_percent", 20, |node| node.integer(0..=100)),
        retry_minimum: keys.or("retry_minimum", 3, |node| node.integer(0..=1_000)),
    }
}
