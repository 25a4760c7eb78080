//! Writing a level.

use std::io::Write;
use std::path::Path;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::FORMAT_OF;
use super::summary::{ByStatus, metrics};
use crate::distribution::CONFIDENCE;
use crate::error::BenchError;
use crate::metrics::window;
use crate::record::{LevelResult, Outcome, RequestRecord, Strategy};
use crate::target::Endpoint;
use crate::whole_file;

/// Write one level to `path`, which is whole in the end or not there.
///
/// # Errors
/// [`BenchError::Write`], or [`BenchError::Scratch`] if the requests cannot be read from their temporary
/// file; an older file of that name is then still whole.
pub fn write(path: &Path, level: &LevelResult) -> Result<(), BenchError> {
    write_report(path, level, None)
}

/// As [`write`], but list only `sample_size` of the successful, of the errored and of the incomplete requests,
/// evenly from start to end. The metrics are of all. To [`read`](super::read) such a level its requests must
/// stand beside it as [JSON lines](crate::jsonl).
///
/// # Errors
/// As [`write`].
pub fn write_sample(
    path: &Path,
    level: &LevelResult,
    sample_size: usize,
) -> Result<(), BenchError> {
    write_report(path, level, Some(sample_size))
}

fn write_report(
    path: &Path,
    level: &LevelResult,
    sample_size: Option<usize>,
) -> Result<(), BenchError> {
    whole_file::write(path, &level.requests, |out| {
        serde_json::to_writer(&mut *out, &report(level, sample_size))?;
        out.write_all(b"\n")
    })
}

#[derive(Serialize)]
struct Report<'a> {
    metadata: Value,
    config: Value,
    benchmarks: [Benchmark<'a>; 1],
    conclusions: [Value; 0],
}

#[derive(Serialize)]
struct Benchmark<'a> {
    type_: &'static str,
    config: Value,
    scheduler_state: Value,
    scheduler_metrics: Value,
    metrics: Value,
    requests: Requests<'a>,
    warnings: Vec<Value>,
    start_time: f64,
    end_time: f64,
    duration: f64,
    warmup_duration: f64,
    cooldown_duration: f64,
    /// The level without its requests.
    powerband: LevelResult,
}

#[derive(Serialize)]
struct Requests<'a> {
    successful: Stats<'a>,
    errored: Stats<'a>,
    incomplete: Stats<'a>,
    total: Value,
}

/// The requests of one kind, turned into JSON one at a time: a list of a million fits no memory.
struct Stats<'a> {
    level: &'a LevelResult,
    kind: fn(&Outcome) -> bool,
    /// How many there are, and how many of them are listed.
    of: usize,
    listed: usize,
}

impl Serialize for Stats<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (of, listed) = (self.of as u128, self.listed as u128);
        let requests = self.level.requests.iter();
        let sample = requests
            .filter(|r| (self.kind)(&r.outcome))
            .zip(0u128..)
            // Where the number of those listed so far takes a step.
            .filter(|(_, i)| (i + 1) * listed / of > i * listed / of);
        serializer.collect_seq(sample.map(|(r, _)| request_stats(self.level, &r)))
    }
}

fn report(level: &LevelResult, sample_size: Option<usize>) -> Report<'_> {
    let by_status = ByStatus::of(level);
    let (start, end) = window(level);
    let totals = level.requests.totals();
    let stats = |kind, of: usize| Stats {
        level,
        kind,
        of,
        listed: sample_size.unwrap_or(of).min(of),
    };
    let bare = LevelResult {
        requests: crate::Requests::default(),
        strategy: level.strategy.clone(),
        target: level.target.clone(),
        model: level.model.clone(),
        endpoint: level.endpoint.clone(),
        http_version: level.http_version.clone(),
        stopped: level.stopped.clone(),
        warnings: level.warnings.clone(),
        fingerprint: level.fingerprint.clone(),
        client: level.client.clone(),
        server: level.server.clone(),
        server_samples: level.server_samples.clone(),
        host: level.host.clone(),
        gpus: level.gpus.clone(),
        data: level.data.clone(),
        ..*level
    };
    let spec = Spec::of(level);
    Report {
        metadata: json!({
            "version": 2,
            "guidellm_version": FORMAT_OF,
            "python_version": "",
            "platform": format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        }),
        config: json!({
            "metadata": {"labels": {"generator": concat!("powerband ", env!("CARGO_PKG_VERSION"))}},
            "spec": {
                "backend": spec.backend,
                "profile": spec.profile,
                "constraints": spec.constraints,
                "data": [spec.data],
            },
            "benchmarks": [null],
        }),
        benchmarks: [Benchmark {
            type_: "generative_benchmark",
            config: spec.benchmark_config(level, sample_size),
            scheduler_state: scheduler_state(level),
            scheduler_metrics: scheduler_metrics(level, &by_status),
            metrics: metrics(level, &by_status),
            requests: Requests {
                successful: stats(|o| matches!(o, Outcome::Successful), totals.successful),
                errored: stats(|o| matches!(o, Outcome::Errored(_)), totals.errored),
                incomplete: stats(|o| matches!(o, Outcome::Incomplete(_)), totals.incomplete),
                total: Value::Null,
            },
            warnings: warnings(level),
            start_time: level.started_unix + start,
            end_time: level.started_unix + end,
            duration: end - start,
            warmup_duration: level.warmup_s,
            cooldown_duration: level.cooldown_s,
            powerband: bare,
        }],
        conclusions: [],
    }
}

