//! Names of backends as addresses.
//!
//! Asked of the system (`getaddrinfo`), which knows hosts files, search domains and the caches of the
//! host, and tells no lifetimes: the caller asks again at intervals. An endpoint is made of each address;
//! IPv4 and IPv6 addresses are paired, since a name usually has both for the same server.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::config::Backend;

/// Addresses of one server, the preferred first.
pub type Group = Vec<SocketAddr>;

/// What names were found to be. A name that could not be resolved has the reason.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names(BTreeMap<Backend, Result<Vec<Group>, String>>);

impl Names {
    /// The servers behind `backend`; of a name that was never asked for, none.
    pub fn groups(&self, backend: &Backend) -> Result<Vec<Group>, String> {
        match literal(backend) {
            Some(address) => Ok(vec![vec![address]]),
            None => self.0.get(backend).cloned().unwrap_or_else(|| Err("it was not resolved yet".to_owned())),
        }
    }

    /// Resolves those of `backends` that are names and not known, for no longer than `patience` together.
    pub fn resolve_new<'a>(&mut self, backends: impl Iterator<Item = &'a Backend>, patience: Duration) {
        let (sender, receiver) = mpsc::channel();
        let mut asked = 0;
        for backend in backends.filter(|backend| literal(backend).is_none()) {
            if self.0.contains_key(backend) {
                continue;
            }
            self.0.insert(backend.clone(), Err("it took too long to resolve".to_owned()));
            let (backend, sender) = (backend.clone(), sender.clone());
            let lookup = move || {
                // Nobody waits for it when it took too long.
                let _ = sender.send((backend.clone(), lookup(&backend)));
            };
            if std::thread::Builder::new().name("resolver".to_owned()).spawn(lookup).is_ok() {
                asked += 1;
            }
        }
        let until = Instant::now() + patience;
        for _ in 0..asked {
            match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((backend, found)) => self.learn(backend, found),
                Err(_) => return,
            }
        }
    }

    /// Takes what a look-up found. A failure leaves the addresses known so far: they may still serve.
    pub fn learn(&mut self, backend: Backend, found: io::Result<Vec<SocketAddr>>) {
        match (found, self.0.get(&backend)) {
            (Ok(addresses), _) if !addresses.is_empty() => {
                self.0.insert(backend, Ok(groups(&addresses)));
            }
            (Err(error), Some(Ok(_))) => {
                tracing::warn!(upstream = %backend, %error, "cannot resolve; its last addresses stay in use");
            }
            (Ok(_), Some(Ok(_))) => {
                tracing::warn!(upstream = %backend, "has no address any more; its last ones stay in use");
            }
            (Ok(_), Some(Err(_)) | None) => {
                self.0.insert(backend, Err("it has no address".to_owned()));
            }
            (Err(error), Some(Err(_)) | None) => {
                self.0.insert(backend, Err(error.to_string()));
            }
        }
    }

    /// Forgets what is not among `backends`.
    pub fn retain(&mut self, keep: impl Fn(&Backend) -> bool) {
        self.0.retain(|backend, _| keep(backend));
    }
}

/// The address that `backend` is written as, if it is no name.
pub fn literal(backend: &Backend) -> Option<SocketAddr> {
    let ip = backend.host.parse::<IpAddr>().ok()?;
    Some(SocketAddr::new(ip, backend.port))
}

/// Blocks for as long as the system takes.
pub fn lookup(backend: &Backend) -> io::Result<Vec<SocketAddr>> {
    Ok((backend.host.as_str(), backend.port).to_socket_addrs()?.collect())
}

/// In an order of their own, so that answers which only turn the addresses round are the same.
fn groups(addresses: &[SocketAddr]) -> Vec<Group> {
    let family = |v6: bool| {
        let mut of: Vec<_> = addresses.iter().copied().filter(|address| address.is_ipv6() == v6).collect();
        of.sort_unstable();
        of.dedup();
        of
    };
    let v6_first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second) = (family(v6_first), family(!v6_first));
    let pair = |at: usize| first.get(at).into_iter().chain(second.get(at)).copied().collect();
    (0..first.len().max(second.len())).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(host: &str) -> Backend {
        Backend { host: host.to_owned(), port: 80 }
    }

    fn addresses(ips: &[&str]) -> Vec<SocketAddr> {
        ips.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 80)).collect()
    }

    #[test]
    fn an_endpoint_for_each_address_and_families_paired() {
        for (found, want) in [
            (&["10.0.0.2", "10.0.0.1", "10.0.0.2"][..], vec![&["10.0.0.1"][..], &["10.0.0.2"]]),
            (&["::1", "127.0.0.1"], vec![&["::1", "127.0.0.1"]]),
            (&["127.0.0.1", "::1"], vec![&["127.0.0.1", "::1"]]),
            (&["10.0.0.1", "10.0.0.2", "fd00::1"], vec![&["10.0.0.1", "fd00::1"], &["10.0.0.2"]]),
            (&["fd00::1", "10.0.0.1", "10.0.0.2"], vec![&["fd00::1", "10.0.0.1"], &["10.0.0.2"]]),
            (&[], vec![]),
        ] {
            let want: Vec<Group> = want.into_iter().map(addresses).collect();
            assert_eq!(groups(&addresses(found)), want, "{found:?}");
        }
    }

    #[test]
    fn what_is_known_outlives_failures() {
        let (mut names, a) = (Names::default(), backend("a"));
        let failed = || Err(io::Error::other("down"));
        assert_eq!(names.groups(&a), Err("it was not resolved yet".to_owned()));
        names.learn(a.clone(), failed());
        assert_eq!(names.groups(&a), Err("down".to_owned()));
        names.learn(a.clone(), Ok(addresses(&["10.0.0.1"])));
        for next in [failed(), Ok(Vec::new())] {
            names.learn(a.clone(), next);
            assert_eq!(names.groups(&a), Ok(vec![addresses(&["10.0.0.1"])]));
        }
        names.learn(a.clone(), Ok(addresses(&["10.0.0.2"])));
        assert_eq!(names.groups(&a), Ok(vec![addresses(&["10.0.0.2"])]));
        names.retain(|_| false);
        assert!(names.groups(&a).is_err());
    }

    #[test]
    fn literals_and_names_of_the_host() {
        let mut names = Names::default();
        assert_eq!(names.groups(&backend("::1")), Ok(vec![addresses(&["::1"])]));
        let backends = [backend("localhost"), backend("no-such-host.invalid")];
        names.resolve_new(backends.iter(), Duration::from_secs(60));
        assert!(names.groups(&backends[0]).unwrap().concat().contains(&addresses(&["127.0.0.1"])[0]));
        assert!(names.groups(&backends[1]).is_err());
    }
}
