//! Names of backends as addresses, each asked again when its answer ends.
//!
//! `upkeep` owns the [`Names`] and says when it is. A name of the hosts file is the system's (`getaddrinfo`); others are
//! asked of the name servers, which tell lifetimes. Where the host's servers have no answer, the system has the last
//! word: it may know names from elsewhere. An endpoint is made of each address; IPv4 and IPv6 addresses are
//! paired, since a name usually has both for the same server.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::dns::system::{self, Host};
use super::dns::{self, Failure};
use crate::config::{Backend, Upstreams};
use crate::metrics::Resolution;

/// Between look-ups of names that come without a lifetime, and after one that failed.
const USUAL: Duration = Duration::from_secs(5);
/// Before a name without addresses is tried again; the shortest lifetime that is kept to.
const SOON: Duration = Duration::from_secs(1);
/// The longest: whoever published a wrong address must not have to wait for a week.
const LONGEST: Duration = Duration::from_secs(3600);
/// Servers that the configuration names are asked once more before the look-up counts as failed.
const ROUNDS: usize = 2;

/// Addresses of one server, the preferred first.
pub type Group = Vec<SocketAddr>;

/// What a look-up found. The host's own names have no lifetime.
pub struct Found {
    pub addresses: Vec<SocketAddr>,
    pub ttl: Option<Duration>,
}

/// What names were found to be.
#[derive(Default)]
pub struct Names(BTreeMap<Backend, Name>);

struct Name {
    /// Or why there are none.
    groups: Result<Vec<Group>, String>,
    asked: Instant,
    /// `None`: a look-up is under way.
    due: Option<Instant>,
    resolution: Resolution,
}

/// A look-up to make, and later whose answer it is.
#[derive(Clone)]
pub struct Due {
    backend: Backend,
    asked: Instant,
}

/// One that is over.
pub type Lookup = (Due, Result<Found, Failure>);

impl Names {
    /// The servers behind `backend`; of a name that was never asked for, none.
    pub fn groups(&self, backend: &Backend) -> Result<Vec<Group>, String> {
        match (literal(backend), self.0.get(backend)) {
            (Some(address), _) => Ok(vec![vec![address]]),
            (None, Some(name)) => name.groups.clone(),
            (None, None) => Err("it was not resolved yet".to_owned()),
        }
    }

    /// Resolves those of `backends` that are names and not known, for no longer than `patience` together.
    pub fn resolve_new<'a>(
        &mut self,
        backends: impl Iterator<Item = &'a Backend>,
        patience: Duration,
        config: &Upstreams,
    ) {
        let (sender, receiver) = mpsc::channel();
        let now = Instant::now();
        self.add(backends, now);
        let mut asked = 0;
        for due in self.due(now) {
            let sender = sender.clone();
            let started = start(due, config.resolver.clone(), move |found| {
                // Nobody waits for it when it took too long.
                let _ = sender.send(found);
            });
            asked += usize::from(started.is_ok());
        }
        let until = now + patience;
        for _ in 0..asked {
            let Ok((due, found)) = receiver.recv_timeout(until.saturating_duration_since(Instant::now()))
            else {
                break;
            };
            self.learn(due, found, Instant::now(), config);
        }
        for name in self.0.values_mut().filter(|name| name.asked == now && name.due.is_none()) {
            name.due = Some(Instant::now() + SOON);
        }
    }

    /// Makes those of `backends` that are names and not known due.
    fn add<'a>(&mut self, backends: impl Iterator<Item = &'a Backend>, now: Instant) {
        for backend in backends.filter(|backend| literal(backend).is_none()) {
            if !self.0.contains_key(backend) {
                let groups = Err("it took too long to resolve".to_owned());
                let name = Name { groups, asked: now, due: Some(now), resolution: Resolution::default() };
                self.0.insert(backend.clone(), name);
            }
        }
    }

    /// When the first of them has to be looked up.
    pub fn next_due(&self) -> Option<Instant> {
        self.0.values().filter_map(|name| name.due).min()
    }

    /// The look-ups to make now; the caller owes what they find.
    pub fn due(&mut self, now: Instant) -> Vec<Due> {
        let mut all = Vec::new();
        for (backend, name) in &mut self.0 {
            if name.due.is_some_and(|due| due <= now) {
                (name.due, name.asked) = (None, now);
                all.push(Due { backend: backend.clone(), asked: now });
            }
        }
        all
    }

    /// Makes all of them due: other servers may know better.
    pub fn expire(&mut self, now: Instant) {
        for name in self.0.values_mut() {
            name.due = Some(now);
        }
    }

    /// Takes what a look-up found; whether it leads elsewhere. A failure leaves the addresses known so far: they
    /// may still serve.
    pub fn learn(
        &mut self,
        of: Due,
        found: Result<Found, Failure>,
        now: Instant,
        config: &Upstreams,
    ) -> bool {
        let Due { backend, asked } = of;
        let Some(name) = self.0.get_mut(&backend).filter(|name| name.asked == asked) else { return false };
        let found = found.and_then(|found| match found.addresses.is_empty() {
            true => Err(Failure::Empty),
            false => Ok(found),
        });
        let every = config.resolve_every;
        let (next, wait) = match found {
            Ok(Found { addresses, ttl }) => {
                if name.resolution.failing.take().is_some() {
                    tracing::info!(upstream = %backend, "resolves again");
                }
                name.resolution.answered += 1;
                let wait = match ttl {
                    Some(ttl) => ttl.max(SOON).min(every.unwrap_or(LONGEST)),
                    None => every.unwrap_or(USUAL),
                };
                (Ok(groups(&addresses)), wait)
            }
            Err(failure) => {
                let why = failure.to_string();
                *name.resolution.failures.entry(failure.reason()).or_default() += 1;
                let known = name.groups.is_ok();
                // Once for each reason, however often it is asked.
                if name.resolution.failing.replace(failure.reason()) != Some(failure.reason()) {
                    match known {
                        true => tracing::warn!(
                            upstream = %backend, error = %why, "cannot resolve; its last addresses stay in use"
                        ),
                        false => tracing::warn!(upstream = %backend, error = %why, "cannot resolve"),
                    }
                }
                let wait = if known { USUAL } else { SOON };
                let next = if known { name.groups.clone() } else { Err(why) };
                (next, every.unwrap_or(wait).min(wait))
            }
        };
        name.due = Some(now + wait);
        let moved = next != name.groups;
        name.groups = next;
        moved
    }

    /// Forgets what is not among `backends`.
    pub fn retain(&mut self, keep: impl Fn(&Backend) -> bool) {
        self.0.retain(|backend, _| keep(backend));
    }

    /// For metrics.
    pub fn resolutions(&self) -> BTreeMap<String, Resolution> {
        self.0.iter().map(|(backend, name)| (backend.to_string(), name.resolution.clone())).collect()
    }
}

