//! The report of a run that never was: is what is written what was measured?

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use bench::load::{Fault, Faults};
use bench::machine::{Cores, Machine};
use bench::metric::{Figures, Metric};
use bench::report::{self, Provenance};
use bench::scenario::{SCENARIOS, Scenario};
use bench::side_by_side::{LeftOut, Results, Rounds};
use bench::system::{Contender, Setup, System};

fn scenario(name: &str) -> &'static Scenario {
    SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap()
}

fn plain(system: System) -> Contender {
    Contender { system, setup: Setup::Plain }
}

fn figures(cpu: f64, load: f64) -> Figures {
    Figures::from([
        (Metric::CpuMicrosPerRequest, cpu),
        (Metric::LoadPercent, load),
        (Metric::P50Micros, 100.0),
        (Metric::P99Micros, 1_000.0),
        (Metric::P999Micros, 2_000.0),
    ])
}

fn results() -> Results {
    let mut small = Rounds::new(scenario("small"));
    for (nginx, gateway) in [(10.0, 8.0), (20.0, 18.0), (10.0, 9.0)] {
        small.add(plain(System::Nginx), figures(nginx, 50.0), Faults::default());
        let mut faults = Faults::default();
        faults.add(Fault::Reset, 1);
        small.add(plain(System::Gateway), figures(gateway, 99.0), faults);
    }
    small.left_out.push(LeftOut { contender: plain(System::Caddy), why: "first line\nno port\n".into() });
    let mut limit = Rounds::new(scenario("limit-on"));
    limit.add(plain(System::Gateway), figures(10.0, 50.0), Faults::default());
    let limited = Contender { system: System::Gateway, setup: Setup::Limit };
    limit.add(limited, figures(10.5, 50.0), Faults::default());
    Results { capacity: Some(1_000.0), scenarios: vec![small, limit] }
}

fn provenance() -> Provenance {
    let cores = Cores { load: 0, system: 1, available: 2 };
    Provenance {
        command: "bench".into(),
        unix_time: 7,
        revision: "abc".into(),
        versions: BTreeMap::from([(System::Nginx, "nginx/1".into())]),
        missing: vec![System::Envoy],
        machine: Machine { processor: "p".into(), kernel: "k".into(), memory_mib: 1, cores },
        rounds: 3,
        seconds: 1.0,
    }
}

#[test]
fn three_kinds_of_file_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (files, text) = report::write(folder.path(), &provenance(), &results()).unwrap();
    let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["7.json", "7.md", "7-small.svg", "7-limit-on.svg"]);

    for expected in [
        "Envoy: not installed, not measured.",
        // Medians, and the ratio round by round: 0.8, 0.9, 0.9.
        "| `small` | CPU µs/request | 9.00 (0.90) | 10.00 |",
        "| `limit-on`, plain | CPU µs/request | 10.00 | – |",
        "| `limit-on`, limit on | CPU µs/request | 10.50 | – |",
        "| `small` CPU µs/request ≤ 0.9 × nginx | 0.90 × nginx | met |",
        "| gateway † | 9.00 (8.00–18.00) | 99.0 | 100 | 1000 | 2000 | 0.90 (0.80–0.90) |",
        "| nginx | 10.00 (10.00–20.00) | 50.0 | 100 | 1000 | 2000 | 1.00 |",
        "| gateway, limit on | 10.50 | 50.0 | 100 | 1000 | 2000 | 1.05 |",
        "Caddy is left out: no port",
    ] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }

    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&files[0]).unwrap()).unwrap();
    let gateway = &json["scenarios"][0]["contenders"][1];
    assert_eq!(gateway["system"], "gateway");
    assert_eq!(gateway["spread"]["cpu_micros_per_request"]["median"], 9.0);
    assert_eq!(gateway["faults"]["reset"], 3);
    assert_eq!(gateway["rounds"].as_array().unwrap().len(), 3);
    assert_eq!(json["scenarios"][0]["left_out"][0]["system"], "caddy");

    let svg = std::fs::read_to_string(&files[2]).unwrap();
    for expected in ["<svg", "small: CPU µs/request", "gateway", "nginx", "latency µs"] {
        assert!(svg.contains(expected), "no {expected:?} in the plot");
    }
}
