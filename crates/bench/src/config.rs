//! What a run is to do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::body::header_problem;
use crate::data::{DataConfig, DataSource};
use crate::error::BenchError;
use crate::gpu::GpuMetrics;
use crate::limits::{Limits, RunLimits};
use crate::order::Order;
use crate::profile::Profile;
use crate::search::Search;
use crate::server_side;
use crate::slo::Slo;
use crate::target::{BaseUrl, TargetConfig, host_and_port};

/// A tokenizer on the client, where there is one. None is needed: the server's counts are used then.
pub trait TokenCounter: Send + Sync {
    /// Tokens of a prompt as the server would count it, special tokens (a BOS) included.
    fn count_prompt(&self, text: &str) -> usize;
    /// Tokens of generated text, without special tokens.
    fn count_output(&self, text: &str) -> usize;
}

/// A part of a level at its start or end that the metrics leave out.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Phase {
    /// None.
    #[default]
    None,
    /// This many seconds.
    Seconds(f64),
    /// This many requests (at the start: until so many have ended; at the end: from when so few were
    /// still to end).
    Requests(u64),
    /// This share of the level's length, 0 to 1.
    Share(f64),
}

/// A run.
#[derive(Clone)]
pub struct BenchConfig {
    /// The server.
    pub target: TargetConfig,
    /// Where the server's Prometheus metrics are, which are sampled during each level; `none` to leave them. By
    /// itself `<target>/metrics`, where that answers with metrics that are known.
    pub metrics_url: Option<String>,
    /// Are the GPUs of this machine read during each level?
    pub gpu_metrics: GpuMetrics,
    /// The levels.
    pub profile: Profile,
    /// The requests' contents.
    pub data: DataConfig,
    /// When a level ends.
    pub limits: Limits,
    /// When the run ends.
    pub run_limits: RunLimits,
    /// What a request must keep to be a good one; each level then has its goodput.
    pub slo: Option<Slo>,
    /// Order and repeats of the levels.
    pub order: Order,
    /// Seconds over which the clients of a closed level, or the rate of an open one, come up evenly. They
    /// count as part of the level: a `warmup` of the same length leaves them out of the metrics.
    pub rampup_s: f64,
    /// Left out of the metrics at the start of each level.
    pub warmup: Phase,
    /// Left out of the metrics at the end of each level.
    pub cooldown: Phase,
    /// Requests sent before the first level and not recorded, so that the server has loaded and
    /// compiled what it does lazily.
    pub warmup_requests: u64,
    /// Where results go, one file a level; nowhere if `None`.
    pub output_dir: Option<PathBuf>,
    /// Write each level's requests as [JSON lines](crate::jsonl) too, one a request, into a file beside the
    /// level's with the ending `jsonl`.
    pub requests_jsonl: bool,
    /// How many of the successful, of the errored and of the incomplete requests a level's file lists; all if
    /// `None`. The metrics are of all requests, and reading the file back takes them from the JSON lines.
    pub sample_size: Option<usize>,
    /// Take levels that `output_dir` already holds, complete and measured with the same settings.
    pub resume: bool,
    /// What tells this server from another for `resume`, where its URL does not: a server that is
    /// started for the run has another port each time.
    pub identity: Option<String>,
    /// Threads of the client; by the number of streams if `None`.
    pub workers: Option<usize>,
    /// A local tokenizer.
    pub tokenizer: Option<Arc<dyn TokenCounter>>,
}

impl BenchConfig {
    /// The default workload (128 + 64 tokens, 100 requests a level) against `url`.
    pub fn new(url: impl Into<String>, profile: Profile) -> Self {
        BenchConfig {
            target: TargetConfig {
                url: url.into(),
                ..TargetConfig::default()
            },
            metrics_url: None,
            gpu_metrics: GpuMetrics::Auto,
            profile,
            data: DataConfig::default(),
            limits: Limits::default(),
            run_limits: RunLimits::default(),
            slo: None,
            order: Order::default(),
            rampup_s: 0.0,
            warmup: Phase::None,
            cooldown: Phase::None,
            warmup_requests: 0,
            output_dir: None,
            requests_jsonl: false,
            sample_size: None,
            resume: false,
            identity: None,
            workers: None,
            tokenizer: None,
        }
    }

