//! The largest load that meets an objective at a share of the requests: doubling, then bisection.
//!
//! Each probe is judged by the Clopper-Pearson interval of the share of its requests that met the objective
//! (Clopper and Pearson, Biometrika 26, 1934: exact, never too narrow). Wholly at or above the wanted share
//! it is met, wholly below it is missed, else undecided; an undecided probe is run once more and the two are
//! judged together. What stays undecided counts as not met in the search, and is named in the result.

mod answer;

use serde::{Deserialize, Serialize};

pub use answer::GoodputResult;

use crate::distribution::CONFIDENCE;
use crate::error::BenchError;
use crate::metrics::LevelMetrics;
use crate::profile::three_digits;
use crate::record::{LevelResult, Strategy};
use crate::slo::Slo;
use crate::special::clopper_pearson;

/// Smallest rate that is tried, requests per second.
const LEAST_RATE: f64 = 1.0 / 64.0;

/// What is varied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GoodputLoad {
    /// Clients of a closed loop, from 1 to this many.
    Concurrency {
        /// Most clients.
        max: usize,
    },
    /// Requests per second of an open loop.
    Rate {
        /// Most requests per second.
        max: f64,
        /// Random gaps rather than even ones.
        poisson: bool,
    },
}

/// A search for the largest load that meets the run's objective.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GoodputSearch {
    /// What is varied.
    pub load: GoodputLoad,
    /// Clients or requests per second of the first level; from there the search doubles, or halves. A low
    /// rate takes long to have its requests.
    pub start: f64,
    /// Share of the requests that must meet the objective, above 0 and below 1.
    pub share: f64,
    /// The search ends when the two sides of its answer are this close, relative to the answer.
    pub tolerance: f64,
    /// Most levels.
    pub max_levels: usize,
}

impl GoodputSearch {
    /// With the usual settings: from 1 on, 95 % of the requests, the answer within 10 %, 30 levels.
    pub fn new(load: GoodputLoad) -> Self {
        GoodputSearch {
            load,
            start: 1.0,
            share: 0.95,
            tolerance: 0.1,
            max_levels: 30,
        }
    }

    /// Find values that make no sense.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        if !(self.share > 0.0 && self.share <= 0.999) {
            return Err(BenchError::config(
                "--goodput-share",
                "must be above 0 and at most 0.999: more would need thousands of requests to tell",
            ));
        }
        if !(self.tolerance > 0.0 && self.tolerance <= 1.0) {
            return Err(BenchError::config(
                "--search-tolerance",
                "must be above 0 and at most 1",
            ));
        }
        if !(1..=100).contains(&self.max_levels) {
            return Err(BenchError::config(
                "--search-levels",
                "must be between 1 and 100",
            ));
        }
        match self.load {
            GoodputLoad::Concurrency { max } if !(1..=100_000).contains(&max) => Err(
                BenchError::config("--max-concurrency", "must be between 1 and 100,000"),
            ),
            GoodputLoad::Rate { max, .. } if !(LEAST_RATE..=1e6).contains(&max) => Err(
                BenchError::config("--max-rate", "must be between 1/64 and 1,000,000 a second"),
            ),
            _ if !(self.range().0..=self.range().1).contains(&self.start) => Err(
                BenchError::config("--search-start", "must be within the range of the search"),
            ),
            _ => Ok(()),
        }
    }

    /// (smallest, largest) load of the search.
    fn range(&self) -> (f64, f64) {
        match self.load {
            GoodputLoad::Concurrency { max } => (1.0, max as f64),
            GoodputLoad::Rate { max, .. } => (LEAST_RATE, max),
        }
    }

    /// Requests that a probe must have so that some misses leave it decidable: twice as many as it takes
    /// when all of them meet the objective.
    pub(crate) fn least_requests(&self) -> u64 {
        2 * (((1.0 - CONFIDENCE) / 2.0).ln() / self.share.ln()).ceil() as u64
    }
}

/// What a probe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// At least the wanted share meets the objective, beyond doubt.
    Met,
    /// Less than the wanted share meets it, beyond doubt.
    Missed,
    /// Too few requests to tell.
    Undecided,
}

/// One load that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Clients, or requests per second.
    pub load: f64,
    /// Requests that were judged, of both runs if there were two.
    pub requests: u64,
    /// Those that met the objective.
    pub met: u64,
    /// Lower bound of the share that meets it.
    pub lower: f64,
    /// Upper bound.
    pub upper: f64,
    /// What follows.
    pub verdict: Verdict,
    /// It was run a second time.
    pub extended: bool,
    /// Requests per second that met the objective, in the last run.
    pub goodput: f64,
}