/// What was asked for, in GuideLLM's words.
struct Spec {
    backend: Value,
    profile: Value,
    constraints: Vec<Value>,
    data: Value,
}

impl Spec {
    fn of(level: &LevelResult) -> Spec {
        let mut profile = match &level.strategy {
            Strategy::Synchronous => json!({"kind": "synchronous"}),
            Strategy::Concurrent { streams } => json!({"kind": "concurrent", "streams": [streams]}),
            Strategy::Throughput { max_concurrency } => {
                json!({"kind": "throughput", "max_concurrency": max_concurrency.unwrap_or(level.requests.len().max(1))})
            }
            Strategy::Constant {
                rate,
                max_concurrency,
            } => {
                json!({"kind": "constant", "rate": [rate], "max_concurrency": max_concurrency})
            }
            Strategy::Poisson {
                rate,
                max_concurrency,
            } => {
                json!({"kind": "poisson", "rate": [rate], "max_concurrency": max_concurrency})
            }
            Strategy::Replay { time_scale, .. } => {
                json!({"kind": "replay", "time_scale": time_scale, "schedule_turn": "timestamp"})
            }
        };
        profile["rampup_duration"] = json!(level.rampup_s);
        let mean = |of: fn(&RequestRecord) -> u64| {
            level.requests.iter().map(|r| of(&r)).sum::<u64>() / level.requests.len().max(1) as u64
        };
        let endpoint = match level.endpoint.as_str() {
            // Not known: a level that was read from a file without it.
            "" => Endpoint::default().path(),
            known => known,
        };
        let whole = level.stopped.is_none() && !level.requests.is_empty();
        let mut backend = json!({
            "kind": "openai_http",
            "target": level.target,
            "model": level.model,
            "request_format": endpoint,
        });
        if !level.http_version.is_empty() {
            backend["http2"] = json!(level.http_version == "2");
        }
        Spec {
            backend,
            profile,
            constraints: whole
                .then(|| json!({"kind": "max_requests", "count": level.requests.len()}))
                .into_iter()
                .collect(),
            data: match &level.data {
                Value::Null => json!({
                    "kind": "synthetic_text",
                    "prompt_tokens": level.requested_prompt_tokens.unwrap_or_else(|| mean(|r| r.prompt_tokens)).max(1),
                    "output_tokens": level.requested_output_tokens.unwrap_or_else(|| mean(|r| r.output_tokens)).max(1),
                }),
                known => known.clone(),
            },
        }
    }

    /// `config` of the benchmark itself.
    fn benchmark_config(&self, level: &LevelResult, sample_size: Option<usize>) -> Value {
        let constraints: serde_json::Map<String, Value> = self
            .constraints
            .iter()
            .map(|c| {
                (
                    "max_requests".to_owned(),
                    json!({"type_": "max_requests", "args": c, "current_index": 0}),
                )
            })
            .collect();
        let phase = |seconds: f64| {
            let value = (seconds > 0.0).then_some(seconds);
            json!({"percent": null, "value": value, "mode": "prefer_duration"})
        };
        let id = id_of(level);
        json!({
            "id_": id,
            "run_id": id,
            "run_index": 0,
            "strategy": strategy(level),
            "constraints": constraints,
            "sample_size": sample_size,
            "warmup": phase(level.warmup_s),
            "cooldown": phase(level.cooldown_s),
            "prefer_response_metrics": true,
            // GuideLLM calls the ITL `tpot` in an objective.
            "slo": level.slo.map(|slo| json!({
                "ttft_ms": slo.ttft_ms, "tpot_ms": slo.itl_ms, "e2el_ms": slo.e2e_ms,
            })),
            "confidence": CONFIDENCE,
            "warnings": [],
            "profile": self.profile,
            "requests": self.data,
            "backend": self.backend,
            "environment": {"generator": concat!("powerband ", env!("CARGO_PKG_VERSION"))},
        })
    }
}

