//! `benchmark_metrics_summary.csv`: ten columns that other tools' notebooks read, then ours.

use std::path::Path;

use crate::error::ReportError;
use crate::summary::{LevelSummary, SteadySummary};

/// The name of the file in a result folder.
pub const FILE_NAME: &str = "benchmark_metrics_summary.csv";

/// The first ten columns; a file without them is no summary.
pub const COLUMNS: [&str; 10] = [
    "File",
    "Throughput (tokens/sec)",
    "TTFT (ms)",
    "ITL (ms)",
    "E2E Latency (ms)",
    "successful",
    "errored",
    "incomplete",
    "total",
    "MAX_CONCURRENCY",
];

/// A column of ours: its name and where its number lives.
struct Extra {
    name: &'static str,
    get: fn(&LevelSummary) -> Option<f64>,
    set: fn(&mut LevelSummary, f64),
}

/// An [`Extra`] for a field path.
macro_rules! extra {
    ($name:literal, $($field:ident).+) => {
        Extra { name: $name, get: |l| l.$($field).+, set: |l, v| l.$($field).+ = Some(v) }
    };
    ($name:literal, steady: $field:ident) => {
        Extra {
            name: $name,
            get: |l| l.steady.and_then(|s| s.$field),
            set: |l, v| l.steady.get_or_insert_with(SteadySummary::default).$field = Some(v),
        }
    };
    ($name:literal, server: $key:literal) => {
        Extra {
            name: $name,
            get: |l| l.server.get($key).copied().filter(|v| v.is_finite() && *v >= 0.0),
            set: |l, v| {
                l.server.insert($key.into(), v);
            },
        }
    };
}

const EXTRAS: [Extra; 70] = [
    extra!("Output Throughput (tokens/sec)", output_tokens_per_second),
    extra!("Prompt Throughput (tokens/sec)", prompt_tokens_per_second),
    extra!("Requests/sec", requests_per_second),
    extra!("Delivered Concurrency", delivered_concurrency),
    extra!("Peak Streaming", peak_streaming),
    extra!("Prompt Tokens/request", prompt_tokens),
    extra!("Output Tokens/request", output_tokens),
    extra!("TTFT p10 (ms)", ttft.p10),
    extra!("TTFT p50 (ms)", ttft.p50),
    extra!("TTFT p90 (ms)", ttft.p90),
    extra!("TTFT p95 (ms)", ttft.p95),
    extra!("TTFT p99 (ms)", ttft.p99),
    extra!("ITL p50 (ms)", itl.p50),
    extra!("ITL p90 (ms)", itl.p90),
    extra!("ITL p95 (ms)", itl.p95),
    extra!("ITL p99 (ms)", itl.p99),
    extra!("E2E p50 (ms)", e2e.p50),
    extra!("E2E p90 (ms)", e2e.p90),
    extra!("E2E p95 (ms)", e2e.p95),
    extra!("E2E p99 (ms)", e2e.p99),
    extra!("Steady Throughput (tokens/sec)", steady: total_tokens_per_second),
    extra!("Steady Output Throughput (tokens/sec)", steady: output_tokens_per_second),
    extra!("Steady Concurrency", steady: delivered_concurrency),
    extra!("Steady TTFT (ms)", steady: ttft_ms),
    extra!("Steady ITL (ms)", steady: itl_ms),
    extra!("Client CPU (cores)", client_cpu),
    extra!("Goodput Share", goodput_share),
    extra!("Goodput (requests/sec)", goodput),
    Extra {
        name: "Scheduled Rate (requests/sec)",
        get: |l| l.scheduled_rate,
        set: |l, v| (l.scheduled_rate, l.open_loop) = (Some(v), true),
    },
    extra!("Duration (s)", duration_s),
    extra!("Client Lag p50 (ms)", client.lag_p50_ms),
    extra!("Client Lag p99 (ms)", client.lag_p99_ms),
    extra!("Client Lag max (ms)", client.lag_max_ms),
    extra!("Event Loop Lag p99 (ms)", client.loop_lag_p99_ms),
    extra!("Dispatch Delay (ms)", client.dispatch_delay_ms),
    extra!("Connect mean (ms)", client.connect_mean_ms),
    extra!("Connect max (ms)", client.connect_max_ms),
    extra!("Server Running mean", server: "running_mean"),
    extra!("Server Running max", server: "running_max"),
    extra!("Server Waiting mean", server: "waiting_mean"),
    extra!("Server Waiting max", server: "waiting_max"),
    extra!("KV Cache Usage mean", server: "kv_cache_usage_mean"),
    extra!("KV Cache Usage max", server: "kv_cache_usage_max"),
    extra!("Preemptions", server: "preemptions"),
    extra!("Queue Time (s)", server: "queue_time_mean_s"),
    extra!("Prefix Cache Hit Rate", server: "prefix_cache_hit_rate"),
    extra!("Tokens/step", server: "iteration_tokens_mean"),
    extra!("Working Time (s)", server: "working_s"),
    extra!("Step (s)", server: "step_mean_s"),
    extra!("Step Device (s)", server: "step_device_mean_s"),
    extra!("Host Cores", host.cores),
    extra!("Host CPU", host.cpu),
    extra!("Host CPU Client", host.client),
    extra!("Host CPU Server", host.server),
    extra!("Host CPU Others", host.others),
    extra!("Host CPU Stolen", host.stolen),
    extra!("Host Memory", host.memory),
    extra!("Host Swapped In (bytes)", host.swapped_in_bytes),
    extra!("CPU Quota Waits (s)", host.throttled_s),
    extra!("GPUs", gpu.devices),
    extra!("GPU Utilization", gpu.utilization),
    extra!("GPU Utilization busiest", gpu.busiest),
    extra!("GPU Memory", gpu.memory),
    extra!("GPU Power (W)", gpu.power_w),
    extra!("GPU Power Limit (W)", gpu.power_limit_w),
    extra!("GPU Energy (J)", gpu.energy_j),
    extra!("GPU Clock", gpu.clock),
    extra!("GPU Temperature (C)", gpu.temperature_c),
    extra!("GPU Power Capped", gpu.power_capped),
    extra!("GPU Heat Throttled", gpu.heat_throttled),
];

