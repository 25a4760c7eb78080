//! When a level or the whole run ends before its last request, and the sentence that says so.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::BenchError;
use crate::record::LevelResult;
use crate::saturation::OverSaturation;

/// Why a level that ran its full time has ended.
pub(crate) const TIME_LIMIT: &str = "time limit reached";
/// Why a level that the user cut off has ended.
pub(crate) const CANCELLED: &str = "cancelled";
/// How the reason of a level begins that had the requests that it had to have.
pub(crate) const LEAST_REQUESTS: &str = "least requests";
/// How the reason of a level begins that failed too often.
pub(crate) const ERROR_LIMIT: &str = "error limit";
/// How the reason of a level begins whose requests failed at too high a rate.
pub(crate) const ERROR_RATE: &str = "error rate limit";
/// How the reason of a level begins that outran its server.
pub(crate) const OVER_SATURATED: &str = "over-saturated";

/// Longest time that a limit may name, s: three years.
const MOST_SECONDS: f64 = 1e8;
/// Longest window of an error rate, requests.
const MOST_WINDOW: u64 = 1_000_000;

/// A share of failed requests that is too much.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ErrorRate {
    /// The share, above 0 and below 1; reaching it ends the level.
    pub share: f64,
    /// How many requests must have ended before the share is judged; for a windowed rate also how many
    /// of the last ones it is taken over.
    pub requests: u64,
}

/// When a level ends. At least one of `max_requests`, `max_seconds` and `min_requests` must be given, but for a
/// replay, which ends with its trace.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limits {
    /// Requests of a level.
    pub max_requests: Option<u64>,
    /// Requests that must have ended before the level may end by time. Alone (without the other two) it
    /// ends the level: sending goes on until so many are through, so that there is no tail in which
    /// clients run out of work; what is in flight then is incomplete.
    pub min_requests: Option<u64>,
    /// Seconds of a level; requests still in flight then are incomplete.
    pub max_seconds: Option<f64>,
    /// Failed requests of a level that end it.
    pub max_errors: Option<u64>,
    /// Share of failures among the last requests that ends a level.
    pub max_error_rate: Option<ErrorRate>,
    /// Share of failures among all requests of a level that ends it.
    pub max_global_error_rate: Option<ErrorRate>,
    /// End a level whose schedule outruns the server.
    pub over_saturation: Option<OverSaturation>,
    /// A level that ends by errors or over-saturation is the last of the run: harder ones would fare
    /// no better. No part of the fingerprint: a level is the same with and without.
    #[serde(skip)]
    pub end_run: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_requests: Some(100),
            ..Limits::NONE
        }
    }
}

impl Limits {
    /// No limit at all.
    pub const NONE: Limits = Limits {
        max_requests: None,
        min_requests: None,
        max_seconds: None,
        max_errors: None,
        max_error_rate: None,
        max_global_error_rate: None,
        over_saturation: None,
        end_run: false,
    };

    /// Find values that make no sense. Levels that end by themselves need no limit.
    pub(crate) fn check(&self, end_by_themselves: bool) -> Result<(), BenchError> {
        if !end_by_themselves
            && (self.max_requests, self.min_requests) == (None, None)
            && self.max_seconds.is_none()
        {
            return Err(BenchError::config(
                "--max-requests",
                "give this, --max-seconds or --min-requests, or a level would never end",
            ));
        }
        at_least_one("--max-requests", self.max_requests)?;
        at_least_one("--min-requests", self.min_requests)?;
        at_least_one("--max-errors", self.max_errors)?;
        if let (Some(least), Some(most)) = (self.min_requests, self.max_requests)
            && least > most
        {
            return Err(BenchError::config(
                "--min-requests",
                format!("{least} is more than --max-requests {most}"),
            ));
        }
        seconds("--max-seconds", self.max_seconds)?;
        error_rate("--max-error-rate", self.max_error_rate)?;
        error_rate("--max-global-error-rate", self.max_global_error_rate)?;
        self.over_saturation.map_or(Ok(()), |o| o.check())
    }
}

