//! Settings of the engine; names and defaults follow `vllm serve`.

use crate::speculation::NgramSpeculation;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum KvCacheDtype {
    F32,
    F16,
    BF16,
    Fp8E5M2,
    Fp8E4M3,
    /// Bytes with a scale for each head of each token.
    Int8,
}

impl KvCacheDtype {
    /// Bytes of one element, scales not counted.
    pub fn bytes(self) -> usize {
        match self {
            KvCacheDtype::F32 => 4,
            KvCacheDtype::F16 | KvCacheDtype::BF16 => 2,
            KvCacheDtype::Fp8E5M2 | KvCacheDtype::Fp8E4M3 | KvCacheDtype::Int8 => 1,
        }
    }
}

/// In which order waiting requests are admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SchedulingPolicy {
    /// First come, first served.
    #[default]
    Fcfs,
    /// Lower `priority` first, then first come.
    Priority,
    /// Shortest job first, with ageing.
    Sjf,
}

/// Settings of the engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Most sequences in one step.
    pub max_num_seqs: usize,
    /// Most tokens in one step.
    pub max_num_batched_tokens: usize,
    /// Longest sequence, prompt and output together.
    pub max_model_len: usize,
    /// Most requests waiting; further ones are refused.
    pub max_queue: usize,
    /// Reuse the KV blocks of equal prefixes.
    pub enable_prefix_caching: bool,
    /// Split long prompts over steps.
    pub enable_chunked_prefill: bool,
    /// Admission order.
    pub policy: SchedulingPolicy,
    /// Schedule step N+1 while N computes; off: the plain loop, the reference.
    pub overlap: bool,
    /// Draft tokens by prompt lookup; steps are then not scheduled ahead, whatever `overlap` says.
    pub speculation: Option<NgramSpeculation>,
    /// Seed of the requests that bring none.
    pub seed: u64,
}