    /// How many levels there will be, repeats and the drift check included; for a search the most there
    /// can be.
    pub fn levels(&self) -> usize {
        let repeats = usize::try_from(self.order.repeats).unwrap_or(usize::MAX);
        self.profile
            .levels()
            .saturating_mul(repeats)
            .saturating_add(usize::from(self.order.drift_check))
    }

    /// Find what cannot work before anything is sent.
    pub(crate) fn check(&self) -> Result<BaseUrl, BenchError> {
        let base = BaseUrl::parse(&self.target.url)?;
        for (name, value) in &self.target.headers {
            if let Some(problem) = header_problem(name, value) {
                return Err(BenchError::config("--header", problem));
            }
        }
        if let Some(key) = &self.target.api_key
            && header_problem("Authorization", key).is_some()
        {
            return Err(BenchError::config(
                "--api-key",
                "has characters that a header cannot carry",
            ));
        }
        server_side::check(self.metrics_url.as_deref(), &base)?;
        let timeouts = &self.target.timeouts;
        for (flag, limit) in [
            ("--connect-timeout", timeouts.connect),
            ("--first-byte-timeout", timeouts.first_byte),
            ("--idle-timeout", timeouts.idle.unwrap_or(Duration::MAX)),
            ("--request-timeout", timeouts.total),
        ] {
            if limit.is_zero() {
                return Err(BenchError::config(flag, "must be more than 0 seconds"));
            }
        }
        if self.target.insecure && self.target.ca_file.is_some() {
            return Err(BenchError::config(
                "--insecure",
                "trusts any certificate, so --ca-file would mean nothing: give one of them",
            ));
        }
        self.profile.check()?;
        self.check_replay()?;
        self.limits
            .check(matches!(self.profile, Profile::Replay { .. }))?;
        self.run_limits.check()?;
        self.order.check(&self.profile)?;
        match (self.slo, &self.profile) {
            (Some(slo), _) => slo.check()?,
            (None, Profile::Goodput(_)) => {
                return Err(BenchError::config(
                    "--goodput",
                    "this profile needs an objective, as in ttft:500,itl:50",
                ));
            }
            _ => {}
        }
        if !(0.0..1e6).contains(&self.rampup_s) {
            return Err(BenchError::config("--rampup", "must be seconds, 0 or more"));
        }
        for (flag, phase) in [("--warmup", self.warmup), ("--cooldown", self.cooldown)] {
            let fine = match phase {
                Phase::None | Phase::Requests(_) => true,
                Phase::Seconds(s) => s.is_finite() && s >= 0.0,
                Phase::Share(share) => (0.0..1.0).contains(&share),
            };
            if !fine {
                return Err(BenchError::config(
                    flag,
                    "must be seconds, a number of requests, or a share below 1",
                ));
            }
        }
        if self.requests_jsonl && self.output_dir.is_none() {
            return Err(BenchError::config(
                "--requests-jsonl",
                "needs a folder to write to: give --output-dir too",
            ));
        }
        if self.sample_size.is_some() && !self.requests_jsonl {
            return Err(BenchError::config(
                "--sample-size",
                "would lose the other requests, which `report` and --resume need: give --requests-jsonl too",
            ));
        }
        self.data.check(&self.target)?;
        if let Some(place) = &self.target.connect_to {
            host_and_port(place, base.port)?;
        }
        if self.workers == Some(0) {
            return Err(BenchError::config("--workers", "must be at least 1"));
        }
        Ok(base)
    }

