//! What the server measures itself: latencies and ends of requests, as the clients see them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A counter that many threads may add to.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the latency buckets, in microseconds: from 0.25 ms, because a small model's whole
/// inter-token time lies far below the first bucket of a large one's.
pub(crate) const LATENCY_BOUNDS: &[u64] = &[
    250,
    500,
    750,
    1_000,
    1_500,
    2_000,
    3_000,
    4_000,
    5_000,
    7_500,
    10_000,
    15_000,
    20_000,
    30_000,
    40_000,
    50_000,
    75_000,
    100_000,
    150_000,
    200_000,
    300_000,
    400_000,
    500_000,
    750_000,
    1_000_000,
    1_500_000,
    2_500_000,
    5_000_000,
    7_500_000,
    10_000_000,
    20_000_000,
    40_000_000,
    80_000_000,
    160_000_000,
    640_000_000,
    2_560_000_000,
];

/// Upper bounds of the buckets for numbers of tokens.
pub(crate) const TOKEN_BOUNDS: &[u64] = &[
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000,
    200_000,
];

/// A histogram over fixed bounds.
pub(crate) struct Histogram {
    pub bounds: &'static [u64],
    /// One a bound, and one for what is above the last.
    counts: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [u64]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    pub fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Microseconds.
    pub fn observe_time(&self, time: Duration) {
        self.observe(time.as_micros().min(u128::from(u64::MAX >> 20)) as u64);
    }

    /// Counts at or below each bound, then of all; and the sum.
    pub fn cumulative(&self) -> (Vec<u64>, u64) {
        let mut total = 0;
        let counts = self
            .counts
            .iter()
            .map(|count| {
                total += count.load(Ordering::Relaxed);
                total
            })
            .collect();
        (counts, self.sum.load(Ordering::Relaxed))
    }
}

/// How a sequence ended, as the client saw it: a stop string counts as a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Stop,
    Length,
    Abort,
    Error,
}

impl End {
    pub const ALL: [End; 4] = [End::Stop, End::Length, End::Abort, End::Error];

    pub fn name(self) -> &'static str {
        match self {
            End::Stop => "stop",
            End::Length => "length",
            End::Abort => "abort",
            End::Error => "error",
        }
    }
}

/// All of the server's own measurements.
pub(crate) struct Metrics {
    /// From the arrival of the request's head to the first token.
    pub time_to_first_token: Histogram,
    /// Between two tokens of a sequence.
    pub inter_token: Histogram,
    /// From arrival to the last token.
    pub end_to_end: Histogram,
    pub prompt_tokens: Histogram,
    pub generation_tokens: Histogram,
    /// By [`End`], in the order of [`End::ALL`].
    pub ends: [Counter; 4],
    /// Refused because all places were taken.
    pub rejected: Counter,
    /// Answers by the hundreds of their status: 1xx to 5xx.
    pub answers: [Counter; 5],
}

impl Metrics {
    pub fn new() -> Self {
        Self {
            time_to_first_token: Histogram::new(LATENCY_BOUNDS),
            inter_token: Histogram::new(LATENCY_BOUNDS),
            end_to_end: Histogram::new(LATENCY_BOUNDS),
            prompt_tokens: Histogram::new(TOKEN_BOUNDS),
            generation_tokens: Histogram::new(TOKEN_BOUNDS),
            ends: Default::default(),
            rejected: Counter::default(),
            answers: Default::default(),
        }
    }

    pub fn end(&self, end: End) {
        if let Some(counter) = self.ends.get(end as usize) {
            counter.add(1);
        }
    }

    pub fn answer(&self, status: http::StatusCode) {
        if let Some(counter) = self
            .answers
            .get(usize::from(status.as_u16() / 100).wrapping_sub(1))
        {
            counter.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_part_of_its_bucket_and_nothing_is_lost_above_the_last() {
        let histogram = Histogram::new(&[250, 500]);
        for value in [0, 250, 251, 500, 501, 9_000] {
            histogram.observe(value);
        }
        assert_eq!(histogram.cumulative(), (vec![2, 4, 6], 10_502));
        assert!(LATENCY_BOUNDS.is_sorted() && TOKEN_BOUNDS.is_sorted());
    }

    #[test]
    fn ends_are_counted_in_the_order_of_their_names() {
        let metrics = Metrics::new();
        for (at, end) in End::ALL.into_iter().enumerate() {
            metrics.end(end);
            assert_eq!(metrics.ends[at].get(), 1, "{}", end.name());
        }
    }
}
