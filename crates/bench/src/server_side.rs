//! What the server says of itself during a level, beside what its clients see: its Prometheus metrics, where it
//! has any. Reading order: `prometheus` (the text format), `names` (which metric of which server means what),
//! `source` (where the metrics are), `gathered` (many samples make one level's numbers), `sampler` (the thread).

mod gathered;
pub(crate) mod names;
pub(crate) mod prometheus;
mod sampler;
mod source;

pub(crate) use sampler::Sampler;
use serde::{Deserialize, Serialize};
pub(crate) use source::{MetricsSource, check};

/// What the server said at one moment of a level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerSample {
    /// Seconds since the level's first send.
    pub at_s: f64,
    /// Requests that it was computing.
    pub running: Option<f64>,
    /// Requests that waited for a place.
    pub waiting: Option<f64>,
    /// Share of its KV cache in use, 0 to 1.
    pub kv_cache_usage: Option<f64>,
}
