//! Where requests come from besides being made up: files and traces.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use super::columns::Column;
use super::lengths::MOST_LENGTH;
use super::table::Format;
use crate::error::BenchError;

/// Where the requests come from.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum DataSource {
    /// Made up.
    #[default]
    Synthetic,
    /// Prompts or conversations of a file.
    File(FileData),
    /// Requests of a trace, with made-up prompts of their lengths.
    Trace(TraceData),
}

impl DataSource {
    /// Its file, if it has one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            DataSource::Synthetic => None,
            DataSource::File(file) => Some(&file.path),
            DataSource::Trace(trace) => Some(&trace.path),
        }
    }
}

/// Prompts or conversations of a file: JSON lines or a list in JSON (`jsonl`, `json`), CSV (`csv`, `tsv`),
/// Parquet (`parquet`) or lines of text (`txt`). A row is a session. Where there are fewer than the run needs they
/// come again from the start, with a warning; each level goes on where the level before it ended.
///
/// A row without a number of output tokens is asked for as many as its own answer has, where it has one and
/// there is a local tokenizer, else for `output_tokens` of [`DataConfig`](super::DataConfig).
#[derive(Debug, Clone, PartialEq)]
pub struct FileData {
    /// The file.
    pub path: PathBuf,
    /// Columns by name, where their names are not the usual ones.
    pub columns: Vec<(Column, String)>,
    /// In which order.
    pub order: RowOrder,
    /// What the later turns of a conversation hold of the earlier ones.
    pub history: History,
}

impl FileData {
    /// A file as it is.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        FileData {
            path: path.into(),
            columns: Vec::new(),
            order: RowOrder::AsIs,
            history: History::Server,
        }
    }
}

/// In which order rows are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RowOrder {
    /// As they stand in the file.
    #[default]
    AsIs,
    /// At random, the same with the same seed.
    Shuffled {
        /// Seed.
        seed: u64,
    },
}

/// What the later turns of a conversation hold as the answers to the earlier ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum History {
    /// The server's own answers, as GuideLLM has it.
    #[default]
    Server,
    /// The answers of the file, where it has them: then each run sends the same prompts.
    File,
}

/// The requests of a recorded load: when they came, and how long they and their answers were. Their prompts are
/// made up. [`Profile::Replay`](crate::Profile::Replay) sends them at their times, each level from the start; the
/// other profiles take the lengths alone, in the order of the times.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceData {
    /// The file, in any format that [`FileData`] can have but lines of text.
    pub path: PathBuf,
    /// What its rows are.
    pub format: TraceFormat,
}

/// What the rows of a trace are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceFormat {
    /// As of Mooncake: `timestamp` (ms), `input_length`, `output_length` (tokens) and, if prompts have beginnings
    /// in common, `hash_ids`: numbers of blocks of the prompt. The same number makes the same text, within a
    /// level, so that a prefix cache sees what it saw then.
    Mooncake {
        /// Tokens of a block.
        block_tokens: u64,
    },
    /// Spans of OpenTelemetry with `gen_ai.usage.input_tokens` and `gen_ai.usage.output_tokens`: OTLP in JSON, a
    /// span a row, or rows with a list of `spans`. Failed spans and those of agents, tools and embeddings are
    /// left out.
    OpenTelemetry,
}

impl TraceFormat {
    /// Tokens of a block in Mooncake's own traces.
    pub const MOONCAKE_BLOCK: u64 = 512;

    /// Read `mooncake` (with its usual blocks), `otel` or `opentelemetry`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "mooncake" => Some(TraceFormat::Mooncake {
                block_tokens: TraceFormat::MOONCAKE_BLOCK,
            }),
            "otel" | "opentelemetry" => Some(TraceFormat::OpenTelemetry),
            _ => None,
        }
    }
}

impl TraceData {
    /// Find what cannot work before the file is read.
    pub(super) fn check(&self) -> Result<(), BenchError> {
        if format_of(&self.path)? == Format::Text {
            return Err(BenchError::config("--data", "lines of text are no trace"));
        }
        if let TraceFormat::Mooncake { block_tokens } = self.format
            && !(1..=MOST_LENGTH).contains(&block_tokens)
        {
            return Err(BenchError::config(
                "--trace-block",
                "must be between 1 and 10,000,000 tokens",
            ));
        }
        Ok(())
    }

    /// This in GuideLLM's words.
    pub(super) fn spec(&self, source: Value) -> Value {
        match self.format {
            // It takes times in seconds.
            TraceFormat::Mooncake { block_tokens } => json!({
                "kind": "mooncake", "source": source, "hash_id_block_size": block_tokens, "time_scale": 0.001,
            }),
            TraceFormat::OpenTelemetry => json!({"kind": "otel", "source": source}),
        }
    }
}

/// A file in GuideLLM's words.
pub(super) fn file_spec(path: &Path) -> Value {
    let kind = Format::of(path).map_or("json_file", Format::kind);
    json!({"kind": kind, "path": path.display().to_string()})
}

/// How a file is read, by its name.
///
/// # Errors
/// If its ending tells nothing.
pub(super) fn format_of(path: &Path) -> Result<Format, BenchError> {
    Format::of(path).ok_or_else(|| {
        BenchError::config(
            "--data",
            format!(
                "the name `{}` does not end in jsonl, json, csv, tsv, parquet or txt, so it is not known how to read it",
                path.display()
            ),
        )
    })
}

/// What tells a file from another, and from itself before it was changed.
pub(super) fn identity(path: &Path) -> Value {
    let about = std::fs::metadata(path).ok();
    let changed = about.as_ref().and_then(|a| a.modified().ok());
    let changed = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    json!({
        "path": path.display().to_string(),
        "bytes": about.map(|a| a.len()),
        "modified_ns": changed.map(|t| t.as_nanos().to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_tells_nothing_is_refused() {
        let error = |name: &str| format_of(Path::new(name)).unwrap_err().to_string();
        assert!(error("a.xlsx").starts_with("--data: the name `a.xlsx`"));
        assert!(error("prompts").contains("jsonl"));
        assert_eq!(format_of(Path::new("a.JSONL")).unwrap(), Format::Json);
        assert_eq!(format_of(Path::new("b.tsv")).unwrap(), Format::Csv(b'\t'));
    }

    #[test]
    fn a_trace_that_cannot_be_one_is_refused() {
        let check = |name: &str, block_tokens| {
            let format = TraceFormat::Mooncake { block_tokens };
            let path = PathBuf::from(name);
            TraceData { path, format }
                .check()
                .map_err(|e| e.to_string())
        };
        assert_eq!(check("a.jsonl", 512), Ok(()));
        assert!(check("a.txt", 512).unwrap_err().contains("no trace"));
        assert!(
            check("a.jsonl", 0)
                .unwrap_err()
                .starts_with("--trace-block")
        );
        assert_eq!(TraceFormat::parse("otel"), Some(TraceFormat::OpenTelemetry));
        assert_eq!(TraceFormat::parse("weka"), None);
    }
}
