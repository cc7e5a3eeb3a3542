//! The validated configuration: plain values that every other module may read.
//!
//! `file` is the only place that knows the format; it turns a document into a [`Config`] or into an
//! [`Error`] that names file, line and column. Nothing here touches a socket or resolves a name.

mod caching;
mod document;
mod environment;
mod error;
mod file;
mod include;
mod kernel;
mod limits;
mod log;
mod overload;
mod schema;
mod secret;
mod store;
mod upstreams;
mod value;
mod written;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, Method};
use ipnet::IpNet;

pub use caching::{Cache, Condition, KeyParts, Query, RouteCache};
pub use document::Reading;
pub use error::{Error, Excerpt, Fault, UNREADABLE};
pub use file::{examine, load, load_with_files, parse};
pub use include::{Files, watched};
pub use kernel::{Ceiling, Escalation, Listed};
pub use log::{AccessLog, Destination, LogFormat, TraceContext};
pub use overload::{Connections, Overload, Priority};
pub use schema::schema;
pub use secret::{SecretError, secret};
pub use store::{ClusterRule, OnFailure, Store, StoreServer};
pub use value::{network, unmapped};

/// Everything the gateway does, as the operator wrote it, with every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub listen: ListenAddr,
    pub metrics: ListenAddr,
    /// Worker threads; `None`: as many as CPU affinity and cgroup quota allow.
    pub workers: Option<NonZeroUsize>,
    /// Whom the process becomes once its ports are bound; `None`: it stays who started it.
    pub user: Option<Account>,
    /// Longest path first is not promised: the route table orders them.
    pub routes: Vec<Route>,
    pub timeouts: Timeouts,
    pub head: HeadLimits,
    pub connections: Connections,
    pub overload: Overload,
    /// Peers whose `X-Forwarded-*`, `Forwarded` and `X-Request-Id` are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Connections begin with a PROXY header, which only `trusted_proxies` may send; not empty then.
    pub proxy_protocol: bool,
    /// Clients are told apart by this many leading bits of an IPv6 address; 1 to 128.
    pub client_ipv6_prefix: u8,
    pub rate_limit: Option<RateLimit>,
    pub circuit_breaker: Option<CircuitBreaker>,
    pub upstreams: Upstreams,
    pub cache: Cache,
    pub kernel: Kernel,
    /// `None`: nothing is written about requests.
    pub access_log: Option<AccessLog>,
    pub trace_context: TraceContext,
    /// `None`: it is controlled by its file and by signals alone.
    pub control: Option<Control>,
}

/// Where a listener binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddr {
    /// `:8080`: every address of the host, IPv6 and IPv4.
    Any(u16),
    Ip(SocketAddr),
}

/// A user of the host by name or number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub user: String,
    /// `None`: the user's own.
    pub group: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Normalised path prefix, matched on segment borders; `/` matches everything.
    pub path: String,
    /// Lower-case host name without port; `None`: any.
    pub host: Option<String>,
    pub cluster: Cluster,
    /// `None`: every method.
    pub methods: Option<Vec<Method>>,
    /// From the request's head to the last byte of the response.
    pub timeout: Duration,
    /// Send the client's `Host` upstream (the default), else the backend's own name.
    pub preserve_host: bool,
    pub rate_limit_per_minute: Option<u32>,
    pub burst_size: Option<u32>,
    /// No more than [`MAX_LIMIT_RULES`], with names of their own.
    pub rate_limits: Vec<LimitRule>,
    /// Which routes give way first.
    pub priority: Priority,
    /// Requests under way, of all clients together and of each.
    pub max_concurrent: Option<u32>,
    pub max_concurrent_per_client: Option<u32>,
    pub enable_cache: bool,
    /// Identical requests under way are made one; `None`: where the cache is on.
    pub coalesce: Option<bool>,
    pub cache: RouteCache,
    pub health_check: Option<HealthCheck>,
    pub retry: Retry,
}