/// Why the client was the limit; empty where it was not.
const CLIENT_LIMIT: &str = "Client Limited";
/// What stands there where it is not known.
const UNKNOWN: &str = "unknown";

/// A summary as text: one row a level, unknown numbers empty.
pub fn to_string(levels: &[LevelSummary]) -> String {
    let mut rows = vec![
        COLUMNS
            .iter()
            .copied()
            .chain(EXTRAS.iter().map(|e| e.name))
            .chain([CLIENT_LIMIT])
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    ];
    rows.extend(levels.iter().map(row));
    rows.iter()
        .map(|row| {
            let cells: Vec<String> = row.iter().map(|c| quoted(c)).collect();
            cells.join(",") + "\n"
        })
        .collect()
}

fn row(level: &LevelSummary) -> Vec<String> {
    // The shortest digits that read back as the same number, always with a point, as in the file
    // that the columns come from; counts without.
    let float = |v: Option<f64>| v.map_or_else(String::new, |v| format!("{v:?}"));
    let count = |v: Option<u64>| v.map_or_else(String::new, |v| v.to_string());
    let mut cells = vec![
        level.file.clone(),
        float(level.throughput),
        float(level.ttft_ms),
        float(level.itl_ms),
        float(level.e2e_ms),
        count(level.successful),
        count(level.errored),
        count(level.incomplete),
        count(level.total),
        level
            .concurrency
            .map_or_else(String::new, |c| c.to_string()),
    ];
    cells.extend(EXTRAS.iter().map(|e| float((e.get)(level))));
    cells.push(level.client_limit.clone().unwrap_or_else(|| UNKNOWN.into()));
    cells
}

/// A cell, quoted where it needs to be.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

