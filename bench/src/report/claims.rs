//! Claims: what the project says of itself and what it aims for, each read from this run.
//!
//! Those whose scenario or opponent is not in the run are left out.

use serde::Serialize;

use super::Provenance;
use crate::metric::{Metric, Spread};
use crate::scenario::{CAPACITY, HEADLINE, HEADLINE_PER_CORE};
use crate::side_by_side::Results;
use crate::system::{Contender, Setup, System};

const HEADLINE_CORES: f64 = 4.0;

/// One claim and what this run says of it.
#[derive(Debug, PartialEq, Serialize)]
pub struct Line {
    pub claim: String,
    pub measured: String,
    pub met: bool,
}

/// The headline lines, for the gateway.
///
/// The claims are for four cores; a run has one. Throughput is met when one core does what each of four would
/// have to; the others are read at exactly that load.
pub fn headline(provenance: &Provenance, results: &Results) -> Vec<Line> {
    let find = |scenario, metric| median(results, scenario, plain(System::Gateway), metric);
    let mut lines = Vec::new();
    if let Some(rate) = find(CAPACITY, Metric::RequestsPerSecond) {
        let whole = HEADLINE_CORES * HEADLINE_PER_CORE;
        let how = match rate >= whole {
            true => "the whole claim on one core, nothing scaled".to_owned(),
            false => format!("scaled: a core of four has to do {HEADLINE_PER_CORE:.0}"),
        };
        lines.push(Line {
            claim: "50,000+ requests/s on 4 cores".into(),
            measured: format!("{rate:.0} on 1 of {} cores ({how})", provenance.machine.cores.available),
            met: rate >= HEADLINE_PER_CORE,
        });
    }
    let at = format!("at {HEADLINE_PER_CORE:.0} requests/s on 1 core");
    let mut claim = |claim: &str, metric, limit: f64, unit: &str| {
        if let Some(figure) = find(HEADLINE, metric) {
            let measured = format!("{figure:.1} {unit} {at}");
            lines.push(Line { claim: claim.into(), measured, met: figure < limit });
        }
    };
    claim("p50 < 0.5 ms", Metric::P50Micros, 500.0, "µs");
    claim("p99 < 2 ms", Metric::P99Micros, 2_000.0, "µs");
    claim("CPU < 70 %", Metric::CpuPercent, 70.0, "%");
    let gateways = results.scenarios.iter().flat_map(|rounds| {
        let contenders = rounds.contenders.keys().filter(|contender| contender.system == System::Gateway);
        contenders.filter_map(|contender| rounds.spread(*contender, Metric::PeakMib))
    });
    if let Some(highest) = Spread::of(gateways.map(|peak| peak.max)) {
        lines.push(Line {
            claim: "memory < 100 MB".into(),
            measured: format!("{:.1} MB at the highest of any scenario", highest.max * 1.048_576),
            met: highest.max * 1.048_576 < 100.0,
        });
    }
    lines
}

/// A bound on a figure of the gateway, or on its ratio to a peer's.
struct Target {
    scenario: &'static str,
    setup: Setup,
    metric: Metric,
    /// `None`: the figure itself.
    over: Option<Contender>,
    most: f64,
}

const fn plain(system: System) -> Contender {
    Contender { system, setup: Setup::Plain }
}

const fn target(scenario: &'static str, metric: Metric, over: Option<System>, most: f64) -> Target {
    let over = match over {
        Some(system) => Some(plain(system)),
        None => None,
    };
    Target { scenario, setup: Setup::Plain, metric, over, most }
}

const TARGETS: &[Target] = &[
    target(CAPACITY, Metric::CpuMicrosPerRequest, Some(System::Nginx), 0.90),
    target(CAPACITY, Metric::CpuMicrosPerRequest, Some(System::Envoy), 0.42),
    target("fixed-50", Metric::CpuMicrosPerRequest, Some(System::Nginx), 0.98),
    target("fixed-80", Metric::P99Micros, Some(System::Nginx), 1.0),
    target("fixed-80", Metric::P99Micros, Some(System::Haproxy), 1.0),
    target("fixed-80", Metric::P999Micros, Some(System::Nginx), 1.0),
    target("fixed-80", Metric::P999Micros, Some(System::Haproxy), 1.0),
    target("connect", Metric::CpuMicrosPerRequest, Some(System::Nginx), 1.05),
    target("body-16k", Metric::CpuMicrosPerRequest, Some(System::Nginx), 0.85),
    target("body-1m", Metric::CpuMicrosPerRequest, Some(System::Nginx), 0.65),
    target("idle-10k", Metric::IdleConnectionKib, None, 2.0),
    // 100 MB.
    target("keepalive-10k", Metric::PeakMib, None, 95.3),
    target("keepalive-10k-turns", Metric::PeakMib, None, 95.3),
    Target { setup: Setup::Routes(10_000), ..target("start-10k-routes", Metric::StartMillis, None, 200.0) },
    // No more, and the noise of two runs in turns.
    Target {
        setup: Setup::Routes(10_000),
        over: Some(Contender { system: System::Gateway, setup: Setup::Routes(10) }),
        ..target("routes", Metric::CpuMicrosPerRequest, None, 1.03)
    },
];

/// What the project aims for, for the gateway.
pub fn targets(results: &Results) -> Vec<Line> {
    TARGETS.iter().filter_map(|target| line(target, results)).collect()
}

fn line(target: &Target, results: &Results) -> Option<Line> {
    let Target { scenario, setup, metric, over, most } = *target;
    let own = Contender { system: System::Gateway, setup };
    let (figure, unit) = match over {
        None => (median(results, scenario, own, metric)?, String::new()),
        Some(over) => {
            let ratio = results.of(scenario)?.between(own, over, metric)?.median;
            (ratio, format!(" × {}", contender_name(over)))
        }
    };
    Some(Line {
        claim: format!("`{scenario}` {} ≤ {most}{unit}", metric.label()),
        measured: format!("{figure:.2}{unit}"),
        met: figure <= most,
    })
}

fn contender_name(contender: Contender) -> String {
    match contender.setup {
        Setup::Plain => contender.system.name().into(),
        setup => format!("{} with {}", contender.system.name(), setup.label()),
    }
}

fn median(results: &Results, scenario: &str, contender: Contender, metric: Metric) -> Option<f64> {
    results.of(scenario)?.spread(contender, metric).map(|spread| spread.median)
}