/// One upstream origin. Only cleartext HTTP/1.1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// The stretch over which a body must keep its least rate.
    pub body_rate: Duration,
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
    /// Keys held at once, of all rules together.
    pub max_keys: usize,
    /// Rules for every route, as those of a route.
    pub rules: Vec<LimitRule>,
    /// Requests of one client under way on all routes together.
    pub max_concurrent_per_client: Option<u32>,
    /// When answers carry `RateLimit` and `RateLimit-Policy`.
    pub fields: LimitFields,
    /// `X-RateLimit-*` beside them.
    pub legacy_fields: bool,
    /// What rules of several gateways are counted in; there where a rule is of the cluster.
    pub store: Option<Store>,
}

/// Shards of the table of keys, and keys in it, where the configuration is silent.
pub const DEFAULT_SHARDS: usize = 16;
pub const DEFAULT_MAX_KEYS: usize = 262_144;
/// What fields on every answer cost is more than the whole limiter's.
pub const DEFAULT_LIMIT_FIELDS: LimitFields = LimitFields::Near;
/// Rules that one list may hold.
pub const MAX_LIMIT_RULES: usize = 8;
/// What `rate_limit_per_minute` is called in answers and metrics.
pub const DEFAULT_RULE: &str = "default";
/// What limits of requests at once are called in answers.
pub const CONCURRENCY: &str = "concurrency";

/// What the burst of a rule is called in answers.
pub fn burst_name(rule: &str) -> String {
    if rule == DEFAULT_RULE { "burst".to_owned() } else { format!("{rule}-burst") }
}

/// So many requests in a period, for each key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitRule {
    /// Of letters, digits, `-`, `_` and `.`.
    pub name: String,
    pub limit: u32,
    pub period: LimitPeriod,
    /// How many may come at once; `None`: the whole limit.
    pub burst: Option<u32>,
    /// At least one part.
    pub key: Vec<LimitKey>,
    /// Count what it would refuse, and refuse nothing.
    pub shadow: bool,
    /// Counted by the store, together with other gateways; `None`: by this one alone.
    pub cluster: Option<ClusterRule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitPeriod {
    Second,
    Minute,
    Hour,
    Day,
}

/// A part of what a rule counts by. Who sends no such header or parameter is counted by address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitKey {
    Client,
    Route,
    Header(HeaderName),
    Query(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitFields {
    Always,
    /// On refusals, and when less than a tenth is left.
    Near,
    /// On refusals alone.
    Refused,
}

impl LimitPeriod {
    pub fn seconds(self) -> u32 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }
}

/// Where a route's requests go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cluster {
    /// At least one, none twice.
    pub members: Vec<Member>,
    pub policy: Policy,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    pub backend: Backend,
    /// From 1 to 100.
    pub weight: u32,
}

/// How one of several endpoints is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// The one of two drawn by weight that has fewer requests under way for its weight.
    LeastRequests,
    /// In turns, by weight.
    RoundRobin,
    /// The same for the same key, as far as its load allows.
    Hash(HashKey),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HashKey {
    Client,
    Path,
    Header(HeaderName),
    Cookie(String),
    Query(String),
}

/// How an endpoint is asked whether it is well.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    /// Path and query.
    pub path: String,
    pub interval: Duration,
    /// From connecting to the status.
    pub timeout: Duration,
    /// In a row, that take an endpoint out.
    pub failures: u32,
    /// In a row, that bring it back.
    pub successes: u32,
    /// `None`: every one below 500.
    pub statuses: Option<Vec<u16>>,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            path: "/".to_owned(),
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(3),
            failures: 3,
            successes: 2,
            statuses: None,
        }
    }
}

