//! The kernel half in figures, for the metrics port.

use prometheus::proto::{MetricFamily, MetricType};

use super::fill::Counted;
use crate::admin::metrics::{counter, family, number};
use crate::datapath::{Datapath, Error, Figures, Fill, MAPS};
use gateway_common::standing::Class;

const LEVELS: [&str; 2] = ["1", "2"];

/// `figures`: how the heartbeat stands, if there is one.
pub fn families(
    datapath: &Datapath,
    counted: &mut Counted,
    figures: Option<Figures>,
) -> Result<Vec<MetricFamily>, Error> {
    let mut families = packets(datapath)?;
    families.extend(maps(counted.read(datapath)?));
    families.extend(runs(datapath)?);
    families.extend(figures.into_iter().flat_map(heartbeat));
    Ok(families)
}

fn packets(datapath: &Datapath) -> Result<Vec<MetricFamily>, Error> {
    let (mut packets, mut bytes) = (Vec::new(), Vec::new());
    for (verdict, of, count) in datapath.counters()?.iter() {
        let labels = [("verdict", verdict.row().name), ("family", of.name())];
        packets.push(counter(&labels, count.packets));
        bytes.push(counter(&labels, count.bytes));
    }
    Ok(vec![
        family(
            "gateway_kernel_packets_total",
            "Packets by verdict of the kernel half.",
            MetricType::COUNTER,
            packets,
        ),
        family(
            "gateway_kernel_bytes_total",
            "Bytes by verdict of the kernel half.",
            MetricType::COUNTER,
            bytes,
        ),
    ])
}

fn maps(fill: [Fill; MAPS]) -> Vec<MetricFamily> {
    let (mut entries, mut most) = (Vec::new(), Vec::new());
    for fill in fill {
        let gauge = |value: u64| number(MetricType::GAUGE, &[("map", fill.map)], value as f64);
        entries.push(gauge(fill.entries));
        most.push(gauge(fill.most));
    }
    vec![
        family("gateway_kernel_entries", "Entries of the kernel half's maps.", MetricType::GAUGE, entries),
        family(
            "gateway_kernel_entries_most",
            "Entries that the kernel half's maps have room for.",
            MetricType::GAUGE,
            most,
        ),
    ]
}

fn runs(datapath: &Datapath) -> Result<Vec<MetricFamily>, Error> {
    let (time, runs) = datapath.runs()?;
    Ok(vec![
        family(
            "gateway_kernel_run_seconds_total",
            "Time that the kernel half has run, where the host counts it (kernel.bpf_stats_enabled).",
            MetricType::COUNTER,
            vec![number(MetricType::COUNTER, &[], time.as_secs_f64())],
        ),
        family(
            "gateway_kernel_runs_total",
            "Packets that it has run for, where the host counts them.",
            MetricType::COUNTER,
            vec![counter(&[], runs)],
        ),
    ])
}

fn heartbeat(figures: Figures) -> Vec<MetricFamily> {
    let gauge = |label: (&str, &str), value: f64| number(MetricType::GAUGE, &[label], value);
    let penalised = LEVELS.iter().zip(figures.penalised);
    let shed = Class::ALL.iter().zip(figures.shed_ratios());
    vec![
        family(
            "gateway_kernel_penalties",
            "Penalised sources by level.",
            MetricType::GAUGE,
            penalised.map(|(level, count)| gauge(("level", level), count as f64)).collect(),
        ),
        family(
            "gateway_kernel_shed_ratio",
            "Share of the sources of a class whose connection requests are shed.",
            MetricType::GAUGE,
            shed.map(|(class, ratio)| gauge(("class", class.name()), ratio)).collect(),
        ),
        family(
            "gateway_kernel_cookies_armed",
            "Whether SYN cookies are sent where they are due.",
            MetricType::GAUGE,
            vec![number(MetricType::GAUGE, &[], f64::from(u8::from(figures.cookies_armed)))],
        ),
    ]
}