/// An id that names the level: its settings and its start.
fn id_of(level: &LevelResult) -> String {
    format!("{}-{:.6}", level.fingerprint, level.started_unix)
}

fn strategy(level: &LevelResult) -> Value {
    match &level.strategy {
        Strategy::Synchronous => {
            json!({"type_": "synchronous", "worker_count": 1, "max_concurrency": 1})
        }
        Strategy::Concurrent { streams } => json!({
            "type_": "concurrent", "streams": streams, "worker_count": streams, "max_concurrency": streams,
            "rampup_duration": level.rampup_s,
        }),
        Strategy::Throughput { max_concurrency } => json!({
            "type_": "throughput", "worker_count": null, "max_concurrency": max_concurrency, "rampup_duration": level.rampup_s,
        }),
        Strategy::Constant {
            rate,
            max_concurrency,
        } => json!({
            "type_": "constant", "worker_count": null, "max_concurrency": max_concurrency, "rate": rate,
            "rampup_duration": level.rampup_s,
        }),
        Strategy::Poisson {
            rate,
            max_concurrency,
        } => json!({
            "type_": "poisson", "worker_count": null, "max_concurrency": max_concurrency, "rate": rate,
            "random_seed": 42,
        }),
        Strategy::Replay {
            time_scale,
            max_concurrency,
        } => json!({
            "type_": "trace", "worker_count": null, "max_concurrency": max_concurrency, "time_scale": time_scale,
            "schedule_turn": "timestamp",
        }),
    }
}

fn scheduler_state(level: &LevelResult) -> Value {
    let start = level.started_unix;
    let end = start + level.duration_s;
    let totals = level.requests.totals();
    json!({
        "node_id": 0,
        "num_processes": 1,
        "start_time": start,
        "end_time": end,
        "start_requests_time": start,
        "end_requests_time": end,
        "end_queuing_time": end,
        "end_queuing_constraints": {},
        "end_processing_time": end,
        "end_processing_constraints": {},
        "scheduler_constraints": {},
        "progress": {"remaining_requests": 0.0, "total_requests": level.requests.len(),
                     "remaining_duration": null, "total_duration": null, "stop_time": end},
        "created_requests": level.requests.len(),
        "queued_requests": 0,
        "pending_requests": 0,
        "processing_requests": 0,
        "processed_requests": level.requests.len(),
        "successful_requests": totals.successful,
        "errored_requests": totals.errored,
        "cancelled_requests": totals.incomplete,
    })
}

fn scheduler_metrics(level: &LevelResult, by_status: &ByStatus<'_>) -> Value {
    let (start, end) = window(level);
    let unix = |s: f64| level.started_unix + s;
    let mean = |of: fn(&RequestRecord) -> f64| {
        level.requests.iter().map(|r| of(&r)).sum::<f64>() / level.requests.len().max(1) as f64
    };
    let delay = mean(RequestRecord::dispatch_delay_s);
    let time = mean(RequestRecord::e2e_s);
    json!({
        "start_time": unix(0.0),
        "request_start_time": unix(0.0),
        "measure_start_time": unix(start),
        "measure_end_time": unix(end),
        "request_end_time": unix(level.duration_s),
        "end_time": unix(level.duration_s),
        "requests_made": by_status.totals(),
        // There is no queue between threads: a request is made by the client that sends it.
        "queued_time_avg": 0.0,
        "resolve_start_delay_avg": 0.0,
        "resolve_targeted_start_delay_avg": delay,
        "request_start_delay_avg": 0.0,
        "request_targeted_start_delay_avg": delay,
        "request_time_avg": time,
        "resolve_end_delay_avg": 0.0,
        "resolve_time_avg": time,
        "finalized_delay_avg": 0.0,
        "processed_delay_avg": 0.0,
        "dataset_incomplete": false,
        "strategy_type": strategy(level)["type_"],
    })
}

