//! Which levels a run has. Some profiles choose a level by what the levels before it measured.

use crate::data::MOST_SPAN_S;
use crate::error::BenchError;
use crate::goodput::GoodputSearch;
use crate::knee::KneeSearch;
use crate::metrics::LevelMetrics;
use crate::record::{LevelResult, Strategy};

/// Largest factor of a trace's times, and the smallest is one part of it.
const MOST_TIME_SCALE: f64 = 1e6;
/// Most streams that are offered where no number is given.
const DEFAULT_CAP: usize = 512;

/// The levels of a run, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Profile {
    /// One level, one request after the other.
    Synchronous,
    /// A closed loop for each number of clients.
    Concurrent(Vec<usize>),
    /// One level, all that `max_concurrency` (512 if `None`) lets through.
    Throughput {
        /// Most requests in flight.
        max_concurrency: Option<usize>,
    },
    /// An open loop with even gaps for each rate.
    Constant {
        /// Requests per second.
        rates: Vec<f64>,
        /// Most requests in flight; later ones wait, and their wait counts.
        max_concurrency: Option<usize>,
    },
    /// An open loop with random gaps for each rate.
    Poisson {
        /// Requests per second.
        rates: Vec<f64>,
        /// Most requests in flight; later ones wait, and their wait counts.
        max_concurrency: Option<usize>,
    },
    /// An open loop at the times of a trace, for each factor. A level ends with the last request of the trace,
    /// or with a limit before it.
    Replay {
        /// What the times after the first request are multiplied with: 0.5 is twice as fast.
        time_scales: Vec<f64>,
        /// Most requests in flight; later ones wait, and their wait counts.
        max_concurrency: Option<usize>,
    },
    /// Synchronous, throughput, then rates in even steps from what the first reached up to what
    /// the second did.
    Sweep {
        /// Levels in all, at least 3.
        levels: usize,
        /// Random gaps rather than even ones.
        poisson: bool,
        /// Most requests in flight.
        max_concurrency: Option<usize>,
    },
    /// Closed loops, chosen to find where throughput bends.
    Knee(KneeSearch),
    /// Levels chosen to find the largest load that meets the run's objective.
    Goodput(GoodputSearch),
}

impl Profile {
    /// How many levels there will be; of a search the most.
    pub fn levels(&self) -> usize {
        match self {
            Profile::Synchronous | Profile::Throughput { .. } => 1,
            Profile::Concurrent(streams) => streams.len(),
            Profile::Constant { rates, .. } | Profile::Poisson { rates, .. } => rates.len(),
            Profile::Replay { time_scales, .. } => time_scales.len(),
            Profile::Sweep { levels, .. } => *levels,
            Profile::Knee(search) => search.max_levels,
            Profile::Goodput(search) => search.max_levels,
        }
    }

    /// The levels, where they are known beforehand.
    pub(crate) fn fixed(&self) -> Option<Vec<Strategy>> {
        match self {
            Profile::Synchronous => Some(vec![Strategy::Synchronous]),
            Profile::Concurrent(streams) => Some(
                streams
                    .iter()
                    .map(|&streams| Strategy::Concurrent { streams })
                    .collect(),
            ),
            Profile::Throughput { max_concurrency } => Some(vec![throughput(*max_concurrency)]),
            Profile::Constant {
                rates,
                max_concurrency,
            } => Some(
                rates
                    .iter()
                    .map(|&rate| constant(rate, *max_concurrency))
                    .collect(),
            ),
            Profile::Poisson {
                rates,
                max_concurrency,
            } => Some(
                rates
                    .iter()
                    .map(|&rate| poisson(rate, *max_concurrency))
                    .collect(),
            ),
            Profile::Replay {
                time_scales,
                max_concurrency,
            } => Some(
                time_scales
                    .iter()
                    .map(|&time_scale| Strategy::Replay {
                        time_scale,
                        max_concurrency: *max_concurrency,
                    })
                    .collect(),
            ),
            Profile::Sweep { .. } | Profile::Knee(_) | Profile::Goodput(_) => None,
        }
    }

    /// The next level, given those done; `None` at the end. Not for searches, which are not asked here.
    pub(crate) fn next(&self, done: &[LevelResult]) -> Option<Strategy> {
        let at = done.len();
        match self {
            Profile::Sweep {
                levels,
                poisson: random,
                max_concurrency,
            } => match at {
                0 => Some(Strategy::Synchronous),
                1 => Some(throughput(*max_concurrency)),
                _ if at < *levels => {
                    // As GuideLLM: even steps from the synchronous rate (not measured again) up to that of
                    // the throughput level.
                    let rate = |i: usize| LevelMetrics::of(&done[i]).requests_per_second;
                    let (low, high) = (rate(0).min(rate(1)), rate(0).max(rate(1)));
                    let step = (at - 1) as f64 / (levels - 2) as f64;
                    // To three digits: the rate is part of a file name.
                    let rate = three_digits(low + (high - low) * step);
                    let shape = if *random { poisson } else { constant };
                    (rate > 0.0).then(|| shape(rate, *max_concurrency))
                }
                _ => None,
            },
            _ => self.fixed()?.into_iter().nth(at),
        }
    }

    /// Find a factor that makes too much of a trace, whose times are in order.
    pub(crate) fn check_trace(&self, times_s: &[f64]) -> Result<(), BenchError> {
        let Profile::Replay { time_scales, .. } = self else {
            return Ok(());
        };
        let span_s = times_s.last().copied().unwrap_or(0.0);
        match time_scales.iter().find(|s| span_s * **s > MOST_SPAN_S) {
            None => Ok(()),
            Some(scale) => Err(BenchError::config(
                "--time-scale",
                format!("the trace takes {span_s} s, and {scale} times that is over three years"),
            )),
        }
    }

