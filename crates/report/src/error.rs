//! What can go wrong between a folder of results and a written report.

use std::path::PathBuf;

use powerband_bench::BenchError;

/// Results that cannot be read or a report that cannot be written. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Neither results nor a summary were found.
    #[error(
        "{}: {problem}\nhint: give a folder with throughput-N.json files (powerband bench writes them) or another tool's results, such files, or a summary CSV",
        path.display()
    )]
    NothingToRead {
        /// What was asked for.
        path: PathBuf,
        /// Why it does not do.
        problem: String,
    },
    /// A file that holds no result of a known kind.
    #[error(
        "{}: {problem}\nhint: what can be read: files of powerband bench, GuideLLM's JSON (schema version 2) and CSV, results of `vllm bench serve` (--save-result), AIPerf's and GenAI-Perf's profile_export JSON, CSV and JSONL, and a summary CSV",
        path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What it is not.
        problem: String,
    },
    /// A file that is there cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A level's file.
    #[error(transparent)]
    Level(#[from] BenchError),
    /// A summary CSV that is not one.
    #[error("{}, line {line}: {problem}", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// Line in it, from 1.
        line: u64,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The report cannot be written.
    #[error("cannot write {}: {source}\nhint: free space or pass another --output-dir", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A plot cannot be drawn as a bitmap.
    #[error("cannot draw {name}: {problem}")]
    Plot {
        /// The plot.
        name: String,
        /// Why.
        problem: String,
    },
}
