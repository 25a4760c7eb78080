//! When the requests of an open loop are due, and telling the workers so in time.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::prompts::Random;
use crate::record::Strategy;
use crate::system::be_prompt;
use crate::worker::{Arrival, LevelShared};

/// The gaps between arrivals of an open loop, seconds.
pub(crate) enum Gaps {
    Even(f64),
    Exponential(f64, Random),
}

impl Gaps {
    /// Those of a strategy; `None` for a closed loop.
    pub fn of(strategy: &Strategy, number: u64) -> Option<Self> {
        match strategy {
            Strategy::Constant { rate, .. } => Some(Gaps::Even(1.0 / rate)),
            Strategy::Poisson { rate, .. } => {
                Some(Gaps::Exponential(1.0 / rate, Random::new(42, number)))
            }
            _ => None,
        }
    }

    /// Arrival `index`, given the one before it, seconds since the level's start.
    fn next(&mut self, index: u64, before: f64) -> f64 {
        match self {
            // Not added up: the schedule must not drift.
            Gaps::Even(gap) => index as f64 * *gap,
            Gaps::Exponential(mean, random) => before - random.fraction().ln() * *mean,
        }
    }
}

/// Give out arrivals when they are due. A thread of its own and its kernel timer are on time within a
/// fraction of a millisecond, which a runtime's timer wheel is not.
pub(crate) fn pace(
    shared: &LevelShared,
    mut gaps: Gaps,
    queues: &[mpsc::UnboundedSender<Arrival>],
) {
    be_prompt();
    let clock = shared.client.clock;
    let seconds = shared.watch.schedule_s();
    let mut due = 0.0;
    for index in 0..shared.max_requests {
        due = gaps.next(index, due);
        if due >= seconds {
            break;
        }
        let intended_ns = (due * 1e9) as u64;
        loop {
            if shared.watch.stop.is_cancelled() {
                return;
            }
            let wait = clock
                .instant(intended_ns)
                .saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
            std::thread::sleep(wait.min(Duration::from_millis(50)));
        }
        let queue = &queues[(index % queues.len() as u64) as usize];
        if queue.send(Arrival { index, intended_ns }).is_err() {
            return;
        }
    }
    // Without a number of requests the level lasts until its time is up, also for those in flight.
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_schedule_does_not_drift_and_a_random_one_keeps_its_mean() {
        let mut even = Gaps::Even(1.0 / 3.0);
        assert_eq!(even.next(300, 0.0), 100.0);
        let mut poisson = Gaps::of(
            &Strategy::Poisson {
                rate: 50.0,
                max_concurrency: None,
            },
            1,
        )
        .unwrap();
        let gaps: Vec<f64> = (0..20_000).map(|i| poisson.next(i, 0.0)).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.02).abs() < 0.0005, "{mean}");
        // The standard deviation of exponential gaps is their mean.
        assert!((variance.sqrt() - 0.02).abs() < 0.0006);
    }
}
