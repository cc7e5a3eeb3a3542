//! `/metrics`: the cells of all workers, summed, in Prometheus' text format.

use std::time::Duration;

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use super::{Progress, State, limits, overload, store, upstreams};
use crate::metrics::{LATENCY_BOUNDS_US, Registry, Route, RouteTotal, Worker};

/// The label of requests that belong to no route.
const UNROUTED: &str = "none";

/// The exposition of everything counted so far.
pub fn render(state: &State) -> Vec<u8> {
    let mut families = Vec::new();
    routes(&state.registry, &mut families);
    upstreams::render(state, &mut families);
    limits::render(state, &mut families);
    store::render(state, &mut families);
    overload::render(state, &mut families);
    workers(&state.registry.workers, &mut families);
    control(state, &mut families);
    families.extend(super::cache::families(state));
    families.extend((state.kernel)());
    let mut text = Vec::new();
    TextEncoder::new()
        .encode(
            &families.into_iter().filter(|family| !family.get_metric().is_empty()).collect::<Vec<_>>(),
            &mut text,
        )
        .expect("names and labels are valid, and memory takes every byte");
    text
}

/// Every route's sum by label, requests without a route last.
pub fn route_totals(registry: &Registry) -> Vec<(String, RouteTotal)> {
    let sum = |cells: &[Route]| {
        let mut total = RouteTotal::default();
        cells.iter().for_each(|cells| cells.add_to(&mut total));
        total
    };
    let mut totals: Vec<_> =
        registry.routes.snapshot().into_iter().map(|(label, cells)| (label, sum(&cells))).collect();
    totals.push((UNROUTED.to_owned(), sum(&registry.unrouted)));
    totals
}

fn routes(registry: &Registry, families: &mut Vec<MetricFamily>) {
    let (mut answers, mut latencies) = (Vec::new(), Vec::new());
    for (route, total) in route_totals(registry) {
        for (&(status, outcome), &count) in &total.answers {
            let labels = [("route", route.as_str()), ("status", &status.to_string()), ("outcome", outcome)];
            answers.push(counter(&labels, count));
        }
        if !total.answers.is_empty() {
            latencies.push(histogram(
                &[("route", &route)],
                &LATENCY_BOUNDS_US,
                &total.latency,
                total.latency_sum_us,
            ));
        }
    }
    families.push(family(
        "gateway_requests_total",
        "Requests by route, status and outcome; status 499: the client left.",
        MetricType::COUNTER,
        answers,
    ));
    families.push(family(
        "gateway_request_duration_seconds",
        "From a request's head to the last byte of its response's body.",
        MetricType::HISTOGRAM,
        latencies,
    ));
}

fn workers(workers: &[Worker], families: &mut Vec<MetricFamily>) {
    type Read = fn(&Worker) -> u64;
    let rows: [(&str, &str, MetricType, Read); 7] = [
        ("connections_accepted_total", "Connections accepted.", MetricType::COUNTER, |cells| {
            cells.accepted.get()
        }),
        ("accept_errors_total", "Failed accepts.", MetricType::COUNTER, |cells| cells.accept_errors.get()),
        (
            "proxy_headers_refused_total",
            "Connections closed for a PROXY header that is missing, malformed or not to be believed.",
            MetricType::COUNTER,
            |cells| cells.proxy_headers_refused.get(),
        ),
        (
            "access_log_dropped_total",
            "Lines of the access log that were dropped, since its writer was behind.",
            MetricType::COUNTER,
            |cells| cells.log_dropped.get(),
        ),
        ("connections_open", "Client connections open now.", MetricType::GAUGE, |cells| cells.open.get()),
        ("connections_parked", "Idle client connections that hold no buffers.", MetricType::GAUGE, |cells| {
            cells.parked.get()
        }),
        ("tasks", "Tasks of the worker, as of the last second.", MetricType::GAUGE, |cells| {
            cells.tasks.get()
        }),
    ];
    let mut refused = Vec::new();
    let mut ended = Vec::new();
    for (index, cells) in workers.iter().enumerate() {
        let worker = index.to_string();
        let causes = [("total", cells.refused_in_all.get()), ("source", cells.refused_of_source.get())];
        refused.extend(causes.map(|(cause, count)| counter(&[("worker", &worker), ("cause", cause)], count)));
        let causes = cells.ended.named();
        ended.extend(causes.map(|(cause, count)| counter(&[("worker", &worker), ("cause", cause)], count)));
    }
    families.push(family(
        "gateway_connections_refused_total",
        "Connections closed at once: too many in total, or of their source.",
        MetricType::COUNTER,
        refused,
    ));
    families.push(family(
        "gateway_connections_ended_total",
        "Connections ended by a bound that their clients met.",
        MetricType::COUNTER,
        ended,
    ));
    for (name, help, kind, read) in rows {
        let values = workers
            .iter()
            .enumerate()
            .map(|(index, cells)| number(kind, &[("worker", &index.to_string())], read(cells) as f64));
        families.push(family(&format!("gateway_{name}"), help, kind, values.collect()));
    }
}

