//! GuideLLM's CSV: three lines of headings (group, field, unit or statistic), then one a level.

use std::collections::HashMap;

use powerband_bench::Strategy;

use super::{plausible, summary_of};
use crate::summary::{LevelSummary, Spread};

/// Is this the first line of such a file?
pub fn is_one(first_line: &[u8]) -> bool {
    let text = String::from_utf8_lossy(first_line);
    text.contains("Run Info") && text.contains("Benchmark")
}

/// The levels; what is wrong if it is none.
pub fn parse(text: &[u8]) -> Result<Vec<LevelSummary>, String> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .from_reader(text);
    let mut rows = reader.records();
    let mut next = || {
        let row = rows.next().transpose();
        row.map_err(|e| format!("it is not a table ({e})"))
    };
    let mut header = || next()?.ok_or("its three lines of headings are not all there".to_owned());
    let (groups, fields, units) = (header()?, header()?, header()?);
    let mut columns: HashMap<(&str, &str, &str), usize> = HashMap::new();
    for (i, key) in groups.iter().zip(&fields).zip(&units).enumerate() {
        columns.entry((key.0.0, key.0.1, key.1)).or_insert(i);
    }
    let mut levels = Vec::new();
    while let Some(row) = next()? {
        let cell = |group, field, unit| {
            let column = columns.get(&(group, field, unit))?;
            row.get(*column).filter(|cell| !cell.is_empty())
        };
        let strategy = cell("Benchmark", "Strategy", "")
            .ok_or("a level without the column `Strategy` of the group `Benchmark`")?;
        levels.push(level(strategy_of(strategy), &cell));
    }
    match levels.is_empty() {
        true => Err("no level follows the headings".into()),
        false => Ok(levels),
    }
}

fn level<'a>(
    strategy: Strategy,
    cell: &impl Fn(&'static str, &'static str, &'static str) -> Option<&'a str>,
) -> LevelSummary {
    let number = |group, field, unit| cell(group, field, unit)?.parse().ok().and_then(plausible);
    let count = |field| number("Request Counts", field, "").map(|n| n as u64);
    let mean = |group, field| number(group, field, "Mean");
    let rate = |field| mean("Token Throughput", field);
    // The smallest, p0.1, 1, 5, 10, 25, 75, 90, 95, 99 and the largest as a JSON list, in which the median is
    // not; `unit`: ms in one of theirs.
    let spread = |group, field, unit: f64| {
        let list: Vec<f64> = cell(group, field, "Percentiles")
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        let interval: Option<(f64, f64)> =
            cell(group, field, "Mean CI").and_then(|text| serde_json::from_str(text).ok());
        let at = |i: usize| list.get(i).copied().and_then(plausible).map(|v| v * unit);
        Spread {
            p10: at(4),
            p50: number(group, field, "Median").map(|v| v * unit),
            p90: at(7),
            p95: at(8),
            p99: at(9),
            mean_interval: interval.map(|(low, high)| (low * unit, high * unit)),
        }
    };
    const MS: &str = "Successful ms";
    const SECONDS: &str = "Successful Sec";
    LevelSummary {
        throughput: rate("Successful Total Tokens/Sec"),
        ttft_ms: mean("Time to First Token", MS),
        itl_ms: mean("Inter Token Latency", MS),
        e2e_ms: mean("Request Latency", SECONDS).map(|s| s * 1e3),
        successful: count("Successful"),
        errored: count("Errored"),
        incomplete: count("Incomplete"),
        total: count("Total"),
        output_tokens_per_second: rate("Successful Output Tokens/Sec"),
        prompt_tokens_per_second: rate("Successful Input Tokens/Sec"),
        requests_per_second: mean("Server Throughput", "Successful Requests/Sec"),
        delivered_concurrency: mean("Server Throughput", "Successful Concurrency"),
        prompt_tokens: mean("Token Metrics", "Successful Input Tokens"),
        output_tokens: mean("Token Metrics", "Successful Output Tokens"),
        ttft: spread("Time to First Token", MS, 1.0),
        itl: spread("Inter Token Latency", MS, 1.0),
        e2e: spread("Request Latency", SECONDS, 1e3),
        ..summary_of(&strategy)
    }
}

/// `concurrent@4`, `constant@20.00`, `throughput@unlimited`.
fn strategy_of(text: &str) -> Strategy {
    let (name, value) = text.split_once('@').unwrap_or((text, ""));
    let rate = value.parse().ok().and_then(plausible);
    let max_concurrency = value.parse().ok();
    match (name, max_concurrency, rate) {
        ("synchronous", ..) => Strategy::Synchronous,
        ("concurrent", Some(streams), _) => Strategy::Concurrent { streams },
        ("constant", _, Some(rate)) => Strategy::Constant {
            rate,
            max_concurrency: None,
        },
        ("poisson", _, Some(rate)) => Strategy::Poisson {
            rate,
            max_concurrency: None,
        },
        _ => Strategy::Throughput { max_concurrency },
    }
}
