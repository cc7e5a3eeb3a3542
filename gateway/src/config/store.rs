//! The store that rate limits of several gateways are counted in, and what a rule says of it.
//!
//! Part of `limits`, which reads the section and the rules.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::document::{Node, Object};
use super::file::ANY_COUNT;
use super::secret;
use super::value::{self, quote};

/// Longest that a request waits for the store, where the configuration is silent.
const DEFAULT_WAIT: Duration = Duration::from_millis(2);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const MAX_GATEWAYS: RangeInclusive<u64> = 1..=10_000;

/// A Redis or Valkey that several gateways count in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// In the order in which they are tried; at least one.
    pub servers: Vec<StoreServer>,
    /// Read anew for each connection.
    pub password_file: Option<PathBuf>,
    /// Longest that a request waits for it.
    pub wait: Duration,
    /// How many share each limit when it is away; at least one.
    pub gateways: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreServer {
    /// Name or IP literal (IPv6 without brackets), lower case.
    pub host: String,
    pub port: u16,
    pub user: Option<String>,
    pub database: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterRule {
    /// Requests that a gateway may be granted in advance, for each key; at least one.
    pub lease: u32,
    pub on_failure: OnFailure,
}

/// What a rule of the cluster does without the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// This gateway's share of the limit holds.
    Local,
    Allow,
    Refuse,
}

impl OnFailure {
    pub const ALL: [Self; 3] = [Self::Local, Self::Allow, Self::Refuse];

    pub fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Allow => "allow",
            Self::Refuse => "refuse",
        }
    }
}

impl std::fmt::Display for StoreServer {
    /// As a URL, with what the configuration may leave out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("redis://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        write!(f, ":{}/{}", self.port, self.database)
    }
}

/// `None`: there is none.
pub(super) fn section(keys: &mut Object<'_>) -> Option<Store> {
    const A_URL: &str = "a URL such as \"redis://10.0.0.5:6379\"";
    let one = |node: &Node<'_>| node.string(A_URL, server);
    let several = |node: &Node<'_>| {
        let servers = node.filled_list("a list of URLs", "leave the key out where there is no store")?;
        Some(node.distinct(&servers, one))
    };
    let servers =
        keys.optional("store", |node| node.list_or(several, |node| one(node).map(|server| vec![server])));
    let expected = "the path of a file such as \"/etc/gateway/store-password\"";
    let password_file = secret::file(keys, "store_password_file", expected);
    let wait = keys.optional("store_wait", |node| {
        let too_long = "is longer than 10s, and requests wait for it: write less";
        node.duration_in(value::SHORTEST..=LONGEST_WAIT, too_long)
    });
    let gateways = keys.optional("gateways", |node| node.integer(MAX_GATEWAYS));
    if !keys.has("store") {
        for key in ["store_password_file", "store_wait", "gateways"] {
            if keys.has(key) {
                keys.fault(key, "belongs to `store`, which is not there: add it or remove this");
            }
        }
    }
    let servers = servers?;
    keys.follows("store_wait", &DEFAULT_WAIT);
    keys.follows("gateways", &1_u32);
    Some(Store {
        servers,
        password_file,
        wait: wait.unwrap_or(DEFAULT_WAIT),
        gateways: gateways.unwrap_or(1),
    })
}

/// `None`: the rule is this gateway's alone.
pub(super) fn rule(
    keys: &mut Object<'_>,
    limit: Option<u32>,
    burst: Option<u32>,
    store: Option<&Store>,
) -> Option<ClusterRule> {
    let scopes = [("local", false), ("cluster", true)];
    keys.note("scope", &scopes[0].0);
    let scope = keys.optional("scope", |node| node.choice("scope", &scopes));
    let lease = keys.optional("lease", |node| node.integer(ANY_COUNT)).unwrap_or(1);
    let choices = OnFailure::ALL.map(|how| (how.label(), how));
    let on_failure = keys.optional("on_failure", |node| node.choice("choice", &choices));
    let on_failure = on_failure.unwrap_or(OnFailure::Local);
    let shared = match scope {
        Some(shared) => shared,
        // One that nobody knows is fault enough.
        None if keys.has("scope") => return None,
        None => false,
    };
    if !shared {
        for key in ["lease", "on_failure"] {
            if keys.has(key) {
                keys.fault(key, "belongs to rules of the cluster: add \"scope\": \"cluster\" or remove it");
            }
        }
        return None;
    }
    let Some(store) = store else {
        keys.fault("scope", "needs a store to count in: add \"store\" to `rate_limit`");
        return None;
    };
    let all = u64::from(lease) * u64::from(store.gateways);
    if lease > 1 && burst.is_some() {
        keys.fault("lease", "a burst needs every request to be asked for: remove one of the two");
    } else if let Some(limit) = limit.filter(|limit| all > u64::from(*limit)) {
        let gateways = store.gateways;
        keys.fault(
            "lease",
            format!("{gateways} gateways may hold more than the limit of {limit}: write less"),
        );
    }
    keys.follows("lease", &1_u32);
    keys.follows("on_failure", &OnFailure::Local.label());
    Some(ClusterRule { lease, on_failure })
}

/// `redis://[user@]host[:port][/database]`: a server of the store.
fn server(text: &str) -> Result<StoreServer, String> {
    const FORM: &str = "write \"redis://host:port\"";
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("{} is no URL: {FORM}", quote(text)));
    };
    // Not repeated in a message where it may hold a password.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, _)) if user.contains(':') => {
            return Err(
                "the URL has a password: put it into a file and name that as `store_password_file`".into()
            );
        }
        Some((user, rest)) => (Some(user.to_owned()), rest),
        None => (None, rest),
    };
    let refuse = |why: String| Err(format!("{} {why}", quote(text)));
    if scheme.eq_ignore_ascii_case("rediss") || scheme.eq_ignore_ascii_case("valkeys") {
        return refuse(format!("asks for TLS to the store, which is not supported: {FORM}"));
    }
    if !scheme.eq_ignore_ascii_case("redis") && !scheme.eq_ignore_ascii_case("valkey") {
        return refuse(format!("has a scheme that is not supported: {FORM}"));
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let database = if path.is_empty() { Ok(0) } else { value::digits(path).map(u32::from) };
    let Ok(database) = database else {
        return refuse("names no database: it ends in a number such as /0, or in nothing".into());
    };
    match value::host_and_port(authority, "redis", "6379") {
        Ok((host, port)) => Ok(StoreServer { host, port, user, database }),
        Err(why) => refuse(why),
    }
}