/// When the run ends. Levels that are finished are kept; the one that is cut is kept with its reason.
/// Levels taken from files (`resume`) and requests for warming up do not count.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RunLimits {
    /// Requests of all levels together.
    pub max_requests: Option<u64>,
    /// Seconds from the first level's start, whether or not `min_requests` are through.
    pub max_seconds: Option<f64>,
    /// Failed requests of all levels together.
    pub max_errors: Option<u64>,
}

impl RunLimits {
    /// Find values that make no sense.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        at_least_one("--max-total-requests", self.max_requests)?;
        at_least_one("--max-total-errors", self.max_errors)?;
        seconds("--max-total-seconds", self.max_seconds)
    }

    /// The sentence for the requests' limit.
    fn requests_reached(&self) -> Option<String> {
        self.max_requests
            .map(|n| format!("request limit of the run ({n}) reached"))
    }

    /// The sentence for the time limit.
    fn seconds_reached(&self) -> Option<String> {
        self.max_seconds
            .map(|s| format!("time limit of the run ({s} s) reached"))
    }

    /// The sentence for the errors' limit.
    fn errors_reached(&self) -> Option<String> {
        self.max_errors
            .map(|n| format!("{ERROR_LIMIT} of the run ({n}) reached"))
    }
}

fn at_least_one(flag: &'static str, value: Option<u64>) -> Result<(), BenchError> {
    if value == Some(0) {
        return Err(BenchError::config(flag, "must be at least 1"));
    }
    Ok(())
}

fn seconds(flag: &'static str, value: Option<f64>) -> Result<(), BenchError> {
    if value.is_some_and(|s| !(s.is_finite() && s > 0.0 && s < MOST_SECONDS)) {
        return Err(BenchError::config(
            flag,
            "must be a positive number of seconds",
        ));
    }
    Ok(())
}

fn error_rate(flag: &'static str, rate: Option<ErrorRate>) -> Result<(), BenchError> {
    let fine =
        |r: ErrorRate| r.share > 0.0 && r.share < 1.0 && (1..=MOST_WINDOW).contains(&r.requests);
    if rate.is_some_and(|r| !fine(r)) {
        return Err(BenchError::config(
            flag,
            "give a share between 0 and 1 and a number of requests from 1 to 1,000,000, as in 0.1:30",
        ));
    }
    Ok(())
}

/// Has a level with this reason all that its limits let it have? `--resume` measures the others again.
pub(crate) fn complete(reason: &str) -> bool {
    reason == TIME_LIMIT || reason.starts_with(LEAST_REQUESTS) || reason.starts_with(OVER_SATURATED)
}

/// Did a level with this reason fail, so that harder ones would too?
pub(crate) fn failed(reason: &str) -> bool {
    [ERROR_LIMIT, ERROR_RATE, OVER_SATURATED]
        .iter()
        .any(|start| reason.starts_with(start))
}

/// What a run has used of its limits.
pub(crate) struct Budget {
    limits: RunLimits,
    started: Option<Instant>,
    requests: u64,
    errors: u64,
}

/// What is left of a run's limits for one level: each with the sentence for when it is used up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Left {
    pub requests: Option<(u64, String)>,
    pub time: Option<(Duration, String)>,
    pub errors: Option<(u64, String)>,
}

impl Budget {
    pub fn new(limits: RunLimits) -> Self {
        Budget {
            limits,
            started: None,
            requests: 0,
            errors: 0,
        }
    }

