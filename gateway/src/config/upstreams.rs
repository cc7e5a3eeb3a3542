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
    node.object_or(cluster, |node| {
        let backend = node.string("a URL such as \"http://127.0.0.1:3001\", or an object", value::backend)?;
        Some(Cluster { members: vec![Member { backend, weight: 1 }], policy: Policy::LeastRequests })
    })
}

fn cluster(keys: &mut Object<'_>) -> Option<Cluster> {
    let members = keys.required("endpoints", "[ \"http://127.0.0.1:3001\" ]", |node| {
        let nodes = node.filled_list("a list of URLs", "name at least one URL")?;
        let nodes = node.at_most(MAX_ENDPOINTS, nodes, "endpoints", "put them behind one name")?;
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
                keys.follows("hash_key", &"client");
            }
            policy
        }
    };
    Some(Cluster { members: members?, policy })
}

fn member(node: &Node<'_>) -> Option<Member> {
    const A_MEMBER: &str = "a URL such as \"http://127.0.0.1:3001\", or an object with `url` and `weight`";
    let alone = |backend: Backend| Member { backend, weight: 1 };
    node.object_or(weighted, |node| node.string(A_MEMBER, value::backend).map(alone))
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
    let by_default = |checked: bool| checked.then(HealthCheck::default);
    node.object_or(|keys| Some(Some(check(keys))), |node| node.boolean_or("an object").map(by_default))
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
    let attempts = keys.or_following("attempts", u32::from(several), |node| node.integer(0..=MAX_ATTEMPTS));
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
    let statuses = node.list("a list such as [502, 503]")?;
    Some(node.distinct(&statuses, |node| node.integer(200..=599)))
}

pub(super) fn circuit_breaker(keys: &mut Object<'_>) -> CircuitBreaker {
    let seconds = Duration::from_secs;
    let timeout = keys.or("timeout_seconds", seconds(60), Node::duration);
    let default_most = timeout.saturating_mul(10).min(value::LONGEST);
    let max_timeout = keys.optional("max_timeout_seconds", Node::duration);
    if max_timeout.is_some_and(|most| most < timeout) {
        keys.fault("max_timeout_seconds", "is less than `timeout_seconds`: write at least as much");
    }
    keys.follows("max_timeout_seconds", &default_most);
    CircuitBreaker {
        enabled: keys.or("enabled", true, Node::boolean),
        failure_threshold: keys.or("failure_threshold", 5, |node| node.integer(ANY_COUNT)),
        success_threshold: keys.or("success_threshold", 3, |node| node.integer(ANY_COUNT)),
        timeout,
        max_timeout: max_timeout.unwrap_or(default_most),
        failure_ratio: keys.or("failure_ratio", 0.5, Node::fraction),
        minimum_requests: keys.or("minimum_requests", 20, |node| node.integer(ANY_COUNT)),
        // A bucket is a tenth, and the clock that moves them on ticks twenty times a second.
        window: keys.or("window_seconds", seconds(10), |node| {
            let too_short = "is too short to judge by: write at least \"1s\"";
            node.duration_in(seconds(1)..=value::LONGEST, too_short)
        }),
        slow_call: keys.optional("slow_call_seconds", |node| {
            let too_short = "is less than can be told apart: write at least \"200ms\"";
            node.duration_in(Duration::from_millis(200)..=value::LONGEST, too_short)
        }),
        half_open_requests: keys.or("half_open_requests", 3, |node| node.integer(1..=MAX_PROBES)),
        recovery: keys.or("recovery_seconds", seconds(10), Node::duration),
        health_decay: keys.or("health_decay", super::DEFAULT_HEALTH_DECAY, Node::fraction),
    }
}

fn resolver(node: &Node<'_>) -> Option<Vec<SocketAddr>> {
    const A_SERVER: &str = "an IP address such as \"10.0.0.2\" or \"10.0.0.3:5353\"";
    let nodes = node.filled_list(
        "a list such as [\"10.0.0.2\", \"10.0.0.3:5353\"]",
        "name a server, or leave it out to ask those of the host",
    )?;
    let nodes = node.at_most(MAX_NAME_SERVERS, nodes, "servers", "leave some out")?;
    Some(node.distinct(&nodes, |node| node.string(A_SERVER, name_server)))
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
            let too_short = "is less than the system can do: write at least \"1s\"";
            node.duration_in(seconds(1)..=value::LONGEST, too_short)
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
