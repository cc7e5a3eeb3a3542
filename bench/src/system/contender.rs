//! A contender: a system with one configuration. Scenarios name those that take part; a row of the report is one.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// The systems that are known; the order is that of the rows and of the turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// The generator and the origin with nothing between them.
    Direct,
    Nginx,
    Gateway,
    Haproxy,
    Envoy,
    Caddy,
    Varnish,
}

/// The system that the others are compared with.
pub const REFERENCE: System = System::Nginx;

impl System {
    pub fn name(self) -> &'static str {
        match self {
            System::Direct => "direct",
            System::Nginx => "nginx",
            System::Gateway => "gateway",
            System::Haproxy => "HAProxy",
            System::Envoy => "Envoy",
            System::Caddy => "Caddy",
            System::Varnish => "Varnish",
        }
    }
}

/// What a system is configured for; lines of the files in `bench/peers` begin with the names of those that they
/// are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Setup {
    /// One route that passes everything on.
    Plain,
    /// So many routes, one of which is `/`.
    Routes(u32),
    /// A limit on the route that nobody reaches.
    Limit,
    /// The same, counted in a store for several gateways, by leases.
    Shared,
    /// The same with a store that is far away.
    SharedFar,
    /// A limit that lets one request a minute through.
    Refuse,
    /// A cache on the route.
    Cache,
    /// A line about each request, as JSON, into a file.
    AccessLog,
    /// A route that each reload gives another name.
    Reload,
}

/// A route that every [`Setup::Routes`] has, in the middle of them.
pub const MIDDLE_ROUTE: u32 = 50_000;

impl Setup {
    /// The name that lines of a template are marked with.
    pub fn marker(self) -> &'static str {
        match self {
            Setup::Plain => "plain",
            Setup::Routes(_) => "routes",
            Setup::Limit => "limit",
            Setup::Shared => "shared",
            Setup::SharedFar => "shared_far",
            Setup::Refuse => "refuse",
            Setup::Cache => "cache",
            Setup::AccessLog => "access_log",
            Setup::Reload => "reload",
        }
    }

    /// How a row is told from the same system's plain one.
    pub fn label(self) -> String {
        match self {
            Setup::Plain => "plain".into(),
            Setup::Routes(count) => format!("{count} routes"),
            Setup::Limit => "limit on".into(),
            Setup::Shared => "limit shared".into(),
            Setup::SharedFar => format!("limit shared, {STORE_DELAY:?} away"),
            Setup::Refuse => "refusing".into(),
            Setup::Cache => "cache on".into(),
            Setup::AccessLog => "log on".into(),
            Setup::Reload => "reloading".into(),
        }
    }

    /// The numbers of the routes beside `/`.
    pub fn routes(self) -> std::ops::Range<u32> {
        match self {
            Setup::Routes(count) => {
                let first = MIDDLE_ROUTE - count / 2;
                first..first + count.saturating_sub(1)
            }
            Setup::Plain
            | Setup::Limit
            | Setup::Shared
            | Setup::SharedFar
            | Setup::Refuse
            | Setup::Cache
            | Setup::AccessLog
            | Setup::Reload => 0..0,
        }
    }

    /// What is added to the answers of the store that limits are shared through; `None`: there is none.
    pub fn store_delay(self) -> Option<Duration> {
        match self {
            Setup::Shared => Some(Duration::ZERO),
            Setup::SharedFar => Some(STORE_DELAY),
            Setup::Plain
            | Setup::Routes(_)
            | Setup::Limit
            | Setup::Refuse
            | Setup::Cache
            | Setup::AccessLog
            | Setup::Reload => None,
        }
    }

    /// Requests a minute and at once that the limit lets through.
    pub fn limit(self) -> u32 {
        match self {
            Setup::Refuse => 1,
            Setup::Plain
            | Setup::Routes(_)
            | Setup::Limit
            | Setup::Shared
            | Setup::SharedFar
            | Setup::Cache
            | Setup::AccessLog
            | Setup::Reload => 1_000_000_000,
        }
    }
}

/// How much longer a store that is far away takes to answer.
const STORE_DELAY: Duration = Duration::from_millis(5);

/// A system with one configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Contender {
    pub system: System,
    pub setup: Setup,
}

impl Contender {
    /// The name of its row among `row`, which says the setup only where the system stands there twice.
    pub fn label(self, others: impl IntoIterator<Item = Contender>) -> String {
        let alone = others.into_iter().filter(|other| other.system == self.system).count() < 2;
        match alone {
            true => self.system.name().into(),
            false => format!("{}, {}", self.system.name(), self.setup.label()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_routes_has_the_middle_one() {
        for count in [3, 10, 10_000] {
            let routes = Setup::Routes(count).routes();
            assert_eq!(routes.len() as u32 + 1, count);
            assert!(routes.contains(&MIDDLE_ROUTE), "{count}");
        }
    }

    #[test]
    fn a_row_says_its_setup_where_the_system_stands_twice() {
        let plain = Contender { system: System::Gateway, setup: Setup::Plain };
        let limit = Contender { system: System::Gateway, setup: Setup::Limit };
        let nginx = Contender { system: System::Nginx, setup: Setup::Limit };
        assert_eq!(limit.label([plain, limit, nginx]), "gateway, limit on");
        assert_eq!(nginx.label([plain, limit, nginx]), "nginx");
    }
}
