//! Metrics: what a round of a scenario measures, and how it is written.

use std::collections::BTreeMap;

use serde::Serialize;

/// One kind of figure; the order is that of the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    RequestsPerSecond,
    CpuMicrosPerRequest,
    CpuPercent,
    /// How much of its core's time generator and origin had something to do.
    LoadPercent,
    /// How many of the answers the origin gave.
    OriginPercent,
    /// Processor time that neither the system nor the bench used, of both cores' together.
    OthersPercent,
    P50Micros,
    P99Micros,
    P999Micros,
    MaxMicros,
    OpenConnections,
    RssMib,
    PeakMib,
    IdleConnectionKib,
    StartMillis,
    Faults,
}

impl Metric {
    pub fn label(self) -> &'static str {
        match self {
            Metric::RequestsPerSecond => "requests/s",
            Metric::CpuMicrosPerRequest => "CPU µs/request",
            Metric::CpuPercent => "CPU %",
            Metric::LoadPercent => "load %",
            Metric::OriginPercent => "origin %",
            Metric::OthersPercent => "others %",
            Metric::P50Micros => "p50 µs",
            Metric::P99Micros => "p99 µs",
            Metric::P999Micros => "p99.9 µs",
            Metric::MaxMicros => "max µs",
            Metric::OpenConnections => "open",
            Metric::RssMib => "memory MiB",
            Metric::PeakMib => "peak MiB",
            Metric::IdleConnectionKib => "KiB/connection",
            Metric::StartMillis => "start ms",
            Metric::Faults => "faults",
        }
    }

    /// How many digits after the point mean something.
    pub fn decimals(self) -> usize {
        match self {
            Metric::CpuMicrosPerRequest | Metric::IdleConnectionKib => 2,
            Metric::CpuPercent
            | Metric::LoadPercent
            | Metric::OriginPercent
            | Metric::OthersPercent
            | Metric::RssMib
            | Metric::PeakMib
            | Metric::StartMillis => 1,
            Metric::RequestsPerSecond
            | Metric::P50Micros
            | Metric::P99Micros
            | Metric::P999Micros
            | Metric::MaxMicros
            | Metric::OpenConnections
            | Metric::Faults => 0,
        }
    }
}

/// The figures of one round.
pub type Figures = BTreeMap<Metric, f64>;

/// Whether the load was what kept a system from doing more: its core had hardly anything left, the system's had.
/// Where the system's is not known, there is none.
pub fn load_was_limit(load_percent: f64, system_percent: Option<f64>) -> bool {
    load_percent >= 90.0 && system_percent.is_none_or(|percent| percent < 95.0)
}

/// The middle of some figures and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of at least one figure; an even number of them has the mean of the two in the middle as its median.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Spread { median: (low + high) / 2.0, min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_the_limit_when_the_system_waits_for_it() {
        assert!(load_was_limit(99.0, None));
        assert!(load_was_limit(92.0, Some(85.0)));
        assert!(!load_was_limit(92.0, Some(99.0)));
        assert!(!load_was_limit(60.0, Some(50.0)));
    }

    #[test]
    fn spreads() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([2.0]), Some(Spread { median: 2.0, min: 2.0, max: 2.0 }));
        assert_eq!(Spread::of([9.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 9.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
    }
}