/// Read a summary: ours, or another's with the ten columns in any order.
///
/// # Errors
/// [`ReportError::Read`], and [`ReportError::Csv`] with the line for a file without levels, without
/// one of the ten columns, or with a cell that is no number.
pub fn read(path: &Path) -> Result<Vec<LevelSummary>, ReportError> {
    let text = std::fs::read(path).map_err(|source| ReportError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

/// [`read`] of what the file holds; `path` is for messages.
///
/// # Errors
/// As [`read`].
pub fn parse(path: &Path, text: &[u8]) -> Result<Vec<LevelSummary>, ReportError> {
    let failed = |line: u64, problem: String| ReportError::Csv {
        path: path.to_owned(),
        line,
        problem,
    };
    // Spreadsheets put a byte order mark first.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(text);
    let broken = |e: csv::Error| {
        let line = e.position().map_or(1, csv::Position::line);
        failed(line, format!("it is not a table ({e})"))
    };
    let header = reader.headers().map_err(broken)?.clone();
    if header.iter().all(str::is_empty) {
        return Err(failed(
            1,
            "the file is empty; expected a header line with the ten columns of a summary".into(),
        ));
    }
    let missing: Vec<&str> = COLUMNS
        .into_iter()
        .filter(|name| !header.iter().any(|h| h == *name))
        .collect();
    if !missing.is_empty() {
        return Err(failed(
            1,
            format!(
                "the column{} `{}` {} missing; a summary starts with: {}",
                if missing.len() > 1 { "s" } else { "" },
                missing.join("`, `"),
                if missing.len() > 1 { "are" } else { "is" },
                COLUMNS.join(",")
            ),
        ));
    }
    let mut levels = Vec::new();
    for record in reader.records() {
        let record = record.map_err(broken)?;
        let line = record.position().map_or(0, csv::Position::line);
        levels.push(level(&header, &record).map_err(|problem| failed(line, problem))?);
    }
    if levels.is_empty() {
        return Err(failed(1, "no level follows the header line".into()));
    }
    Ok(levels)
}

/// One row; the error is what is wrong with it.
fn level(header: &csv::StringRecord, record: &csv::StringRecord) -> Result<LevelSummary, String> {
    let cell = |name: &str| {
        let at = header.iter().position(|h| h == name);
        at.and_then(|i| record.get(i)).filter(|c| !c.is_empty())
    };
    let number = |name: &str| -> Result<Option<f64>, String> {
        let Some(text) = cell(name) else {
            return Ok(None);
        };
        match text.parse::<f64>() {
            // A notebook writes NaN where it knows nothing.
            Ok(v) if v.is_nan() => Ok(None),
            Ok(v) if v.is_finite() && v >= 0.0 => Ok(Some(v)),
            _ => Err(format!(
                "column `{name}` holds `{text}`; expected a number of 0 or more, or nothing where it is not known"
            )),
        }
    };
    let count = |name: &str| -> Result<Option<u64>, String> {
        match number(name)? {
            Some(v) if v.fract() != 0.0 => Err(format!(
                "column `{name}` holds {v}; expected a whole number of requests"
            )),
            v => Ok(v.map(|v| v as u64)),
        }
    };
    let mut level = LevelSummary {
        file: cell("File").unwrap_or_default().to_owned(),
        throughput: number(COLUMNS[1])?,
        ttft_ms: number(COLUMNS[2])?,
        itl_ms: number(COLUMNS[3])?,
        e2e_ms: number(COLUMNS[4])?,
        successful: count(COLUMNS[5])?,
        errored: count(COLUMNS[6])?,
        incomplete: count(COLUMNS[7])?,
        total: count(COLUMNS[8])?,
        concurrency: number(COLUMNS[9])?,
        ..LevelSummary::default()
    };
    for extra in &EXTRAS {
        if let Some(value) = number(extra.name)? {
            (extra.set)(&mut level, value);
        }
    }
    if header.iter().any(|h| h == CLIENT_LIMIT) {
        let why = cell(CLIENT_LIMIT).unwrap_or_default();
        level.client_limit = (why != UNKNOWN).then(|| why.to_owned());
    }
    let stem = level.file.trim_end_matches(".json");
    level.open_loop = ["constant-", "poisson-", "replay-"]
        .iter()
        .any(|shape| stem.starts_with(shape));
    Ok(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_further_column_is_read_where_it_was_written() {
        let mut level = LevelSummary {
            file: "constant-2.json".into(),
            ..LevelSummary::default()
        };
        // Each its own number, so that no two can be mixed up.
        for (i, extra) in EXTRAS.iter().enumerate() {
            (extra.set)(&mut level, i as f64 + 0.5);
        }
        let text = to_string(std::slice::from_ref(&level));
        let back = parse(Path::new("x.csv"), text.as_bytes()).unwrap();
        for (i, extra) in EXTRAS.iter().enumerate() {
            assert_eq!(
                (extra.get)(&back[0]),
                Some(i as f64 + 0.5),
                "{}",
                extra.name
            );
        }
        let mut names: Vec<&str> = EXTRAS.iter().map(|e| e.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), EXTRAS.len());
    }
}
