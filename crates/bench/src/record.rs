//! What is known of one request and of one level: times, counts, outcome. Every metric is a pure
//! function of these (DESIGN: "Definitions, once").
//!
//! Times are nanoseconds of one monotonic clock since the level's start, taken when the bytes were
//! read from the socket, before parsing.

use serde::{Deserialize, Serialize};

/// How load is offered in a level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type_", rename_all = "snake_case")]
pub enum Strategy {
    /// One request after the other.
    Synchronous,
    /// Closed loop with this many clients.
    Concurrent {
        /// Clients.
        streams: usize,
    },
    /// As many requests as `max_concurrency` allows, at once.
    Throughput {
        /// Most requests in flight.
        max_concurrency: Option<usize>,
    },
    /// Open loop, evenly spaced.
    Constant {
        /// Requests per second.
        rate: f64,
        /// Most requests in flight.
        max_concurrency: Option<usize>,
    },
    /// Open loop, exponential gaps.
    Poisson {
        /// Requests per second.
        rate: f64,
        /// Most requests in flight.
        max_concurrency: Option<usize>,
    },
}

impl Strategy {
    /// The concurrency asked for, where the load shape has one.
    pub fn concurrency(&self) -> Option<usize> {
        match self {
            Strategy::Synchronous => Some(1),
            Strategy::Concurrent { streams } => Some(*streams),
            Strategy::Throughput { max_concurrency }
            | Strategy::Constant {
                max_concurrency, ..
            }
            | Strategy::Poisson {
                max_concurrency, ..
            } => *max_concurrency,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Complete.
    Successful,
    /// The server or the connection failed; why.
    Errored(String),
    /// The level ended first; why.
    Incomplete(String),
}

/// Where token counts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenSource {
    /// The server's `usage`.
    Usage,
    /// A tokenizer on the client.
    Tokenizer,
    /// Content chunks, one taken as a token.
    Chunks,
}

/// One request. Times: ns since the level's start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Unique in the run.
    pub id: String,
    /// How it ended.
    pub outcome: Outcome,
    /// When the load shape meant to send it.
    pub intended_ns: u64,
    /// When its first byte was written.
    pub sent_ns: u64,
    /// First chunk with content (or reasoning).
    pub first_token_ns: Option<u64>,
    /// Last chunk with content.
    pub last_token_ns: Option<u64>,
    /// Last byte, or the moment it failed.
    pub end_ns: u64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Content chunks.
    pub chunks: u64,
    /// Gaps between successive content chunks, microseconds.
    pub gaps_us: Vec<u32>,
    /// Where the counts come from.
    pub token_source: TokenSource,
}

impl RequestRecord {
    /// Request sent to first content chunk, ms.
    pub fn ttft_ms(&self) -> Option<f64> {
        self.first_token_ns
            .map(|t| t.saturating_sub(self.sent_ns) as f64 / 1e6)
    }

    /// (last token - first token) / (output tokens - 1), ms; `None` for fewer than two tokens.
    pub fn itl_ms(&self) -> Option<f64> {
        let (first, last) = (self.first_token_ns?, self.last_token_ns?);
        (self.output_tokens > 1)
            .then(|| last.saturating_sub(first) as f64 / 1e6 / (self.output_tokens - 1) as f64)
    }

    /// (last token - request start) / output tokens, ms: GuideLLM's definition.
    pub fn tpot_ms(&self) -> Option<f64> {
        let last = self.last_token_ns?;
        (self.output_tokens > 0)
            .then(|| last.saturating_sub(self.sent_ns) as f64 / 1e6 / self.output_tokens as f64)
    }

    /// Sent to last byte, s.
    pub fn e2e_s(&self) -> f64 {
        self.end_ns.saturating_sub(self.sent_ns) as f64 / 1e9
    }

    /// Did it complete?
    pub fn successful(&self) -> bool {
        self.outcome == Outcome::Successful
    }
}

/// How the client itself fared, so that a client at its limit is not taken for the server's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientHealth {
    /// CPU seconds of the client over wall seconds of the level (1.0 = one core).
    pub cpu_share: f64,
    /// p99 of how late a timer of the client's event loop fires, ms.
    pub loop_lag_p99_ms: f64,
    /// Mean delay from when a request was due to when it was sent, ms.
    pub dispatch_delay_mean_ms: f64,
    /// The client was the limit: say so everywhere and draw no knee.
    pub limited: bool,
    /// Why we think so; empty if not limited.
    pub reason: String,
}

/// One level of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LevelResult {
    /// Load shape.
    pub strategy: Strategy,
    /// Base URL of the server.
    pub target: String,
    /// Model asked for.
    pub model: String,
    /// Path of the endpoint (`/v1/completions`).
    pub endpoint: String,
    /// Wall-clock time of the level's start, seconds since 1970.
    pub started_unix: f64,
    /// Length of the level, first send to last byte, seconds.
    pub duration_s: f64,
    /// Prompt tokens asked for a request.
    pub requested_prompt_tokens: Option<u64>,
    /// Output tokens asked for a request.
    pub requested_output_tokens: Option<u64>,
    /// Every request, in the order of sending.
    pub requests: Vec<RequestRecord>,
    /// The client's own health.
    pub client: ClientHealth,
    /// What the server told of itself during the level, by metric name; empty if unknown.
    pub server: std::collections::BTreeMap<String, f64>,
}
