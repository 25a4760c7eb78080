//! Results of other tools, told by what a file holds and not by its name: GuideLLM's JSON and CSV, `vllm bench
//! serve`, AIPerf and GenAI-Perf. What a file does not say stays unknown.

mod aiperf;
mod aiperf_records;
mod guidellm_csv;
mod vllm;

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use powerband_bench::{Strategy, guidellm};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::csv;
use crate::error::ReportError;
use crate::load::Level;
use crate::summary::LevelSummary;

/// A table or a file of means that is larger is none, bytes. Files that list requests may have any size.
const LARGEST_SUMMARY: u64 = 64 << 20;
/// As much of a line is looked at to tell the kind of a file, bytes.
const LOOK: u64 = 4096;

/// Read the levels of a file of any kind that is known.
pub(crate) fn read(path: &Path) -> Result<Vec<Level>, ReportError> {
    let unreadable = |source| ReportError::Read {
        path: path.to_owned(),
        source,
    };
    let unknown = |problem: String| ReportError::Unknown {
        path: path.to_owned(),
        problem,
    };
    let open = || File::open(path).map(BufReader::new).map_err(unreadable);
    let mut start = Vec::new();
    let mut beginning = open()?.take(LOOK);
    beginning
        .read_until(b'\n', &mut start)
        .map_err(unreadable)?;
    let summaries = |levels: Vec<LevelSummary>| levels.into_iter().map(Level::from).collect();
    if start.trim_ascii_start().first() != Some(&b'{') {
        let named = path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("csv"));
        if !named && !start.contains(&b',') {
            return Err(unknown("it is neither JSON nor a table".into()));
        }
        let mut text = Vec::new();
        let whole = open()?.take(LARGEST_SUMMARY + 1).read_to_end(&mut text);
        if whole.map_err(unreadable)? as u64 > LARGEST_SUMMARY {
            return Err(unknown("the table is larger than any summary".into()));
        }
        if guidellm_csv::is_one(&start) {
            return guidellm_csv::parse(&text).map(summaries).map_err(unknown);
        }
        if aiperf::is_csv(&start) {
            let level = aiperf::parse_csv(&text).map_err(unknown)?;
            return Ok(vec![level.into()]);
        }
        return csv::parse(path, &text).map(summaries);
    }
    let broken = |e: serde_json::Error| unknown(format!("it is no JSON ({e})"));
    let mut values = serde_json::Deserializer::from_reader(open()?).into_iter::<Keys>();
    let keys = values.next().transpose().map_err(broken)?;
    match keys.unwrap_or_default().kind() {
        Some(Kind::GuideLlm) => Ok(guidellm::read(path)?.iter().map(Level::of).collect()),
        Some(Kind::Vllm) => vllm::read(open()?).map_err(unknown),
        Some(Kind::AiperfRecords) => aiperf_records::read(path).map_err(unknown),
        Some(Kind::Aiperf) => {
            let level = aiperf::read(open()?.take(LARGEST_SUMMARY)).map_err(unknown)?;
            Ok(vec![level.into()])
        }
        None => Err(unknown("its fields are those of no known result".into())),
    }
}

/// Does this JSON file look like a result? For files of a folder that may hold anything.
pub(crate) fn is_json_result(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    let mut values =
        serde_json::Deserializer::from_reader(BufReader::new(file)).into_iter::<Keys>();
    matches!(values.next(), Some(Ok(keys)) if keys.kind().is_some())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    GuideLlm,
    Vllm,
    Aiperf,
    AiperfRecords,
}

/// Which of the fields that tell formats apart an object has.
#[derive(Default)]
struct Keys {
    benchmarks: bool,
    completed: bool,
    request_throughput: bool,
    request_latency: bool,
    metadata: bool,
    metrics: bool,
}

impl Keys {
    fn kind(&self) -> Option<Kind> {
        match self {
            Keys {
                benchmarks: true, ..
            } => Some(Kind::GuideLlm),
            Keys {
                completed: true,
                request_throughput: true,
                ..
            } => Some(Kind::Vllm),
            Keys {
                metadata: true,
                metrics: true,
                ..
            } => Some(Kind::AiperfRecords),
            Keys {
                request_latency: true,
                ..
            } => Some(Kind::Aiperf),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeysVisitor;
        impl<'de> Visitor<'de> for KeysVisitor {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Keys, A::Error> {
                let mut keys = Keys::default();
                while let Some(name) = fields.next_key::<Cow<'_, str>>()? {
                    match &*name {
                        "benchmarks" => keys.benchmarks = true,
                        "completed" => keys.completed = true,
                        "request_throughput" => keys.request_throughput = true,
                        "request_latency" => keys.request_latency = true,
                        "metadata" => keys.metadata = true,
                        "metrics" => keys.metrics = true,
                        _ => {}
                    }
                    fields.next_value::<IgnoredAny>()?;
                }
                Ok(keys)
            }
        }
        deserializer.deserialize_map(KeysVisitor)
    }
}

/// A summary of a load shape of which nothing else is known yet.
fn summary_of(strategy: &Strategy) -> LevelSummary {
    LevelSummary {
        file: format!("{}.json", strategy.file_stem()),
        concurrency: strategy.concurrency().map(|c| c as f64),
        open_loop: strategy.open_loop(),
        ..LevelSummary::default()
    }
}

/// A number that a measurement can be.
fn plausible(v: f64) -> Option<f64> {
    (v.is_finite() && v >= 0.0).then_some(v)
}
