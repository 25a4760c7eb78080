//! Reading reports, ours and others', with whatever fields they have.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::Deserialize;

use crate::chunk::excerpt;
use crate::error::BenchError;
use crate::record::{LevelResult, Outcome, RequestRecord, Strategy, TokenSource};

/// Read the levels of a report, in its order. Fields that are missing are left empty; what we wrote
/// ourselves comes back exactly.
///
/// # Errors
/// [`BenchError::Read`] for a file that is not there, is no JSON, or holds no benchmark.
pub fn read(path: &Path) -> Result<Vec<LevelResult>, BenchError> {
    let failed = |problem: String| BenchError::Read {
        path: path.to_owned(),
        problem,
    };
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let report: Report = serde_json::from_reader(BufReader::new(file))
        .map_err(|e| failed(format!("it is not a GuideLLM report ({e})")))?;
    if report.benchmarks.is_empty() {
        return Err(failed(
            "it holds no benchmark; expected GuideLLM's report, schema version 2".into(),
        ));
    }
    let levels: Vec<LevelResult> = report
        .benchmarks
        .into_iter()
        .map(Benchmark::into_level)
        .collect();
    for request in levels.iter().flat_map(|level| &level.requests) {
        if let Some(what) = request.implausible() {
            let id = excerpt(request.id.as_bytes());
            return Err(failed(format!("the request `{id}` claims {what}")));
        }
    }
    Ok(levels)
}

#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    benchmarks: Vec<Benchmark>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Benchmark {
    config: Config,
    requests: Requests,
    warmup_duration: f64,
    cooldown_duration: f64,
    warnings: Vec<Warning>,
    powerband: Option<Box<LevelResult>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    strategy: RawStrategy,
    backend: Backend,
    requests: Data,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawStrategy {
    type_: String,
    streams: Option<usize>,
    rate: Option<f64>,
    max_concurrency: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Backend {
    target: Option<String>,
    model: Option<String>,
    request_format: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    prompt_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Warning {
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Requests {
    successful: Option<Vec<Stats>>,
    errored: Option<Vec<Stats>>,
    incomplete: Option<Vec<Stats>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Stats {
    request_id: String,
    info: Info,
    input_metrics: Usage,
    output_metrics: Usage,
    request_start_time: Option<f64>,
    request_end_time: Option<f64>,
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    output_tokens: Option<u64>,
    powerband: Option<RequestRecord>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    total_tokens: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Info {
    timings: Timings,
    error: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Timings {
    targeted_start: Option<f64>,
    request_start: Option<f64>,
    first_token_iteration: Option<f64>,
    first_output_token_iteration: Option<f64>,
    last_token_iteration: Option<f64>,
    request_iterations: u64,
    token_iterations: u64,
    request_end: Option<f64>,
    resolve_end: Option<f64>,
}

/// How a group's requests ended, given their errors.
type ToOutcome = fn(String) -> Outcome;

impl Stats {
    /// When it was sent, seconds since 1970.
    fn start(&self) -> Option<f64> {
        self.info.timings.request_start.or(self.request_start_time)
    }

    fn into_record(self, origin: f64, outcome: ToOutcome) -> RequestRecord {
        if let Some(record) = self.powerband {
            return record;
        }
        let ns = |t: f64| ((t - origin).max(0.0) * 1e9).round() as u64;
        let start = self.start();
        let t = self.info.timings;
        let sent = ns(start.unwrap_or(origin));
        let end = t.request_end.or(self.request_end_time).or(t.resolve_end);
        let counted = self.output_tokens.or(self.output_metrics.total_tokens);
        RequestRecord {
            id: self.request_id,
            outcome: outcome(self.info.error.unwrap_or_default()),
            intended_ns: t.targeted_start.map_or(sent, ns),
            sent_ns: sent,
            first_token_ns: t.first_token_iteration.map(ns),
            first_output_token_ns: t.first_output_token_iteration.map(ns),
            last_token_ns: t.last_token_iteration.map(ns),
            end_ns: end.map_or(sent, ns),
            prompt_tokens: self
                .prompt_tokens
                .or(self.input_metrics.total_tokens)
                .unwrap_or(0),
            cached_tokens: self.cached_tokens,
            output_tokens: counted.unwrap_or(t.token_iterations),
            chunks: t.token_iterations,
            iterations: t.request_iterations,
            gaps_us: Vec::new(),
            token_source: match counted {
                Some(_) => TokenSource::Usage,
                None => TokenSource::Chunks,
            },
        }
    }
}

impl Benchmark {
    fn into_level(self) -> LevelResult {
        let groups: [(_, ToOutcome); 3] = [
            (self.requests.successful, |_| Outcome::Successful),
            (self.requests.errored, Outcome::Errored),
            (self.requests.incomplete, Outcome::Incomplete),
        ];
        let starts = groups
            .iter()
            .flat_map(|(g, _)| g.iter().flatten())
            .filter_map(Stats::start);
        let origin = starts.fold(f64::INFINITY, f64::min);
        let origin = if origin.is_finite() { origin } else { 0.0 };
        let mut requests: Vec<RequestRecord> = groups
            .into_iter()
            .flat_map(|(group, outcome)| {
                group
                    .into_iter()
                    .flatten()
                    .map(move |s| s.into_record(origin, outcome))
            })
            .collect();
        requests.sort_by(|a, b| (a.sent_ns, &a.id).cmp(&(b.sent_ns, &b.id)));
        if let Some(level) = self.powerband {
            return LevelResult { requests, ..*level };
        }
        let end = requests.iter().map(|r| r.end_ns).max().unwrap_or(0);
        LevelResult {
            target: self.config.backend.target.unwrap_or_default(),
            model: self.config.backend.model.unwrap_or_default(),
            endpoint: self.config.backend.request_format.unwrap_or_default(),
            started_unix: origin,
            duration_s: end as f64 / 1e9,
            requested_prompt_tokens: self.config.requests.prompt_tokens,
            requested_output_tokens: self.config.requests.output_tokens,
            requests,
            warmup_s: self.warmup_duration,
            cooldown_s: self.cooldown_duration,
            warnings: self.warnings.into_iter().map(|w| w.message).collect(),
            ..LevelResult::empty(self.config.strategy.into_strategy())
        }
    }
}

impl RawStrategy {
    fn into_strategy(self) -> Strategy {
        let max_concurrency = self.max_concurrency;
        match (self.type_.as_str(), self.streams, self.rate) {
            ("concurrent", Some(streams), _) => Strategy::Concurrent { streams },
            ("constant", _, Some(rate)) => Strategy::Constant {
                rate,
                max_concurrency,
            },
            ("poisson", _, Some(rate)) => Strategy::Poisson {
                rate,
                max_concurrency,
            },
            ("throughput", ..) => Strategy::Throughput { max_concurrency },
            ("synchronous", ..) => Strategy::Synchronous,
            // A shape that we do not have: what is known of it is its cap.
            _ => Strategy::Throughput { max_concurrency },
        }
    }
}
