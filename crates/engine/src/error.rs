//! Errors of the engine and of submitting to it.

/// The engine or its executor failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A setting is out of range or does not fit another; the text names the flag.
    #[error("{0}")]
    Config(String),
    /// Not enough memory; the text names the flag and the value that would fit.
    #[error("{0}")]
    Memory(String),
    /// The backend failed while it computed.
    #[error("the executor failed: {0}")]
    Executor(String),
    /// Known but not built for this backend; the text names the option.
    #[error("not built yet: {0}")]
    Unsupported(String),
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The queue is full: try again later.
    #[error("the queue is full ({waiting} requests are waiting)")]
    QueueFull {
        /// Requests waiting now.
        waiting: usize,
    },
    /// The prompt is empty, too long or holds an unknown token, or a parameter is out of range.
    #[error("{0}")]
    Invalid(String),
    /// The engine is shutting down or has failed.
    #[error("the engine is not accepting requests: {0}")]
    Closed(String),
}
