//! One look at a running gateway: what `gateway top` shows, as counted up to then. Pure; it is read from the
//! gateway's status and its exposition.

use std::collections::BTreeMap;
use std::time::Duration;

use gateway_common::{Action, Verdict};

use super::exposition::{self, Line};
use crate::control::TopSources;

/// What may come of a look-up in the cache.
pub const LOOKUPS: [&str; 6] = ["hit", "stale", "revalidated", "collapsed", "miss", "bypass"];
/// The first ones of them: answered without a whole fetch of its own.
pub const SAVED: usize = 4;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    pub version: String,
    /// The process: another one counts from zero.
    pub pid: u32,
    pub uptime: Duration,
    pub generation: u64,
    /// The file on disk is not what is in force.
    pub stale_config: bool,
    pub workers: u64,
    /// Until what is open is cut off, where it drains.
    pub drain_left: Option<Duration>,
    pub connections: u64,
    pub most_connections: u64,
    /// Of the bound at which requests begin to be refused; memory and descriptors of what there is.
    pub distress: f64,
    pub memory: f64,
    pub descriptors: f64,
    pub routes: BTreeMap<String, Route>,
    pub upstreams: BTreeMap<String, Upstream>,
    pub cache: Cache,
    /// `None`: the kernel half does not run.
    pub kernel: Option<Kernel>,
    /// `None`: nobody has asked.
    pub sources: Option<Vec<Source>>,
}