    fn check_replay(&self) -> Result<(), BenchError> {
        if !matches!(self.profile, Profile::Replay { .. }) {
            return Ok(());
        }
        if !matches!(self.data.source, DataSource::Trace(_)) {
            return Err(BenchError::config(
                "--profile",
                "replay sends the requests of a trace: give one with --data and --trace-format",
            ));
        }
        if self.rampup_s > 0.0 {
            return Err(BenchError::config(
                "--rampup",
                "means nothing to a replay, whose load comes up as that of its trace did",
            ));
        }
        Ok(())
    }

    /// What a level depends on, for `--resume`: results of other settings are measured again.
    pub(crate) fn fingerprint(
        &self,
        target: &str,
        model: &str,
        strategy: &crate::Strategy,
    ) -> String {
        let phase = |p: Phase| format!("{p:?}");
        let search = Search::of(self);
        let limits = search.map_or(self.limits, |s| s.limits(strategy, self.limits));
        let mut settings = json!({
            "target": self.identity.as_deref().unwrap_or(target),
            "model": model,
            "endpoint": self.target.endpoint.path(),
            "no_stream": self.target.no_stream,
            "extra_body": self.target.extra_body,
            "timeouts": format!("{:?}", self.target.timeouts),
            "insecure": self.target.insecure,
            "http": format!("{:?}", self.target.http),
            "connect_to": self.target.connect_to,
            "strategy": strategy,
            "prompt_tokens": self.data.prompt_tokens,
            "output_tokens": self.data.output_tokens,
            "format": format!("{:?}", self.data.format),
            "ignore_eos": self.data.ignore_eos,
            "limits": limits,
            "rampup_s": self.rampup_s,
            "slo": self.slo,
            "warmup": phase(self.warmup),
            "cooldown": phase(self.cooldown),
        });
        if let Some(data) = self.data.fingerprint() {
            settings["data"] = data;
        }
        // FNV-1a: stable from release to release, unlike the standard library's hasher.
        let hash = settings
            .to_string()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        format!("{hash:016x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GoodputLoad, GoodputSearch, HttpVersion, KneeSearch, Strategy};

    fn error(change: impl FnOnce(&mut BenchConfig)) -> String {
        let mut config = BenchConfig::new("http://h", Profile::Synchronous);
        change(&mut config);
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn bad_settings_name_their_flag() {
        assert!(
            BenchConfig::new("http://h", Profile::Synchronous)
                .check()
                .is_ok()
        );
        assert!(error(|c| c.limits = Limits::NONE).starts_with("--max-requests"));
        assert!(error(|c| c.limits.max_requests = Some(0)).starts_with("--max-requests"));
        assert!(error(|c| c.run_limits.max_requests = Some(0)).starts_with("--max-total-requests"));
        assert!(error(|c| c.limits.max_seconds = Some(f64::NAN)).starts_with("--max-seconds"));
        assert!(error(|c| c.data.prompt_tokens = 0).starts_with("--prompt-tokens"));
        assert!(error(|c| c.data.output_tokens = 1 << 40).starts_with("--output-tokens"));
        assert!(
            error(|c| c.profile = Profile::Concurrent(vec![1, 0])).starts_with("--concurrency")
        );
        assert!(error(|c| c.profile = Profile::Concurrent(vec![])).starts_with("--concurrency"));
        assert!(
            error(|c| c.profile = Profile::Constant {
                rates: vec![-1.0],
                max_concurrency: None
            })
            .starts_with("--rate")
        );
        assert!(
            error(|c| c.target.headers.push(("a b".into(), "c".into()))).starts_with("--header")
        );
        assert!(error(|c| c.target.api_key = Some("a\nb".into())).starts_with("--api-key"));
        assert!(error(|c| c.metrics_url = Some("h:9".into())).starts_with("--metrics-url"));
        assert!(error(|c| c.slo = Some(Slo::default())).starts_with("--goodput"));
        let search = GoodputSearch::new(GoodputLoad::Concurrency { max: 9 });
        assert!(error(|c| c.profile = Profile::Goodput(search)).starts_with("--goodput: this"));
        let share = GoodputSearch {
            share: 1.0,
            ..search
        };
        assert!(error(|c| c.profile = Profile::Goodput(share)).starts_with("--goodput-share"));
        let few = KneeSearch::new(1);
        assert!(error(|c| c.profile = Profile::Knee(few)).starts_with("--max-concurrency"));
        assert!(
            error(|c| c.target.timeouts.total = Duration::ZERO).starts_with("--request-timeout")
        );
        assert!(
            error(|c| {
                c.target.insecure = true;
                c.target.ca_file = Some("ca.pem".into());
            })
            .starts_with("--insecure")
        );
        assert!(
            error(|c| c.target.timeouts.idle = Some(Duration::ZERO)).starts_with("--idle-timeout")
        );
        assert!(error(|c| c.target.connect_to = Some("h:x".into())).starts_with("--connect-to"));
        let replay = |time_scale| Profile::Replay {
            time_scales: vec![time_scale],
            max_concurrency: None,
        };
        let trace = DataSource::Trace(crate::TraceData {
            path: "trace.jsonl".into(),
            format: crate::TraceFormat::OpenTelemetry,
        });
        assert!(error(|c| c.profile = replay(1.0)).starts_with("--profile: replay"));
        assert!(error(|c| c.profile = replay(0.0)).starts_with("--time-scale"));
        let replayed = |c: &mut BenchConfig| {
            (c.profile, c.data.source) = (replay(1.0), trace.clone());
            c.limits = Limits::NONE;
        };
        let mut fine = BenchConfig::new("http://h", Profile::Synchronous);
        replayed(&mut fine);
        assert!(fine.check().is_ok());
        assert!(
            error(|c| {
                replayed(c);
                c.rampup_s = 1.0;
            })
            .starts_with("--rampup")
        );
        assert!(error(|c| c.rampup_s = f64::NAN).starts_with("--rampup"));
        assert!(error(|c| c.order.repeats = 0).starts_with("--repeats"));
        assert!(error(|c| c.warmup = Phase::Share(1.5)).starts_with("--warmup"));
        assert!(error(|c| c.requests_jsonl = true).starts_with("--requests-jsonl"));
        assert!(error(|c| c.sample_size = Some(0)).starts_with("--sample-size"));
        assert!(error(|c| c.data.turns = 0).starts_with("--turns"));
    }

    #[test]
    fn the_fingerprint_knows_settings_apart() {
        let config = BenchConfig::new("http://h", Profile::Synchronous);
        let of = |c: &BenchConfig, streams| {
            c.fingerprint("http://h", "m", &Strategy::Concurrent { streams })
        };
        assert_eq!(of(&config, 5), of(&config.clone(), 5));
        assert_ne!(of(&config, 5), of(&config, 6));
        let mut other = config.clone();
        other.data.output_tokens = 65;
        assert_ne!(of(&config, 5), of(&other, 5));
        let changes: [fn(&mut BenchConfig); 6] = [
            |c| c.target.no_stream = true,
            |c| c.target.insecure = true,
            |c| c.target.http = HttpVersion::Http2,
            |c| c.target.connect_to = Some("h2".to_owned()),
            |c| c.target.timeouts.idle = Some(Duration::from_secs(1)),
            |c| c.target.timeouts.retry_after = Duration::ZERO,
        ];
        for change in changes {
            let mut other = config.clone();
            change(&mut other);
            assert_ne!(of(&config, 5), of(&other, 5));
        }
        let mut spread = config.clone();
        spread.data.prompt_spread.stdev = Some(9);
        assert_ne!(of(&config, 5), of(&spread, 5));
        other.identity = Some("own".to_owned());
        let at = |url| other.fingerprint(url, "m", &Strategy::Concurrent { streams: 5 });
        assert_eq!(at("http://h:1"), at("http://h:2"));
    }
}
