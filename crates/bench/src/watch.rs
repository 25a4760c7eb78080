//! The limits of a level while it runs: told of each request, raises the level's stop with the reason.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::cancel::Cancel;
use crate::limits::{
    ERROR_LIMIT, ERROR_RATE, ErrorRate, LEAST_REQUESTS, Left, Limits, OVER_SATURATED, TIME_LIMIT,
};
use crate::saturation::{Detector, Sample};

/// A level's limits and what it has used of them.
pub(crate) struct Watch {
    limits: Limits,
    left: Left,
    /// Raised when the level must end now.
    pub stop: Cancel,
    /// Requests that an open loop's schedule has brought.
    due: AtomicU64,
    ended: AtomicU64,
    errored: AtomicU64,
    /// Time does not hold the level any more, only requests do that it must have.
    may_end: AtomicBool,
    recent: Option<Mutex<Recent>>,
    saturation: Option<Mutex<Saturation>>,
}

/// The last requests of a level: which of them failed.
struct Recent {
    rate: ErrorRate,
    failed: VecDeque<bool>,
    failures: u64,
}

/// Over-saturation as far as it is known.
struct Saturation {
    detector: Detector,
    monitor: bool,
    next_s: f64,
    first_tokens: u64,
    ttft_us: u64,
    found: Option<String>,
}

impl Watch {
    /// Over-saturation is looked for in open loops only.
    pub fn new(limits: Limits, left: Left, open_loop: bool) -> Self {
        Watch {
            left,
            stop: Cancel::default(),
            due: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            errored: AtomicU64::new(0),
            may_end: AtomicBool::new(
                limits.min_requests.is_some()
                    && limits.max_seconds.is_none()
                    && limits.max_requests.is_none(),
            ),
            recent: limits.max_error_rate.map(|rate| {
                Mutex::new(Recent {
                    rate,
                    failed: VecDeque::new(),
                    failures: 0,
                })
            }),
            saturation: limits
                .over_saturation
                .filter(|_| open_loop)
                .map(|settings| {
                    Mutex::new(Saturation {
                        detector: Detector::new(settings),
                        monitor: settings.monitor,
                        next_s: 0.0,
                        first_tokens: 0,
                        ttft_us: 0,
                        found: None,
                    })
                }),
            limits,
        }
    }

    /// Requests of the level.
    pub fn max_requests(&self) -> u64 {
        let own = self.limits.max_requests.unwrap_or(u64::MAX);
        self.left
            .requests
            .as_ref()
            .map_or(own, |(n, _)| own.min(*n))
    }

    /// When the level's own time is up, since its start.
    pub fn own_time(&self) -> Option<Duration> {
        self.limits.max_seconds.map(Duration::from_secs_f64)
    }

    /// When the run's time is up, since the level's start.
    pub fn run_time(&self) -> Option<Duration> {
        self.left.time.as_ref().map(|(time, _)| *time)
    }

    /// Seconds after which no request of a schedule is due any more.
    pub fn schedule_s(&self) -> f64 {
        // The level may have to go on for requests that it must have.
        let own = self
            .own_time()
            .filter(|_| self.limits.min_requests.is_none());
        let seconds = |t: Option<Duration>| t.map_or(f64::INFINITY, |t| t.as_secs_f64());
        seconds(own).min(seconds(self.run_time()))
    }

    /// The level's time is up.
    pub fn time_is_up(&self) {
        self.may_end.store(true, Ordering::SeqCst);
        self.end_if_through(self.ended.load(Ordering::SeqCst));
    }

    /// The run's time is up.
    pub fn run_time_is_up(&self) {
        if let Some((_, why)) = &self.left.time {
            self.stop.stop(why);
        }
    }

    /// A schedule brought a request.
    pub fn due(&self) {
        self.due.fetch_add(1, Ordering::Relaxed);
    }

    /// A request ended by itself, well or not.
    pub fn ended(&self, failed: bool) {
        let errored =
            self.errored.fetch_add(u64::from(failed), Ordering::SeqCst) + u64::from(failed);
        let ended = self.ended.fetch_add(1, Ordering::SeqCst) + 1;
        if failed {
            self.judge_errors(ended, errored);
        }
        if let Some(recent) = &self.recent
            && let Some(why) = lock(recent).add(failed)
        {
            self.stop.stop(&why);
        }
        self.end_if_through(ended);
    }

