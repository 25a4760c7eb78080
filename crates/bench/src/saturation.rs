//! Does a schedule outrun the server? Told from the slopes of the requests that are due but not done and
//! of their TTFT, while the level runs.
//!
//! Only an open loop can be over-saturated: a closed one sends no faster than the server answers, and its
//! concurrency has no slope. One sample a second rather than one a request: requests of the same second
//! know of each other. The samples of neighbouring seconds do too, so the number of independent ones is
//! estimated from the residuals' correlation, n (1 - r) / (1 + r), and the slope's interval is Student's t
//! on that number (Santer et al., "Statistical significance of trends", J. Geophys. Res. 105, 2000).

use std::collections::VecDeque;

use serde::Serialize;

use crate::distribution::CONFIDENCE;
use crate::error::BenchError;
use crate::special::t_quantile;

/// Samples that a slope needs.
const LEAST_SAMPLES: usize = 5;
/// The window leaves out this share of the level's start, in which a queue fills up on its way to being
/// steady.
const START_SHARE: f64 = 0.25;

/// When a level counts as over-saturated. The defaults are GuideLLM's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OverSaturation {
    /// Seconds of a level before it is judged.
    pub min_seconds: f64,
    /// Below this median TTFT, ms, nothing is over-saturated, whatever the slopes say.
    pub min_ttft_ms: f64,
    /// Seconds that the slopes are taken over, at most.
    pub window_seconds: f64,
    /// Warn and go on, rather than end the level.
    pub monitor: bool,
}

impl Default for OverSaturation {
    fn default() -> Self {
        OverSaturation {
            min_seconds: 30.0,
            min_ttft_ms: 2500.0,
            window_seconds: 120.0,
            monitor: false,
        }
    }
}

impl OverSaturation {
    /// Find values that make no sense.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        let fine = |v: f64, most: f64| (0.0..=most).contains(&v);
        if fine(self.min_seconds, 1e6)
            && fine(self.min_ttft_ms, 1e9)
            && self.window_seconds > 0.0
            && self.window_seconds <= 3600.0
        {
            return Ok(());
        }
        Err(BenchError::config(
            "--over-saturation",
            "its seconds and milliseconds must not be negative, its window not above an hour",
        ))
    }
}

/// One look at a level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Seconds since the level's start.
    pub at_s: f64,
    /// Requests that are due and have not ended, sent or not.
    pub open: f64,
    /// Mean TTFT of the requests that had their first token since the sample before, ms.
    pub ttft_ms: Option<f64>,
}

/// A line through samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Slope {
    /// Growth per second.
    pub per_second: f64,
    /// Half of its confidence interval.
    pub margin: f64,
}

impl Slope {
    /// Through (s, value) points in the order of time; `None` where there is too little to tell.
    pub fn of(points: &[(f64, f64)]) -> Option<Slope> {
        if points.len() < LEAST_SAMPLES {
            return None;
        }
        let n = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
        let (x, y) = (mean(|p| p.0), mean(|p| p.1));
        let sxx: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
        let sxy: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
        if sxx <= 0.0 || !sxy.is_finite() {
            return None;
        }
        let per_second = sxy / sxx;
        let residuals: Vec<f64> = points
            .iter()
            .map(|p| p.1 - y - per_second * (p.0 - x))
            .collect();
        let squares: f64 = residuals.iter().map(|r| r * r).sum();
        let pairs: f64 = residuals.windows(2).map(|w| w[0] * w[1]).sum();
        let correlation = if squares > 0.0 {
            (pairs / squares).clamp(0.0, 1.0)
        } else {
            0.0
        };
        // A line takes two; with fewer than three there is nothing left to judge it by.
        let independent = (n * (1.0 - correlation) / (1.0 + correlation)).max(3.0);
        let error = (squares / (independent - 2.0) / sxx).sqrt();
        let t = t_quantile(0.5 + CONFIDENCE / 2.0, independent - 2.0);
        Some(Slope {
            per_second,
            margin: t * error,
        })
    }

    /// Is it above zero beyond doubt?
    fn rises(&self) -> bool {
        self.per_second > self.margin
    }
}

/// Judges a level as it goes on.
#[derive(Debug)]
pub(crate) struct Detector {
    settings: OverSaturation,
    samples: VecDeque<Sample>,
}

impl Detector {
    pub fn new(settings: OverSaturation) -> Self {
        Detector {
            settings,
            samples: VecDeque::new(),
        }
    }

    /// Seconds between samples: one, or less where a verdict is wanted within a few.
    pub fn interval_s(&self) -> f64 {
        (self.settings.min_seconds / 10.0).clamp(0.1, 1.0)
    }

