//! What a set of values looks like: moments, percentiles, confidence intervals. Field names and
//! definitions are those of GuideLLM's report: percentiles are values that occurred (no
//! interpolation), variance is that of the population.

use serde::{Deserialize, Serialize};

use crate::column::{Column, Weight, Weighted};
use crate::special::{binomial_cdf, t_quantile};
use crate::spill::Sorted;

/// The level of every confidence interval here.
pub const CONFIDENCE: f64 = 0.95;

/// A two-sided confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ConfidenceInterval {
    /// Lower bound.
    pub lower: f64,
    /// Upper bound.
    pub upper: f64,
}

/// One `T` for each percentile that is reported, 0.1 to 99.9.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PerPercentile<T: Default> {
    /// 0.1 %.
    pub p001: T,
    /// 1 %.
    pub p01: T,
    /// 5 %.
    pub p05: T,
    /// 10 %.
    pub p10: T,
    /// 25 %.
    pub p25: T,
    /// 50 %.
    pub p50: T,
    /// 75 %.
    pub p75: T,
    /// 90 %.
    pub p90: T,
    /// 95 %.
    pub p95: T,
    /// 99 %.
    pub p99: T,
    /// 99.9 %.
    pub p999: T,
}

/// Percentiles.
pub type Percentiles = PerPercentile<f64>;
/// Intervals of percentiles; `None` where the sample is too small.
pub type PercentileIntervals = PerPercentile<Option<ConfidenceInterval>>;

/// The percentiles that are reported, as fractions.
const FRACTIONS: [f64; 11] = [
    0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999,
];

impl<T: Default> PerPercentile<T> {
    /// From one `T` for each of [`FRACTIONS`].
    fn from_list(list: impl IntoIterator<Item = T>) -> Self {
        let mut list = list.into_iter();
        let mut next = || list.next().unwrap_or_default();
        PerPercentile {
            p001: next(),
            p01: next(),
            p05: next(),
            p10: next(),
            p25: next(),
            p50: next(),
            p75: next(),
            p90: next(),
            p95: next(),
            p99: next(),
            p999: next(),
        }
    }
}

/// Moments, extremes and percentiles of a set of values; all zero for an empty set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DistributionSummary {
    /// Mean (weighted where the values have weights).
    pub mean: f64,
    /// Median, a value that occurred.
    pub median: f64,
    /// Most frequent value, the smallest of several.
    pub mode: f64,
    /// Population variance.
    pub variance: f64,
    /// Population standard deviation.
    pub std_dev: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Number of values; for weighted values the sum of weights, for rates the number of events.
    pub count: u64,
    /// mean x count.
    pub total_sum: f64,
    /// Percentiles.
    pub percentiles: Percentiles,
    /// 95 % interval of the mean (Student's t); `None` for fewer than two requests or values whose
    /// weights differ.
    pub mean_ci: Option<ConfidenceInterval>,
    /// 95 % intervals of the percentiles, from order statistics, so without assuming a shape.
    pub percentile_cis: Option<PercentileIntervals>,
}

/// Summarise values of equal weight. NaN and infinite values are left out.
pub fn summarize(values: &[f64]) -> DistributionSummary {
    let mut column = Column::in_memory();
    values.iter().for_each(|value| column.push(*value));
    column.summary()
}

/// Summarise (value, weight) pairs: each value counts as often as its weight says (an ITL by its
/// tokens, a rate by its seconds). Intervals treat each pair as one observation and are given only
/// where all weights are equal, as otherwise the pairs are not a sample of the same thing.
pub fn summarize_weighted(pairs: &[(f64, f64)]) -> DistributionSummary {
    let mut column = Column::in_memory();
    for (value, weight) in pairs {
        column.push_weighted(*value, *weight);
    }
    column.summary()
}

