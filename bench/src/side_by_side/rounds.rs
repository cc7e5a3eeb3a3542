//! Rounds: what the turns of a scenario brought, and how they compare.
//!
//! `loads` and `unloaded` fill them, the report reads them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::load::{Fault, Faults};
use crate::metric::{Figures, Metric, Spread};
use crate::scenario::Scenario;
use crate::system::Contender;

/// What came of a run.
pub struct Results {
    pub capacity: Option<f64>,
    pub scenarios: Vec<Rounds>,
}

/// One scenario's rounds, for each contender in the order of time.
pub struct Rounds {
    pub scenario: &'static Scenario,
    pub contenders: BTreeMap<Contender, Vec<Figures>>,
    pub faults: BTreeMap<Contender, Faults>,
    pub left_out: Vec<LeftOut>,
}

/// A contender that did not run.
#[derive(Debug, Serialize)]
pub struct LeftOut {
    #[serde(flatten)]
    pub contender: Contender,
    pub why: String,
}

impl Results {
    pub fn of(&self, scenario: &str) -> Option<&Rounds> {
        self.scenarios.iter().find(|rounds| rounds.scenario.name == scenario)
    }
}

impl Rounds {
    pub fn new(scenario: &'static Scenario) -> Rounds {
        Rounds { scenario, contenders: BTreeMap::new(), faults: BTreeMap::new(), left_out: Vec::new() }
    }

    pub fn add(&mut self, contender: Contender, figures: Figures, faults: Faults) {
        self.contenders.entry(contender).or_default().push(figures);
        let sum = self.faults.entry(contender).or_default();
        Fault::ALL.iter().for_each(|fault| sum.add(*fault, faults.of(*fault)));
    }

    /// The spread of one metric over a contender's rounds; `None` when it does not measure that.
    pub fn spread(&self, contender: Contender, metric: Metric) -> Option<Spread> {
        Spread::of(self.contenders.get(&contender)?.iter().filter_map(|round| round.get(&metric).copied()))
    }

    /// The spread of a contender's figure over its baseline's of the same round.
    pub fn ratio(&self, contender: Contender, metric: Metric) -> Option<Spread> {
        self.between(contender, self.scenario.baseline(contender), metric)
    }

    /// The spread of one contender's figure over another's of the same round.
    pub fn between(&self, contender: Contender, other: Contender, metric: Metric) -> Option<Spread> {
        let (own, others) = (self.contenders.get(&contender)?, self.contenders.get(&other)?);
        let ratio = |(own, other): (&Figures, &Figures)| Some(own.get(&metric)? / other.get(&metric)?);
        Spread::of(own.iter().zip(others).filter_map(ratio))
    }

    /// The columns of a scenario: whatever any contender has a figure for.
    pub fn metrics(&self) -> Vec<Metric> {
        let mut metrics: Vec<Metric> =
            self.contenders.values().flatten().flat_map(|round| round.keys().copied()).collect();
        metrics.sort();
        metrics.dedup();
        metrics
    }

    /// The name of a contender's row.
    pub fn label(&self, contender: Contender) -> String {
        contender.label(self.scenario.contenders.iter().copied())
    }
}