/// When a request that failed is sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// After the first; 0: never.
    pub attempts: u32,
    /// `None`: the request's own timeout is the only one.
    pub per_try_timeout: Option<Duration>,
    /// Of an answer that is as good as none.
    pub statuses: Vec<u16>,
    /// A longer body is sent once.
    pub max_body_bytes: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CircuitBreaker {
    pub enabled: bool,
    /// In a row.
    pub failure_threshold: u32,
    pub success_threshold: u32,
    /// How long it is open the first time, and at most.
    pub timeout: Duration,
    pub max_timeout: Duration,
    /// In (0, 1).
    pub failure_ratio: f64,
    pub minimum_requests: u32,
    pub window: Duration,
    /// Time to the response's head; `None`: no answer is too slow.
    pub slow_call: Option<Duration>,
    /// Probes at once.
    pub half_open_requests: usize,
    pub recovery: Duration,
    /// In (0, 1).
    pub health_decay: f64,
}

pub const DEFAULT_HEALTH_DECAY: f64 = 0.95;

/// What holds for every endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstreams {
    /// Of all workers to one endpoint.
    pub max_connections: Option<usize>,
    /// An older connection is not used again.
    pub max_age: Duration,
    /// Quiet time before the system asks whether the other side is still there.
    pub keepalive: Duration,
    /// How long bytes may go unacknowledged.
    pub user_timeout: Duration,
    /// Name servers; none: those of the host.
    pub resolver: Vec<SocketAddr>,
    /// Between look-ups of a name at most; `None`: as long as answers hold.
    pub resolve_every: Option<Duration>,
    /// How long an endpoint that joins or comes back takes to get its whole share.
    pub slow_start: Duration,
    /// Where a smaller part of the endpoints is well, all are asked; in (0, 1).
    pub panic_threshold: f64,
    /// Endpoints much worse than the others are left out for a while.
    pub ejection: bool,
    pub ejection_time: Duration,
    /// Retries under way, of requests under way.
    pub retry_percent: u32,
    /// Retries that are always allowed.
    pub retry_minimum: u32,
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
    /// Entries of the lists with an end, or on trial. The configuration has none.
    pub allow_listed: Vec<Listed>,
    pub deny_listed: Vec<Listed>,
    /// The set of verdicts that are counted and do nothing.
    pub monitored: u32,
    /// Connection requests per second, and at once, of all sources without a bucket, on each CPU.
    pub new_sources_per_second: u32,
    /// Answer requests beyond that with SYN cookies.
    pub cookies: bool,
    /// Drop fragments to the gateway that hide TCP flags.
    pub strict_fragments: bool,
    /// `None`: packets are not counted by source.
    pub ceiling: Option<Ceiling>,
    pub escalation: Escalation,
    /// Refuse new connections while the gateway itself is in distress.
    pub shedding: bool,
    /// The gateway's `trusted_proxies`, which are neither limited, nor penalised, nor shed.
    pub trusted: Vec<IpNet>,
    /// The gateway's `client_ipv6_prefix`: what penalties and known sources go by.
    pub client_ipv6_prefix: u8,
    /// Where links and maps are pinned, so that they outlive the process; `None`: nothing does.
    pub persist: Option<PathBuf>,
}

/// Where the command line reaches a running gateway, and what is kept of what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    pub socket: PathBuf,
    /// Networks allowed or denied at run time.
    pub state_file: PathBuf,
    /// Where it is asked over TCP; `None`: nowhere.
    pub admin: Option<ListenAddr>,
    /// Holds what is to be sent there as a token; there where other hosts reach `admin`.
    pub token_file: Option<PathBuf>,
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
    /// Shards of the table of rate limits' keys, and keys in it.
    pub fn limit_table(&self) -> (usize, usize) {
        let section = self.rate_limit.as_ref();
        section.map_or((DEFAULT_SHARDS, DEFAULT_MAX_KEYS), |section| (section.num_shards, section.max_keys))
    }
}

impl ListenAddr {
    /// Whether this host alone reaches it.
    pub fn is_loopback(self) -> bool {
        self.socket_addr().ip().to_canonical().is_loopback()
    }

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
