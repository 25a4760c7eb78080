//! Where does throughput stop paying for its concurrency? A ladder of concurrencies, then closer and closer
//! levels around the bend.
//!
//! The knee is the concurrency N at which *power*, throughput over response time, is largest (Kleinrock,
//! "Power and deterministic rules of thumb for probabilistic problems in computer communications", ICC
//! 1979). By Little's law the response time is N / X, so power is X^2 / N, and it is largest where the
//! elasticity of throughput, d ln X / d ln N, falls below one half: up to there, doubling the clients brings
//! at least 41 % more throughput. Unlike the largest distance from a chord this does not depend on how far
//! the curve was measured, and it needs no slope between neighbouring levels, which would be mostly noise.

use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::metrics::{LevelMetrics, STEADY_WAVES};
use crate::record::{LevelResult, Strategy};

/// A step of the ladder that brings less than this much more throughput is flat.
const FLAT: f64 = 0.05;
/// Flat steps in a row that end the ladder: more clients would only wait.
const FLAT_STEPS: usize = 2;
/// Standard errors by which two levels must differ: 95 % for one comparison.
const ERRORS_APART: f64 = 2.0;
/// No level's throughput is known better than this, relatively: levels differ by more than their requests.
const LEAST_ERROR: f64 = 0.01;

/// A search for the knee.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KneeSearch {
    /// Most clients.
    pub max_concurrency: usize,
    /// The search ends when the levels around the knee are this close, relative to it.
    pub tolerance: f64,
    /// Most levels.
    pub max_levels: usize,
}

impl KneeSearch {
    /// With the usual settings: the knee within 10 %, 30 levels.
    pub fn new(max_concurrency: usize) -> Self {
        KneeSearch {
            max_concurrency,
            tolerance: 0.1,
            max_levels: 30,
        }
    }

    /// Find values that make no sense.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        if !(4..=100_000).contains(&self.max_concurrency) {
            return Err(BenchError::config(
                "--max-concurrency",
                "must be between 4 and 100,000 for a knee",
            ));
        }
        if !(self.tolerance > 0.0 && self.tolerance <= 1.0) {
            return Err(BenchError::config(
                "--search-tolerance",
                "must be above 0 and at most 1",
            ));
        }
        if !(3..=100).contains(&self.max_levels) {
            return Err(BenchError::config(
                "--search-levels",
                "must be between 3 and 100 for a knee",
            ));
        }
        Ok(())
    }
}

/// One level as the search sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KneePoint {
    /// Clients.
    pub streams: usize,
    /// Output tokens per second (requests per second where there are no tokens), of the steady part where
    /// there is one.
    pub throughput: f64,
    /// Relative standard error of it; `None` for too few waves to tell.
    pub error: Option<f64>,
}

impl KneePoint {
    /// Logarithm of the power.
    fn power(&self) -> f64 {
        2.0 * self.throughput.max(1e-12).ln() - (self.streams as f64).ln()
    }

    /// Is its power below that of `other` beyond doubt?
    fn below(&self, other: &KneePoint) -> bool {
        let (Some(a), Some(b)) = (self.error, other.error) else {
            return false;
        };
        let error = 2.0 * a.max(LEAST_ERROR).hypot(b.max(LEAST_ERROR));
        other.power() - self.power() > ERRORS_APART * error
    }
}

/// The answer of a search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KneeResult {
    /// Clients at the knee; `None` where there is none to be told.
    pub knee: Option<usize>,
    /// The nearest levels on either side that are worse beyond doubt: the knee lies between them. No lower
    /// one if the knee is at the first level.
    pub between: Option<(Option<usize>, usize)>,
    /// The answer, or why there is none, as a sentence.
    pub statement: String,
    /// The levels that it rests on, by clients.
    pub points: Vec<KneePoint>,
}

/// A search on its way.
#[derive(Debug, Clone)]
pub(crate) struct KneeState {
    search: KneeSearch,
    /// By clients.
    points: Vec<KneePoint>,
    /// Why the client is the limit.
    client_limited: Option<String>,
}

impl KneeState {
    pub fn new(search: KneeSearch) -> Self {
        KneeState {
            search,
            points: Vec::new(),
            client_limited: None,
        }
    }

    /// The next level; `None` at the end.
    pub fn next(&self) -> Option<Strategy> {
        self.next_streams()
            .map(|streams| Strategy::Concurrent { streams })
    }

    fn next_streams(&self) -> Option<usize> {
        if self.client_limited.is_some() || self.points.len() >= self.search.max_levels {
            return None;
        }
        self.next_of_ladder().or_else(|| self.next_around_best())
    }

    fn next_of_ladder(&self) -> Option<usize> {
        let Some(top) = self.points.last() else {
            return Some(1);
        };
        // While the ladder is climbed it is all that there is; what came later lies below its top.
        let flat = self
            .points
            .windows(2)
            .rev()
            .take(FLAT_STEPS)
            .filter(|w| w[1].throughput < w[0].throughput * (1.0 + FLAT))
            .count();
        let climbing = self
            .points
            .windows(2)
            .all(|w| w[1].streams == 2 * w[0].streams);
        let next = (2 * top.streams).min(self.search.max_concurrency);
        (climbing && flat < FLAT_STEPS && next > top.streams).then_some(next)
    }