/// A search on its way.
#[derive(Debug, Clone)]
pub(crate) struct GoodputState {
    search: GoodputSearch,
    slo: Slo,
    levels: usize,
    probes: Vec<Probe>,
    client_limited: Option<String>,
}

impl GoodputState {
    pub fn new(search: GoodputSearch, slo: Slo) -> Self {
        GoodputState {
            search,
            slo,
            levels: 0,
            probes: Vec::new(),
            client_limited: None,
        }
    }

    /// The next level; `None` at the end.
    pub fn next(&self) -> Option<Strategy> {
        let load = self.next_load()?;
        Some(match self.search.load {
            GoodputLoad::Concurrency { .. } => Strategy::Concurrent {
                streams: load as usize,
            },
            GoodputLoad::Rate { poisson: false, .. } => Strategy::Constant {
                rate: load,
                max_concurrency: None,
            },
            GoodputLoad::Rate { poisson: true, .. } => Strategy::Poisson {
                rate: load,
                max_concurrency: None,
            },
        })
    }

    /// A load that can be tried: a whole number of clients, a rate that fits a file name.
    fn round(&self, load: f64) -> f64 {
        match self.search.load {
            GoodputLoad::Concurrency { .. } => load.floor().max(1.0),
            GoodputLoad::Rate { .. } => three_digits(load),
        }
    }

    fn next_load(&self) -> Option<f64> {
        let (least, most) = self.search.range();
        if self.levels >= self.search.max_levels || self.client_limited.is_some() {
            return None;
        }
        let Some(last) = self.probes.last() else {
            return Some(self.round(self.search.start));
        };
        if last.verdict == Verdict::Undecided && !last.extended {
            return Some(last.load);
        }
        match (self.largest_met(), self.smallest_not_met()) {
            (Some(met), None) => (met < most).then(|| (2.0 * met).min(most)),
            (None, Some(not)) => {
                let half = self.round(not / 2.0);
                (not > least && half < not).then_some(half)
            }
            (Some(met), Some(not)) => {
                let middle = self.round((met + not) / 2.0);
                let apart = not - met > self.search.tolerance * met;
                (apart && middle > met && middle < not).then_some(middle)
            }
            (None, None) => None,
        }
    }

    fn largest_met(&self) -> Option<f64> {
        let met = self.probes.iter().filter(|p| p.verdict == Verdict::Met);
        met.map(|p| p.load).reduce(f64::max)
    }

    fn smallest_not_met(&self) -> Option<f64> {
        let not = self.probes.iter().filter(|p| p.verdict != Verdict::Met);
        not.map(|p| p.load).reduce(f64::min)
    }

    /// Take in a level.
    pub fn learn(&mut self, level: &LevelResult, metrics: &LevelMetrics) {
        let load = match level.strategy {
            Strategy::Constant { rate, .. } | Strategy::Poisson { rate, .. } => rate,
            _ => level.strategy.concurrency().unwrap_or(1) as f64,
        };
        let Some(goodput) = metrics.goodput else {
            return;
        };
        self.add(
            load,
            goodput.judged,
            goodput.met,
            goodput.requests_per_second,
        );
        let met = self
            .probes
            .last()
            .is_some_and(|p| p.verdict == Verdict::Met);
        // A client at its limit makes latencies of its own: a miss would not be the server's.
        if level.client.limited && !met {
            self.client_limited = Some(format!("at {load}: {}", level.client.reason));
        }
    }

