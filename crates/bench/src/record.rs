//! What is known of one request and of one level: times, counts, outcome. Every metric is a pure
//! function of these (DESIGN: "Definitions, once").
//!
//! Times are nanoseconds of one monotonic clock since the level's start. Bytes have the time at which they
//! reached this machine, by the kernel where it tells, else when they were read from the socket, before
//! parsing.

use serde::{Deserialize, Serialize};

use crate::gpu::GpuUse;
use crate::host::HostUse;
use crate::requests::Requests;
use crate::server_side::ServerSample;
use crate::slo::Slo;

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
    /// Open loop, at the times of a trace.
    Replay {
        /// What the times after the first request are multiplied with: 0.5 is twice as fast.
        time_scale: f64,
        /// Most requests in flight.
        max_concurrency: Option<usize>,
    },
}

impl Strategy {
    /// Is the arrival of requests set by a schedule, whatever the server does?
    pub fn open_loop(&self) -> bool {
        matches!(
            self,
            Strategy::Constant { .. } | Strategy::Poisson { .. } | Strategy::Replay { .. }
        )
    }

    /// Requests per second of the schedule, where there is one.
    pub fn rate(&self) -> Option<f64> {
        match self {
            Strategy::Constant { rate, .. } | Strategy::Poisson { rate, .. } => Some(*rate),
            _ => None,
        }
    }

    /// The name of the level's file without its ending: `throughput-N` for N clients, the rate or
    /// the shape otherwise.
    pub fn file_stem(&self) -> String {
        match self {
            Strategy::Synchronous => "synchronous".into(),
            Strategy::Concurrent { streams } => format!("throughput-{streams}"),
            Strategy::Throughput { .. } => "throughput-max".into(),
            Strategy::Constant { rate, .. } => format!("constant-{rate}"),
            Strategy::Poisson { rate, .. } => format!("poisson-{rate}"),
            Strategy::Replay { time_scale, .. } => format!("replay-{time_scale}"),
        }
    }

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
            }
            | Strategy::Replay {
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

impl Default for Outcome {
    /// A request that nothing is known of has not completed.
    fn default() -> Self {
        Outcome::Incomplete(String::new())
    }
}

/// Where token counts come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenSource {
    /// The server's `usage`.
    Usage,
    /// A tokenizer on the client.
    Tokenizer,
    /// Content chunks, one taken as a token.
    #[default]
    Chunks,
}

/// Largest count of one request that is believed, of tokens or chunks: what a server or a file claims
/// is added up and divided by.
pub(crate) const MOST_TOKENS: u64 = 1 << 32;

/// One request. Times: ns since the level's start. It is also kept in a compact form without field names:
/// no field may be left out when it is serialised.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
    /// First chunk with content that is not reasoning; equal to `first_token_ns` where the model
    /// does not reason aloud.
    #[serde(default)]
    pub first_output_token_ns: Option<u64>,
    /// Last chunk with content.
    pub last_token_ns: Option<u64>,
    /// Last byte, or the moment it failed.
    pub end_ns: u64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Prompt tokens that the server took from its prefix cache, where it says so.
    #[serde(default)]
    pub cached_tokens: Option<u64>,
    /// Output tokens.
    pub output_tokens: u64,
    /// Those of the output tokens that are reasoning, where the server says so.
    #[serde(default)]
    pub reasoning_tokens: Option<u64>,
    /// Content chunks.
    pub chunks: u64,
    /// Events of the stream, with or without content (`[DONE]` and the usage event included).
    #[serde(default)]
    pub iterations: u64,
    /// Gaps between successive content chunks, microseconds.
    pub gaps_us: Vec<u32>,
    /// Where the counts come from.
    pub token_source: TokenSource,
    /// Number of its session in the level, where sessions have several turns.
    #[serde(default)]
    pub session: Option<u64>,
    /// Which turn of the session it is, from 0.
    #[serde(default)]
    pub turn: u32,
    /// When the turn before ended.
    #[serde(default)]
    pub predecessor_end_ns: Option<u64>,
}