/// Our warnings in GuideLLM's form, the client's limit first.
fn warnings(level: &LevelResult) -> Vec<Value> {
    let warning = |code: &str, message: &str, observed: f64| {
        json!({"code": code, "message": message, "observed": observed, "threshold": 0.0, "unit": "boolean",
               "sample_count": level.requests.len(), "note": ""})
    };
    let limited = level.client.limited.then(|| {
        let message = format!("the client was the limit: {}", level.client.reason);
        warning("client_limited", &message, 1.0)
    });
    let others = level
        .warnings
        .iter()
        .map(|message| warning("note", message, 1.0));
    limited.into_iter().chain(others).collect()
}

/// One request in GuideLLM's form; ours, exact, stands under `powerband`.
fn request_stats(level: &LevelResult, r: &RequestRecord) -> Value {
    let unix = |ns: u64| level.started_unix + ns as f64 / 1e9;
    let at = |ns: Option<u64>| ns.map(unix);
    let (status, error) = match &r.outcome {
        Outcome::Successful => ("completed", None),
        Outcome::Errored(reason) => ("errored", Some(reason)),
        Outcome::Incomplete(reason) => ("cancelled", Some(reason)),
    };
    let latency = r.e2e_s();
    let per_second = |tokens: u64| (latency > 0.0).then(|| tokens as f64 / latency);
    let total = r.prompt_tokens + r.output_tokens;
    let ratio = |tokens: u64, chunks: u64| (chunks > 0).then(|| tokens as f64 / chunks as f64);
    json!({
        "type_": "generative_request_stats",
        "request_id": r.id,
        "info": {
            "request_id": r.id,
            "conversation_id": r.session.map(|session| session.to_string()),
            "turn_index": r.turn,
            // A question and an answer for each turn before.
            "history_len": r.turn,
            "status": status,
            "scheduler_node_id": 0,
            "scheduler_process_id": 0,
            "scheduler_start_time": level.started_unix,
            "timings": {
                "targeted_start": unix(r.intended_ns),
                "predecessor_completed": at(r.predecessor_end_ns),
                "queued": unix(r.intended_ns),
                "dequeued": unix(r.intended_ns),
                "scheduled_at": unix(r.intended_ns),
                "resolve_start": unix(r.sent_ns),
                "request_start": unix(r.sent_ns),
                "first_request_iteration": at(r.first_token_ns),
                "first_token_iteration": at(r.first_token_ns),
                "first_output_token_iteration": at(r.first_output_token_ns),
                "last_token_iteration": at(r.last_token_ns),
                "last_request_iteration": at(r.last_token_ns),
                "request_iterations": r.iterations,
                "token_iterations": r.chunks,
                "request_end": unix(r.end_ns),
                "resolve_end": unix(r.end_ns),
                "finalized": unix(r.end_ns),
            },
            "settings": {},
            "error": error,
            "started_at": unix(r.sent_ns),
            "completed_at": unix(r.end_ns),
        },
        "input_metrics": {"text_tokens": r.prompt_tokens, "cached_tokens": r.cached_tokens, "total_tokens": r.prompt_tokens},
        "output_metrics": {"text_tokens": r.output_tokens, "total_tokens": r.output_tokens},
        "request_start_time": unix(r.sent_ns),
        "request_end_time": unix(r.end_ns),
        "request_latency": latency,
        "request_dispatch_delay": r.dispatch_delay_s(),
        "turn_predecessor_delay": r.turn_predecessor_delay_s(),
        "turn_scheduling_delay": r.turn_scheduling_delay_s(),
        "request_scheduled_latency": r.scheduled_latency_s(),
        "prompt_tokens": r.prompt_tokens,
        "cached_tokens": r.cached_tokens,
        "output_tokens": r.output_tokens,
        "total_tokens": total,
        "time_to_first_token_ms": r.ttft_ms(),
        "time_to_last_round_trip_ms": null,
        "avg_round_trip_time_ms": null,
        "time_per_output_token_ms": r.tpot_ms(),
        "inter_token_latency_ms": r.itl_ms(),
        "tokens_per_second": per_second(total),
        "output_tokens_per_second": per_second(r.output_tokens),
        "time_to_first_output_token_ms": r.ttfot_ms(),
        "iter_tokens_per_iteration": (r.output_tokens > 1).then(|| ratio(r.output_tokens - 1, r.chunks.saturating_sub(1))).flatten(),
        "output_tokens_per_iteration": ratio(r.output_tokens, r.chunks),
        "powerband": r,
    })
}
