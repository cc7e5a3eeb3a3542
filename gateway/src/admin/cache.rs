//! What the metrics port says of the cache, and how it is told to forget.

use std::net::IpAddr;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use prometheus::proto::{MetricFamily, MetricType};
use serde_json::Value;

use super::State;
use super::metrics::{counter, family, number};
use crate::cache::Purge;

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

/// Carries out `POST /purge` with a JSON body of one key: `url`, `prefix` or `tag`. Only for peers on
/// this host; the content type keeps pages in a browser here from sending it.
pub fn purge(state: &State, peer: IpAddr, headers: &HeaderMap, body: &[u8]) -> (StatusCode, String) {
    if !peer.to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "purge from the gateway's own host, over the loopback\n".to_owned());
    }
    let json = headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    let Some(what) = json.then(|| read(body)).flatten() else {
        let advice = "send Content-Type: application/json and one of {\"url\": \"http://host/path\"}, \
                      {\"prefix\": \"http://host/path\"}, {\"tag\": \"name\"}\n";
        return (StatusCode::BAD_REQUEST, advice.to_owned());
    };
    let purged = state.current.load().cache.purge(&what);
    tracing::info!(?what, purged, "purged");
    (StatusCode::OK, format!("{{\"purged\": {purged}}}\n"))
}

fn read(body: &[u8]) -> Option<Purge> {
    let Value::Object(object) = serde_json::from_slice(body).ok()? else { return None };
    let mut entries = object.into_iter();
    match (entries.next()?, entries.next()) {
        ((key, Value::String(what)), None) if !what.is_empty() => match key.as_str() {
            "url" => Some(Purge::Url(what)),
            "prefix" => Some(Purge::Prefix(what)),
            "tag" => Some(Purge::Tag(what)),
            _ => None,
        },
        (_, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_asked() {
        for (body, want) in [
            (r#"{"url": "http://a/x"}"#, Some(Purge::Url("http://a/x".to_owned()))),
            (r#"{"prefix": "http://a/"}"#, Some(Purge::Prefix("http://a/".to_owned()))),
            (r#"{"tag": "t"}"#, Some(Purge::Tag("t".to_owned()))),
            (r#"{"tag": ""}"#, None),
            (r#"{"tag": 1}"#, None),
            (r#"{"tag": "t", "url": "u"}"#, None),
            (r#"{"all": "t"}"#, None),
            (r#"["url"]"#, None),
            ("", None),
        ] {
            assert_eq!(read(body.as_bytes()), want, "{body}");
        }
    }
}
