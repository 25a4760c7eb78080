//! AIPerf's `profile_export.jsonl`: one request a line. Under which load stands in the summary beside it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use powerband_bench::{LevelResult, Outcome, RequestRecord, Strategy, TokenSource};
use serde::Deserialize;
use serde_json::Value;

use super::aiperf::{milliseconds, strategy};
use super::plausible;
use crate::load::Level;

/// The summary of the same run, in the same folder.
const SUMMARY: &str = "profile_export_aiperf.json";

#[derive(Deserialize)]
struct Line {
    metadata: Metadata,
    #[serde(default)]
    metrics: BTreeMap<String, Metric>,
    #[serde(default)]
    error: Option<Failure>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    x_request_id: Option<String>,
    request_start_ns: u64,
    request_end_ns: u64,
    benchmark_phase: Option<String>,
    was_cancelled: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metric {
    value: Value,
    unit: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Failure {
    code: Option<i64>,
    message: String,
}

/// The level; what is wrong if it is none. The file is read twice and never held: first for the start of its
/// first request.
pub fn read(path: &Path) -> Result<Vec<Level>, String> {
    let start = lines(path)?.try_fold(u64::MAX, |start, line| {
        Ok::<_, String>(start.min(line?.metadata.request_start_ns))
    })?;
    let failed: RefCell<Option<String>> = RefCell::new(None);
    let records = lines(path)?.map_while(|line| {
        let record = line.and_then(|line| line.record(start));
        record
            .map_err(|e| failed.borrow_mut().get_or_insert(e).clone())
            .ok()
    });
    let beside = || -> Option<Value> {
        let file = File::open(path.with_file_name(SUMMARY)).ok()?;
        serde_json::from_reader(BufReader::new(file)).ok()
    };
    let input = beside().map_or(Value::Null, |summary| summary["input_config"].clone());
    let mut level = LevelResult::empty(strategy(&input));
    level.requests = records.flatten().collect();
    if let Some(problem) = failed.take() {
        return Err(problem);
    }
    if level.requests.is_empty() {
        return Err("it holds no request".into());
    }
    if level.strategy
        == (Strategy::Throughput {
            max_concurrency: None,
        })
    {
        level.warnings.push(format!(
            "under which load is not known: {SUMMARY}, which says it, is not beside the requests"
        ));
    }
    let model = &input["endpoint"]["model_names"][0];
    level.model = model.as_str().unwrap_or_default().to_owned();
    level.started_unix = start as f64 / 1e9;
    level.duration_s = level.requests.last_end_ns() as f64 / 1e9;
    Ok(vec![Level::of(&level)])
}

fn lines(path: &Path) -> Result<impl Iterator<Item = Result<Line, String>>, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let lines = serde_json::Deserializer::from_reader(BufReader::new(file)).into_iter::<Line>();
    let numbered = lines.enumerate();
    Ok(numbered.map(|(i, line)| line.map_err(|e| format!("its request {} is none ({e})", i + 1))))
}

impl Line {
    /// A time, ns.
    fn time_ns(&self, metric: &str) -> Option<u64> {
        let metric = self.metrics.get(metric)?;
        let value = plausible(metric.value.as_f64()?)?;
        Some((value * milliseconds(&metric.unit)? * 1e6).round() as u64)
    }

    fn count(&self, metric: &str) -> u64 {
        let value = self.metrics.get(metric).and_then(|m| m.value.as_f64());
        value.and_then(plausible).map_or(0, |v| v as u64)
    }

    /// Its request, times since `start`; `None` where it is not of the measured phase.
    fn record(self, start: u64) -> Result<Option<RequestRecord>, String> {
        let phase = self.metadata.benchmark_phase.as_deref();
        if phase.is_some_and(|phase| phase != "profiling") {
            return Ok(None);
        }
        let sent = self.metadata.request_start_ns.saturating_sub(start);
        let end = self.metadata.request_end_ns.saturating_sub(start).max(sent);
        let output_tokens = self.count("output_sequence_length");
        let first = self
            .time_ns("time_to_first_token")
            .map(|t| sent.saturating_add(t));
        let decoded = self.time_ns("inter_token_latency");
        let decoded = decoded.map(|itl| itl.saturating_mul(output_tokens.saturating_sub(1)));
        let last = first.map(|first| decoded.map_or(end, |d| first.saturating_add(d)));
        let why = self.error.as_ref().map(|e| match e.code {
            Some(code) => format!("{code}: {}", e.message),
            None => e.message.clone(),
        });
        let record = RequestRecord {
            outcome: match (self.metadata.was_cancelled, why) {
                (true, why) => Outcome::Incomplete(why.unwrap_or_default()),
                (false, Some(why)) => Outcome::Errored(why),
                (false, None) => Outcome::Successful,
            },
            intended_ns: sent,
            sent_ns: sent,
            first_token_ns: first,
            first_output_token_ns: first,
            last_token_ns: last,
            end_ns: end.max(last.unwrap_or(0)),
            prompt_tokens: self.count("input_sequence_length"),
            output_tokens,
            // Gaps are not between tokens where a chunk has several; without them the tokens are spread evenly.
            chunks: output_tokens,
            token_source: TokenSource::Tokenizer,
            id: self.metadata.x_request_id.unwrap_or_default(),
            ..RequestRecord::default()
        };
        match record.implausible() {
            Some(what) => Err(format!("a request claims {what}")),
            None => Ok(Some(record)),
        }
    }
}