/// Somebody who is refused much, by either half.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    pub address: String,
    pub refused: u64,
    /// What of it was refused, by what.
    pub what: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Route {
    pub requests: u64,
    /// Answered with a status of 500 or more.
    pub errors: u64,
    /// By a rate limit, or a client's concurrency.
    pub refused: u64,
    pub active: u64,
    pub queued: u64,
    /// Requests that took up to so many microseconds.
    pub latency: BTreeMap<u64, u64>,
    /// By [`LOOKUPS`], all zero without a cache.
    pub lookups: [u64; LOOKUPS.len()],
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Upstream {
    /// Requests, over new and kept connections.
    pub sent: u64,
    pub failures: u64,
    pub retries: u64,
    pub active: u64,
    pub connections: u64,
    /// `None`: the configuration does not have it any more.
    pub health: Option<Health>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    pub breaker: String,
    pub score: f64,
    pub unhealthy: bool,
    pub ejected: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cache {
    pub bytes: u64,
    pub keys: u64,
    pub evictions: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kernel {
    pub verdicts: BTreeMap<String, Packets>,
    pub penalised: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Packets {
    pub packets: u64,
    pub bytes: u64,
}

/// The bound of the bucket that takes all.
pub const UNBOUNDED_US: u64 = u64::MAX;

impl Sample {
    /// `exposition`: as the metrics port has it.
    pub fn new(version: String, pid: u32, exposition: &str) -> Self {
        let mut sample = Self { version, pid, ..Self::default() };
        exposition::lines(exposition).for_each(|line| sample.take(&line));
        sample
    }

    fn take(&mut self, line: &Line) {
        let Some(name) = line.name.strip_prefix("gateway_") else { return };
        let value = line.value;
        let count = value.max(0.0) as u64;
        if let Some(name) = name.strip_prefix("upstream_") {
            self.upstreams.entry(line.label("upstream").to_owned()).or_default().take(name, line);
            return;
        }
        match name {
            "uptime_seconds" => self.uptime = duration(value),
            "config_generation" => self.generation = count,
            "config_last_reload_successful" => self.stale_config = value == 0.0,
            "drain_left_seconds" => self.drain_left = Some(duration(value)),
            "connections_open" => {
                self.workers += 1;
                self.connections += count;
            }
            "connections_limit" => self.most_connections = count,
            "distress" => self.distress = value,
            "memory_used_ratio" => self.memory = value,
            "descriptors_used_ratio" => self.descriptors = value,
            "cache_bytes" => self.cache.bytes = count,
            "cache_keys" => self.cache.keys = count,
            "cache_evictions_total" => self.cache.evictions = count,
            // There without a kernel half are only others.
            "kernel_packets_total" | "kernel_bytes_total" | "kernel_penalties" => {
                self.kernel.get_or_insert_default().take(name, line);
            }
            "requests_total"
            | "request_duration_seconds_bucket"
            | "route_active"
            | "route_queued"
            | "cache_requests_total" => {
                self.routes.entry(line.label("route").to_owned()).or_default().take(name, line);
            }
            _ => {}
        }
    }
}

impl Source {
    pub fn all(of: TopSources) -> Vec<Self> {
        let connections = of.connections.into_iter().flatten().map(|loud| Self {
            address: loud.source.to_string(),
            refused: loud.refused,
            what: "connection requests, by the kernel half".to_owned(),
        });
        let requests = of.requests.into_iter().map(|suspect| Self {
            address: suspect.source.to_string(),
            refused: suspect.refused.into(),
            what: format!("requests of {} in 10 s, {} ignored a 429", suspect.requests, suspect.ignored),
        });
        let pushing = of.pushing.into_iter().map(|pusher| Self {
            address: pusher.source.to_string(),
            refused: pusher.refused.into(),
            what: format!("connections in 10 s; it holds {} and uses {}", pusher.connections, pusher.used),
        });
        connections.chain(requests).chain(pushing).collect()
    }
}

impl Route {
    fn take(&mut self, name: &str, line: &Line) {
        let count = line.value as u64;
        match name {
            "requests_total" => {
                self.requests += count;
                if line.label("status").parse().is_ok_and(|status: u16| status >= 500) {
                    self.errors += count;
                }
                if matches!(line.label("outcome"), "limited" | "concurrency") {
                    self.refused += count;
                }
            }
            "route_active" => self.active = count,
            "route_queued" => self.queued = count,
            "cache_requests_total" => {
                let result = LOOKUPS.iter().position(|result| *result == line.label("result"));
                result.into_iter().for_each(|result| self.lookups[result] += count);
            }
            _ => {
                let bound = line.label("le").parse().ok().filter(|bound: &f64| bound.is_finite());
                let bound = bound.map_or(UNBOUNDED_US, |seconds| (seconds * 1e6).round() as u64);
                self.latency.insert(bound, count);
            }
        }
    }
}

impl Upstream {
    fn take(&mut self, name: &str, line: &Line) {
        let count = line.value as u64;
        let holds = line.value == 1.0;
        match name {
            "connects_total" | "reuses_total" => self.sent += count,
            "failures_total" => self.failures += count,
            "retries_total" => self.retries += count,
            "active_requests" => self.active = count,
            "connections" => self.connections = count,
            "breaker_state" if holds => {
                self.health.get_or_insert_default().breaker = line.label("state").to_owned();
            }
            "score" => self.health.get_or_insert_default().score = line.value,
            "healthy" => self.health.get_or_insert_default().unhealthy = !holds,
            "ejected" => self.health.get_or_insert_default().ejected = holds,
            _ => {}
        }
    }
}

impl Kernel {
    fn take(&mut self, name: &str, line: &Line) {
        let count = line.value as u64;
        match name {
            // Of both families of addresses.
            "kernel_packets_total" => self.verdict(line).packets += count,
            "kernel_bytes_total" => self.verdict(line).bytes += count,
            "kernel_penalties" => self.penalised += count,
            _ => {}
        }
    }

    fn verdict(&mut self, line: &Line) -> &mut Packets {
        self.verdicts.entry(line.label("verdict").to_owned()).or_default()
    }
}

/// Whether packets of this verdict go no further.
pub fn drops(verdict: &str) -> bool {
    Verdict::ALL.iter().any(|of| of.row().name == verdict && of.row().action == Action::Drop)
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_exposition_says_is_gathered() {
        let sample = Sample::new(
            "1".to_owned(),
            7,
            r#"# HELP gateway_requests_total Requests.
gateway_requests_total{route="/",status="200",outcome="ok"} 5
gateway_requests_total{route="/",status="503",outcome="no_upstream"} 2
gateway_requests_total{route="/",status="429",outcome="limited"} 3
gateway_request_duration_seconds_bucket{route="/",le="0.00025"} 4
gateway_request_duration_seconds_bucket{route="/",le="+Inf"} 10
gateway_request_duration_seconds_sum{route="/"} 10
gateway_route_active{route="/"} 1
gateway_cache_requests_total{route="/",result="miss"} 6
gateway_connections_open{worker="0"} 3
gateway_connections_open{worker="1"} 4
gateway_upstream_connects_total{upstream="u"} 2
gateway_upstream_reuses_total{upstream="u"} 8
gateway_upstream_failures_total{upstream="u",phase="connect",cause="refused"} 1
gateway_upstream_failures_total{upstream="u",phase="response",cause="reset"} 1
gateway_upstream_breaker_state{upstream="u",state="closed"} 0
gateway_upstream_breaker_state{upstream="u",state="open"} 1
gateway_upstream_score{upstream="u"} 0.25
gateway_upstream_healthy{upstream="u"} 1
gateway_upstream_connects_total{upstream="gone"} 2
gateway_kernel_packets_total{verdict="pass",family="ipv4"} 4
gateway_kernel_packets_total{verdict="pass",family="ipv6"} 5
gateway_uptime_seconds 12.5
gateway_config_last_reload_successful 0
gateway_drain_left_seconds 9.5
other_total 1
"#,
        );
        let route = &sample.routes["/"];
        assert_eq!([route.requests, route.errors, route.refused, route.active], [10, 2, 3, 1]);
        assert_eq!(route.latency, BTreeMap::from([(250, 4), (UNBOUNDED_US, 10)]));
        assert_eq!(route.lookups, [0, 0, 0, 0, 6, 0]);
        assert_eq!([sample.workers, sample.connections], [2, 7]);
        let upstream = &sample.upstreams["u"];
        assert_eq!([upstream.sent, upstream.failures], [10, 2]);
        let health = Health { breaker: "open".to_owned(), score: 0.25, unhealthy: false, ejected: false };
        assert_eq!(upstream.health, Some(health));
        assert_eq!(sample.upstreams["gone"].health, None);
        assert_eq!(sample.kernel.unwrap().verdicts["pass"].packets, 9);
        assert_eq!([sample.uptime, sample.drain_left.unwrap()].map(|of| of.as_secs_f64()), [12.5, 9.5]);
        assert!(sample.stale_config);
        assert_eq!(Sample::new(String::new(), 0, "gateway_kernel_attached 0").kernel, None);
    }

    #[test]
    fn verdicts_that_drop_are_known() {
        assert_eq!(
            ["over_budget", "pass", "cookie_sent", "unheard_of"].map(drops),
            [true, false, false, false]
        );
    }
}