    /// The level in the wider of the two gaps beside the best one.
    fn next_around_best(&self) -> Option<usize> {
        let best = self.best()?;
        let at = |i: usize| self.points.get(i).map(|p| p.streams);
        let here = at(best)?;
        let below = best.checked_sub(1).and_then(at).map(|low| (low, here));
        let above = at(best + 1).map(|high| (here, high));
        let ratio = |gap: &(usize, usize)| gap.1 as f64 / gap.0 as f64;
        let middle = |gap: (usize, usize)| {
            let middle = ((gap.0 as f64) * (gap.1 as f64)).sqrt().round() as usize;
            middle.clamp(gap.0 + 1, gap.1 - 1)
        };
        below
            .into_iter()
            .chain(above)
            .filter(|gap| gap.1 > gap.0 + 1 && ratio(gap) > 1.0 + self.search.tolerance)
            .max_by(|a, b| ratio(a).total_cmp(&ratio(b)))
            .map(middle)
            // A curve that still rises at its top has no bend to look for.
            .filter(|_| best + 1 < self.points.len())
    }

    /// Index of the point of the largest power.
    fn best(&self) -> Option<usize> {
        let powers = self.points.iter().map(KneePoint::power).enumerate();
        powers.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
    }

    /// Take in a level.
    pub fn learn(&mut self, level: &LevelResult, metrics: &LevelMetrics) {
        let Some(streams) = level.strategy.concurrency() else {
            return;
        };
        let (tokens, requests) = match &metrics.steady {
            Some(s) => (s.output_tokens_per_second, s.requests_per_second),
            None => (
                metrics.output_tokens_per_second,
                metrics.requests_per_second,
            ),
        };
        if level.client.limited {
            self.client_limited = Some(format!("at {streams} streams: {}", level.client.reason));
        }
        self.add(KneePoint {
            streams,
            throughput: if tokens > 0.0 { tokens } else { requests },
            error: relative_error(level, streams),
        });
    }

    fn add(&mut self, point: KneePoint) {
        let at = self.points.partition_point(|p| p.streams < point.streams);
        self.points.insert(at, point);
    }

    /// The answer so far; `stopped` tells why the run ended before the search did.
    pub fn result(&self, stopped: Option<&str>) -> KneeResult {
        let (knee, between, statement) = match self.answer(stopped) {
            Ok((best, low, high)) => {
                let lower = low.map_or_else(String::new, |low| format!(" and {low}"));
                (
                    Some(best.streams),
                    Some((low, high)),
                    format!(
                        "the knee is at {} streams (throughput over response time is largest there, and lower beyond doubt at {high}{lower})",
                        best.streams,
                    ),
                )
            }
            Err(why) => (None, None, format!("no knee: {why}")),
        };
        KneeResult {
            knee,
            between,
            statement,
            points: self.points.clone(),
        }
    }

    /// The best point, and the nearest levels below and above that are worse beyond doubt.
    fn answer(&self, stopped: Option<&str>) -> Result<(&KneePoint, Option<usize>, usize), String> {
        if let Some(limited) = &self.client_limited {
            return Err(format!("the client was the limit {limited}"));
        }
        if let Some(stopped) = stopped {
            return Err(format!("the run ended before the search: {stopped}"));
        }
        let Some((at, best)) = self
            .best()
            .and_then(|at| Some((at, self.points.get(at)?)))
            .filter(|_| self.points.len() >= 3)
        else {
            return Err("fewer than three levels were measured".into());
        };
        let (below, above) = (&self.points[..at], &self.points[at + 1..]);
        if above.is_empty() {
            return Err(format!(
                "throughput still rises at {} streams; raise --max-concurrency",
                best.streams
            ));
        }
        let noisy = |side: &str| {
            format!(
                "the levels are too noisy to tell {} streams from those {side}; send more requests a level",
                best.streams
            )
        };
        let high = above
            .iter()
            .find(|p| p.below(best))
            .ok_or_else(|| noisy("above"))?;
        let low = below.iter().rev().find(|p| p.below(best));
        if low.is_none() && !below.is_empty() {
            return Err(noisy("below"));
        }
        Ok((best, low.map(|p| p.streams), high.streams))
    }
}