impl RequestRecord {
    /// What cannot be believed of numbers that come from a file.
    pub fn implausible(&self) -> Option<String> {
        // 2^62 ns are 146 years: twice that still fits.
        const MOST_NS: u64 = 1 << 62;
        let counts = [
            self.prompt_tokens,
            self.cached_tokens.unwrap_or(0),
            self.output_tokens,
            self.reasoning_tokens.unwrap_or(0),
            self.chunks,
            self.iterations,
        ];
        let times = [
            self.intended_ns,
            self.sent_ns,
            self.first_token_ns.unwrap_or(0),
            self.first_output_token_ns.unwrap_or(0),
            self.last_token_ns.unwrap_or(0),
            self.end_ns,
            self.predecessor_end_ns.unwrap_or(0),
        ];
        let counts = counts.into_iter().find(|n| *n > MOST_TOKENS);
        let times = times.into_iter().find(|ns| *ns > MOST_NS);
        counts
            .map(|n| format!("{n} tokens or chunks"))
            .or(times.map(|ns| format!("a time of {ns} ns")))
    }

    /// Request sent to first content chunk, ms.
    pub fn ttft_ms(&self) -> Option<f64> {
        self.first_token_ns
            .map(|t| t.saturating_sub(self.sent_ns) as f64 / 1e6)
    }

    /// Request sent to first content chunk that is not reasoning, ms: GuideLLM's
    /// `time_to_first_output_token_ms`.
    pub fn ttfot_ms(&self) -> Option<f64> {
        self.first_output_token_ns
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

    /// From the intended start to the last byte, s: what a user would have waited in an open loop.
    pub fn scheduled_latency_s(&self) -> f64 {
        self.end_ns.saturating_sub(self.intended_ns) as f64 / 1e9
    }

    /// From the intended start to the sending, s.
    pub fn dispatch_delay_s(&self) -> f64 {
        self.sent_ns.saturating_sub(self.intended_ns) as f64 / 1e9
    }

    /// That part of the dispatch delay in which the turn before was not over yet, s: GuideLLM's
    /// `turn_predecessor_delay`.
    pub fn turn_predecessor_delay_s(&self) -> f64 {
        let end = self.predecessor_end_ns.unwrap_or(0).min(self.sent_ns);
        end.saturating_sub(self.intended_ns) as f64 / 1e9
    }

    /// The rest of the dispatch delay, s: GuideLLM's `turn_scheduling_delay`.
    pub fn turn_scheduling_delay_s(&self) -> f64 {
        self.dispatch_delay_s() - self.turn_predecessor_delay_s()
    }

    /// Times of the content chunks, ns since the level's start, in order. Empty where the gaps are
    /// not known (a file of another tool).
    pub fn chunk_times_ns(&self) -> impl Iterator<Item = u64> + '_ {
        let gaps = if self.gaps_us.len() as u64 + 1 == self.chunks {
            &self.gaps_us[..]
        } else {
            &[]
        };
        let first = self
            .first_token_ns
            .filter(|_| self.chunks == gaps.len() as u64 + 1);
        first.into_iter().flat_map(move |t0| {
            std::iter::once(t0).chain(gaps.iter().scan(t0, |t, gap| {
                *t = t.saturating_add(u64::from(*gap) * 1000);
                Some(*t)
            }))
        })
    }

    /// Did it complete?
    pub fn successful(&self) -> bool {
        self.outcome == Outcome::Successful
    }
}

/// How late the client reads bytes that the kernel already has. The times in the records are the
/// kernel's and do not contain it; but a client that reads late also sends late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientLag {
    /// Median, ms.
    pub p50_ms: f64,
    /// 99th percentile, ms.
    pub p99_ms: f64,
    /// Largest, ms.
    pub max_ms: f64,
    /// Share of the reads, 0 to 1, whose bytes have the kernel's time; the others have that of the read.
    pub known_share: f64,
}

