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

use http::Method;
use ipnet::IpNet;
use serde_json::Value;

use super::document::{self, Node, Object, Reading};
use super::include::Files;
use super::{
    Config, Control, Error, Escalation, HeadLimits, Kernel, KernelMode, ListenAddr, Priority, RateLimit,
    Route, Timeouts, caching, kernel, limits, log, overload, secret, upstreams, value,
};

const MAX_WORKERS: u64 = 1024;
/// Below the smallest, ordinary browsers are refused; the largest bounds what a connection may cost.
const HEAD_BYTES: std::ops::RangeInclusive<u64> = 8 * 1024..=1024 * 1024;
const MAX_HEADERS: u64 = 1000;
pub(super) const MAX_CONNECTIONS: u64 = 1_000_000;
pub(super) const ANY_COUNT: std::ops::RangeInclusive<u64> = 1..=u32::MAX as u64;

/// Reads and validates `path`.
pub fn load(path: &Path) -> Result<Config, Error> {
    load_with_files(path).map(|(config, _)| config)
}

/// The same, with the files as they were read.
pub fn load_with_files(path: &Path) -> Result<(Config, Files), Error> {
    let files = Files::of(path, &bytes(path)?);
    let reading = document::read(&files, false, config)?;
    Ok((reading.value, files))
}

/// The same, with warnings and with every default as a document.
pub fn examine(path: &Path) -> Result<Reading<Config>, Error> {
    document::read(&Files::of(path, &bytes(path)?), true, config)
}

fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Unreadable { file: path.to_owned(), source })
}

/// Validates `text`; `file` is what its faults are reported under.
pub fn parse(text: &str, file: impl AsRef<Path>) -> Result<Config, Error> {
    let files = Files::of(file.as_ref(), text.as_bytes());
    document::read(&files, false, config).map(|reading| reading.value)
}

impl Files {
    /// What they say, with every default filled in, as `check --print` has it. `Null`: what is not valid says nothing.
    pub fn effective(&self) -> Value {
        document::read(self, true, config).map_or(Value::Null, |reading| reading.effective)
    }
}

pub(super) fn config(keys: &mut Object<'_>) -> Option<Config> {
    keys.ignore_schema();
    keys.includes();
    let listen = keys.or("listen_addr", ListenAddr::Any(8080), listen_addr);
    let metrics = keys.or("metrics_addr", ListenAddr::Any(9090), listen_addr);
    if overlap(listen, metrics) {
        let key = if keys.has("metrics_addr") { "metrics_addr" } else { "listen_addr" };
        keys.fault(key, format!("proxy ({listen}) and metrics ({metrics}) share a port: give each its own"));
    }
    let workers = keys.optional("workers", |node| node.integer(1..=MAX_WORKERS));
    let trusted_proxies = keys.or_empty("trusted_proxies", networks);
    let proxy_protocol = keys.or("proxy_protocol", false, Node::boolean);
    if proxy_protocol && trusted_proxies.is_empty() {
        keys.fault(
            "proxy_protocol",
            "nobody may send it: add your load balancer's network to `trusted_proxies`",
        );
    }
    // Before the routes, which build on it.
    let rate_limit = keys.optional("rate_limit", |node| node.object(limits::section));
    let example = r#"[ { "path": "/", "backend": "http://127.0.0.1:3001" } ]"#;
    let cache = keys.section("cache", caching::cache);
    let share = cache.max_bytes / cache.shards;
    let routes = keys.required("routes", example, |node| routes(node, rate_limit.as_ref(), share));
    let client_ipv6_prefix = keys.or("client_ipv6_prefix", 64, |node| node.integer(1..=128));
    let (mut kernel, has_budget) = keys.section("kernel", kernel_section);
    kernel.trusted.clone_from(&trusted_proxies);
    kernel.client_ipv6_prefix = client_ipv6_prefix;
    let mut config = Config {
        listen,
        metrics,
        workers: workers.and_then(NonZeroUsize::new),
        user: keys.optional("user", |node| node.string("a name such as \"www-data\"", value::account)),
        trusted_proxies,
        proxy_protocol,
        client_ipv6_prefix,
        timeouts: keys.section("timeouts", timeouts),
        head: keys.section("head", head),
        connections: keys.section("connections", overload::connections),
        overload: keys.section("overload", overload::section),
        rate_limit,
        circuit_breaker: keys.optional("circuit_breaker", |node| node.object(upstreams::circuit_breaker)),
        upstreams: keys.section("upstream", upstreams::upstreams),
        cache,
        kernel,
        trace_context: log::trace_context(keys),
        access_log: keys.optional("access_log", |node| node.object(log::section)),
        control: keys.optional("control", |node| node.object(control).flatten()),
        routes: routes?,
    };
    if let Some(admin) = config.control.as_ref().and_then(|control| control.admin) {
        for (name, other) in [("proxy", listen), ("metrics", metrics)] {
            if overlap(admin, other) {
                keys.fault(
                    "control",
                    format!("admin_addr ({admin}) and {name} ({other}) share a port: give each its own"),
                );
            }
        }
    }
    if !has_budget && let Some((per_second, burst)) = kernel::budget(&config) {
        config.kernel.connections_per_second = per_second;
        config.kernel.connection_burst = burst;
        keys.follows("kernel.connections_per_second", &per_second);
        keys.follows("kernel.burst", &burst);
    }
    Some(config)
}