/// The address that `backend` is written as, if it is no name.
fn literal(backend: &Backend) -> Option<SocketAddr> {
    let ip = backend.host.parse::<IpAddr>().ok()?;
    Some(SocketAddr::new(ip, backend.port))
}

/// Looks it up on a thread of its own, which keeps nobody waiting, not even the end of the process.
pub fn start(
    due: Due,
    servers: Vec<SocketAddr>,
    tell: impl FnOnce(Lookup) + Send + 'static,
) -> io::Result<()> {
    let lookup = move || {
        let found = lookup(&due.backend, &servers);
        tell((due, found));
    };
    std::thread::Builder::new().name("resolver".to_owned()).spawn(lookup).map(drop)
}

/// Asks `servers`, or those of the host where there are none. Blocks for as long as they or the system take.
fn lookup(backend: &Backend, servers: &[SocketAddr]) -> Result<Found, Failure> {
    let host = backend.host.as_str();
    let found = |answer: dns::Answer| Found {
        addresses: answer.addresses.iter().map(|ip| SocketAddr::new(*ip, backend.port)).collect(),
        ttl: Some(answer.ttl),
    };
    let ask_system = || {
        let addresses = (host, backend.port).to_socket_addrs().map_err(Failure::System)?.collect();
        Ok(Found { addresses, ttl: None })
    };
    if system::is_local(host.trim_end_matches('.')) {
        return ask_system();
    }
    if !servers.is_empty() {
        return dns::resolve(host, servers, ROUNDS).map(found);
    }
    match ask_host(host) {
        Ok(answer) => Ok(found(answer)),
        // The server's reason says more than the system's.
        Err(failure) => ask_system().map_err(|of_system| failure.unwrap_or(of_system)),
    }
}

