//! Lengths and pauses drawn as GuideLLM draws them: from a normal distribution whose values are clipped, or
//! evenly between two bounds.

use crate::error::BenchError;
use crate::random::Random;

/// How values lie about their mean. With a standard deviation they are normal, and those outside the bounds
/// become the bound; the bounds are five deviations from the mean unless given. Without one they are even
/// between the bounds, of which one that is not given is the mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spread {
    /// Standard deviation.
    pub stdev: Option<u64>,
    /// Smallest.
    pub min: Option<u64>,
    /// Largest.
    pub max: Option<u64>,
}

/// Time that a user takes between an answer and the next turn, seconds. Drawn as a [`Spread`] is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ThinkTime {
    /// Mean.
    pub mean_s: f64,
    /// Standard deviation.
    pub stdev_s: Option<f64>,
    /// Shortest.
    pub min_s: Option<f64>,
    /// Longest.
    pub max_s: Option<f64>,
}

impl ThinkTime {
    /// Always the same time.
    pub fn fixed(seconds: f64) -> Self {
        ThinkTime {
            mean_s: seconds,
            stdev_s: None,
            min_s: None,
            max_s: None,
        }
    }

    /// Find values that make no sense.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        let values = [Some(self.mean_s), self.stdev_s, self.min_s, self.max_s];
        let fine = |s: &f64| (0.0..=MOST_SECONDS).contains(s);
        if !values.iter().flatten().all(fine) {
            return Err(BenchError::config(
                "--think-time",
                "mean, deviation and bounds must be seconds between 0 and 1,000,000",
            ));
        }
        let drawn = self.drawn();
        if drawn.low > drawn.high {
            return Err(BenchError::config(
                "--think-time",
                format!("nothing is between {} and {} s", drawn.low, drawn.high),
            ));
        }
        Ok(())
    }

    pub(crate) fn drawn(&self) -> Drawn {
        Drawn::new(self.mean_s, self.stdev_s, self.min_s, self.max_s, 0.0)
    }
}

/// Longest think time, seconds: eleven days.
pub(crate) const MOST_SECONDS: f64 = 1e6;
/// Most tokens of one prompt or answer that can be asked for.
pub(crate) const MOST_LENGTH: u64 = 10_000_000;

/// Values that can be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Drawn {
    mean: f64,
    stdev: f64,
    pub low: f64,
    pub high: f64,
}

impl Drawn {
    fn new(mean: f64, stdev: Option<f64>, min: Option<f64>, max: Option<f64>, least: f64) -> Self {
        let stdev = stdev.unwrap_or(0.0);
        Drawn {
            mean,
            stdev,
            low: min.unwrap_or((mean - 5.0 * stdev).max(least)),
            high: max.unwrap_or(mean + 5.0 * stdev),
        }
    }

    /// Those of a number of tokens.
    pub fn tokens(mean: u64, spread: Spread) -> Self {
        let float = |n: Option<u64>| n.map(|n| n as f64);
        Drawn::new(
            mean as f64,
            float(spread.stdev),
            float(spread.min),
            float(spread.max),
            1.0,
        )
    }

    /// The value, where there is only one.
    pub fn only(&self) -> Option<f64> {
        (self.low >= self.high).then_some(self.low)
    }

    /// One value.
    pub fn value(&self, random: &mut Random) -> f64 {
        if self.low >= self.high {
            self.low
        } else if self.stdev > 0.0 {
            // Box and Muller: of the two normal values that a pair of even ones gives, the first.
            let radius = (-2.0 * random.fraction().ln()).sqrt();
            let normal = radius * (std::f64::consts::TAU * random.fraction()).cos();
            (self.mean + self.stdev * normal).clamp(self.low, self.high)
        } else {
            self.low + (self.high - self.low) * random.fraction()
        }
    }

    /// One number of tokens.
    pub fn count(&self, random: &mut Random) -> u64 {
        if self.stdev == 0.0 && self.low < self.high {
            // Each number equally often, the bounds too.
            let (low, high) = (self.low as u64, self.high as u64);
            return low + random.below(high - low + 1);
        }
        self.value(random).round_ties_even() as u64
    }
}

