//! AIPerf's summaries, and GenAI-Perf's, which look the same: `profile_export_aiperf.json` holds an object of
//! statistics for each metric, the CSV of that name two tables of them.

use std::collections::BTreeMap;
use std::io::Read;

use powerband_bench::Strategy;
use serde::Deserialize;
use serde_json::Value;

use super::{plausible, summary_of};
use crate::summary::{LevelSummary, Spread};

/// Metric to its unit and its statistics (`avg`, `p50`, ...).
#[derive(Default)]
struct Metrics(BTreeMap<String, (String, BTreeMap<String, f64>)>);

/// Is this the first line of such a CSV?
pub fn is_csv(first_line: &[u8]) -> bool {
    first_line.starts_with(b"Metric,")
}

/// The level of a JSON file; what is wrong if it is none.
pub fn read(file: impl Read) -> Result<LevelSummary, String> {
    let fields: BTreeMap<String, Value> =
        serde_json::from_reader(file).map_err(|e| format!("it is no summary of AIPerf ({e})"))?;
    let mut metrics = Metrics::default();
    for (name, value) in &fields {
        let (Some(unit), Some(statistics)) = (value["unit"].as_str(), value.as_object()) else {
            continue;
        };
        let numbers = statistics
            .iter()
            .filter_map(|(k, v)| Some((k.clone(), v.as_f64()?)));
        let entry = (unit.to_owned(), numbers.collect());
        metrics.0.insert(name.clone(), entry);
    }
    let input = fields.get("input_config").unwrap_or(&Value::Null);
    let mut level = metrics.level(&strategy(input))?;
    // Failed requests are no metric where there are none.
    let errors = fields.get("error_summary").and_then(Value::as_array);
    let counted = errors.map(|all| all.iter().filter_map(|e| e["count"].as_u64()));
    level.errored = level
        .errored
        .or(counted.map(|c| c.fold(0, u64::saturating_add)));
    level.total = level
        .successful
        .zip(level.errored)
        .map(|(a, b)| a.saturating_add(b));
    Ok(level)
}

/// The level of a CSV file; what is wrong if it is none.
pub fn parse_csv(text: &[u8]) -> Result<LevelSummary, String> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(text);
    let mut metrics = Metrics::default();
    let mut heading = csv::StringRecord::new();
    for row in reader.records() {
        let row = row.map_err(|e| format!("it is not a table ({e})"))?;
        match row.get(0) {
            Some("Metric") => heading = row,
            // Of the hardware: other columns.
            Some("Endpoint") => heading.clear(),
            Some(name) => {
                // `Time to First Token (ms)`.
                let (name, unit) = name.rsplit_once(" (").unwrap_or((name, ""));
                let statistics = heading.iter().zip(&row).skip(1).filter_map(|(k, v)| {
                    let k = if k == "Value" { "avg" } else { k };
                    Some((k.to_owned(), v.parse::<f64>().ok()?))
                });
                let entry = (unit.trim_end_matches(')').to_owned(), statistics.collect());
                let name = name.to_lowercase().replace(' ', "_");
                metrics.0.entry(name).or_insert(entry);
            }
            None => {}
        }
    }
    // The table does not say with which load.
    metrics.level(&Strategy::Throughput {
        max_concurrency: None,
    })
}

impl Metrics {
    /// A statistic, in ms where it is a time.
    fn get(&self, metric: &str, statistic: &str) -> Option<f64> {
        let (unit, statistics) = self.0.get(metric)?;
        let value = plausible(*statistics.get(statistic)?)?;
        Some(value * milliseconds(unit).unwrap_or(1.0))
    }

    fn level(&self, strategy: &Strategy) -> Result<LevelSummary, String> {
        let avg = |metric| self.get(metric, "avg");
        let spread = |metric| Spread {
            p10: self.get(metric, "p10"),
            p50: self.get(metric, "p50"),
            p90: self.get(metric, "p90"),
            p95: self.get(metric, "p95"),
            p99: self.get(metric, "p99"),
            mean_interval: None,
        };
        let e2e_ms = avg("request_latency").ok_or("it has no `request_latency` with an `avg`")?;
        let requests_per_second = avg("request_throughput");
        let (prompt, output) = (avg("input_sequence_length"), avg("output_sequence_length"));
        let output_rate = avg("output_token_throughput");
        let prompt_rate = requests_per_second.zip(prompt).map(|(r, n)| r * n);
        let total_rate = avg("total_token_throughput");
        let sum = || Some(output_rate? + prompt_rate?);
        Ok(LevelSummary {
            throughput: total_rate.or_else(sum),
            ttft_ms: avg("time_to_first_token"),
            itl_ms: avg("inter_token_latency"),
            e2e_ms: Some(e2e_ms),
            successful: avg("request_count").map(|n| n as u64),
            errored: avg("error_request_count").map(|n| n as u64),
            output_tokens_per_second: output_rate,
            prompt_tokens_per_second: prompt_rate,
            requests_per_second,
            prompt_tokens: prompt,
            output_tokens: output,
            ttft: spread("time_to_first_token"),
            itl: spread("inter_token_latency"),
            e2e: spread("request_latency"),
            ..summary_of(strategy)
        })
    }
}

/// Milliseconds in a unit of time; `None` for a unit of something else.
pub(super) fn milliseconds(unit: &str) -> Option<f64> {
    match unit {
        "ns" | "nanoseconds" => Some(1e-6),
        "us" | "µs" | "microseconds" => Some(1e-3),
        "ms" | "milliseconds" => Some(1.0),
        "s" | "sec" | "seconds" => Some(1e3),
        _ => None,
    }
}

/// The load, which older and newer files keep at different places.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Load {
    concurrency: Option<usize>,
    request_rate: Option<f64>,
    request_rate_mode: Option<String>,
}

pub(super) fn strategy(input: &Value) -> Strategy {
    let places = ["/loadgen", "/perf_analyzer/stimulus", ""];
    let load = places.iter().find_map(|place| {
        let load: Load = serde_json::from_value(input.pointer(place)?.clone()).ok()?;
        (load.concurrency.is_some() || load.request_rate.is_some()).then_some(load)
    });
    let load = load.unwrap_or_default();
    let max_concurrency = load.concurrency;
    match (load.request_rate, max_concurrency) {
        (Some(rate), _) if load.request_rate_mode.as_deref() == Some("constant") => {
            Strategy::Constant {
                rate,
                max_concurrency,
            }
        }
        (Some(rate), _) => Strategy::Poisson {
            rate,
            max_concurrency,
        },
        (None, Some(streams)) => Strategy::Concurrent { streams },
        (None, None) => Strategy::Throughput { max_concurrency },
    }
}