    /// The limits for the next level; the sentence why there is none if one is used up. The time runs
    /// from the first call.
    pub fn left(&mut self) -> Result<Left, String> {
        let started = *self.started.get_or_insert_with(Instant::now);
        let limits = &self.limits;
        let left = Left {
            requests: limits
                .max_requests
                .map(|n| n.saturating_sub(self.requests))
                .zip(limits.requests_reached()),
            time: limits
                .max_seconds
                .map(|s| Duration::from_secs_f64(s).saturating_sub(started.elapsed()))
                .zip(limits.seconds_reached()),
            errors: limits
                .max_errors
                .map(|n| n.saturating_sub(self.errors))
                .zip(limits.errors_reached()),
        };
        let none = |left: &Option<(u64, String)>| {
            left.as_ref()
                .filter(|(n, _)| *n == 0)
                .map(|(_, why)| why.clone())
        };
        let late = left.time.as_ref().filter(|(time, _)| time.is_zero());
        match none(&left.requests)
            .or(late.map(|(_, why)| why.clone()))
            .or(none(&left.errors))
        {
            Some(why) => Err(why),
            None => Ok(left),
        }
    }

    /// Count a level that was run.
    pub fn spend(&mut self, level: &LevelResult) {
        let totals = level.requests.totals();
        self.requests += totals.total() as u64;
        self.errors += totals.errored as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Outcome, RequestRecord, Strategy};

    #[test]
    fn a_budget_is_used_up_and_says_by_what() {
        let mut budget = Budget::new(RunLimits {
            max_requests: Some(5),
            max_errors: Some(2),
            ..RunLimits::default()
        });
        let left = budget.left().unwrap();
        assert_eq!(left.requests.unwrap().0, 5);
        let level = |requests: usize, errors: usize| LevelResult {
            requests: (0..requests)
                .map(|i| RequestRecord {
                    outcome: if i < errors {
                        Outcome::Errored("no".into())
                    } else {
                        Outcome::Successful
                    },
                    ..RequestRecord::default()
                })
                .collect(),
            ..LevelResult::empty(Strategy::Synchronous)
        };
        budget.spend(&level(3, 1));
        let left = budget.left().unwrap();
        assert_eq!((left.requests.unwrap().0, left.errors.unwrap().0), (2, 1));
        budget.spend(&level(1, 1));
        assert!(
            budget
                .left()
                .unwrap_err()
                .contains("error limit of the run (2)")
        );
        budget.spend(&level(1, 0));
        assert!(
            budget
                .left()
                .unwrap_err()
                .contains("request limit of the run (5)")
        );
        let mut late = Budget::new(RunLimits {
            max_seconds: Some(1e-9),
            ..RunLimits::default()
        });
        assert!(late.left().unwrap_err().contains("time limit of the run"));
    }

    #[test]
    fn reasons_are_told_apart() {
        assert!(complete(TIME_LIMIT) && !complete("time limit of the run (3 s) reached"));
        assert!(complete("over-saturated: x") && failed("over-saturated: x"));
        assert!(
            failed("error rate limit reached: y") && failed("error limit of the run (2) reached")
        );
        assert!(!failed(TIME_LIMIT) && !failed(CANCELLED) && !complete(CANCELLED));
    }

    #[test]
    fn bad_limits_name_their_flag() {
        let error = |limits: Limits| limits.check(false).unwrap_err().to_string();
        assert!(Limits::default().check(false).is_ok());
        assert!(Limits::NONE.check(true).is_ok());
        assert!(error(Limits::NONE).starts_with("--max-requests"));
        let least = Limits {
            min_requests: Some(3),
            ..Limits::NONE
        };
        assert!(least.check(false).is_ok());
        let more = Limits {
            max_requests: Some(2),
            ..least
        };
        assert!(error(more).starts_with("--min-requests"));
        for share in [0.0, 1.0, f64::NAN] {
            let rate = Some(ErrorRate { share, requests: 9 });
            let windowed = Limits {
                max_error_rate: rate,
                ..Limits::default()
            };
            let global = Limits {
                max_global_error_rate: rate,
                ..Limits::default()
            };
            assert!(error(windowed).starts_with("--max-error-rate"));
            assert!(error(global).starts_with("--max-global-error-rate"));
        }
        let run = RunLimits {
            max_seconds: Some(-1.0),
            ..RunLimits::default()
        };
        assert!(
            run.check()
                .unwrap_err()
                .to_string()
                .starts_with("--max-total-seconds")
        );
    }
}