/// Summarise finite values with weights of 0 or more, sorted by value. They are read twice and never
/// held: there may be more of them than memory.
///
/// # Errors
/// If they cannot be read.
pub(crate) fn summary_of(
    sorted: &Sorted<Weighted>,
    kind: Weight,
) -> std::io::Result<DistributionSummary> {
    let sums = Sums::of(sorted, kind)?;
    if sums.observations == 0 {
        return Ok(DistributionSummary::default());
    }
    // Nothing has weight: all values count the same.
    let even = sums.weight <= 1e-6;
    let (total, sum) = match even {
        true => (sums.observations as f64, sums.values),
        false => (sums.weight, sums.weighted),
    };
    let (mean, count) = (sum / total, sums.weight.round() as u64);
    let intervals = sums.same_weight && sums.observations > 1;
    let ranks = FRACTIONS.map(|q| {
        intervals
            .then(|| percentile_ranks(sums.observations, q))
            .flatten()
    });
    let mut wanted: Vec<u64> = ranks.iter().flatten().flat_map(|r| [r.0, r.1]).collect();
    wanted.sort_unstable();
    wanted.dedup();

    let mut at_rank: Vec<f64> = Vec::with_capacity(wanted.len());
    let mut percentiles: Vec<f64> = Vec::with_capacity(FRACTIONS.len());
    let (mut squares, mut cumulative, mut seen) = (0.0, 0.0, 0u64);
    let mut ends: Option<(f64, f64)> = None;
    let mut mode = Mode::default();
    for pair in sorted.iter() {
        let (value, weight) = *pair?;
        seen += kind.observations(weight);
        while wanted.get(at_rank.len()).is_some_and(|rank| *rank < seen) {
            at_rank.push(value);
        }
        let weight = if even { 1.0 } else { weight };
        if weight <= 0.0 {
            continue;
        }
        ends = Some((ends.map_or(value, |e| e.0), value));
        squares += (value - mean).powi(2) * weight;
        mode.add(value, weight);
        cumulative += weight;
        // A hair below, so that rounding in the sum does not skip the value that reaches it exactly.
        while FRACTIONS
            .get(percentiles.len())
            .is_some_and(|q| q * total * (1.0 - 1e-12) <= cumulative)
        {
            percentiles.push(value);
        }
    }
    let (min, max) = ends.unwrap_or_default();
    percentiles.resize(FRACTIONS.len(), max);
    let percentiles = Percentiles::from_list(percentiles);
    let variance = squares / total;
    let rank = |rank: u64| Some(*at_rank.get(wanted.binary_search(&rank).ok()?)?);
    let bounds = |(lower, upper)| {
        Some(ConfidenceInterval {
            lower: rank(lower)?,
            upper: rank(upper)?,
        })
    };
    Ok(DistributionSummary {
        mean,
        median: percentiles.p50,
        mode: mode.finish(),
        variance,
        std_dev: variance.sqrt(),
        min,
        max,
        count,
        total_sum: mean * count as f64,
        percentiles,
        mean_ci: intervals.then(|| mean_interval(sums.observations, mean, variance)),
        percentile_cis: intervals
            .then(|| PerPercentile::from_list(ranks.map(|r| r.and_then(bounds)))),
    })
}

impl Weight {
    /// How many observations a pair of this weight is.
    fn observations(self, weight: f64) -> u64 {
        match self {
            Weight::Share => 1,
            Weight::Times => weight as u64,
        }
    }
}

/// What the first reading of a column finds.
struct Sums {
    observations: u64,
    weight: f64,
    weighted: f64,
    values: f64,
    /// Does every observation count the same, and does it count?
    same_weight: bool,
}

impl Sums {
    fn of(sorted: &Sorted<Weighted>, kind: Weight) -> std::io::Result<Sums> {
        let mut sums = Sums {
            observations: 0,
            weight: 0.0,
            weighted: 0.0,
            values: 0.0,
            same_weight: true,
        };
        let mut first = None;
        for pair in sorted.iter() {
            let (value, weight) = *pair?;
            sums.observations += kind.observations(weight);
            sums.weight += weight;
            sums.weighted += value * weight;
            sums.values += value;
            let same = weight > 0.0 && weight == *first.get_or_insert(weight);
            sums.same_weight &= same || kind == Weight::Times;
        }
        Ok(sums)
    }
}

/// The value with the most weight, the smallest of several; values come in order.
#[derive(Default)]
struct Mode {
    run: Option<(f64, f64)>,
    best: (f64, f64),
}

impl Mode {
    fn add(&mut self, value: f64, weight: f64) {
        match &mut self.run {
            Some(run) if run.0 == value => run.1 += weight,
            _ => {
                self.close();
                self.run = Some((value, weight));
            }
        }
    }

