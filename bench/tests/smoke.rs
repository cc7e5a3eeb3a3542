//! Every scenario, small and short, with every system that is installed: does each do what its row says?

#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::time::Duration;

use bench::machine::Cores;
use bench::metric::Metric;
use bench::scenario::{Kind, SCENARIOS};
use bench::side_by_side::{self, Plan, Rounds};
use bench::system::{Contender, Programs, System};
use clap::ValueEnum as _;
use gateway_tests::binary;

fn plan(gateway: &Path) -> Plan {
    let programs = Programs::find(Some(gateway));
    let systems = System::value_variants().iter().copied().filter(|system| programs.has(*system)).collect();
    Plan {
        scenarios: SCENARIOS.iter().collect(),
        systems,
        programs,
        cores: Cores::find().unwrap(),
        rounds: 1,
        warm_up: Duration::from_millis(20),
        duration: Duration::from_millis(200),
        // What an unoptimised gateway can do.
        capacity: Some(2_000.0),
        most_connections: 128,
    }
}

#[test]
fn every_system_answers_every_scenario() {
    let plan = plan(binary::gateway());
    assert!(plan.programs.has(System::Gateway));
    let results = side_by_side::run(&plan).unwrap();
    assert_eq!(results.scenarios.len(), SCENARIOS.len());
    for rounds in &results.scenarios {
        for left_out in &rounds.left_out {
            // The one reason that is no fault of a configuration.
            let excused = left_out.contender.system == System::Gateway;
            assert!(excused, "{}: {:?}", rounds.scenario.name, left_out);
        }
        for contender in rounds.contenders.keys() {
            check(rounds, *contender);
        }
    }
}

fn check(rounds: &Rounds, contender: Contender) {
    let row = format!("{}, {}", rounds.scenario.name, rounds.label(contender));
    let figure = |metric| rounds.spread(contender, metric).map(|spread| spread.median);
    let Kind::Load(shape) = &rounds.scenario.kind else {
        assert!(figure(rounds.scenario.kind.compares()).is_some(), "{row}");
        return;
    };
    assert!(figure(Metric::RequestsPerSecond).unwrap() > 0.0, "{row}");
    // A peer's reload may cost its clients something: that is what the scenario is there to show.
    let faults = rounds.faults[&contender];
    let excused = shape.reloads && contender.system != System::Gateway;
    assert!(excused || faults.total() == 0, "{row}: {faults:?}");
    // Caches hit and limits refuse.
    assert!(figure(Metric::OriginPercent).is_none_or(|percent| percent < 5.0), "{row}: asks the origin");
}