/// The servers and search domains of the host. `None`: they are not for this name.
fn ask_host(name: &str) -> Result<dns::Answer, Option<Failure>> {
    let host = Host::read();
    // Names of RFC 6762 are asked of the link.
    if host.servers.is_empty() || name.trim_end_matches('.').ends_with(".local") {
        return Err(None);
    }
    let mut last = None;
    for candidate in host.candidates(name) {
        match dns::resolve(&candidate, &host.servers, 1) {
            Err(failure) if failure.is_final() => last = Some(failure),
            answer => return answer.map_err(Some),
        }
    }
    Err(last)
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

    fn config(text: &str) -> Upstreams {
        let text = format!(r#"{{"routes": [{{"path": "/", "backend": "http://a"}}], "upstream": {text}}}"#);
        crate::config::parse(&text, "test").expect("it is valid").upstreams
    }

    #[test]
    fn what_is_known_outlives_failures() {
        let (mut names, a, config) = (Names::default(), backend("a"), config("{}"));
        let mut now = Instant::now();
        assert_eq!(names.groups(&a), Err("it was not resolved yet".to_owned()));
        names.add([&a].into_iter(), now);
        let failed = || Err(Failure::NotFound);
        let found = |ips: &[&str]| Ok(Found { addresses: addresses(ips), ttl: None });
        let gone = Err("the name does not exist".to_owned());
        let one = Ok(vec![addresses(&["10.0.0.1"])]);
        for (next, moved, want) in [
            (failed(), true, gone.clone()),
            (failed(), false, gone),
            (found(&["10.0.0.1"]), true, one.clone()),
            (failed(), false, one.clone()),
            (found(&[]), false, one.clone()),
            (found(&["10.0.0.1", "10.0.0.1"]), false, one),
            (found(&["10.0.0.2"]), true, Ok(vec![addresses(&["10.0.0.2"])])),
        ] {
            now = names.next_due().expect("it is asked again and again");
            let due = names.due(now).remove(0);
            assert_eq!(names.next_due(), None, "not while it is being asked");
            assert_eq!((names.learn(due, next, now, &config), names.groups(&a)), (moved, want));
        }
        let resolution = &names.resolutions()["a"];
        assert_eq!((resolution.answered, resolution.failing), (3, None));
        assert_eq!(resolution.failures, BTreeMap::from([("not_found", 3), ("no_address", 1)]));
        names.retain(|_| false);
        assert!(names.groups(&a).is_err());
    }

    #[test]
    fn asked_again_when_the_answer_ends() {
        let seconds = |ttl: f64| Ok(Some(Duration::from_secs_f64(ttl)));
        let (unset, short, long) =
            (config("{}"), config(r#"{"resolve_every": "500ms"}"#), config(r#"{"resolve_every": 60}"#));
        for (config, answer, known, want) in [
            (&unset, seconds(30.0), true, 30.0),
            (&unset, seconds(0.0), true, 1.0),
            (&unset, seconds(1e6), true, 3600.0),
            (&unset, Ok(None), true, 5.0),
            (&unset, Err(Failure::NotFound), true, 5.0),
            (&unset, Err(Failure::NotFound), false, 1.0),
            (&short, seconds(30.0), true, 0.5),
            (&short, seconds(0.0), true, 0.5),
            (&short, Ok(None), true, 0.5),
            (&short, Err(Failure::NotFound), false, 0.5),
            (&long, seconds(30.0), true, 30.0),
            (&long, seconds(600.0), true, 60.0),
            (&long, Ok(None), true, 60.0),
            (&long, Err(Failure::NotFound), true, 5.0),
            (&long, Err(Failure::NotFound), false, 1.0),
        ] {
            let (mut names, a, now) = (Names::default(), backend("a"), Instant::now());
            names.add([&a].into_iter(), now);
            let context = format!("{answer:?}, known: {known}, {:?}", config.resolve_every);
            if known {
                let due = names.due(now).remove(0);
                names.learn(due, Ok(Found { addresses: addresses(&["10.0.0.1"]), ttl: None }), now, config);
                names.expire(now);
            }
            let due = names.due(now).remove(0);
            let found = answer.map(|ttl| Found { addresses: addresses(&["10.0.0.1"]), ttl });
            names.learn(due, found, now, config);
            assert_eq!(names.next_due(), Some(now + Duration::from_secs_f64(want)), "{context}");
        }
    }

    #[test]
    fn an_answer_that_others_overtook_is_dropped() {
        let (mut names, a, config) = (Names::default(), backend("a"), config("{}"));
        let first = Instant::now();
        names.add([&a].into_iter(), first);
        let old = names.due(first).remove(0);
        let second = first + SOON;
        names.expire(second);
        let new = names.due(second).remove(0);
        let found = |ip: &str| Ok(Found { addresses: addresses(&[ip]), ttl: None });
        assert!(names.learn(new, found("10.0.0.2"), second, &config));
        assert!(!names.learn(old, found("10.0.0.1"), second, &config));
        assert_eq!(names.groups(&a), Ok(vec![addresses(&["10.0.0.2"])]));
    }

    #[test]
    fn literals_and_names_of_the_host() {
        let mut names = Names::default();
        assert_eq!(names.groups(&backend("::1")), Ok(vec![addresses(&["::1"])]));
        let backends = [backend("localhost"), backend("no-such-host.invalid")];
        names.resolve_new(backends.iter(), Duration::from_secs(60), &config("{}"));
        assert!(names.groups(&backends[0]).unwrap().concat().contains(&addresses(&["127.0.0.1"])[0]));
        assert!(names.groups(&backends[1]).is_err());
    }
}
