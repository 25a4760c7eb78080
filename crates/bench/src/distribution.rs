//! What a set of values looks like: moments, percentiles, confidence intervals. Field names and
//! definitions are those of GuideLLM's report: percentiles are values that occurred (no
//! interpolation), variance is that of the population.

use serde::{Deserialize, Serialize};

use crate::special::{binomial_cdf, t_quantile};

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

impl<T: Default> PerPercentile<T> {
    /// Ask `of` for each percentile, given as a fraction.
    fn from_fn(mut of: impl FnMut(f64) -> T) -> Self {
        PerPercentile {
            p001: of(0.001),
            p01: of(0.01),
            p05: of(0.05),
            p10: of(0.1),
            p25: of(0.25),
            p50: of(0.5),
            p75: of(0.75),
            p90: of(0.9),
            p95: of(0.95),
            p99: of(0.99),
            p999: of(0.999),
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
    let pairs: Vec<(f64, f64)> = values.iter().map(|v| (*v, 1.0)).collect();
    summarize_weighted(&pairs)
}

/// Summarise (value, weight) pairs: each value counts as often as its weight says (an ITL by its
/// tokens, a rate by its seconds). Intervals treat each pair as one observation and are given only
/// where all weights are equal, as otherwise the pairs are not a sample of the same thing.
pub fn summarize_weighted(pairs: &[(f64, f64)]) -> DistributionSummary {
    let mut sorted: Vec<(f64, f64)> = pairs
        .iter()
        .copied()
        .filter(|(value, weight)| value.is_finite() && weight.is_finite() && *weight >= 0.0)
        .collect();
    if sorted.is_empty() {
        return DistributionSummary::default();
    }
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let observations: Vec<f64> = sorted.iter().map(|p| p.0).collect();
    let weight = sorted[0].1;
    let same_weight = weight > 0.0 && sorted.iter().all(|p| p.1 == weight);
    let mut total: f64 = sorted.iter().map(|p| p.1).sum();
    let count = total.round() as u64;
    if total <= 1e-6 {
        // Nothing has weight: all values count the same.
        sorted.iter_mut().for_each(|p| p.1 = 1.0);
        total = sorted.len() as f64;
    }
    sorted.retain(|p| p.1 > 0.0);
    let mean = sorted.iter().map(|(v, w)| v * w).sum::<f64>() / total;
    let variance = sorted
        .iter()
        .map(|(v, w)| (v - mean).powi(2) * w)
        .sum::<f64>()
        / total;
    let percentiles = percentiles(&sorted, total);
    let (min, max) = (sorted[0].0, sorted[sorted.len() - 1].0);
    let intervals = same_weight && observations.len() > 1;
    DistributionSummary {
        mean,
        median: percentiles.p50,
        mode: mode(&sorted),
        variance,
        std_dev: variance.sqrt(),
        min,
        max,
        count,
        total_sum: mean * count as f64,
        percentiles,
        mean_ci: intervals.then(|| mean_interval(observations.len(), mean, variance)),
        percentile_cis: intervals
            .then(|| PerPercentile::from_fn(|q| percentile_interval(&observations, q))),
    }
}

/// The smallest value whose cumulative weight reaches each percentile.
fn percentiles(sorted: &[(f64, f64)], total: f64) -> Percentiles {
    let mut cumulative = Vec::with_capacity(sorted.len());
    let mut sum = 0.0;
    for (_, weight) in sorted {
        sum += weight;
        cumulative.push(sum);
    }
    Percentiles::from_fn(|q| {
        // A hair below, so that rounding in the sum does not skip the value that reaches it exactly.
        let target = q * total * (1.0 - 1e-12);
        let at = cumulative.partition_point(|c| *c < target);
        sorted[at.min(sorted.len() - 1)].0
    })
}

/// The value with the most weight, the smallest of several.
fn mode(sorted: &[(f64, f64)]) -> f64 {
    let (mut best, mut best_weight) = (sorted[0].0, 0.0);
    for run in sorted.chunk_by(|a, b| a.0 == b.0) {
        let weight: f64 = run.iter().map(|p| p.1).sum();
        if weight > best_weight * (1.0 + 1e-12) {
            (best, best_weight) = (run[0].0, weight);
        }
    }
    best
}

/// Student's t interval of a mean, from the population variance of n values.
fn mean_interval(n: usize, mean: f64, variance: f64) -> ConfidenceInterval {
    let unbiased = variance * n as f64 / (n - 1) as f64;
    let half = t_quantile(0.5 + CONFIDENCE / 2.0, (n - 1) as f64) * (unbiased / n as f64).sqrt();
    ConfidenceInterval {
        lower: mean - half,
        upper: mean + half,
    }
}

/// The two observations between which the q-quantile lies with 95 %: how many of n values fall
/// below it is binomial, whatever the distribution. `None` where n is too small for both bounds.
fn percentile_interval(sorted: &[f64], q: f64) -> Option<ConfidenceInterval> {
    let n = sorted.len() as u64;
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
    Some(ConfidenceInterval {
        lower: *sorted.get(lower as usize)?,
        upper: *sorted.get(upper as usize)?,
    })
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
