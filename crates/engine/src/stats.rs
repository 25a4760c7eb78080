//! What the engine tells about itself: counters and gauges with vLLM's meaning.

/// A snapshot; counters since start. Histograms are kept by whoever watches the streams.
#[derive(Debug, Clone, Default)]
pub struct EngineStats {
    /// Sequences in the batch.
    pub running: usize,
    /// Requests in the queue.
    pub waiting: usize,
    /// Share of KV blocks in use (0..1); cached but unused blocks count as free.
    pub kv_cache_usage: f64,
    /// KV blocks in the pool.
    pub kv_blocks_total: usize,
    /// KV blocks not in use (cached ones included).
    pub kv_blocks_free: usize,
    /// Preemptions.
    pub preemptions: u64,
    /// Prompt tokens computed or found in the cache.
    pub prompt_tokens: u64,
    /// Output tokens.
    pub generation_tokens: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_cache_queries: u64,
    /// Of these, found.
    pub prefix_cache_hits: u64,
    /// Steps.
    pub steps: u64,
    /// Seconds spent in the executor (submit to collect).
    pub executor_seconds: f64,
    /// Requests ended, by reason: stop, length, abort.
    pub finished: [u64; 3],
}