    fn judge_errors(&self, ended: u64, errored: u64) {
        if let Some(most) = self.limits.max_errors.filter(|most| errored >= *most) {
            self.stop.stop(&format!("{ERROR_LIMIT} ({most}) reached"));
        }
        if let Some((_, why)) = self.left.errors.as_ref().filter(|(n, _)| errored >= *n) {
            self.stop.stop(why);
        }
        if let Some(rate) = self.limits.max_global_error_rate
            && ended >= rate.requests
            && errored as f64 >= rate.share * ended as f64
        {
            self.stop
                .stop(&rate_reached(errored, "", ended, rate.share));
        }
    }

    /// After the time, the level ends with the last request that it must have.
    fn end_if_through(&self, ended: u64) {
        if !self.may_end.load(Ordering::SeqCst) {
            return;
        }
        match self.limits.min_requests {
            Some(least) if ended < least => {}
            Some(least) if self.limits.max_seconds.is_none() => {
                self.stop
                    .stop(&format!("{LEAST_REQUESTS} ({least}) through"));
            }
            _ => self.stop.stop(TIME_LIMIT),
        }
    }

    /// Look for over-saturation; called a few times a second with the level's sums so far.
    pub fn look(&self, at_s: f64, first_tokens: u64, ttft_us: u64) {
        let Some(saturation) = &self.saturation else {
            return;
        };
        let mut state = lock(saturation);
        if at_s < state.next_s || state.found.is_some() {
            return;
        }
        state.next_s = at_s + state.detector.interval_s();
        let new = first_tokens.saturating_sub(state.first_tokens);
        let waited_us = ttft_us.saturating_sub(state.ttft_us);
        (state.first_tokens, state.ttft_us) = (first_tokens, ttft_us);
        let open = self
            .due
            .load(Ordering::Relaxed)
            .saturating_sub(self.ended.load(Ordering::Relaxed));
        let sample = Sample {
            at_s,
            open: open as f64,
            ttft_ms: (new > 0).then(|| waited_us as f64 / 1e3 / new as f64),
        };
        if let Some(growth) = state.detector.judge(sample) {
            let why = format!("{OVER_SATURATED} after {at_s:.0} s: {growth}");
            if !state.monitor {
                self.stop.stop(&why);
            }
            state.found = Some(why);
        }
    }

    /// What a reader of the level must know: over-saturation that did not end it.
    pub fn warning(&self) -> Option<String> {
        let state = lock(self.saturation.as_ref()?);
        state.found.clone().filter(|_| state.monitor)
    }

    /// Why the level ended before its last request, given how many requests it had.
    pub fn reason(&self, requests: u64) -> Option<String> {
        let run =
            self.left.requests.as_ref().filter(|(n, _)| {
                requests >= *n && self.limits.max_requests.is_none_or(|own| own > *n)
            });
        self.stop.reason().or(run.map(|(_, why)| why.clone()))
    }
}

impl Recent {
    /// Note a request; the reason to stop if too many of the last ones failed.
    fn add(&mut self, failed: bool) -> Option<String> {
        self.failed.push_back(failed);
        self.failures += u64::from(failed);
        if self.failed.len() as u64 > self.rate.requests && self.failed.pop_front() == Some(true) {
            self.failures -= 1;
        }
        let full = self.failed.len() as u64 >= self.rate.requests;
        let share = self.rate.share;
        (full && self.failures as f64 >= share * self.rate.requests as f64)
            .then(|| rate_reached(self.failures, "the last ", self.rate.requests, share))
    }
}

fn rate_reached(failed: u64, which: &str, of: u64, share: f64) -> String {
    format!(
        "{ERROR_RATE} ({} %) reached: {failed} of {which}{of} requests failed",
        (share * 1e4).round() / 1e2
    )
}

