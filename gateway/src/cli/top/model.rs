//! What two looks at a gateway say of the time between them: counts as rates, buckets as latencies. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::sample::{LOOKUPS, Route, SAVED, Sample, UNBOUNDED_US};

#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// What is not a matter of rates.
    pub now: Sample,
    /// That rates are over.
    pub span: Duration,
    /// There is no earlier look, or the gateway has been started anew since.
    pub since_start: bool,
    pub traffic: Traffic,
    pub routes: BTreeMap<String, Traffic>,
    pub upstreams: BTreeMap<String, Tries>,
    pub evictions: f64,
    /// By verdict, those that were never met left out.
    pub verdicts: BTreeMap<String, Packet>,
}

/// Requests, a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    pub requests: f64,
    pub errors: f64,
    pub refused: f64,
    /// `None`: there were no requests.
    pub p50: Option<Duration>,
    pub p99: Option<Duration>,
    /// As [`LOOKUPS`].
    pub lookups: [f64; LOOKUPS.len()],
}

/// Tries at an upstream, a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tries {
    pub sent: f64,
    pub failures: f64,
    pub retries: f64,
}

/// Packets and bytes, a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packet {
    pub packets: f64,
    pub bytes: f64,
}

impl Figures {
    /// `elapsed` lies between the two. Without an earlier look, or where that was at another process (what it has
    /// counted is no part of `now`), rates are over the time since the start.
    pub fn between(before: Option<&Sample>, now: Sample, elapsed: Duration) -> Self {
        let before = before.filter(|before| before.pid == now.pid);
        let span = if before.is_some() { elapsed } else { now.uptime };
        let nothing = Sample::default();
        let earlier = before.unwrap_or(&nothing);
        let over = Over(span.max(Duration::from_millis(1)).as_secs_f64());
        let of = |label: &String| earlier.routes.get(label).cloned().unwrap_or_default();
        let routes: Vec<_> = now.routes.iter().map(|(label, route)| (label, of(label), route)).collect();
        let (mut was, mut is) = (Route::default(), Route::default());
        for (_, before, now) in &routes {
            was.add(before);
            is.add(now);
        }
        let tries = now.upstreams.iter().map(|(name, of)| {
            let was = earlier.upstreams.get(name).cloned().unwrap_or_default();
            let tries = Tries {
                sent: over.rate(was.sent, of.sent),
                failures: over.rate(was.failures, of.failures),
                retries: over.rate(was.retries, of.retries),
            };
            (name.clone(), tries)
        });
        let met = now.kernel.iter().flat_map(|kernel| &kernel.verdicts).filter(|(_, of)| of.packets > 0);
        let verdicts = met.map(|(name, of)| {
            let was = earlier.kernel.as_ref().and_then(|kernel| kernel.verdicts.get(name)).copied();
            let was = was.unwrap_or_default();
            let packet =
                Packet { packets: over.rate(was.packets, of.packets), bytes: over.rate(was.bytes, of.bytes) };
            (name.clone(), packet)
        });
        Self {
            span,
            since_start: before.is_none(),
            traffic: over.traffic(&was, &is),
            routes: routes
                .iter()
                .map(|(label, before, now)| ((*label).clone(), over.traffic(before, now)))
                .collect(),
            upstreams: tries.collect(),
            evictions: over.rate(earlier.cache.evictions, now.cache.evictions),
            verdicts: verdicts.collect(),
            now,
        }
    }
}

impl Route {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.refused += other.refused;
        other.latency.iter().for_each(|(bound, count)| *self.latency.entry(*bound).or_default() += count);
        self.lookups.iter_mut().zip(other.lookups).for_each(|(sum, count)| *sum += count);
    }
}

/// So many seconds.
struct Over(f64);

impl Over {
    /// Workers' parts of a sum are read one after the other: it may seem to go back a little.
    fn rate(&self, before: u64, now: u64) -> f64 {
        now.saturating_sub(before) as f64 / self.0
    }

    fn traffic(&self, before: &Route, now: &Route) -> Traffic {
        let was = |bound| before.latency.get(bound).copied().unwrap_or_default();
        let latency =
            now.latency.iter().map(|(bound, count)| (*bound, count.saturating_sub(was(bound)))).collect();
        Traffic {
            requests: self.rate(before.requests, now.requests),
            errors: self.rate(before.errors, now.errors),
            refused: self.rate(before.refused, now.refused),
            p50: quantile(&latency, 0.5),
            p99: quantile(&latency, 0.99),
            lookups: std::array::from_fn(|result| self.rate(before.lookups[result], now.lookups[result])),
        }
    }
}

impl Traffic {
    /// Answered without a whole fetch of their own, of those that the cache was asked for; `None`: it was not asked.
    pub fn hit_ratio(&self) -> Option<f64> {
        let [asked @ .., _bypassed] = self.lookups;
        let all: f64 = asked.iter().sum();
        (all > 0.0).then(|| asked[..SAVED].iter().sum::<f64>() / all)
    }
}

