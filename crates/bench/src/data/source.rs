//! Where requests come from besides being made up: files.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use super::columns::Column;
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
}