    /// Find values that make no sense.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        let cap = |cap: &Option<usize>| match cap {
            Some(0) => Err(BenchError::config(
                "--max-concurrency",
                "must be at least 1",
            )),
            _ => Ok(()),
        };
        match self {
            Profile::Synchronous => Ok(()),
            Profile::Knee(search) => search.check(),
            Profile::Goodput(search) => search.check(),
            Profile::Concurrent(streams) => {
                if streams.is_empty() || streams.iter().any(|s| !(1..=100_000).contains(s)) {
                    return Err(BenchError::config(
                        "--concurrency",
                        "give numbers of clients between 1 and 100,000, as in 1,5,10",
                    ));
                }
                Ok(())
            }
            Profile::Throughput { max_concurrency } => cap(max_concurrency),
            Profile::Constant {
                rates,
                max_concurrency,
            }
            | Profile::Poisson {
                rates,
                max_concurrency,
            } => {
                if rates.is_empty()
                    || rates
                        .iter()
                        .any(|r| !(r.is_finite() && *r > 0.0 && *r <= 1e6))
                {
                    return Err(BenchError::config(
                        "--rate",
                        "give requests per second above 0, as in 1,2.5,10",
                    ));
                }
                cap(max_concurrency)
            }
            Profile::Replay {
                time_scales,
                max_concurrency,
            } => {
                let fine = |s: &f64| (1.0 / MOST_TIME_SCALE..=MOST_TIME_SCALE).contains(s);
                if time_scales.is_empty() || !time_scales.iter().all(fine) {
                    return Err(BenchError::config(
                        "--time-scale",
                        "give factors between 0.000001 and 1,000,000, as in 1,0.5",
                    ));
                }
                cap(max_concurrency)
            }
            Profile::Sweep {
                levels,
                max_concurrency,
                ..
            } => {
                if !(3..=100).contains(levels) {
                    return Err(BenchError::config(
                        "--sweep-levels",
                        "must be between 3 and 100",
                    ));
                }
                cap(max_concurrency)
            }
        }
    }
}

/// A rate, rounded to three digits.
pub(crate) fn three_digits(rate: f64) -> f64 {
    let digits = 10f64.powf(2.0 - rate.max(1e-9).log10().floor());
    (rate * digits).round() / digits
}

fn constant(rate: f64, max_concurrency: Option<usize>) -> Strategy {
    Strategy::Constant {
        rate,
        max_concurrency,
    }
}

fn poisson(rate: f64, max_concurrency: Option<usize>) -> Strategy {
    Strategy::Poisson {
        rate,
        max_concurrency,
    }
}

fn throughput(max_concurrency: Option<usize>) -> Strategy {
    Strategy::Throughput {
        max_concurrency: Some(max_concurrency.unwrap_or(DEFAULT_CAP)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RequestRecord;

    fn level(requests_in_10_s: u64) -> LevelResult {
        let requests = (1..=requests_in_10_s).map(|i| RequestRecord {
            outcome: crate::Outcome::Successful,
            end_ns: i * 10_000_000_000 / requests_in_10_s,
            ..RequestRecord::default()
        });
        LevelResult {
            duration_s: 10.0,
            requests: requests.collect(),
            ..LevelResult::empty(Strategy::Synchronous)
        }
    }

    #[test]
    fn a_sweep_goes_between_the_two_ends() {
        let sweep = Profile::Sweep {
            levels: 5,
            poisson: false,
            max_concurrency: Some(9),
        };
        let mut done = vec![];
        assert_eq!(sweep.next(&done), Some(Strategy::Synchronous));
        done.push(level(10));
        assert_eq!(
            sweep.next(&done),
            Some(Strategy::Throughput {
                max_concurrency: Some(9)
            })
        );
        done.push(level(50));
        let mut rates = vec![];
        while let Some(Strategy::Constant { rate, .. }) = sweep.next(&done) {
            rates.push(rate);
            done.push(level(1));
        }
        // numpy.linspace(1, 5, 4)[1:], to three digits.
        assert_eq!(rates, [2.33, 3.67, 5.0]);
        let random = Profile::Sweep {
            levels: 5,
            poisson: true,
            max_concurrency: Some(9),
        };
        assert_eq!(
            random.next(&done[..2]),
            Some(Strategy::Poisson {
                rate: 2.33,
                max_concurrency: Some(9)
            })
        );
    }

    #[test]
    fn a_replay_has_a_level_for_each_factor() {
        let replay = |time_scales| Profile::Replay {
            time_scales,
            max_concurrency: None,
        };
        let profile = replay(vec![1.0, 0.5]);
        assert!(profile.check().is_ok() && profile.levels() == 2);
        let stems: Vec<String> = profile
            .fixed()
            .unwrap()
            .iter()
            .map(Strategy::file_stem)
            .collect();
        assert_eq!(stems, ["replay-1", "replay-0.5"]);
        for bad in [vec![], vec![0.0], vec![1.0, f64::NAN], vec![1e9]] {
            let error = replay(bad).check().unwrap_err().to_string();
            assert!(error.starts_with("--time-scale"), "{error}");
        }
        let times = [0.0, 2e7];
        assert!(profile.check_trace(&times).is_ok());
        assert!(replay(vec![10.0]).check_trace(&times).is_err());
    }

    #[test]
    fn lists_are_taken_in_order() {
        let profile = Profile::Concurrent(vec![1, 5]);
        assert_eq!(profile.next(&[]), Some(Strategy::Concurrent { streams: 1 }));
        assert_eq!(
            profile.next(&[level(1)]),
            Some(Strategy::Concurrent { streams: 5 })
        );
        assert_eq!(profile.next(&[level(1), level(1)]), None);
        assert_eq!(profile.levels(), 2);
    }
}
