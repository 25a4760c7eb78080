//! Reading the requests of a trace.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::columns::{self, listed};
use crate::data::lengths::MOST_LENGTH;
use crate::data::otel;
use crate::data::source::{TraceData, TraceFormat, format_of};
use crate::data::store::{Store, StoreWriter};
use crate::data::table;
use crate::error::BenchError;

/// Most requests: their times are kept in memory.
const MOST_CALLS: usize = 20_000_000;
/// Longest time between the first request and the last, s: three years.
pub(crate) const MOST_SPAN_S: f64 = 1e8;

/// A recorded request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Call {
    /// Tokens of the prompt.
    pub input: u64,
    /// Tokens of the answer.
    pub output: u64,
    /// Numbers of the blocks that its prompt begins with.
    pub blocks: Vec<u64>,
}

/// The requests as they were read.
#[derive(Debug)]
pub(crate) struct Calls {
    /// When each came, seconds after the first; in order.
    pub times_s: Vec<f64>,
    /// Tokens of a block.
    pub block_tokens: u64,
    store: Store,
    /// Places in the store by time.
    order: Vec<u32>,
    input_tokens: u64,
}

/// Takes requests in.
struct Loader<'a> {
    format: TraceFormat,
    writer: StoreWriter<'a>,
    times_s: Vec<f64>,
    input_tokens: u64,
    /// Requests that had no tokens, or of which the numbers are not known.
    left_out: u64,
}

impl Calls {
    /// Read a trace. `folder` takes a temporary file of what is too much for memory.
    ///
    /// # Errors
    /// What is wrong with the file or with one of its rows, and where.
    pub fn load(
        trace: &TraceData,
        folder: &Path,
        warnings: &mut Vec<String>,
    ) -> Result<Self, BenchError> {
        let failed = |problem: String| BenchError::Read {
            path: trace.path.clone(),
            problem,
        };
        let mut loader = Loader {
            format: trace.format,
            writer: StoreWriter::new(folder),
            times_s: Vec::new(),
            input_tokens: 0,
            left_out: 0,
        };
        let format = format_of(&trace.path)?;
        table::read(&trace.path, format, &mut |row| loader.take(&row.cells))?;
        let (times_s, left_out) = (loader.times_s, loader.left_out);
        let store = loader.writer.finish().map_err(|e| failed(e.to_string()))?;
        let mut order: Vec<u32> = (0..times_s.len() as u32).collect();
        // Those of one time stay in the order of the file.
        order.sort_by(|a, b| times_s[*a as usize].total_cmp(&times_s[*b as usize]));
        let (Some(first), Some(last)) = (order.first(), order.last()) else {
            return Err(failed(match left_out {
                0 => "it holds no request of a model".into(),
                n => format!("of none of its {n} requests the tokens are known"),
            }));
        };
        if left_out > 0 {
            warnings.push(format!(
                "{left_out} requests of the trace are left out: they had no tokens, or it does not say how many"
            ));
        }
        let (first, last) = (times_s[*first as usize], times_s[*last as usize]);
        if last - first > MOST_SPAN_S {
            return Err(failed(format!(
                "its times go from {first} s to {last} s, which is over three years: timestamps are milliseconds"
            )));
        }
        Ok(Calls {
            times_s: order.iter().map(|i| times_s[*i as usize] - first).collect(),
            block_tokens: match trace.format {
                TraceFormat::Mooncake { block_tokens } => block_tokens,
                TraceFormat::OpenTelemetry => MOST_LENGTH,
            },
            input_tokens: loader.input_tokens,
            store,
            order,
        })
    }

    /// How many there are; at least one.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Tokens of a prompt in the mean.
    pub fn mean_input(&self) -> u64 {
        self.input_tokens / self.len().max(1) as u64
    }

    /// The request at a place in the order of the times.
    ///
    /// # Errors
    /// If it cannot be read back from the temporary file.
    pub fn get(&self, place: usize) -> Result<Call, String> {
        let lost = || "its row cannot be read back from the temporary file".to_owned();
        let number = *self.order.get(place).ok_or_else(lost)? as usize;
        let mut row = Vec::new();
        self.store.get(number, &mut row).map_err(|_| lost())?;
        postcard::from_bytes(&row).map_err(|_| lost())
    }
}

