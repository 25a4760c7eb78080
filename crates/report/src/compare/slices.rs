//! A level cut into time slices: how much a metric scatters from one to the next says how sure it is.
//!
//! Requests of one level are no independent sample: they share batches and queues, so neighbours are alike
//! and a test that counts each of them finds differences where there are none. Slices that are at least as
//! long as a request have left most of that behind them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use powerband_bench::distribution::{CONFIDENCE, percentile_ranks};
use powerband_bench::metrics::{Window, itl_in, output_events, seconds, ttft_in, weighted_tpot};
use powerband_bench::special::t_quantile;
use powerband_bench::{LevelResult, RequestRecord};

use super::metric::Metric;
use super::significance::{Estimate, LogError, jackknife};

/// Most slices of a level: more would not make the error better known.
const MOST: usize = 30;
/// Fewer say nothing.
const FEWEST: usize = 5;
/// Fewer requests do not bound a 99th percentile at 95 %: ln 0.025 / ln 0.99.
pub(super) const TAIL: usize = 367;

/// A level, or several of the same load, in slices.
#[derive(Default)]
pub(super) struct Slices {
    slices: Vec<Slice>,
    latencies: [Latency; 4],
}

#[derive(Default)]
struct Slice {
    length_s: f64,
    ended: f64,
    output: f64,
}

/// One latency: its weighted sums by slice, and its largest values.
#[derive(Default)]
struct Latency {
    sums: Vec<(f64, f64)>,
    weight: f64,
    count: usize,
    /// (value, weight, slice), the smallest first to go; values are the bits of floats of 0 or more,
    /// which have the order of the floats.
    top: BinaryHeap<Reverse<(u64, u64, usize)>>,
}

impl Latency {
    fn add(&mut self, slice: usize, value: f64, weight: f64, held: usize) {
        if !value.is_finite() || value < 0.0 {
            return;
        }
        if let Some(sum) = self.sums.get_mut(slice) {
            *sum = (sum.0 + value * weight, sum.1 + weight);
        }
        self.weight += weight;
        self.count += 1;
        self.top
            .push(Reverse((value.to_bits(), weight.to_bits(), slice)));
        if self.top.len() > held {
            self.top.pop();
        }
    }

    /// The mean without one slice, or of all.
    fn mean(&self, without: Option<usize>) -> f64 {
        let used = self.sums.iter().enumerate();
        let used = used.filter(|(i, _)| Some(*i) != without);
        let (sum, weight) = used.fold((0.0, 0.0), |t, (_, s)| (t.0 + s.0, t.1 + s.1));
        sum / weight
    }

    /// The 99th percentile without one slice, or of all: the value that occurred and that 99 % of the
    /// weight reach at most. `sorted`: the largest values first.
    fn p99(&self, sorted: &[(f64, f64, usize)], without: Option<usize>) -> f64 {
        let left_out = without.and_then(|i| self.sums.get(i)).map_or(0.0, |s| s.1);
        let tail = 0.01 * (self.weight - left_out) * (1.0 + 1e-12);
        let mut above = 0.0;
        let mut last = f64::NAN;
        for (value, weight, slice) in sorted {
            if Some(*slice) == without {
                continue;
            }
            above += weight;
            last = *value;
            if above > tail {
                break;
            }
        }
        last
    }
}

impl Slices {
    /// Cut one level more. `mean_e2e_s`: no slice is shorter.
    pub fn add(&mut self, level: &LevelResult, window: Window, steady: bool, mean_e2e_s: f64) {
        let length = window.1 - window.0;
        if !(length > 0.0 && length.is_finite()) {
            return;
        }
        let count = ((length / mean_e2e_s.max(1e-9)) as usize).clamp(1, MOST);
        let first = self.slices.len();
        let cut = length / count as f64;
        self.slices.extend((0..count).map(|_| Slice {
            length_s: cut,
            ..Slice::default()
        }));
        for latency in &mut self.latencies {
            latency.sums.resize(first + count, (0.0, 0.0));
        }
        // Of the values only those that can be in the tail without any one slice are held.
        let held = 10_000 + level.requests.len() / 4;
        let at = |ns: u64| {
            let into = (seconds(ns) - window.0) / cut;
            first + (into.max(0.0) as usize).min(count - 1)
        };
        let inside = |ns: u64| (window.0..=window.1).contains(&seconds(ns));
        for r in level.requests.iter().filter(|r| r.successful()) {
            if inside(r.end_ns) {
                self.slices[at(r.end_ns)].ended += 1.0;
            }
            for (time, tokens) in output_events(&r).filter(|e| inside(e.0)) {
                self.slices[at(time)].output += tokens;
            }
            // As the metrics of the level take them: its middle, the requests sent in it; else all that
            // overlap the window.
            let sent = seconds(r.sent_ns);
            let overlaps = seconds(r.end_ns) >= window.0 && sent <= window.1;
            if overlaps && (!steady || sent >= window.0) {
                let end = if steady { f64::INFINITY } else { window.1 };
                let values = values(&r, (window.0, end));
                for (latency, value) in self.latencies.iter_mut().zip(values) {
                    if let Some((value, weight)) = value {
                        latency.add(at(r.sent_ns), value, weight, held);
                    }
                }
            }
        }
    }

