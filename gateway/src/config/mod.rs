//! The validated configuration: plain values that every other module may read.
//!
//! `file` is the only place that knows the format; it turns a document into a [`Config`] or into an
//! [`Error`] that names file, line and column. Nothing here touches a socket or resolves a name.

mod document;
mod error;
mod file;
mod value;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use http::Method;
use ipnet::IpNet;

pub use error::{Error, Fault};
pub use file::{load, parse};

/// Everything the gateway does, as the operator wrote it, with every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub listen: ListenAddr,
    pub metrics: ListenAddr,
    /// Worker threads; `None`: as many as CPU affinity and cgroup quota allow.
    pub workers: Option<NonZeroUsize>,
    /// Longest path first is not promised: the route table orders them.
    pub routes: Vec<Route>,
    pub timeouts: Timeouts,
    pub head: HeadLimits,
    /// Peers whose `X-Forwarded-*`, `Forwarded` and `X-Request-Id` are believed.
    pub trusted_proxies: Vec<IpNet>,
    pub rate_limit: Option<RateLimit>,
    pub circuit_breaker: Option<CircuitBreaker>,
    pub kernel: Kernel,
}

/// Where a listener binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddr {
    /// `:8080`: every address of the host, IPv6 and IPv4.
    Any(u16),
    Ip(SocketAddr),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Normalised path prefix, matched on segment borders; `/` matches everything.
    pub path: String,
    /// Lower-case host name without port; `None`: any.
    pub host: Option<String>,
    pub backend: Backend,
    /// `None`: every method.
    pub methods: Option<Vec<Method>>,
    /// From the request's head to the last byte of the response.
    pub timeout: Duration,
    /// Send the client's `Host` upstream (the default), else the backend's own name.
    pub preserve_host: bool,
    pub rate_limit_per_minute: Option<u32>,
    pub burst_size: Option<u32>,
    pub enable_cache: bool,
    pub health_check: bool,
}

/// One upstream origin. Only cleartext HTTP/1.1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backend {
    /// Name or IP literal (IPv6 without brackets), lower case.
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Timeouts {
    /// Whole request head, from its first byte (or the accept) on.
    pub header_read: Duration,
    pub connect: Duration,
    /// A downstream connection between two requests.
    pub idle: Duration,
    /// An upstream connection in the pool.
    pub upstream_idle: Duration,
    /// No byte moved in either direction of a body.
    pub body_stall: Duration,
    /// Between SIGTERM and the end of the last request.
    pub drain: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HeadLimits {
    pub max_bytes: usize,
    pub max_headers: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RateLimit {
    pub enabled: bool,
    pub burst_size: Option<u32>,
    pub default_rate_per_minute: Option<u32>,
    /// A power of two.
    pub num_shards: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CircuitBreaker {
    pub enabled: bool,
    pub failure_threshold: u32,
    pub success_threshold: u32,
    pub timeout: Duration,
    /// In (0, 1).
    pub health_decay: f64,
}

/// The kernel half's policy and where it attaches.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Interfaces by name; empty: the kernel half stays off.
    pub interfaces: Vec<String>,
    pub mode: KernelMode,
    /// New connections per second and source.
    pub connections_per_second: u32,
    /// New connections a source may open at once.
    pub connection_burst: u32,
    /// Sources are told apart by this many leading bits of an IPv6 address.
    pub ipv6_prefix: u8,
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// Judge and count, drop nothing.
    pub monitor: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelMode {
    /// Driver mode where the driver can, else generic.
    Auto,
    Driver,
    Generic,
    /// TCX instead of XDP, where somebody else holds the XDP hook.
    Tc,
}

impl Config {
    /// The keys by which the operator asks for something that this version only validates: for one log
    /// line at start, so that nothing is promised falsely.
    pub fn not_in_force(&self) -> Vec<&'static str> {
        let any = |asks: fn(&Route) -> bool| self.routes.iter().any(asks);
        let asked = [
            ("rate_limit", self.rate_limit.as_ref().is_some_and(|limit| limit.enabled)),
            ("circuit_breaker", self.circuit_breaker.as_ref().is_some_and(|breaker| breaker.enabled)),
            ("routes[].rate_limit_per_minute", any(|route| route.rate_limit_per_minute.is_some())),
            ("routes[].burst_size", any(|route| route.burst_size.is_some())),
            ("routes[].enable_cache", any(|route| route.enable_cache)),
            ("routes[].health_check", any(|route| route.health_check)),
        ];
        asked.into_iter().filter(|(_, asked)| *asked).map(|(key, _)| key).collect()
    }
}

impl ListenAddr {
    pub fn port(self) -> u16 {
        match self {
            Self::Any(port) => port,
            Self::Ip(addr) => addr.port(),
        }
    }

    /// The address to bind; `Any` is the IPv6 wildcard, which takes IPv4 too unless `IPV6_V6ONLY` is set.
    pub fn socket_addr(self) -> SocketAddr {
        match self {
            Self::Any(port) => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
            Self::Ip(addr) => addr,
        }
    }
}

impl std::fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any(port) => write!(f, ":{port}"),
            Self::Ip(addr) => write!(f, "{addr}"),
        }
    }
}

impl std::fmt::Display for Backend {
    /// The authority: `host:port`, IPv6 in brackets, without the scheme's default port.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        if self.port == 80 { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}