    fn add(&mut self, load: f64, judged: u64, met: u64, goodput: f64) {
        self.levels += 1;
        let again = self
            .probes
            .pop_if(|p| p.load == load && p.verdict == Verdict::Undecided && !p.extended);
        let before = again.as_ref().map_or((0, 0), |p| (p.requests, p.met));
        let (requests, met) = (judged + before.0, met + before.1);
        let (lower, upper) = clopper_pearson(met, requests, CONFIDENCE);
        let verdict = if requests > 0 && lower >= self.search.share {
            Verdict::Met
        } else if requests > 0 && upper < self.search.share {
            Verdict::Missed
        } else {
            Verdict::Undecided
        };
        self.probes.push(Probe {
            load,
            requests,
            met,
            lower,
            upper,
            verdict,
            extended: again.is_some(),
            goodput,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Search against a server at which a request meets the objective with probability `p(load)`.
    fn found(search: GoodputSearch, seed: u64, p: impl Fn(f64) -> f64) -> GoodputResult {
        let slo = Slo::parse("ttft:1").unwrap();
        let mut state = GoodputState::new(search, slo);
        let mut random = Random::new(seed, 9);
        while let Some(load) = state.next_load() {
            assert!(state.next().is_some());
            let n = search.least_requests();
            let met = (0..n).filter(|_| random.fraction() <= p(load)).count() as u64;
            state.add(load, n, met, met as f64);
        }
        assert!(state.levels <= search.max_levels);
        state.result(None)
    }

    fn streams(max: usize) -> GoodputSearch {
        GoodputSearch::new(GoodputLoad::Concurrency { max })
    }

    #[test]
    fn a_step_is_found_within_the_tolerance_wherever_it_is() {
        for edge in 1..200 {
            let search = streams(256);
            let answer = found(search, 1, |load| {
                f64::from(u8::from(load <= f64::from(edge)))
            });
            let met = answer.largest_met.unwrap();
            let missed = answer.smallest_missed.unwrap();
            assert!(
                met <= f64::from(edge) && missed > f64::from(edge),
                "{edge}: {answer:?}"
            );
            assert!(
                missed - met <= (0.1 * met).max(1.0),
                "{edge}: {met} {missed}"
            );
            assert!(answer.undecided.is_empty() && answer.probes.len() <= 16);
        }
    }

    #[test]
    fn always_and_never_and_a_plateau_at_the_border() {
        let always = found(streams(100), 1, |_| 1.0);
        assert_eq!(
            (always.largest_met, always.smallest_missed),
            (Some(100.0), None)
        );
        let never = found(streams(100), 1, |_| 0.0);
        assert_eq!(
            (never.largest_met, never.smallest_missed),
            (None, Some(1.0))
        );
        assert!(
            never.statement.starts_with("no load met"),
            "{}",
            never.statement
        );
        // 0.95 is wanted and 0.95 is what there is from 4 on: that cannot be told, and is not claimed.
        let plateau = found(streams(100), 3, |load| if load < 4.0 { 1.0 } else { 0.95 });
        assert!(plateau.largest_met < Some(5.0), "{plateau:?}");
        assert!(!plateau.undecided.is_empty());
        assert!(plateau.statement.contains("too few requests to tell"));
    }

    #[test]
    fn noise_seldom_leads_astray() {
        // The share falls from 1 by a hundredth for each client: 0.95 is passed at 6, far below at 30.
        let mut wrong = 0;
        for seed in 0..100 {
            let answer = found(streams(64), seed, |load| 1.0 - 0.01 * (load - 1.0));
            let met = answer.largest_met.unwrap_or(0.0);
            wrong += usize::from(met > 6.0);
            assert!(
                answer.smallest_missed.is_none_or(|missed| missed > 4.0),
                "{answer:?}"
            );
            assert!(met <= 12.0, "{seed}: {answer:?}");
        }
        assert!(wrong <= 10, "{wrong} of 100");
    }

    #[test]
    fn rates_go_below_one_and_between_whole_numbers() {
        for edge in [0.1, 0.7, 3.3, 47.0] {
            let search = GoodputSearch::new(GoodputLoad::Rate {
                max: 1000.0,
                poisson: true,
            });
            let answer = found(search, 1, |load| f64::from(u8::from(load <= edge)));
            let met = answer.largest_met.unwrap();
            assert!(met <= edge && met > 0.88 * edge, "{edge}: {met}");
        }
    }

    #[test]
    fn the_start_does_not_change_the_answer() {
        for start in [1.0, 7.0, 60.0, 256.0] {
            let search = GoodputSearch {
                start,
                ..streams(256)
            };
            let answer = found(search, 1, |load| f64::from(u8::from(load <= 60.0)));
            let met = answer.largest_met.unwrap();
            assert!((54.0..=60.0).contains(&met), "{start}: {answer:?}");
        }
        let outside = GoodputSearch {
            start: 300.0,
            ..streams(256)
        };
        assert!(
            outside
                .check()
                .unwrap_err()
                .to_string()
                .starts_with("--search-start")
        );
    }

    #[test]
    fn a_probe_that_cannot_tell_is_run_once_more() {
        let mut state = GoodputState::new(streams(9), Slo::parse("e2e:1").unwrap());
        state.add(1.0, 20, 20, 1.0);
        assert_eq!(state.next_load(), Some(1.0));
        state.add(1.0, 80, 80, 1.0);
        let probe = state.probes[0].clone();
        assert_eq!(
            (probe.requests, probe.verdict, probe.extended),
            (100, Verdict::Met, true)
        );
        assert_eq!(state.next_load(), Some(2.0));
        // Nothing judged says nothing.
        state.add(2.0, 0, 0, 0.0);
        state.add(2.0, 0, 0, 0.0);
        assert_eq!(state.probes[1].verdict, Verdict::Undecided);
        assert_eq!(state.next_load(), None, "1 and 2 are next to each other");
        // scipy: binomtest(20, 20).proportion_ci() begins at 0.8316.
        assert_eq!(streams(9).least_requests(), 144);
    }
}
