//! Overload's part of `/metrics`: the limits in force by route, who waits, and the gateway's own distress.

use std::time::Instant;

use prometheus::proto::{MetricFamily, MetricType};

use super::State;
use super::metrics::{family, number};
use crate::downstream::Affordable;
use crate::overload::gate::Standing;

pub fn render(state: &State, families: &mut Vec<MetricFamily>) {
    type Read = fn(&Standing) -> Option<u64>;
    let snapshot = state.current.load();
    let rows: [(&str, &str, Read); 5] = [
        ("active", "Requests under way, to the last byte of their answers.", |standing| {
            Some(standing.active)
        }),
        ("waiting", "Requests sent upstream whose answer has not begun.", |standing| Some(standing.waiting)),
        ("queued", "Requests that wait for a place before the upstream.", |standing| Some(standing.queued)),
        (
            "limit",
            "Requests that may wait for the upstream; absent where no limit is in force.",
            |standing| standing.limit.map(u64::from),
        ),
        ("ceiling", "Requests that may be under way; absent unless the gateway is overloaded.", |standing| {
            standing.ceiling.map(u64::from)
        }),
    ];
    let standings: Vec<_> =
        snapshot.routes.iter().map(|route| (route.label.as_str(), route.gate.standing())).collect();
    for (name, help, read) in rows {
        let values = standings.iter().filter_map(|(route, standing)| {
            Some(number(MetricType::GAUGE, &[("route", route)], read(standing)? as f64))
        });
        families.push(family(&format!("gateway_route_{name}"), help, MetricType::GAUGE, values.collect()));
    }
    let affordable = Affordable::with(state.registry.workers.len()).clients;
    let most = snapshot.config.connections.max.map_or(affordable, u64::from);
    let (distress, readings) = (snapshot.distress.read(Instant::now()), snapshot.distress.readings());
    for (name, help, value) in [
        (
            "distress",
            "The worst of the three below as a share of its bound.",
            f64::from(distress.permille) / 1e3,
        ),
        (
            "serve_delay_seconds",
            "Between a client's bytes being there and a worker's looking: the least of a second.",
            readings.delay.as_secs_f64(),
        ),
        ("connections_limit", "Client connections there may be.", most as f64),
        ("memory_used_ratio", "Memory in use, of the tightest limit.", readings.memory),
        ("descriptors_used_ratio", "File descriptors in use, of the limit.", readings.descriptors),
    ] {
        let values = vec![number(MetricType::GAUGE, &[], value)];
        families.push(family(&format!("gateway_{name}"), help, MetricType::GAUGE, values));
    }
}
