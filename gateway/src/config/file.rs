//! The configuration file: which keys there are, what each may hold, and what holds where it is silent.
//!
//! The one place that knows the keys. `main` loads a file at start, `server` again at each reload.
//! docs/configuration.md describes every key; a test keeps it and config/reference.json in step with this.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::document::{self, Node, Object};
use super::{
    CircuitBreaker, Config, Error, HeadLimits, Kernel, KernelMode, ListenAddr, RateLimit, Route, Timeouts,
    value,
};

const MAX_WORKERS: u64 = 1024;
/// Below the smallest, ordinary browsers are refused; the largest bounds what a connection may cost.
const HEAD_BYTES: std::ops::RangeInclusive<u64> = 8 * 1024..=1024 * 1024;
const MAX_HEADERS: u64 = 1000;
const MAX_SHARDS: u64 = 65_536;
const MAX_CONNECTIONS: u64 = 1_000_000;
const ANY_COUNT: std::ops::RangeInclusive<u64> = 1..=u32::MAX as u64;

/// Reads and validates `path`.
pub fn load(path: &Path) -> Result<Config, Error> {
    let bytes = fs::read(path).map_err(|source| Error::Unreadable { file: path.to_owned(), source })?;
    document::read(&bytes, path, config)
}

/// Validates `text`; `file` is what its faults are reported under.
pub fn parse(text: &str, file: impl AsRef<Path>) -> Result<Config, Error> {
    document::read(text.as_bytes(), file.as_ref(), config)
}

fn config(keys: &mut Object<'_>) -> Option<Config> {
    keys.ignore("$schema");
    let listen = keys.or("listen_addr", ListenAddr::Any(8080), listen_addr);
    let metrics = keys.or("metrics_addr", ListenAddr::Any(9090), listen_addr);
    if overlap(listen, metrics) {
        let key = if keys.has("metrics_addr") { "metrics_addr" } else { "listen_addr" };
        keys.fault(key, format!("proxy ({listen}) and metrics ({metrics}) share a port: give each its own"));
    }
    let workers = keys.optional("workers", |node| node.integer(1..=MAX_WORKERS));
    let example = r#"[ { "path": "/", "backend": "http://127.0.0.1:3001" } ]"#;
    let routes = keys.required("routes", example, routes);
    Some(Config {
        listen,
        metrics,
        workers: workers.and_then(NonZeroUsize::new),
        trusted_proxies: keys.or("trusted_proxies", Vec::new(), networks),
        timeouts: keys.section("timeouts", timeouts),
        head: keys.section("head", head),
        rate_limit: keys.optional("rate_limit", |node| node.object(rate_limit)),
        circuit_breaker: keys.optional("circuit_breaker", |node| node.object(circuit_breaker)),
        kernel: keys.section("kernel", kernel),
        routes: routes?,
    })
}

fn routes(node: &Node<'_>) -> Option<Vec<Route>> {
    let elements = node.list("a list of routes")?;
    if elements.is_empty() {
        return node.fault("is empty: a gateway without routes answers 404 to everything, add one");
    }
    // Where the path of each host and prefix stands.
    let mut seen = HashMap::new();
    let mut distinct_route = |keys: &mut Object<'_>| {
        let route = route(keys)?;
        match seen.entry((route.host.clone(), route.path.clone())) {
            Entry::Vacant(vacant) => {
                vacant.insert(keys.offset("path"));
                Some(route)
            }
            Entry::Occupied(first) => {
                let (line, column) = keys.position(*first.get());
                let and_host = if route.host.is_some() { " of the same host" } else { "" };
                let message = format!(
                    "the same path{and_host} is routed at line {line}, column {column}: remove one of the two"
                );
                keys.fault("path", message);
                None
            }
        }
    };
    Some(elements.iter().filter_map(|node| node.object(&mut distinct_route).flatten()).collect())
}

fn route(keys: &mut Object<'_>) -> Option<Route> {
    let path =
        keys.required("path", "\"/\"", |node| node.string("a path such as \"/api\"", value::route_path));
    let host =
        keys.optional("host", |node| node.string("a name such as \"api.example.com\"", value::route_host));
    let url = "a URL such as \"http://127.0.0.1:3001\"";
    let backend =
        keys.required("backend", "\"http://127.0.0.1:3001\"", |node| node.string(url, value::backend));
    let methods = keys.optional("methods", |node| {
        let names = node.list("a list such as [\"GET\"]")?;
        if names.is_empty() {
            return node.fault("is empty: leave the key out to allow every method");
        }
        Some(distinct(&names, "a method such as \"GET\"", value::method))
    });
    let timeout = keys.or("timeout_seconds", Duration::from_secs(30), Node::duration);
    let preserve_host = keys.or("preserve_host", true, Node::boolean);
    let rate_limit_per_minute = keys.optional("rate_limit_per_minute", |node| node.integer(ANY_COUNT));
    let burst_size = keys.optional("burst_size", |node| node.integer(ANY_COUNT));
    let enable_cache = keys.or("enable_cache", false, Node::boolean);
    let health_check = keys.or("health_check", false, Node::boolean);
    Some(Route {
        path: path?,
        host,
        backend: backend?,
        methods,
        timeout,
        preserve_host,
        rate_limit_per_minute,
        burst_size,
        enable_cache,
        health_check,
    })
}