    /// Take a sample; how the level grows, as a clause, if it is over-saturated.
    pub fn judge(&mut self, sample: Sample) -> Option<String> {
        self.samples.push_back(sample);
        let start = (sample.at_s - self.settings.window_seconds).max(sample.at_s * START_SHARE);
        while self.samples.front().is_some_and(|s| s.at_s < start) {
            self.samples.pop_front();
        }
        if sample.at_s < self.settings.min_seconds {
            return None;
        }
        let ttfts: Vec<(f64, f64)> = self
            .samples
            .iter()
            .filter_map(|s| Some((s.at_s, s.ttft_ms?)))
            .collect();
        let slow = ttfts
            .iter()
            .filter(|t| t.1 > self.settings.min_ttft_ms)
            .count();
        if slow * 2 < ttfts.len() {
            return None;
        }
        let open: Vec<(f64, f64)> = self.samples.iter().map(|s| (s.at_s, s.open)).collect();
        let open = Slope::of(&open).filter(Slope::rises)?;
        let requests = format!(
            "{:.2} more requests open each second (± {:.2})",
            open.per_second, open.margin
        );
        if ttfts.len() < LEAST_SAMPLES {
            // Hardly a first token comes at all: the queue alone speaks.
            return Some(requests);
        }
        let ttft = Slope::of(&ttfts).filter(Slope::rises)?;
        Some(format!(
            "{requests}, TTFT {:.1} ms longer each second (± {:.1})",
            ttft.per_second, ttft.margin
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_slope_has_the_interval_of_the_textbook() {
        // y = 2x + 1 with residuals +1 -1 -1 +1 +... chosen to be uncorrelated with their neighbours.
        let exact: Vec<(f64, f64)> = (0..10)
            .map(|x| (f64::from(x), 2.0 * f64::from(x)))
            .collect();
        let slope = Slope::of(&exact).unwrap();
        assert!((slope.per_second - 2.0).abs() < 1e-12 && slope.margin < 1e-9);
        // Anscombe's first set: slope 0.5001, standard error 0.1179, 9 degrees of freedom. Its residuals
        // in the order of x alternate, so that all 11 points count.
        let anscombe = [
            (4.0, 4.26),
            (5.0, 5.68),
            (6.0, 7.24),
            (7.0, 4.82),
            (8.0, 6.95),
            (9.0, 8.81),
            (10.0, 8.04),
            (11.0, 8.33),
            (12.0, 10.84),
            (13.0, 7.58),
            (14.0, 9.96),
        ];
        let slope = Slope::of(&anscombe).unwrap();
        assert!((slope.per_second - 0.5001).abs() < 1e-4);
        assert!(
            (slope.margin - 2.262_157 * 0.1179).abs() < 1e-3,
            "{}",
            slope.margin
        );
        assert_eq!(Slope::of(&anscombe[..4]), None);
        assert_eq!(Slope::of(&[(1.0, 1.0); 9]), None);
    }

    /// Seconds after which a level is called over-saturated, of 120.
    fn judged(open: impl Fn(f64) -> f64, ttft: impl Fn(f64) -> Option<f64>) -> Option<u32> {
        let mut detector = Detector::new(OverSaturation::default());
        (1..=120).find(|second| {
            let at_s = f64::from(*second);
            let sample = Sample {
                at_s,
                open: open(at_s),
                ttft_ms: ttft(at_s),
            };
            detector.judge(sample).is_some()
        })
    }

    #[test]
    fn a_growing_queue_is_seen_and_a_steady_one_is_not() {
        // Ten requests a second too many: seen as soon as it may be.
        assert_eq!(judged(|t| 10.0 * t, |t| Some(200.0 * t)), Some(30));
        assert_eq!(
            judged(|t| 10.0 * t, |_| None),
            Some(30),
            "no first token ever"
        );
        // The queue grows but answers begin in time; or TTFT is long but steady.
        assert_eq!(judged(|t| 10.0 * t, Some), None);
        assert_eq!(judged(|_| 50.0, |_| Some(9000.0)), None);
        // It fills up within some seconds and stays.
        assert_eq!(
            judged(
                |t| (50.0 * t).min(300.0),
                |t| Some((1000.0 * t).min(6000.0))
            ),
            None
        );
    }

    #[test]
    fn noise_that_remembers_is_seldom_taken_for_growth() {
        let mut alarms = 0;
        for seed in 0..200 {
            let mut random = Random::new(7, seed);
            let (mut open, mut ttft) = (0.0, 0.0);
            let mut detector = Detector::new(OverSaturation::default());
            let alarm = (1..=120).any(|second| {
                open = 0.7 * open + random.fraction() - 0.5;
                ttft = 0.7 * ttft + random.fraction() - 0.5;
                let sample = Sample {
                    at_s: f64::from(second),
                    open: 100.0 + 10.0 * open,
                    ttft_ms: Some(5000.0 + 100.0 * ttft),
                };
                detector.judge(sample).is_some()
            });
            alarms += usize::from(alarm);
        }
        assert!(alarms <= 20, "{alarms} of 200");
    }
}
