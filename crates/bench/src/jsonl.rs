//! The requests of a level as JSON lines, one a request in the order of sending: every field of
//! [`RequestRecord`] under its name, but `outcome` as a word and its `reason`, and what follows from them:
//! `ttft_ms`, `time_to_first_output_token_ms`, `itl_ms`, `tpot_ms`, `e2e_s`, `scheduled_latency_s`,
//! `dispatch_delay_s`, `turn_predecessor_delay_s`. Chunk i came at `first_token_ns` plus the first i of `gaps_us`.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::chunk::excerpt;
use crate::error::BenchError;
use crate::record::{Outcome, RequestRecord};
use crate::requests::{Gathering, Requests};
use crate::spill::Scratch;
use crate::whole_file;

/// The file of a level's requests beside its report.
pub fn beside(report: &Path) -> PathBuf {
    report.with_extension("jsonl")
}

/// Write the requests of a level.
///
/// # Errors
/// [`BenchError::Write`], or [`BenchError::Scratch`] if the requests cannot be read from their temporary
/// file; an older file of that name is then still whole.
pub fn write(path: &Path, requests: &Requests) -> Result<(), BenchError> {
    whole_file::write(path, requests, |out| {
        for record in requests {
            serde_json::to_writer(&mut *out, &line(&record)?)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Read what [`write`] has written; of each line only what is not computed from the rest.
///
/// # Errors
/// [`BenchError::Read`] for a file that is not there or has other lines.
pub fn read(path: &Path) -> Result<Requests, BenchError> {
    let failed = |problem: String| BenchError::Read {
        path: path.to_owned(),
        problem,
    };
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let lines = serde_json::Deserializer::from_reader(BufReader::new(file)).into_iter();
    let mut gathering = Gathering::new(Scratch::default());
    for (value, number) in lines.zip(1..) {
        let record = value
            .and_then(record)
            .map_err(|e| failed(format!("request {number} is not one of ours ({e})")))?;
        if let Some(what) = record.implausible() {
            let id = excerpt(record.id.as_bytes());
            return Err(failed(format!("the request `{id}` claims {what}")));
        }
        gathering.push_anyway(record);
    }
    Ok(gathering.finish(0))
}

fn line(record: &RequestRecord) -> serde_json::Result<Map<String, Value>> {
    let mut fields = match serde_json::to_value(record)? {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    let (outcome, reason) = match &record.outcome {
        Outcome::Successful => ("successful", None),
        Outcome::Errored(reason) => ("errored", Some(reason)),
        Outcome::Incomplete(reason) => ("incomplete", Some(reason)),
    };
    let more = [
        ("outcome", json!(outcome)),
        ("reason", json!(reason)),
        ("ttft_ms", json!(record.ttft_ms())),
        ("time_to_first_output_token_ms", json!(record.ttfot_ms())),
        ("itl_ms", json!(record.itl_ms())),
        ("tpot_ms", json!(record.tpot_ms())),
        ("e2e_s", json!(record.e2e_s())),
        ("scheduled_latency_s", json!(record.scheduled_latency_s())),
        ("dispatch_delay_s", json!(record.dispatch_delay_s())),
        (
            "turn_predecessor_delay_s",
            json!(record.turn_predecessor_delay_s()),
        ),
    ];
    fields.extend(more.map(|(name, value)| (name.to_owned(), value)));
    Ok(fields)
}

fn record(mut fields: Map<String, Value>) -> serde_json::Result<RequestRecord> {
    // As the enum is written: a word, or a word with its reason.
    let outcome = match (fields.remove("outcome"), fields.remove("reason")) {
        (Some(Value::String(outcome)), Some(Value::String(reason))) => json!({ outcome: reason }),
        (outcome, _) => json!(outcome),
    };
    fields.insert("outcome".to_owned(), outcome);
    serde_json::from_value(Value::Object(fields))
}
