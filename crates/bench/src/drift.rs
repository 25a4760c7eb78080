//! Was the server at the end of a run what it was at its start? The first level against its repeat.
//!
//! Requests of one moment know of each other (they shared a batch), so they are no independent sample. Each
//! level is cut into [`BATCHES`] parts of equal time, after the first wave and before the clients run out of
//! work where that is known; the parts' means are compared by Welch's t test. A difference counts when it is
//! significant (1 % shared by the three measures) and larger than [`SMALLEST`], as a very long level would
//! make any difference significant.

use serde::{Deserialize, Serialize};

use crate::metrics::{LevelMetrics, seconds, window};
use crate::record::LevelResult;
use crate::special::t_two_sided;

/// Parts of a level.
const BATCHES: usize = 10;
/// Parts that must hold requests for a verdict.
const LEAST_BATCHES: usize = 5;
/// Chance of a false alarm.
const SIGNIFICANCE: f64 = 0.01;
/// Relative difference below which nothing has moved.
const SMALLEST: f64 = 0.03;

/// One measure of a level, the first time and the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// `requests_per_second`, `time_to_first_token_ms` or `request_latency` (s).
    pub metric: String,
    /// Mean of the parts of the first level.
    pub first: f64,
    /// Mean of the parts of its repeat.
    pub last: f64,
    /// Chance of such a difference were the server the same; `None` if there are too few requests to tell.
    pub p_value: Option<f64>,
    /// Significant and not small.
    pub moved: bool,
}

/// The first level of a run against its repeat at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// Name of the level.
    pub level: String,
    /// Its measures.
    pub metrics: Vec<Moved>,
}

/// Mean of each part of a level, for each measure.
struct Parts {
    rate: Vec<f64>,
    ttft_ms: Vec<f64>,
    latency_s: Vec<f64>,
}

impl Drift {
    /// Compare two levels of one shape.
    pub fn between(first: &LevelResult, last: &LevelResult) -> Drift {
        let (a, b) = (Parts::of(first), Parts::of(last));
        Drift {
            level: first.strategy.file_stem(),
            metrics: vec![
                moved("requests_per_second", &a.rate, &b.rate),
                moved("time_to_first_token_ms", &a.ttft_ms, &b.ttft_ms),
                moved("request_latency", &a.latency_s, &b.latency_s),
            ],
        }
    }

    /// What a reader must know, if anything has moved.
    pub fn warning(&self) -> Option<String> {
        let moved: Vec<String> = self
            .metrics
            .iter()
            .filter(|m| m.moved)
            .map(|m| {
                format!(
                    "{} from {:.4} to {:.4} ({:+.1} %)",
                    m.metric,
                    m.first,
                    m.last,
                    100.0 * (m.last / m.first - 1.0)
                )
            })
            .collect();
        (!moved.is_empty()).then(|| {
            format!(
                "the server drifted during the run: between level {} at the start and its repeat at the end moved {}",
                self.level,
                moved.join(", ")
            )
        })
    }
}

impl Parts {
    fn of(level: &LevelResult) -> Parts {
        let steady = LevelMetrics::of(level).steady;
        let (start, end) = steady.map_or_else(|| window(level), |s| (s.start_s, s.end_s));
        let length = (end - start) / BATCHES as f64;
        let mut ended = [0.0; BATCHES];
        let (mut ttfts, mut latencies) = ([(0.0, 0.0); BATCHES], [(0.0, 0.0); BATCHES]);
        for r in level.requests.iter().filter(|r| r.successful()) {
            let part = (seconds(r.end_ns) - start) / length;
            if !(part >= 0.0 && part < BATCHES as f64) {
                continue;
            }
            let part = part as usize;
            ended[part] += 1.0;
            latencies[part].0 += r.e2e_s();
            latencies[part].1 += 1.0;
            if let Some(ttft) = r.ttft_ms() {
                ttfts[part].0 += ttft;
                ttfts[part].1 += 1.0;
            }
        }
        let means = |sums: &[(f64, f64)]| -> Vec<f64> {
            sums.iter()
                .filter(|s| s.1 > 0.0)
                .map(|s| s.0 / s.1)
                .collect()
        };
        let known = length > 0.0;
        Parts {
            rate: ended.iter().filter(|_| known).map(|n| n / length).collect(),
            ttft_ms: means(&ttfts),
            latency_s: means(&latencies),
        }
    }
}