    /// A metric, with its error where there is enough to tell.
    pub fn estimate(&self, metric: Metric) -> Option<Estimate> {
        let of = |by: &dyn Fn(Option<usize>) -> f64| {
            let value = by(None);
            let enough = self.slices.len() >= FEWEST;
            let without = || {
                (0..self.slices.len())
                    .map(|i| by(Some(i)))
                    .collect::<Vec<_>>()
            };
            (value.is_finite() && value > 0.0).then(|| Estimate {
                value,
                error: enough.then(|| jackknife(&without())).flatten(),
            })
        };
        let rate = |amount: fn(&Slice) -> f64, without: Option<usize>| {
            let used = self.slices.iter().enumerate();
            let used = used.filter(|(i, _)| Some(*i) != without);
            let (sum, time) =
                used.fold((0.0, 0.0), |t, (_, s)| (t.0 + amount(s), t.1 + s.length_s));
            sum / time
        };
        let [ttft, itl, tpot, e2e] = &self.latencies;
        let mean = |latency: &Latency| of(&|without| latency.mean(without));
        let p99 = |latency: &Latency| {
            let sorted = latency.sorted();
            let estimate = of(&|without| latency.p99(&sorted, without))?;
            // Slices hold few values of a tail, and these may happen to agree: the error is at least that
            // of independent requests, which the order statistics bound.
            let independent = latency.independent_p99_error(&sorted);
            Some(Estimate {
                error: estimate.error.zip(independent).map(|(error, se)| LogError {
                    se: error.se.max(se),
                    ..error
                }),
                ..estimate
            })
        };
        match metric {
            Metric::Failed => None,
            Metric::OutputThroughput => of(&|without| rate(|s| s.output, without)),
            Metric::RequestThroughput => of(&|without| rate(|s| s.ended, without)),
            Metric::Ttft => mean(ttft),
            Metric::TtftP99 => p99(ttft),
            Metric::Itl => mean(itl),
            Metric::ItlP99 => p99(itl),
            Metric::Tpot => mean(tpot),
            Metric::TpotP99 => p99(tpot),
            Metric::E2e => mean(e2e),
            Metric::E2eP99 => p99(e2e),
        }
    }
}

impl Latency {
    /// The standard error of the logarithm of the 99th percentile if requests were independent; `None` for
    /// too few of them.
    fn independent_p99_error(&self, sorted: &[(f64, f64, usize)]) -> Option<f64> {
        let count = self.count as u64;
        let (low, high) = percentile_ranks(count, 0.99)?;
        // Ranks count from the smallest.
        let value = |rank: u64| {
            let from_the_top = usize::try_from(count - 1 - rank).ok()?;
            sorted.get(from_the_top).map(|entry| entry.0)
        };
        let width = (value(high)? / value(low)?).ln();
        let se = width / (2.0 * t_quantile(0.5 + CONFIDENCE / 2.0, 1e6));
        se.is_finite().then_some(se)
    }

    fn sorted(&self) -> Vec<(f64, f64, usize)> {
        let mut all: Vec<_> = self.top.iter().map(|Reverse(entry)| *entry).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.into_iter()
            .map(|(value, weight, slice)| (f64::from_bits(value), f64::from_bits(weight), slice))
            .collect()
    }
}

/// TTFT, ITL, TPOT and E2E of a request that overlaps the window, ms, with their weights.
fn values(r: &RequestRecord, window: Window) -> [Option<(f64, f64)>; 4] {
    [
        ttft_in(r, window).map(|v| (v, 1.0)),
        itl_in(r, window),
        weighted_tpot(r),
        Some((r.e2e_s() * 1e3, 1.0)),
    ]
}