/// `share`: bytes that a shard of the cache holds.
fn routes(node: &Node<'_>, rate_limit: Option<&RateLimit>, share: usize) -> Option<Vec<Route>> {
    let advice = "a gateway without routes answers 404 to everything, add one";
    let elements = node.filled_list("a list of routes", advice)?;
    // Where the path of each host and prefix stands.
    let mut seen = HashMap::new();
    let mut distinct_route = |keys: &mut Object<'_>| {
        let route = route(keys, rate_limit, share)?;
        match seen.entry((route.host.clone(), route.path.clone())) {
            Entry::Vacant(vacant) => {
                vacant.insert(keys.offset("path"));
                Some(route)
            }
            Entry::Occupied(first) => {
                let place = keys.place(*first.get(), "path");
                let and_host = if route.host.is_some() { " of the same host" } else { "" };
                let message = format!("the same path{and_host} is routed at {place}: remove one of the two");
                keys.fault("path", message);
                None
            }
        }
    };
    Some(elements.iter().filter_map(|node| node.object(&mut distinct_route).flatten()).collect())
}

fn route(keys: &mut Object<'_>, rate_limit: Option<&RateLimit>, share: usize) -> Option<Route> {
    let path =
        keys.required("path", "\"/\"", |node| node.string("a path such as \"/api\"", value::route_path));
    let host =
        keys.optional("host", |node| node.string("a name such as \"api.example.com\"", value::route_host));
    let cluster = keys.required("backend", "\"http://127.0.0.1:3001\"", upstreams::backend);
    let methods = keys.optional("methods", |node| {
        let names =
            node.filled_list("a list such as [\"GET\"]", "leave the key out to allow every method")?;
        Some(node.distinct(&names, |node| node.string("a method such as \"GET\"", value::method)))
    });
    if methods.as_ref().is_some_and(|methods| methods.iter().all(|method| *method == Method::CONNECT)) {
        keys.warn("methods", "no request comes here: CONNECT is refused before any route is looked for");
    }
    let timeout = keys.or("timeout_seconds", Duration::from_secs(30), Node::duration);
    let preserve_host = keys.or("preserve_host", true, Node::boolean);
    let rate_limit_per_minute = keys.optional("rate_limit_per_minute", |node| node.integer(ANY_COUNT));
    let burst_size = keys.optional("burst_size", |node| node.integer(ANY_COUNT));
    let rate_limits = keys.or_empty("rate_limits", |node| {
        limits::rules(node, rate_limit, rate_limit.and_then(|section| section.store.as_ref()))
    });
    let default_rate = rate_limit.and_then(|section| section.default_rate_per_minute);
    if rate_limit.is_some_and(|section| !section.enabled) {
        for key in ["rate_limit_per_minute", "rate_limits"] {
            keys.warn(key, "has no effect: `rate_limit.enabled` is false");
        }
    }
    // A route that lists rules of its own has no need of the default.
    let has_rate = keys.has("rate_limit_per_minute") || default_rate.is_some() && rate_limits.is_empty();
    if burst_size.is_some() && !has_rate {
        keys.fault(
            "burst_size",
            "belongs to a rate, and the route has none: add rate_limit_per_minute to it",
        );
    }
    let priority = keys.choice("priority", Priority::Normal, "priority", &overload::PRIORITIES);
    let max_concurrent = keys.optional("max_concurrent", |node| node.integer(ANY_COUNT));
    let max_concurrent_per_client =
        keys.optional("max_concurrent_per_client", |node| node.integer(ANY_COUNT));
    let enable_cache = keys.or("enable_cache", false, Node::boolean);
    let coalesce = keys.optional("coalesce", Node::boolean);
    let cache = keys.section("cache", |keys| caching::route(keys, share));
    if !enable_cache && coalesce != Some(true) {
        keys.warn("cache", "has no effect: the route has no \"enable_cache\": true");
    }
    let health_check = keys.optional("health_check", upstreams::health_check).flatten();
    let several = cluster.as_ref().is_some_and(|cluster| cluster.members.len() > 1);
    let retry = keys.section("retry", |keys| upstreams::retry(keys, several));
    Some(Route {
        path: path?,
        host,
        cluster: cluster?,
        methods,
        timeout,
        preserve_host,
        rate_limit_per_minute,
        burst_size,
        rate_limits,
        priority,
        max_concurrent,
        max_concurrent_per_client,
        enable_cache,
        coalesce,
        cache,
        health_check,
        retry,
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
        body_rate: keys.or("body_rate", seconds(20), Node::duration),
        drain: keys.or("drain", seconds(30), Node::duration),
    }
}

fn head(keys: &mut Object<'_>) -> HeadLimits {
    HeadLimits {
        max_bytes: keys.or("max_bytes", 32 * 1024, |node| node.integer(HEAD_BYTES)),
        max_headers: keys.or("max_headers", 100, |node| node.integer(1..=MAX_HEADERS)),
    }
}

/// And whether it says how many connections a source may open.
fn kernel_section(keys: &mut Object<'_>) -> (Kernel, bool) {
    let has_budget = keys.has("connections_per_second") || keys.has("burst");
    keys.note("monitor", &false);
    let monitored = keys.optional("monitor", kernel::monitored).unwrap_or(0);
    let kernel = Kernel {
        interfaces: keys.or_empty("interfaces", |node| {
            let names = node.list("a list such as [\"eth0\"]")?;
            Some(node.distinct(&names, |node| node.string("a name such as \"eth0\"", value::interface)))
        }),
        mode: keys.choice("mode", KernelMode::Auto, "mode", &value::KERNEL_MODES),
        connections_per_second: keys
            .or_following("connections_per_second", 500, |node| node.integer(1..=MAX_CONNECTIONS)),
        connection_burst: keys.or_following("burst", 2000, |node| node.integer(1..=MAX_CONNECTIONS)),
        ipv6_prefix: keys.or("ipv6_prefix", 64, |node| node.integer(1..=128)),
        allow: keys.or_empty("allow", networks),
        deny: keys.or_empty("deny", networks),
        allow_listed: Vec::new(),
        deny_listed: Vec::new(),
        monitored,
        new_sources_per_second: keys
            .or("new_sources_per_second", 2000, |node| node.integer(1..=MAX_CONNECTIONS)),
        cookies: keys.or("cookies", true, Node::boolean),
        strict_fragments: keys.or("strict_fragments", true, Node::boolean),
        ceiling: kernel::ceiling(keys),
        escalation: keys.choice("escalation", Escalation::Slow, "escalation", &kernel::ESCALATIONS),
        shedding: keys.or("shedding", true, Node::boolean),
        persist: keys.optional("persist", |node| {
            node.string("a folder such as \"/sys/fs/bpf/gateway\"", value::file_path)
        }),
        trusted: Vec::new(),
        client_ipv6_prefix: 64,
    };
    if kernel.interfaces.is_empty() {
        keys.warn_all("has no effect unless --iface names an interface, for `interfaces` is empty");
    }
    for (rate, burst, (per_second, at_once)) in [
        ("connections_per_second", "burst", (kernel.connections_per_second, kernel.connection_burst)),
        (
            "packets_per_second",
            "packet_burst",
            kernel.ceiling.map_or((1, 1), |ceiling| (ceiling.per_second, ceiling.burst)),
        ),
    ] {
        if let Some(least) = kernel::too_small(per_second, at_once) {
            let key = if keys.has(burst) { burst } else { rate };
            keys.warn(
                key,
                format!("`{rate}` {per_second} is never reached with `{burst}` {at_once}, for the clock has ticks of up to 10 ms: raise `{burst}` to {least}"),
            );
        }
    }
    for network in kernel::in_vain(&kernel.allow, &kernel.deny) {
        keys.warn("deny", format!("{network} has no effect: `allow` has all of it, and is stronger"));
    }
    (kernel, has_budget)
}

fn control(keys: &mut Object<'_>) -> Option<Control> {
    let path = "a path such as \"/run/gateway/control.sock\"";
    let example = "\"/run/gateway/control.sock\"";
    let socket = keys.required("socket", example, |node| node.string(path, value::socket_path));
    let path = "a path such as \"/var/lib/gateway/state.json\"";
    let example = "\"/var/lib/gateway/state.json\"";
    let state_file = keys.required("state_file", example, |node| node.string(path, value::file_path));
    let admin = keys.optional("admin_addr", listen_addr);
    let path = "the path of a file such as \"/etc/gateway/admin-token\"";
    let token_file = secret::file(keys, "token_file", path);
    match admin {
        Some(admin) if !admin.is_loopback() && !keys.has("token_file") => keys.fault(
            "admin_addr",
            "other hosts reach it there: add `token_file`, or write an address such as \"127.0.0.1:9091\"",
        ),
        None if !keys.has("admin_addr") && keys.has("token_file") => {
            keys.fault("token_file", "belongs to `admin_addr`, which is not there: add it or remove this");
        }
        Some(_) | None => {}
    }
    Some(Control { socket: socket?, state_file: state_file?, admin, token_file })
}

fn listen_addr(node: &Node<'_>) -> Option<ListenAddr> {
    node.string("an address such as \":8080\"", value::listen_addr)
}

fn networks(node: &Node<'_>) -> Option<Vec<IpNet>> {
    let networks = node.list("a list such as [\"10.0.0.0/8\"]")?;
    let read = |node: &Node<'_>| node.string("a CIDR such as \"10.0.0.0/8\"", value::network);
    Some(networks.iter().filter_map(read).collect())
}

/// Whether one of the two listeners would take the other's connections (the proxy's binds with
/// `SO_REUSEPORT`, so the kernel need not refuse it). Port 0 is a port of its own each time.
fn overlap(a: ListenAddr, b: ListenAddr) -> bool {
    let (a, b) = (a.socket_addr(), b.socket_addr());
    let anywhere = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && (anywhere || a.ip() == b.ip())
}