/// Find lengths that make no sense. `flag` is that of the mean; those of the spread follow from it.
pub(crate) fn check(flags: [&'static str; 4], mean: u64, spread: Spread) -> Result<(), BenchError> {
    let values = [Some(mean), spread.stdev, spread.min, spread.max];
    for (flag, value) in flags.into_iter().zip(values) {
        if let Some(tokens) = value
            && !(1..=MOST_LENGTH).contains(&tokens)
        {
            return Err(BenchError::config(
                flag,
                format!("{tokens} is not between 1 and 10,000,000"),
            ));
        }
    }
    let drawn = Drawn::tokens(mean, spread);
    if drawn.low > drawn.high {
        let flag = if spread.min.is_some() {
            flags[2]
        } else {
            flags[3]
        };
        return Err(BenchError::config(
            flag,
            format!(
                "nothing is between {} and {} (a bound that is not given is the mean, or five deviations from it)",
                drawn.low, drawn.high
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draw(mean: u64, stdev: Option<u64>, min: Option<u64>, max: Option<u64>) -> Vec<u64> {
        let drawn = Drawn::tokens(mean, Spread { stdev, min, max });
        let mut random = Random::new(3, 0);
        (0..20_000).map(|_| drawn.count(&mut random)).collect()
    }

    fn moments(values: &[u64]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<u64>() as f64 / n;
        let variance = values
            .iter()
            .map(|v| (*v as f64 - mean).powi(2))
            .sum::<f64>()
            / n;
        (mean, variance.sqrt())
    }

    #[test]
    fn without_a_spread_there_is_one_length() {
        assert!(draw(77, None, None, None).iter().all(|n| *n == 77));
        assert!(draw(77, Some(9), Some(5), Some(5)).iter().all(|n| *n == 5));
        assert_eq!(Drawn::tokens(77, Spread::default()).only(), Some(77.0));
    }

    #[test]
    fn a_deviation_makes_them_normal() {
        let values = draw(500, Some(40), None, None);
        let (mean, stdev) = moments(&values);
        // Standard errors: 40 / sqrt(20000) = 0.28 of the mean, 0.2 of the deviation.
        assert!(
            (mean - 500.0).abs() < 1.5 && (stdev - 40.0).abs() < 1.0,
            "{mean} {stdev}"
        );
        // 68.27 % of a normal distribution lie within one deviation.
        let within = values.iter().filter(|n| n.abs_diff(500) <= 40).count() as f64 / 20_000.0;
        assert!((within - 0.69).abs() < 0.02, "{within}");
        // Five deviations are the bounds.
        assert!(values.iter().all(|n| (300..=700).contains(n)));
    }

    #[test]
    fn what_is_beyond_a_bound_becomes_the_bound() {
        let values = draw(100, Some(50), Some(80), Some(120));
        let at = |n| values.iter().filter(|v| **v == n).count() as f64 / 20_000.0;
        // A normal value is below mean - 0.4 deviations (+ half a token) with a probability of 0.348.
        assert!(
            (at(80) - 0.348).abs() < 0.02 && (at(120) - 0.348).abs() < 0.02,
            "{}",
            at(80)
        );
        // Small means: never below one token.
        assert!(
            draw(3, Some(50), None, None)
                .iter()
                .all(|n| (1..=253).contains(n))
        );
    }

    #[test]
    fn bounds_alone_make_them_even() {
        let values = draw(10, None, Some(8), Some(11));
        for n in 8..=11 {
            let share = values.iter().filter(|v| **v == n).count() as f64 / 20_000.0;
            assert!((share - 0.25).abs() < 0.02, "{n}: {share}");
        }
        // The bound that is missing is the mean.
        assert!(
            draw(10, None, Some(8), None)
                .iter()
                .all(|n| (8..=10).contains(n))
        );
    }

    #[test]
    fn bounds_that_leave_nothing_name_their_flag() {
        let flags = ["--mean", "--stdev", "--min", "--max"];
        let error = |mean, stdev, min, max| {
            check(flags, mean, Spread { stdev, min, max })
                .unwrap_err()
                .to_string()
        };
        assert!(check(flags, 10, Spread::default()).is_ok());
        assert!(error(0, None, None, None).starts_with("--mean"));
        assert!(error(1, Some(0), None, None).starts_with("--stdev"));
        assert!(error(10, None, Some(20), None).starts_with("--min"));
        assert!(error(10, None, None, Some(5)).starts_with("--max"));
        assert!(error(10, Some(1), Some(1 << 40), None).starts_with("--min"));
        let think = |mean_s, max_s| {
            ThinkTime {
                max_s,
                ..ThinkTime::fixed(mean_s)
            }
            .check()
        };
        assert!(think(1.0, None).is_ok() && think(f64::NAN, None).is_err());
        assert!(think(2.0, Some(1.0)).is_err() && think(1.0, Some(1e9)).is_err());
    }

    #[test]
    fn think_times_are_drawn_alike() {
        let time = ThinkTime {
            stdev_s: Some(0.1),
            max_s: Some(1.05),
            ..ThinkTime::fixed(1.0)
        };
        let mut random = Random::new(1, 2);
        let values: Vec<f64> = (0..10_000)
            .map(|_| time.drawn().value(&mut random))
            .collect();
        assert!(values.iter().all(|s| (0.5..=1.05).contains(s)));
        // 30.9 % of a normal distribution lie above half a deviation.
        let most = values.iter().filter(|s| **s == 1.05).count() as f64 / 10_000.0;
        assert!((most - 0.309).abs() < 0.03, "{most}");
    }

    proptest! {
        #[test]
        fn every_length_is_within_its_bounds(
            mean in 1..=MOST_LENGTH, stdev in proptest::option::of(1..=MOST_LENGTH),
            min in proptest::option::of(1..=MOST_LENGTH), max in proptest::option::of(1..=MOST_LENGTH), seed: u64,
        ) {
            let spread = Spread { stdev, min, max };
            prop_assume!(check(["a", "b", "c", "d"], mean, spread).is_ok());
            let drawn = Drawn::tokens(mean, spread);
            let mut random = Random::new(seed, 1);
            for _ in 0..20 {
                let n = drawn.count(&mut random);
                prop_assert!(n >= 1 && min.is_none_or(|m| n >= m) && max.is_none_or(|m| n <= m), "{n}");
            }
        }
    }
}
