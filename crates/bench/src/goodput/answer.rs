//! What a search found, and the sentence that says it.

use serde::{Deserialize, Serialize};

use super::{GoodputLoad, GoodputState, Probe, Verdict};
use crate::distribution::CONFIDENCE;
use crate::slo::Slo;

/// The answer of a search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoodputResult {
    /// The objective.
    pub slo: Slo,
    /// Share of the requests that must meet it.
    pub share: f64,
    /// Confidence of each probe's interval.
    pub confidence: f64,
    /// `streams` or `requests_per_second`.
    pub unit: String,
    /// Largest load that met it; `None` if none did.
    pub largest_met: Option<f64>,
    /// Smallest larger load that missed it; `None` if none did.
    pub smallest_missed: Option<f64>,
    /// Loads that stayed undecided.
    pub undecided: Vec<f64>,
    /// The answer, and what it is worth, as a sentence.
    pub statement: String,
    /// Every load that was tried, in order.
    pub probes: Vec<Probe>,
}

impl GoodputState {
    /// The answer so far; `stopped` tells why the run ended before the search did.
    pub fn result(&self, stopped: Option<&str>) -> GoodputResult {
        let unit = match self.search.load {
            GoodputLoad::Concurrency { .. } => "streams",
            GoodputLoad::Rate { .. } => "requests_per_second",
        };
        let words = unit.replace('_', " ");
        let largest_met = self.largest_met();
        let of = |verdict| {
            let probes = self.probes.iter().filter(move |p| p.verdict == verdict);
            probes.map(|p| p.load)
        };
        let smallest_missed = of(Verdict::Missed).reduce(f64::min);
        let undecided: Vec<f64> = of(Verdict::Undecided).collect();
        let share = self.search.share * 100.0;
        let mut statement = match (largest_met, smallest_missed) {
            (Some(met), Some(missed)) => {
                format!(
                    "{share} % of the requests meet the objective up to {met} {words}, not at {missed}"
                )
            }
            (Some(met), None) => {
                format!(
                    "{share} % of the requests meet the objective at {met} {words}; no load missed it"
                )
            }
            (None, Some(missed)) => {
                format!(
                    "no load met the objective for {share} % of the requests; {missed} {words} missed it"
                )
            }
            (None, None) => "no load was decided".to_owned(),
        };
        if !undecided.is_empty() {
            let list: Vec<String> = undecided.iter().map(f64::to_string).collect();
            statement += &format!("; too few requests to tell at {}", list.join(", "));
        }
        if let Some(limited) = &self.client_limited {
            statement += &format!("; the client was the limit {limited}");
        } else if let Some(stopped) = stopped {
            statement += &format!("; the search was cut short: {stopped}");
        } else if self.levels >= self.search.max_levels {
            statement += &format!("; the search was cut short after {} levels", self.levels);
        }
        GoodputResult {
            slo: self.slo,
            share: self.search.share,
            confidence: CONFIDENCE,
            unit: unit.to_owned(),
            largest_met,
            smallest_missed,
            undecided,
            statement,
            probes: self.probes.clone(),
        }
    }
}