impl Loader<'_> {
    fn take(&mut self, cells: &Map<String, Value>) -> Result<(), String> {
        match self.format {
            TraceFormat::Mooncake { block_tokens } => {
                let (time_s, call) = mooncake(cells, block_tokens)?;
                self.add(time_s, &call)
            }
            TraceFormat::OpenTelemetry => otel::each_call(cells, &mut |call| match call {
                Some((time_s, call)) => self.add(time_s, &call),
                None => {
                    self.left_out += 1;
                    Ok(())
                }
            }),
        }
    }

    fn add(&mut self, time_s: f64, call: &Call) -> Result<(), String> {
        if call.input == 0 || call.output == 0 {
            self.left_out += 1;
            return Ok(());
        }
        let most = call.input.max(call.output);
        if most > MOST_LENGTH {
            return Err(format!("{most} tokens are over 10,000,000"));
        }
        if self.times_s.len() >= MOST_CALLS {
            return Err(format!(
                "more than {MOST_CALLS} requests: take a part of the file"
            ));
        }
        let piece = postcard::to_allocvec(call).map_err(|e| e.to_string())?;
        let pushed = self.writer.push(&piece);
        pushed.map_err(|e| format!("the disk does not take it ({e})"))?;
        self.times_s.push(time_s);
        self.input_tokens += call.input;
        Ok(())
    }
}

/// A row of Mooncake's: when it came (s), and what it was.
fn mooncake(cells: &Map<String, Value>, block_tokens: u64) -> Result<(f64, Call), String> {
    let needed = |name: &str| {
        columns::number(cells, name)?.ok_or_else(|| {
            let names: Vec<&str> = cells.keys().map(String::as_str).collect();
            format!("there is no `{name}`; {}", listed(&names))
        })
    };
    let tokens = |name: &str| {
        let n = needed(name)?;
        let fine = (0.0..=MOST_LENGTH as f64).contains(&n) && n.fract() == 0.0;
        fine.then_some(n as u64)
            .ok_or_else(|| format!("column `{name}`: {n} is no number of tokens up to 10,000,000"))
    };
    let time_s = needed("timestamp")? / 1e3;
    let (input, output) = (tokens("input_length")?, tokens("output_length")?);
    let blocks = hash_ids(cells.get("hash_ids").unwrap_or(&Value::Null))?;
    let most = input.div_ceil(block_tokens.max(1));
    if blocks.len() as u64 > most {
        return Err(format!(
            "{input} tokens are {most} blocks of {block_tokens}, and there are {} hash_ids: give the trace's size of a block with --trace-block",
            blocks.len()
        ));
    }
    let call = Call {
        input,
        output,
        blocks,
    };
    Ok((time_s, call))
}