/// Nothing that holds these locks can panic; if it did, the data would still be whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saturation::OverSaturation;

    fn watch(limits: Limits) -> Watch {
        Watch::new(limits, Left::default(), true)
    }

    /// After how many of these requests the watch stops, and why.
    fn stopped(watch: &Watch, failures: impl IntoIterator<Item = bool>) -> Option<(usize, String)> {
        failures.into_iter().enumerate().find_map(|(i, failed)| {
            watch.ended(failed);
            Some((i + 1, watch.stop.reason()?))
        })
    }

    #[test]
    fn a_windowed_rate_forgets_and_a_global_one_does_not() {
        let rate = Some(ErrorRate {
            share: 0.5,
            requests: 4,
        });
        let windowed = Limits {
            max_error_rate: rate,
            ..Limits::NONE
        };
        let global = Limits {
            max_global_error_rate: rate,
            ..Limits::NONE
        };
        // Ten good ones, then all fail: the window sees it after two, the whole only after ten.
        let late = || (0..30).map(|i| i >= 10);
        assert_eq!(stopped(&watch(windowed), late()).unwrap().0, 12);
        let (at, why) = stopped(&watch(global), late()).unwrap();
        assert_eq!(at, 20);
        assert_eq!(
            why,
            "error rate limit (50 %) reached: 10 of 20 requests failed"
        );
        // Neither judges before it has its requests.
        assert_eq!(stopped(&watch(windowed), [true; 9]).unwrap().0, 4);
        assert_eq!(stopped(&watch(global), [true; 9]).unwrap().0, 4);
        // One in four is less than a half.
        let fourth = (0..90).map(|i| i % 4 == 0);
        assert_eq!(stopped(&watch(windowed), fourth), None);
    }

    #[test]
    fn errors_end_a_level_by_its_own_or_the_runs_number() {
        let own = Limits {
            max_errors: Some(3),
            ..Limits::NONE
        };
        let (at, why) = stopped(&watch(own), [true, false, true, true, true]).unwrap();
        assert_eq!((at, why.as_str()), (4, "error limit (3) reached"));
        let left = Left {
            errors: Some((2, "error limit of the run (9) reached".into())),
            ..Left::default()
        };
        let (at, why) = stopped(&Watch::new(own, left, false), [true; 5]).unwrap();
        assert_eq!(
            (at, why.as_str()),
            (2, "error limit of the run (9) reached")
        );
    }

    #[test]
    fn time_waits_for_the_requests_that_must_be() {
        let limits = Limits {
            min_requests: Some(3),
            max_seconds: Some(1.0),
            ..Limits::NONE
        };
        let both = watch(limits);
        both.ended(false);
        both.time_is_up();
        assert_eq!(both.stop.reason(), None);
        assert_eq!(both.schedule_s(), f64::INFINITY);
        assert_eq!(stopped(&both, [true, false]), Some((2, TIME_LIMIT.into())));
        // Enough before the time: it ends with the time.
        let early = watch(limits);
        assert_eq!(stopped(&early, [false; 5]), None);
        early.time_is_up();
        assert_eq!(early.stop.reason().as_deref(), Some(TIME_LIMIT));
        // Alone, it is the end.
        let alone = watch(Limits {
            max_seconds: None,
            ..limits
        });
        let (at, why) = stopped(&alone, [false; 5]).unwrap();
        assert_eq!((at, why.as_str()), (3, "least requests (3) through"));
    }

    #[test]
    fn the_runs_requests_are_told_only_where_they_bind() {
        let with = |own| {
            let limits = Limits {
                max_requests: own,
                ..Limits::NONE
            };
            let left = Left {
                requests: Some((5, "request limit of the run (9) reached".into())),
                ..Left::default()
            };
            let watch = Watch::new(limits, left, false);
            (watch.max_requests(), watch.reason(watch.max_requests()))
        };
        assert_eq!(with(Some(5)), (5, None));
        assert_eq!(with(Some(3)), (3, None));
        for own in [Some(6), None] {
            let (most, why) = with(own);
            assert_eq!(most, 5);
            assert!(why.unwrap().starts_with("request limit of the run (9)"));
        }
    }

    #[test]
    fn over_saturation_stops_or_warns() {
        for monitor in [false, true] {
            let watch = watch(Limits {
                over_saturation: Some(OverSaturation {
                    monitor,
                    ..OverSaturation::default()
                }),
                ..Limits::NONE
            });
            // Ten a second come, five are done, each waits longer.
            for second in 1..=40u64 {
                (0..10).for_each(|_| watch.due());
                (0..5).for_each(|_| watch.ended(false));
                watch.look(second as f64, 5 * second, 500_000 * second * second * 5);
            }
            let told = watch.stop.reason().or(watch.warning()).unwrap();
            assert!(
                told.starts_with("over-saturated after 30 s: 5.00 more"),
                "{told}"
            );
            assert_eq!(watch.stop.is_cancelled(), !monitor);
        }
    }
}
