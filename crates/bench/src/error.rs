//! What ends a run, with the next step to take.

use std::path::PathBuf;

/// A run that cannot start or go on. A request that fails is no such error: it is an
/// [`Outcome`](crate::Outcome).
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A setting that makes no sense.
    #[error("{flag}: {problem}")]
    Config {
        /// The flag.
        flag: &'static str,
        /// What is wrong with its value, and what would be right.
        problem: String,
    },
    /// No connection to the server.
    #[error(
        "nothing answers at {url}: {reason}\nhint: start the server or pass another address with --target"
    )]
    Unreachable {
        /// Base URL.
        url: String,
        /// What the connection failed with.
        reason: String,
    },
    /// The server wants a key.
    #[error("{url} answered {status}: {message}\nhint: pass the server's key with --api-key")]
    Unauthorized {
        /// URL of the request.
        url: String,
        /// HTTP status.
        status: u16,
        /// The server's words.
        message: String,
    },
    /// The endpoint is not there.
    #[error("{url} answered 404: {message}\nhint: {hint}")]
    NoEndpoint {
        /// URL of the request.
        url: String,
        /// The server's words.
        message: String,
        /// What to try.
        hint: String,
    },
    /// The server does not have the model.
    #[error("the server does not serve model `{asked}` ({message})\nhint: pass --model with one of: {}", available.join(", "))]
    WrongModel {
        /// Model asked for.
        asked: String,
        /// The server's words.
        message: String,
        /// What the server lists.
        available: Vec<String>,
    },
    /// The server refuses a request of the kind that the run would send.
    #[error("{url} refused a test request: {message}")]
    Refused {
        /// URL of the request.
        url: String,
        /// Status and the server's words.
        message: String,
    },
    /// Every request of a level failed: the levels after it would too.
    #[error(
        "all {requests} requests of level {level} failed: {reason}\nhint: finished levels are kept; go on with --resume when the server is well again"
    )]
    AllFailed {
        /// Name of the level.
        level: String,
        /// Requests.
        requests: usize,
        /// The most frequent reason.
        reason: String,
    },
    /// A result cannot be written.
    #[error("cannot write {}: {source}\nhint: levels finished before are complete in the same folder; free space or pass another --output-dir, then --resume", path.display())]
    Write {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The requests of a level, too many for memory, cannot be kept on the disk.
    #[error("cannot keep the requests of a level in {}: {problem}\nhint: levels finished before are complete; free space, pass another --output-dir (or, without one, set TMPDIR), then --resume", folder.display())]
    Scratch {
        /// Folder of the temporary file.
        folder: PathBuf,
        /// Why.
        problem: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {problem}", path.display())]
    Read {
        /// File.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The machine refuses threads or a runtime.
    #[error("cannot start the client's threads: {0}")]
    Threads(std::io::Error),
}

impl BenchError {
    /// A bad value of a flag.
    pub(crate) fn config(flag: &'static str, problem: impl Into<String>) -> Self {
        BenchError::Config {
            flag,
            problem: problem.into(),
        }
    }
}