/// Mean and variance (of a sample) of values.
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, squares / (n - 1.0).max(1.0))
}

/// Welch's t test of two samples' means, two-sided.
fn welch(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() < LEAST_BATCHES || b.len() < LEAST_BATCHES {
        return None;
    }
    let ((mean_a, var_a), (mean_b, var_b)) = (moments(a), moments(b));
    let (na, nb) = (a.len() as f64, b.len() as f64);
    let (ea, eb) = (var_a / na, var_b / nb);
    if ea + eb <= 0.0 {
        return Some(if mean_a == mean_b { 1.0 } else { 0.0 });
    }
    let t = (mean_a - mean_b) / (ea + eb).sqrt();
    let df = (ea + eb).powi(2) / (ea * ea / (na - 1.0) + eb * eb / (nb - 1.0));
    Some(t_two_sided(t, df))
}

fn moved(metric: &str, first: &[f64], last: &[f64]) -> Moved {
    let p_value = welch(first, last);
    let (a, b) = (moments(first).0, moments(last).0);
    Moved {
        metric: metric.to_owned(),
        first: a,
        last: b,
        p_value,
        moved: p_value.is_some_and(|p| p < SIGNIFICANCE / 3.0)
            && (b - a).abs() > SMALLEST * a.abs(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::record::{Outcome, RequestRecord, Strategy};

    #[test]
    fn welch_as_in_the_textbook() {
        // The first example of Wikipedia's article on the test: t = -2.46, 25.0 degrees, p = 0.021.
        let a = [
            27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7,
            21.4,
        ];
        let b = [
            27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5,
            24.4,
        ];
        let p = welch(&a, &b).unwrap();
        assert!((p - 0.021).abs() < 5e-4, "{p}");
        assert_eq!(welch(&a, &b[..4]), None);
        assert_eq!(welch(&[1.0; 5], &[1.0; 5]), Some(1.0));
    }

    /// A synchronous level of 200 requests that take `ms` and up to a fifth more.
    fn level(ms: f64, seed: u64) -> LevelResult {
        let mut random = Random::new(seed, 1);
        let mut now = 0u64;
        let requests = (0..200).map(|_| {
            let sent_ns = now;
            now += (ms * (1.0 + 0.2 * random.fraction()) * 1e6) as u64;
            RequestRecord {
                outcome: Outcome::Successful,
                sent_ns,
                first_token_ns: Some(sent_ns + (now - sent_ns) / 2),
                end_ns: now,
                ..RequestRecord::default()
            }
        });
        let requests: Vec<RequestRecord> = requests.collect();
        LevelResult {
            duration_s: now as f64 / 1e9,
            requests: requests.into(),
            ..LevelResult::empty(Strategy::Synchronous)
        }
    }

    #[test]
    fn a_slower_server_has_drifted_and_the_same_one_has_not() {
        let alarms = (0..50)
            .filter(|seed| {
                Drift::between(&level(20.0, 2 * seed), &level(20.0, 2 * seed + 1))
                    .warning()
                    .is_some()
            })
            .count();
        assert!(alarms <= 1, "{alarms}");
        let drift = Drift::between(&level(20.0, 1), &level(24.0, 2));
        assert!(drift.metrics.iter().all(|m| m.moved), "{drift:?}");
        let told = drift.warning().unwrap();
        assert!(
            told.contains("synchronous") && told.contains("requests_per_second from"),
            "{told}"
        );
        // Too few requests for a verdict: none is given.
        let few = LevelResult {
            requests: level(20.0, 1)
                .requests
                .iter()
                .take(3)
                .map(|r| r.into_owned())
                .collect(),
            ..level(20.0, 1)
        };
        let drift = Drift::between(&few, &level(90.0, 2));
        assert_eq!(drift.metrics[1].p_value, None);
        assert!(!drift.metrics[1].moved);
    }
}