fn control(state: &State, families: &mut Vec<MetricFamily>) {
    let reloads = &state.registry.reloads;
    let generation = state.current.load().generation;
    families.push(family(
        "gateway_config_reloads_total",
        "Attempts to load a changed configuration.",
        MetricType::COUNTER,
        vec![
            counter(&[("result", "success")], reloads.succeeded.get()),
            counter(&[("result", "failure")], reloads.failed.get()),
        ],
    ));
    families.push(family(
        "gateway_access_log_lines_total",
        "Lines of the access log, as writing them went.",
        MetricType::COUNTER,
        state.current.load().access.iter().map(|log| log.lines()).flat_map(by_result).collect(),
    ));
    let up_to_date = if state.reload_error().is_none() { 1.0 } else { 0.0 };
    let drain = state.drain();
    let draining = if drain.is_some() { 1.0 } else { 0.0 };
    let mut rows = vec![
        ("gateway_config_last_reload_successful", "Whether the last attempt succeeded.", up_to_date),
        ("gateway_config_generation", "Configurations put in force since the start.", generation as f64),
        ("gateway_draining", "Whether it serves what is under way and then ends.", draining),
        ("gateway_uptime_seconds", "Time since the start.", state.started.elapsed().as_secs_f64()),
    ];
    if let Some(Progress { elapsed, left }) = drain {
        rows.extend([
            ("gateway_drain_elapsed_seconds", "Time since the drain began.", elapsed.as_secs_f64()),
            ("gateway_drain_left_seconds", "Until the drain cuts off what is open.", left.as_secs_f64()),
        ]);
    }
    for (name, help, value) in rows {
        families.push(family(name, help, MetricType::GAUGE, vec![number(MetricType::GAUGE, &[], value)]));
    }
}

fn by_result([written, failed]: [u64; 2]) -> [Metric; 2] {
    [("written", written), ("failed", failed)].map(|(result, lines)| counter(&[("result", result)], lines))
}

/// A family of the exposition; empty ones are left out of it.
pub fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

pub fn counter(labels: &[(&str, &str)], value: u64) -> Metric {
    number(MetricType::COUNTER, labels, value as f64)
}

pub fn number(kind: MetricType, labels: &[(&str, &str)], value: f64) -> Metric {
    let mut metric = Metric::from_label(pairs(labels));
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

/// `counts` of each of `bounds_us`, and of what was above the last; `sum_us` of them all.
pub fn histogram(labels: &[(&str, &str)], bounds_us: &[u64], counts: &[u64], sum_us: u64) -> Metric {
    let mut cumulative = 0;
    let mut buckets = Vec::new();
    for (&bound, &count) in bounds_us.iter().zip(counts) {
        cumulative += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(Duration::from_micros(bound).as_secs_f64());
        bucket.set_cumulative_count(cumulative);
        buckets.push(bucket);
    }
    let mut histogram = Histogram::default();
    histogram.set_sample_count(counts.iter().sum());
    histogram.set_sample_sum(Duration::from_micros(sum_us).as_secs_f64());
    histogram.set_bucket(buckets);
    let mut metric = Metric::from_label(pairs(labels));
    metric.set_histogram(histogram);
    metric
}

fn pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    let pair = |&(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}
