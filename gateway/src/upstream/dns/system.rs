//! What the host says of names: its hosts file, its name servers, its search domains.
//!
//! Pure but for [`Host::read`]. Files are read anew for each look-up, so that changes hold at once.

use std::fs;
use std::net::{IpAddr, SocketAddr};

pub const PORT: u16 = 53;
/// As many as the system's own resolver asks.
const MOST_SERVERS: usize = 3;
const MOST_NDOTS: usize = 15;

/// `/etc/resolv.conf`; without it, nobody is asked.
#[derive(Debug, PartialEq)]
pub struct Host {
    pub servers: Vec<SocketAddr>,
    search: Vec<String>,
    /// A name with fewer dots is looked for in the search domains first.
    ndots: usize,
}

impl Host {
    pub fn read() -> Self {
        let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self::parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), &node)
    }

    /// `node`: the host's name, whose domain is searched where the file says nothing.
    fn parse(text: &str, node: &str) -> Self {
        let search = node.split_once('.').map(|(_, domain)| domain.to_owned());
        let mut this = Self { servers: Vec::new(), search: Vec::from_iter(search), ndots: 1 };
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if this.servers.len() < MOST_SERVERS => {
                    let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    this.servers.extend(server.map(|server| SocketAddr::new(server, PORT)));
                }
                Some("domain") => this.search = words.take(1).map(str::to_owned).collect(),
                Some("search") => this.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let ndots =
                        words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok()).next_back();
                    this.ndots = ndots.unwrap_or(this.ndots).min(MOST_NDOTS);
                }
                _ => {}
            }
        }
        this
    }

    /// What `name` may stand for, in the order of asking.
    pub fn candidates(&self, name: &str) -> Vec<String> {
        let alone = std::iter::once(name.to_owned());
        if name.ends_with('.') {
            return alone.collect();
        }
        let domains = self.search.iter().map(|domain| format!("{name}.{}", domain.trim_matches('.')));
        let domains = domains.map(|name| name.trim_end_matches('.').to_owned());
        match name.matches('.').count() >= self.ndots {
            true => alone.chain(domains).collect(),
            false => domains.chain(alone).collect(),
        }
    }
}

/// Whether the system knows `name` without asking a server: it is in the hosts file, or means this host.
pub fn is_local(name: &str) -> bool {
    name == "localhost"
        || name.ends_with(".localhost")
        || fs::read_to_string("/etc/hosts").is_ok_and(|hosts| lists(&hosts, name))
}

fn lists(hosts: &str, name: &str) -> bool {
    hosts.lines().any(|line| {
        let entry = line.split('#').next().unwrap_or_default();
        entry.split_ascii_whitespace().skip(1).any(|word| word.eq_ignore_ascii_case(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_search_domains() {
        let candidates =
            |text: &str, name: &str| Host::parse(text, "me.home.test").candidates(name).join(" ");
        let cluster = "search ns.svc.cluster.local svc.cluster.local\noptions ndots:5 timeout:1";
        for (text, name, want) in [
            ("", "a", "a.home.test a"),
            ("", "a.b", "a.b a.b.home.test"),
            ("search .", "a", "a a"),
            ("search", "a", "a"),
            ("domain x.test\nsearch y.test.", "a", "a.y.test a"),
            ("search y.test z.test\ndomain x.test w.test", "a", "a.x.test a"),
            (cluster, "a.b", "a.b.ns.svc.cluster.local a.b.svc.cluster.local a.b"),
            (cluster, "a.b.", "a.b."),
            ("options ndots:no", "a.b", "a.b a.b.home.test"),
            ("options ndots:0", "a", "a a.home.test"),
        ] {
            assert_eq!(candidates(text, name), want, "{text:?} {name}");
        }
        let servers = "# no\nnameserver 10.0.0.1\nnameserver\nnameserver x\nnameserver ::1 # yes\n\
                       nameserver 10.0.0.3\nnameserver 10.0.0.4";
        let want = ["10.0.0.1:53", "[::1]:53", "10.0.0.3:53"].map(|server| server.parse().unwrap());
        assert_eq!(Host::parse(servers, "me").servers, want);
        assert_eq!(Host::parse("\u{0}garbage", "me"), Host { servers: vec![], search: vec![], ndots: 1 });
    }

    #[test]
    fn names_of_the_hosts_file() {
        let hosts = "127.0.0.1 localhost\n::1\tone.test ONE # two.test\n#10.0.0.1 three.test\n";
        for (name, want) in
            [("one.test", true), ("one", true), ("two.test", false), ("three.test", false), ("::1", false)]
        {
            assert_eq!(lists(hosts, name), want, "{name}");
        }
        assert!(is_local("localhost") && is_local("a.localhost") && !is_local("no-such-host.invalid"));
    }
}