/// What so great a share of requests took at most, in proportion within its bucket; the last bound, where it lies beyond.
fn quantile(up_to: &BTreeMap<u64, u64>, share: f64) -> Option<Duration> {
    let all = up_to.values().max().copied().filter(|&all| all > 0)?;
    let wanted = all as f64 * share;
    let (mut below, mut lower) = (0.0, 0);
    for (&bound, &count) in up_to.iter().filter(|(bound, _)| **bound != UNBOUNDED_US) {
        let count = count as f64;
        if count > below && count >= wanted {
            let part = (wanted - below) / (count - below);
            return Some(Duration::from_micros((lower as f64 + part * (bound - lower) as f64) as u64));
        }
        (below, lower) = (count, bound);
    }
    Some(Duration::from_micros(lower))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half of all requests took up to 250 µs, the others up to 500.
    fn sample(pid: u32, uptime: u64, requests: u64) -> Sample {
        let latency = BTreeMap::from([(250, requests / 2), (500, requests), (UNBOUNDED_US, requests)]);
        let route = Route { requests, errors: requests / 10, latency, ..Route::default() };
        let routes = BTreeMap::from([("/".to_owned(), route)]);
        Sample { pid, uptime: Duration::from_secs(uptime), routes, ..Sample::default() }
    }

    #[test]
    fn counts_become_rates_and_never_negative_ones() {
        let two = Duration::from_secs(2);
        for (what, before, now, requests, since_start) in [
            ("two seconds", Some(sample(1, 10, 100)), sample(1, 12, 300), 100.0, false),
            ("a first look", None, sample(1, 10, 100), 10.0, true),
            ("a restart in between", Some(sample(1, 10, 1_000)), sample(2, 1, 50), 50.0, true),
            (
                "a restart of a gateway that was less busy",
                Some(sample(1, 100, 10)),
                sample(2, 1, 50),
                50.0,
                true,
            ),
            ("workers read one after the other", Some(sample(1, 10, 101)), sample(1, 12, 100), 0.0, false),
            ("the same look again", Some(sample(1, 10, 100)), sample(1, 10, 100), 0.0, false),
        ] {
            let figures = Figures::between(before.as_ref(), now, two);
            assert_eq!(figures.traffic.requests, requests, "{what}");
            assert_eq!(figures.routes["/"].requests, requests, "{what}");
            assert_eq!(figures.since_start, since_start, "{what}");
        }
        let none = Figures::between(Some(&sample(1, 10, 100)), sample(1, 10, 200), Duration::ZERO);
        assert!(none.traffic.requests.is_finite());
    }

    #[test]
    fn a_route_that_is_new_counts_from_nothing_and_one_that_is_gone_is_left_out() {
        let mut now = sample(1, 12, 100);
        let route = now.routes.remove("/").unwrap();
        now.routes.insert("/new".to_owned(), route);
        let figures = Figures::between(Some(&sample(1, 10, 100)), now, Duration::from_secs(2));
        assert_eq!(figures.routes.keys().collect::<Vec<_>>(), ["/new"]);
        assert_eq!(figures.traffic.requests, 50.0);
    }

    #[test]
    fn latencies_come_from_the_buckets_of_the_time_between() {
        for (up_to, share, us) in [
            (&[][..], 0.5, None),
            (&[(250, 0), (UNBOUNDED_US, 0)], 0.5, None),
            (&[(250, 100), (500, 100), (UNBOUNDED_US, 100)], 0.5, Some(125)),
            (&[(250, 100), (500, 100)], 1.0, Some(250)),
            (&[(250, 50), (500, 100)], 0.5, Some(250)),
            (&[(250, 0), (500, 100)], 0.5, Some(375)),
            (&[(250, 98), (500, 98), (1000, 100)], 0.99, Some(750)),
            (&[(250, 0), (500, 0), (UNBOUNDED_US, 1)], 0.5, Some(500)),
        ] {
            let up_to = up_to.iter().copied().collect();
            assert_eq!(quantile(&up_to, share), us.map(Duration::from_micros), "{up_to:?} {share}");
        }
        let mut now = sample(1, 12, 200);
        now.routes.get_mut("/").unwrap().latency = BTreeMap::from([(250, 50), (500, 100), (1000, 200)]);
        let figures = Figures::between(Some(&sample(1, 10, 100)), now, Duration::from_secs(2));
        assert_eq!(figures.traffic.p50, Some(Duration::from_micros(750)), "what was before does not count");
    }

    #[test]
    fn a_cache_that_nobody_asked_has_no_hit_ratio() {
        for (lookups, ratio) in [
            ([0.0, 0.0, 0.0, 0.0, 0.0, 5.0], None),
            ([3.0, 0.0, 0.0, 0.0, 1.0, 5.0], Some(0.75)),
            ([0.0, 1.0, 1.0, 1.0, 1.0, 0.0], Some(0.75)),
            ([0.0, 0.0, 0.0, 0.0, 1.0, 0.0], Some(0.0)),
        ] {
            assert_eq!(Traffic { lookups, ..Traffic::default() }.hit_ratio(), ratio, "{lookups:?}");
        }
    }
}
