//! The flags for when a level ends, and when the run does.

use clap::Args;
use powerband_bench::{BenchConfig, ErrorRate, Limits, OverSaturation, Profile, RunLimits};

use crate::error::{CliError, CliResult};
use crate::load_args::is_open;

/// Requests of a level where nothing says when it ends.
const REQUESTS: u64 = 100;
/// Requests that a rate of errors is taken over unless it says so: GuideLLM's number.
const RATE_REQUESTS: u64 = 30;

/// When a level ends, and the run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Requests of a level [default: 100; none with --max-seconds, --min-requests or a replay]
    #[arg(long, value_name = "N")]
    pub max_requests: Option<u64>,
    /// Requests that must have ended before time ends a level; alone it ends the level itself, with no tail
    /// of idle clients
    #[arg(long, value_name = "N")]
    pub min_requests: Option<u64>,
    /// Longest a level may take
    #[arg(long, value_name = "SECONDS")]
    pub max_seconds: Option<f64>,
    /// Failed requests that end a level
    #[arg(long, value_name = "N")]
    pub max_errors: Option<u64>,
    /// Share of failures among the last N requests that ends a level, as in 0.1:30 [N: 30]
    #[arg(long, value_name = "SHARE[:N]", value_parser = error_rate)]
    pub max_error_rate: Option<ErrorRate>,
    /// Share of failures among all requests of a level that ends it, once N have ended [N: 30]
    #[arg(long, value_name = "SHARE[:N]", value_parser = error_rate)]
    pub max_global_error_rate: Option<ErrorRate>,
    /// End a level whose schedule outruns the server (enforce), or only warn (monitor). Judged after
    /// min_seconds=30, over window_seconds=120, from a median TTFT of min_ttft_ms=2500 on, which may be
    /// given, as in enforce,min_seconds=10
    #[arg(long, value_name = "MODE", num_args = 0..=1, default_missing_value = "enforce", value_parser = over_saturation)]
    pub over_saturation: Option<OverSaturation>,
    /// A level that ends by errors or over-saturation is the last: harder ones would fare no better
    #[arg(long)]
    pub end_run_on_failure: bool,
    /// Requests of all levels together
    #[arg(long, value_name = "N")]
    pub max_total_requests: Option<u64>,
    /// Longest the run may take from its first level on
    #[arg(long, value_name = "SECONDS")]
    pub max_total_seconds: Option<f64>,
    /// Failed requests of all levels together that end the run
    #[arg(long, value_name = "N")]
    pub max_total_errors: Option<u64>,
}

impl LimitArgs {
    /// Puts the flags into a run's settings, whose profile is known.
    pub fn apply(&self, config: &mut BenchConfig) -> CliResult {
        if self.over_saturation.is_some() && !is_open(&config.profile) {
            return Err(CliError::new(
                "--over-saturation needs a load that comes by a schedule",
            )
            .hint("a closed loop sends no faster than the server answers; try --profile constant, poisson or sweep"));
        }
        let replay = matches!(config.profile, Profile::Replay { .. });
        let ends = replay || self.max_seconds.is_some() || self.min_requests.is_some();
        config.limits = Limits {
            max_requests: self.max_requests.or((!ends).then_some(REQUESTS)),
            min_requests: self.min_requests,
            max_seconds: self.max_seconds,
            max_errors: self.max_errors,
            max_error_rate: self.max_error_rate,
            max_global_error_rate: self.max_global_error_rate,
            over_saturation: self.over_saturation,
            end_run: self.end_run_on_failure,
        };
        config.run_limits = RunLimits {
            max_requests: self.max_total_requests,
            max_seconds: self.max_total_seconds,
            max_errors: self.max_total_errors,
        };
        Ok(())
    }
}

fn error_rate(text: &str) -> Result<ErrorRate, String> {
    let (share, requests) = match text.split_once(':') {
        Some((share, requests)) => (share, requests.parse().ok()),
        None => (text, Some(RATE_REQUESTS)),
    };
    match (share.parse(), requests) {
        (Ok(share), Some(requests)) => Ok(ErrorRate { share, requests }),
        _ => Err("give a share and a number of requests, as in 0.1:30".to_owned()),
    }
}

fn over_saturation(text: &str) -> Result<OverSaturation, String> {
    let mut read = OverSaturation::default();
    for (i, part) in text.split(',').enumerate() {
        let value = part
            .split_once('=')
            .map(|(key, value)| (key, value.parse()));
        match (i, part, value) {
            (0, "enforce", _) => read.monitor = false,
            (0, "monitor", _) => read.monitor = true,
            (1.., _, Some(("min_seconds", Ok(value)))) => read.min_seconds = value,
            (1.., _, Some(("min_ttft_ms", Ok(value)))) => read.min_ttft_ms = value,
            (1.., _, Some(("window_seconds", Ok(value)))) => read.window_seconds = value,
            _ => {
                return Err(format!(
                    "`{part}` is not known: begin with enforce or monitor, then min_seconds=30, min_ttft_ms=2500 or window_seconds=120"
                ));
            }
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_rate_is_a_share_of_so_many() {
        let read = |share, requests| Ok(ErrorRate { share, requests });
        assert_eq!(error_rate("0.1"), read(0.1, 30));
        assert_eq!(error_rate("0.25:200"), read(0.25, 200));
        for bad in ["", "x", "0.1:", "0.1:-2", ":30"] {
            assert!(error_rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn over_saturation_has_a_mode_and_numbers() {
        assert_eq!(over_saturation("enforce"), Ok(OverSaturation::default()));
        let read = over_saturation("monitor,min_seconds=5,min_ttft_ms=100").unwrap();
        assert_eq!(
            (read.monitor, read.min_seconds, read.min_ttft_ms),
            (true, 5.0, 100.0)
        );
        for bad in ["", "min_seconds=5", "enforce,x=1", "enforce,min_seconds=x"] {
            assert!(over_saturation(bad).is_err(), "{bad}");
        }
    }
}