/// Relative standard error of a closed loop's throughput, which is its clients over the mean latency:
/// from the means of waves, as requests of one wave share a batch and say the same. The first wave starts
/// all at once and is left out.
fn relative_error(level: &LevelResult, streams: usize) -> Option<f64> {
    let mut ends: Vec<(u64, f64)> = level
        .requests
        .iter()
        .filter(|r| r.successful())
        .map(|r| (r.end_ns, r.e2e_s()))
        .collect();
    ends.sort_unstable_by_key(|end| end.0);
    let rest = ends.get(streams..)?;
    let waves: Vec<f64> = rest
        .chunks_exact(streams.max(rest.len() / 20).max(1))
        .map(|wave| wave.iter().map(|end| end.1).sum::<f64>() / wave.len() as f64)
        .collect();
    let n = waves.len() as f64;
    let mean = waves.iter().sum::<f64>() / n;
    let variance = waves.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (waves.len() >= STEADY_WAVES - 1 && mean > 0.0).then(|| (variance / n).sqrt() / mean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Search on a curve with relative noise.
    fn found(max: usize, noise: f64, seed: u64, curve: impl Fn(f64) -> f64) -> KneeResult {
        let mut state = KneeState::new(KneeSearch::new(max));
        let mut random = Random::new(seed, 4);
        while let Some(streams) = state.next_streams() {
            assert!(
                state.points.iter().all(|p| p.streams != streams),
                "{streams} twice"
            );
            // Two uniform ones: a standard deviation of 0.41.
            let scatter = (random.fraction() + random.fraction() - 1.0) / 0.41;
            state.add(KneePoint {
                streams,
                throughput: curve(streams as f64) * (1.0 + noise * scatter),
                error: Some(noise),
            });
        }
        assert!(state.points.len() <= 30);
        state.result(None)
    }

    #[test]
    fn a_hard_limit_is_the_knee_within_the_tolerance() {
        for slots in [1usize, 2, 3, 5, 16, 24, 37, 100, 200] {
            let answer = found(1000, 0.0, 1, |n| n.min(slots as f64));
            let knee = answer.knee.unwrap();
            let off = knee.abs_diff(slots) as f64;
            assert!(off <= (0.1 * slots as f64).max(0.0), "{slots}: {answer:?}");
            let (low, high) = answer.between.unwrap();
            assert!(
                low.is_none_or(|low| low < slots) && high > slots,
                "{slots}: {answer:?}"
            );
            assert!(answer.points.len() <= 20);
        }
    }

    #[test]
    fn a_soft_bend_is_where_the_elasticity_is_one_half() {
        // X = N / (1 + N / h): d ln X / d ln N = 1 / (1 + N / h), one half at N = h.
        for half in [6.0, 20.0, 75.0] {
            let answer = found(4096, 0.0, 1, |n| n / (1.0 + n / half));
            let knee = answer.knee.unwrap() as f64;
            assert!((knee / half - 1.0).abs() < 0.3, "{half}: {answer:?}");
        }
        // A curve that falls after its peak.
        let answer = found(512, 0.0, 1, |n| n.min(40.0) - (n - 40.0).max(0.0) * 0.05);
        assert!((36..=44).contains(&answer.knee.unwrap()), "{answer:?}");
    }

    #[test]
    fn noise_moves_the_knee_little_or_is_told() {
        for seed in 0..100 {
            let answer = found(512, 0.03, seed, |n| n.min(32.0));
            if let Some(knee) = answer.knee {
                assert!((24..=42).contains(&knee), "{seed}: {answer:?}");
                let (low, high) = answer.between.unwrap();
                assert!(low.unwrap() < 33 && high > 31);
            }
        }
        let told = (0..100).filter(|seed| found(512, 0.03, *seed, |n| n.min(32.0)).knee.is_some());
        assert!(told.count() >= 95);
        // The right curve, but nothing is known of its errors, or that they are large.
        for error in [None, Some(0.3)] {
            let mut state = KneeState::new(KneeSearch::new(16));
            for streams in [1, 2, 4, 8, 16] {
                state.add(KneePoint {
                    streams,
                    throughput: streams.min(8) as f64,
                    error,
                });
            }
            let answer = state.result(None);
            assert_eq!(answer.knee, None);
            assert!(
                answer.statement.contains("too noisy"),
                "{}",
                answer.statement
            );
        }
    }

    #[test]
    fn without_a_bend_there_is_no_knee_and_the_reason_is_told() {
        let rising = found(64, 0.0, 1, |n| n);
        assert_eq!(rising.points.len(), 7, "the ladder alone");
        assert_eq!((rising.knee, rising.between), (None, None));
        assert!(rising.statement.contains("still rises at 64"));

        let mut state = KneeState::new(KneeSearch::new(64));
        for (streams, limited) in [(1, false), (2, false), (4, true)] {
            assert_eq!(state.next_streams(), Some(streams));
            let mut level = LevelResult::empty(Strategy::Concurrent { streams });
            level.client.limited = limited;
            level.client.reason = "its busiest thread worked 99 % of the time".into();
            state.learn(&level, &LevelMetrics::of(&level));
        }
        assert_eq!(state.next_streams(), None);
        let why = state.result(None).statement;
        assert!(
            why.contains("no knee: the client was the limit at 4 streams: its busiest"),
            "{why}"
        );
        let cut = KneeState::new(KneeSearch::new(64)).result(Some("cancelled"));
        assert!(cut.statement.contains("cancelled") && cut.knee.is_none());
    }
}
