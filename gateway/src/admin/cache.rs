//! What the metrics port says of the cache.

use prometheus::proto::{MetricFamily, MetricType};

use super::State;
use super::metrics::{counter, family, number};

/// The cache's own families.
pub fn families(state: &State) -> Vec<MetricFamily> {
    let snapshot = state.current.load();
    let cache = &snapshot.cache;
    let mut lookups = Vec::new();
    for (route, cells) in state.registry.routes.snapshot() {
        let cached = snapshot.routes.iter().any(|known| known.label == route && known.cache.is_some());
        let mut sums = cells.iter().map(|cells| cells.cache.named());
        if let Some(mut total) = sums.next().filter(|_| cached) {
            sums.for_each(|cell| total.iter_mut().zip(cell).for_each(|(sum, (_, count))| sum.1 += count));
            let of = |(result, count)| counter(&[("route", &route), ("result", result)], count);
            lookups.extend(total.map(of));
        }
    }
    let mut families = vec![family(
        "gateway_cache_requests_total",
        "Requests on routes with a cache, by what came of it.",
        MetricType::COUNTER,
        lookups,
    )];
    let one =
        |name: &str, help: &str, kind, value: f64| family(name, help, kind, vec![number(kind, &[], value)]);
    let (store, flights) = (&cache.store, &cache.flights);
    families.extend([
        one(
            "gateway_cache_evictions_total",
            "Stored responses that made room for others.",
            MetricType::COUNTER,
            store.evictions() as f64,
        ),
        one("gateway_cache_bytes", "Memory that is stored in.", MetricType::GAUGE, store.bytes() as f64),
        one(
            "gateway_cache_keys",
            "URLs that something is stored for.",
            MetricType::GAUGE,
            store.len() as f64,
        ),
        one(
            "gateway_coalesce_waiters",
            "Requests that read fetches which others can join, now.",
            MetricType::GAUGE,
            flights.waiters() as f64,
        ),
    ]);
    families
}
