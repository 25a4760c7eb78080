//! When the requests of an open loop are due, and telling the workers so in time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::random::Random;
use crate::record::Strategy;
use crate::system::be_prompt;
use crate::worker::{Arrival, LevelShared};

/// When the arrivals of an open loop are.
pub(crate) enum Schedule {
    /// At a rate.
    Rate(Gaps),
    /// At times after the first, which are multiplied with a factor.
    Trace {
        times_s: Arc<[f64]>,
        time_scale: f64,
    },
}

impl Schedule {
    /// That of level `number` with a strategy whose rate comes up over `rampup_s`, `times_s` being those of a
    /// trace; `None` for a closed loop.
    pub fn of(
        strategy: &Strategy,
        number: u64,
        rampup_s: f64,
        times_s: Option<Arc<[f64]>>,
    ) -> Option<Self> {
        match strategy {
            Strategy::Replay { time_scale, .. } => Some(Schedule::Trace {
                times_s: times_s?,
                time_scale: *time_scale,
            }),
            _ => Gaps::of(strategy, number, rampup_s).map(Schedule::Rate),
        }
    }

    /// Arrival `index`, seconds since the level's start; each is asked for once, in order. `None` behind the last.
    fn next(&mut self, index: u64) -> Option<f64> {
        match self {
            Schedule::Rate(gaps) => Some(gaps.next(index)),
            Schedule::Trace {
                times_s,
                time_scale,
            } => {
                let time_s = times_s.get(usize::try_from(index).ok()?)?;
                Some(time_s * *time_scale)
            }
        }
    }
}

/// Arrivals at a rate, seconds since the level's start.
pub(crate) struct Gaps {
    rate: f64,
    rampup_s: f64,
    /// Random gaps, and the requests that are to be expected up to the last arrival.
    random: Option<(Random, f64)>,
}

impl Gaps {
    /// Those of a strategy whose rate comes up over `rampup_s`; `None` for a closed loop.
    fn of(strategy: &Strategy, number: u64, rampup_s: f64) -> Option<Self> {
        let (rate, random) = match strategy {
            Strategy::Constant { rate, .. } => (*rate, None),
            Strategy::Poisson { rate, .. } => (*rate, Some((Random::new(42, number), 0.0))),
            _ => return None,
        };
        Some(Gaps {
            rate,
            rampup_s,
            random,
        })
    }

    /// Arrival `index`; each is asked for once, in order.
    fn next(&mut self, index: u64) -> f64 {
        let expected = match &mut self.random {
            // Not added up: the schedule must not drift.
            None => index as f64,
            Some((random, sum)) => {
                *sum -= random.fraction().ln();
                *sum
            }
        };
        self.time_of(expected)
    }

    /// When so many requests are to be expected. The rate grows evenly from nothing, so that after t
    /// seconds of the ramp rate t^2 / (2 ramp) have come, half of what the full rate brings.
    fn time_of(&self, requests: f64) -> f64 {
        let in_ramp = self.rate * self.rampup_s / 2.0;
        if requests < in_ramp {
            (2.0 * requests * self.rampup_s / self.rate).sqrt()
        } else {
            self.rampup_s + (requests - in_ramp) / self.rate
        }
    }
}

/// Give out arrivals when they are due. A thread of its own and its kernel timer are on time within a
/// fraction of a millisecond, which a runtime's timer wheel is not.
pub(crate) fn pace(
    shared: &LevelShared,
    mut schedule: Schedule,
    queues: &[mpsc::UnboundedSender<Arrival>],
) {
    be_prompt();
    let clock = shared.client.clock;
    let seconds = shared.watch.schedule_s();
    for index in 0..shared.max_requests {
        let Some(due) = schedule.next(index).filter(|due| *due < seconds) else {
            break;
        };
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

    fn gaps(strategy: Strategy, rampup_s: f64) -> Gaps {
        Gaps::of(&strategy, 1, rampup_s).unwrap()
    }

    fn constant(rate: f64) -> Strategy {
        Strategy::Constant {
            rate,
            max_concurrency: None,
        }
    }

    fn poisson(rate: f64) -> Strategy {
        Strategy::Poisson {
            rate,
            max_concurrency: None,
        }
    }

    #[test]
    fn an_even_schedule_does_not_drift_and_a_random_one_keeps_its_mean() {
        assert_eq!(gaps(constant(3.0), 0.0).next(300), 100.0);
        let mut random = gaps(poisson(50.0), 0.0);
        let times: Vec<f64> = (0..20_000).map(|i| random.next(i)).collect();
        let gaps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.02).abs() < 0.0005, "{mean}");
        // The standard deviation of exponential gaps is their mean.
        assert!((variance.sqrt() - 0.02).abs() < 0.0006);
    }

    #[test]
    fn a_trace_has_its_own_times() {
        let strategy = Strategy::Replay {
            time_scale: 0.5,
            max_concurrency: None,
        };
        let times: Arc<[f64]> = [0.0, 3.0, 3.0, 8.0].into();
        let mut schedule = Schedule::of(&strategy, 1, 0.0, Some(times)).unwrap();
        let due: Vec<Option<f64>> = (0..5).map(|i| schedule.next(i)).collect();
        assert_eq!(due, [Some(0.0), Some(1.5), Some(1.5), Some(4.0), None]);
    }

    #[test]
    fn a_ramp_brings_half_of_the_full_rate() {
        // 10 a second after a ramp of 4 s: 20 requests in the ramp, then every tenth of a second.
        let mut even = gaps(constant(10.0), 4.0);
        let times: Vec<f64> = (0..41).map(|i| even.next(i)).collect();
        assert_eq!((times[0], times[5], times[20]), (0.0, 2.0, 4.0));
        assert!((times[30] - 5.0).abs() < 1e-12 && (times[40] - 6.0).abs() < 1e-12);
        // The random one has the same mean: a quarter of the ramp's requests in its first half.
        let mut random = gaps(poisson(1000.0), 8.0);
        let times: Vec<f64> = (0..8000).map(|i| random.next(i)).collect();
        let before = |t: f64| times.iter().filter(|x| **x < t).count() as f64;
        assert!((before(4.0) - 1000.0).abs() < 150.0, "{}", before(4.0));
        assert!((before(8.0) - 4000.0).abs() < 300.0, "{}", before(8.0));
    }
}
