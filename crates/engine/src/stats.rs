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
    /// Speculation.
    pub speculation: SpeculationStats,
    /// Steps.
    pub steps: u64,
    /// Seconds spent in the executor (submit to collect).
    pub executor_seconds: f64,
    /// Seconds in which the device computed, by its own clock: what is missing to `working_seconds` is
    /// what scheduling and everything around it cost. Zero where the backend does not know.
    pub device_seconds: f64,
    /// Seconds in which the engine had requests.
    pub working_seconds: f64,
    /// Requests ended, by reason: stop, length, abort.
    pub finished: [u64; 3],
}

/// How drafts fared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpeculationStats {
    /// Times that a sequence had drafts in a step.
    pub drafts: u64,
    /// Drafts.
    pub draft_tokens: u64,
    /// Of these, those that became output.
    pub accepted_tokens: u64,
    /// The same by the draft's place behind the last token; empty without speculation.
    pub accepted_per_position: Vec<u64>,
}

impl SpeculationStats {
    /// None yet, of sequences that have at most `most` drafts in a step.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            accepted_per_position: vec![0; most],
            ..Self::default()
        }
    }

    /// `accepted` of `drafts` drafts became output.
    pub(crate) fn count(&mut self, drafts: usize, accepted: usize) {
        self.drafts += 1;
        self.draft_tokens += drafts as u64;
        self.accepted_tokens += accepted as u64;
        for count in self.accepted_per_position.iter_mut().take(accepted) {
            *count += 1;
        }
    }
}