/// The numbers of blocks, as a list or, in CSV, as the JSON of one.
fn hash_ids(cell: &Value) -> Result<Vec<u64>, String> {
    let parsed = match cell {
        Value::String(text) if text.trim().is_empty() => Some(Value::Null),
        Value::String(json) => serde_json::from_str(json).ok(),
        _ => None,
    };
    match parsed.as_ref().unwrap_or(cell) {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => {
            let ids: Option<Vec<u64>> = items.iter().map(Value::as_u64).collect();
            ids.ok_or_else(|| "column `hash_ids`: not all are whole numbers from 0 on".into())
        }
        _ => Err("column `hash_ids`: no list of numbers".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const MOONCAKE: TraceFormat = TraceFormat::Mooncake { block_tokens: 512 };

    /// The requests of a file (time, input, output, blocks), or the error, and warnings.
    type Found = (Result<Vec<(f64, Call)>, String>, Vec<String>);

    fn load(name: &str, content: &str, format: TraceFormat) -> Found {
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let mut warnings = Vec::new();
        let loaded = Calls::load(&TraceData { path, format }, folder.path(), &mut warnings);
        let calls = loaded.map_err(|e| e.to_string()).map(|calls| {
            let get = |i: usize| (calls.times_s[i], calls.get(i).unwrap());
            (0..calls.len()).map(get).collect()
        });
        (calls, warnings)
    }

    fn error(content: &str) -> String {
        load("t.jsonl", content, MOONCAKE).0.unwrap_err()
    }

    fn call(input: u64, output: u64, blocks: &[u64]) -> Call {
        let blocks = blocks.to_vec();
        Call {
            input,
            output,
            blocks,
        }
    }

    #[test]
    fn requests_come_in_the_order_of_their_times() {
        let rows = r#"{"timestamp": 5000, "input_length": 600, "output_length": 9, "hash_ids": [0, 7]}
{"timestamp": 2000, "input_length": 3, "output_length": 1, "hash_ids": []}
{"timestamp": 5000, "input_length": 5, "output_length": 2}
{"timestamp": 3500.5, "input_length": 0, "output_length": 2, "hash_ids": []}
"#;
        let (calls, warnings) = load("t.jsonl", rows, MOONCAKE);
        let expected = [
            (0.0, call(3, 1, &[])),
            (3.0, call(600, 9, &[0, 7])),
            (3.0, call(5, 2, &[])),
        ];
        assert_eq!(calls.unwrap(), expected);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("1 requests of the trace are left out"));
    }

    #[test]
    fn csv_has_blocks_as_the_json_of_a_list() {
        let rows = "timestamp,input_length,output_length,hash_ids\n27,600,9,\"[3, 4]\"\n28,5,2,\n";
        let calls = load("t.csv", rows, MOONCAKE).0.unwrap();
        assert_eq!(calls[0], (0.0, call(600, 9, &[3, 4])));
        assert_eq!(calls[1].1, call(5, 2, &[]));
    }

    #[test]
    fn spans_of_all_rows_are_one_trace() {
        let span = |second: u32, tokens: &str| {
            format!(
                r#"{{"start_time": "2024-05-01T12:00:{second:02}Z", "attributes": {{"gen_ai.operation.name": "chat"{tokens}}}}}"#
            )
        };
        let tokens = r#", "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3"#;
        let rows = [span(9, tokens), span(4, tokens), span(5, "")].join("\n");
        let (calls, warnings) = load("t.jsonl", &rows, TraceFormat::OpenTelemetry);
        let one = call(7, 3, &[]);
        assert_eq!(calls.unwrap(), [(0.0, one.clone()), (5.0, one)]);
        assert!(warnings[0].contains("does not say how many"));
        let none = load("t.jsonl", &span(5, ""), TraceFormat::OpenTelemetry).0;
        assert!(none.unwrap_err().contains("of none of its 1 requests"));
        let other = load(
            "t.jsonl",
            r#"{"name": "GET /"}"#,
            TraceFormat::OpenTelemetry,
        )
        .0;
        assert!(other.unwrap_err().contains("no request of a model"));
    }

    #[test]
    fn what_cannot_have_been_is_named_with_its_place() {
        let row = |timestamp: &str, input: &str, ids: &str| {
            format!(
                r#"{{"timestamp": {timestamp}, "input_length": {input}, "output_length": 2, "hash_ids": {ids}}}"#
            )
        };
        let fine = row("1", "5", "[1]");
        for (bad, words) in [
            (
                row("1", "1e12", "[]"),
                "line 2: column `input_length`: 1000000000000 is no number",
            ),
            (row("1", "-5", "[]"), "-5 is no number of tokens"),
            (row("1", "2.5", "[]"), "2.5 is no number of tokens"),
            (
                row("null", "5", "[]"),
                "line 2: there is no `timestamp`; its columns are",
            ),
            (row("\"soon\"", "5", "[]"), "column `timestamp`"),
            (
                row("1", "513", "[1, 2, 3]"),
                "513 tokens are 2 blocks of 512, and there are 3 hash_ids",
            ),
            (row("1", "5", "[-1]"), "not all are whole numbers"),
            (row("1", "5", "[[[]]]"), "not all are whole numbers"),
            (row("1", "5", "{}"), "no list of numbers"),
            (row("1", "5", "\"x\""), "no list of numbers"),
            (row("1e300", "5", "[]"), "over three years"),
            ("[]".into(), "a list where an object should be"),
        ] {
            let found = error(&format!("{fine}\n{bad}"));
            assert!(found.contains(words), "{found}");
        }
        assert!(error("").contains("no request"));
        // A number that JSON can write and nothing can hold.
        assert!(error(&row("1e999", "5", "[]")).contains("line 1"));
    }
}