    fn close(&mut self) {
        if let Some(run) = self.run.take()
            && run.1 > self.best.1 * (1.0 + 1e-12)
        {
            self.best = run;
        }
    }

    fn finish(mut self) -> f64 {
        self.close();
        self.best.0
    }
}

/// Student's t interval of a mean, from the population variance of n values.
fn mean_interval(n: u64, mean: f64, variance: f64) -> ConfidenceInterval {
    let unbiased = variance * n as f64 / (n - 1) as f64;
    let half = t_quantile(0.5 + CONFIDENCE / 2.0, (n - 1) as f64) * (unbiased / n as f64).sqrt();
    ConfidenceInterval {
        lower: mean - half,
        upper: mean + half,
    }
}

/// The ranks (from 0) of the two observations between which the q-quantile lies with 95 %: how many of
/// n values fall below it is binomial, whatever the distribution. `None` where n is too small for both.
pub fn percentile_ranks(n: u64, q: f64) -> Option<(u64, u64)> {
    let tail = (1.0 - CONFIDENCE) / 2.0;
    // The first rank whose binomial CDF is above / at least the bound.
    let first = |holds: &dyn Fn(f64) -> bool| {
        let (mut low, mut high) = (0u64, n);
        while low < high {
            let middle = (low + high) / 2;
            if holds(binomial_cdf(middle as i64, n, q)) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    };
    let lower = first(&|cdf| cdf > tail).checked_sub(1)?;
    let upper = first(&|cdf| cdf >= 1.0 - tail);
    (upper < n).then_some((lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_values_by_hand() {
        let s = summarize(&[5.0, 1.0, 2.0, 2.0, 10.0]);
        assert_eq!(
            (s.mean, s.median, s.mode, s.min, s.max),
            (4.0, 2.0, 2.0, 1.0, 10.0)
        );
        assert_eq!((s.count, s.total_sum), (5, 20.0));
        // (1 + 9 + 4 + 4 + 36) / 5
        assert!((s.variance - 10.8).abs() < 1e-12);
        // Values that occurred: 0.1 x 5 = 0.5 is reached by the first, 0.75 x 5 = 3.75 by the fourth.
        let p = s.percentiles;
        assert_eq!(
            (p.p001, p.p10, p.p25, p.p75, p.p90, p.p999),
            (1.0, 1.0, 2.0, 5.0, 10.0, 10.0)
        );
        // t(0.975, 4) = 2.7764451; s = sqrt(13.5)
        let ci = s.mean_ci.unwrap();
        assert!((ci.upper - (4.0 + 2.776_445_105 * (13.5f64 / 5.0).sqrt())).abs() < 1e-8);
        assert!((ci.lower + ci.upper - 8.0).abs() < 1e-9);
        // Five values cannot bound any percentile at 95 %.
        assert_eq!(s.percentile_cis.unwrap(), PercentileIntervals::default());
    }

    #[test]
    fn percentile_bounds_are_the_known_order_statistics() {
        // For n = 20 the 95 % interval of the median is the 6th and the 15th value.
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        let cis = summarize(&values).percentile_cis.unwrap();
        assert_eq!(
            cis.p50,
            Some(ConfidenceInterval {
                lower: 6.0,
                upper: 15.0
            })
        );
        assert_eq!(cis.p95, None);
        // p95 needs ln(0.025) / ln(0.95) = 71.9 values: 72 are enough, 71 are not.
        let of = |n: u32| {
            summarize(&(0..n).map(f64::from).collect::<Vec<_>>())
                .percentile_cis
                .unwrap()
                .p95
        };
        assert!(of(71).is_none() && of(72).is_some());
    }

    #[test]
    fn weights_count_as_often_as_they_say() {
        let weighted = summarize_weighted(&[(1.0, 1.0), (4.0, 3.0)]);
        let spelled = summarize(&[1.0, 4.0, 4.0, 4.0]);
        assert_eq!(
            (weighted.mean, weighted.variance, weighted.count),
            (spelled.mean, spelled.variance, 4)
        );
        assert_eq!(weighted.percentiles, spelled.percentiles);
        assert!(weighted.mean_ci.is_none() && spelled.mean_ci.is_some());
        assert_eq!(summarize(&[]), DistributionSummary::default());
        assert_eq!(summarize(&[f64::NAN, 3.0]).count, 1);
    }
}