/// How the client itself fared, so that a client at its limit is not taken for the server's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientHealth {
    /// CPU seconds of the client over wall seconds of the level (1.0 = one core).
    pub cpu_share: f64,
    /// p99 of how late a timer of the client's event loop fires, ms.
    pub loop_lag_p99_ms: f64,
    /// How late it read; `None` where the kernel does not tell when bytes came (anything but Linux), so
    /// that lateness in reading counts as the server's time.
    #[serde(default)]
    pub client_lag: Option<ClientLag>,
    /// Mean delay from when a request was due to when it was sent, ms; opening a connection, where one was
    /// needed, is part of it.
    pub dispatch_delay_mean_ms: f64,
    /// Connections opened.
    #[serde(default)]
    pub connections: u64,
    /// Mean time that opening one took (TCP, and TLS where it is used), ms.
    #[serde(default)]
    pub connect_mean_ms: f64,
    /// The longest, ms. About a second means that the server's queue of new connections was full.
    #[serde(default)]
    pub connect_max_ms: f64,
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
    /// Version of HTTP (`1.1`, `2`): over the latter, streams shared connections. Empty if unknown.
    #[serde(default)]
    pub http_version: String,
    /// Wall-clock time of the level's start, seconds since 1970.
    pub started_unix: f64,
    /// Length of the level, from the first send (with a schedule: from when that was due) to the last byte, seconds.
    pub duration_s: f64,
    /// Prompt tokens asked for each request, where they were the same.
    pub requested_prompt_tokens: Option<u64>,
    /// Output tokens asked for each request, where they were the same.
    pub requested_output_tokens: Option<u64>,
    /// What the requests held, in the words of GuideLLM's `data` argument; null if unknown.
    #[serde(default)]
    pub data: serde_json::Value,
    /// Every request, in the order of sending.
    pub requests: Requests,
    /// What a request had to keep to be a good one, where that was asked for.
    #[serde(default)]
    pub slo: Option<Slo>,
    /// Seconds over which the clients or the rate came up (`--rampup`).
    #[serde(default)]
    pub rampup_s: f64,
    /// Seconds at the level's start that the metrics leave out (`--warmup`).
    #[serde(default)]
    pub warmup_s: f64,
    /// Seconds at the level's end that the metrics leave out (`--cooldown`).
    #[serde(default)]
    pub cooldown_s: f64,
    /// Why the level ended before its last request, where it did (time limit, error limit, cancelled).
    #[serde(default)]
    pub stopped: Option<String>,
    /// What a reader must know to trust the numbers (counts that are not exact, fields the server
    /// refused), one sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Fingerprint of the settings this level was measured with; `--resume` compares it.
    #[serde(default)]
    pub fingerprint: String,
    /// The client's own health.
    pub client: ClientHealth,
    /// What the server told of itself during the level; empty if unknown. `running_mean`, `running_max`,
    /// `waiting_mean`, `waiting_max` (requests), `kv_cache_usage_mean`, `kv_cache_usage_max` (0 to 1); over the
    /// whole level `preemptions`, `prompt_tokens`, `generation_tokens` (numbers), `queue_time_mean_s`,
    /// `prefix_cache_hit_rate` (share of the tokens looked up), `iteration_tokens_mean` (tokens a step); of Powerband's own server
    /// `working_s` (time with requests), `step_mean_s` and `step_device_mean_s` (of it, what the device computed).
    pub server: std::collections::BTreeMap<String, f64>,
    /// The same from moment to moment, about twice a second; thinned out in a long level.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub server_samples: Vec<ServerSample>,
    /// What this machine, the client's, did during the level; `None` where the system does not tell (anything but
    /// Linux).
    #[serde(default)]
    pub host: Option<HostUse>,
    /// The GPUs of this machine, where the server is on it or [`GpuMetrics::On`](crate::GpuMetrics) asked for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuUse>,
}

impl LevelResult {
    /// A level of which nothing is known yet but its load shape.
    pub fn empty(strategy: Strategy) -> Self {
        LevelResult {
            strategy,
            target: String::new(),
            model: String::new(),
            endpoint: String::new(),
            http_version: String::new(),
            started_unix: 0.0,
            duration_s: 0.0,
            requested_prompt_tokens: None,
            requested_output_tokens: None,
            data: serde_json::Value::Null,
            requests: Requests::default(),
            slo: None,
            rampup_s: 0.0,
            warmup_s: 0.0,
            cooldown_s: 0.0,
            stopped: None,
            warnings: Vec::new(),
            fingerprint: String::new(),
            client: ClientHealth::default(),
            server: std::collections::BTreeMap::new(),
            server_samples: Vec::new(),
            host: None,
            gpus: Vec::new(),
        }
    }
}