fn timeouts(keys: &mut Object<'_>) -> Timeouts {
    let seconds = Duration::from_secs;
    Timeouts {
        header_read: keys.or("header_read", seconds(10), Node::duration),
        connect: keys.or("connect", seconds(3), Node::duration),
        idle: keys.or("idle", seconds(75), Node::duration),
        upstream_idle: keys.or("upstream_idle", seconds(60), Node::duration),
        body_stall: keys.or("body_stall", seconds(60), Node::duration),
        drain: keys.or("drain", seconds(30), Node::duration),
    }
}

fn head(keys: &mut Object<'_>) -> HeadLimits {
    HeadLimits {
        max_bytes: keys.or("max_bytes", 32 * 1024, |node| node.integer(HEAD_BYTES)),
        max_headers: keys.or("max_headers", 100, |node| node.integer(1..=MAX_HEADERS)),
    }
}

fn rate_limit(keys: &mut Object<'_>) -> RateLimit {
    RateLimit {
        enabled: keys.or("enabled", true, Node::boolean),
        burst_size: keys.optional("burst_size", |node| node.integer(ANY_COUNT)),
        default_rate_per_minute: keys.optional("default_rate_per_minute", |node| node.integer(ANY_COUNT)),
        num_shards: keys.or("num_shards", 16, |node| {
            let shards: usize = node.integer(1..=MAX_SHARDS)?;
            if shards.is_power_of_two() {
                return Some(shards);
            }
            let (above, below) = (shards.next_power_of_two(), shards.next_power_of_two() / 2);
            node.fault(format!("must be a power of two, is {shards}: write {below} or {above}"))
        }),
    }
}

fn circuit_breaker(keys: &mut Object<'_>) -> CircuitBreaker {
    CircuitBreaker {
        enabled: keys.or("enabled", true, Node::boolean),
        failure_threshold: keys.or("failure_threshold", 5, |node| node.integer(ANY_COUNT)),
        success_threshold: keys.or("success_threshold", 3, |node| node.integer(ANY_COUNT)),
        timeout: keys.or("timeout_seconds", Duration::from_secs(60), Node::duration),
        health_decay: keys.or("health_decay", 0.95, Node::fraction),
    }
}

fn kernel(keys: &mut Object<'_>) -> Kernel {
    Kernel {
        interfaces: keys.or("interfaces", Vec::new(), |node| {
            let names = node.list("a list such as [\"eth0\"]")?;
            Some(distinct(&names, "a name such as \"eth0\"", value::interface))
        }),
        mode: keys.or("mode", KernelMode::Auto, |node| {
            node.string("one of \"auto\", \"driver\", \"generic\", \"tc\"", value::kernel_mode)
        }),
        connections_per_second: keys
            .or("connections_per_second", 500, |node| node.integer(1..=MAX_CONNECTIONS)),
        connection_burst: keys.or("burst", 2000, |node| node.integer(1..=MAX_CONNECTIONS)),
        ipv6_prefix: keys.or("ipv6_prefix", 64, |node| node.integer(1..=128)),
        allow: keys.or("allow", Vec::new(), networks),
        deny: keys.or("deny", Vec::new(), networks),
        monitor: keys.or("monitor", false, Node::boolean),
    }
}

fn listen_addr(node: &Node<'_>) -> Option<ListenAddr> {
    node.string("an address such as \":8080\"", value::listen_addr)
}

fn networks(node: &Node<'_>) -> Option<Vec<IpNet>> {
    let networks = node.list("a list such as [\"10.0.0.0/8\"]")?;
    let read = |node: &Node<'_>| node.string("a CIDR such as \"10.0.0.0/8\"", value::network);
    Some(networks.iter().filter_map(read).collect())
}

/// The strings of a list in which none may be repeated.
fn distinct<T: PartialEq>(
    nodes: &[Node<'_>],
    expected: &str,
    parse: fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let mut values = Vec::with_capacity(nodes.len());
    for node in nodes {
        match node.string(expected, parse) {
            Some(value) if values.contains(&value) => {
                node.fault::<()>("stands in this list already: remove it");
            }
            Some(value) => values.push(value),
            None => {}
        }
    }
    values
}

/// Whether one of the two listeners would take the other's connections (the proxy's binds with
/// `SO_REUSEPORT`, so the kernel need not refuse it). Port 0 is a port of its own each time.
fn overlap(a: ListenAddr, b: ListenAddr) -> bool {
    let (a, b) = (a.socket_addr(), b.socket_addr());
    let anywhere = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && (anywhere || a.ip() == b.ip())
}
