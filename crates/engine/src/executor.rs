//! The seam between scheduling and computing. An executor works on whole steps, never on
//! single tensor operations, so that a backend can fuse and overlap what it likes.
//!
//! A running sequence owns a **slot** (`0..max_num_seqs`) while it runs. The step that first
//! computes it in a slot carries its [`Admission`]; from then on the executor keeps what
//! sampling needs (penalty counts, random state) by slot and updates it with each token it
//! samples. [`Step::released`] says which slots ended before this step; a released slot may be
//! admitted again in the same step.

use std::sync::Arc;
use std::time::Duration;

use crate::EngineError;
use crate::request::{SamplingParams, TokenOutput};

/// What a backend can take, fixed when it is made.
#[derive(Debug, Clone)]
pub struct ExecutorLimits {
    /// KV blocks in the pool.
    pub num_blocks: usize,
    /// Tokens a block holds.
    pub block_size: usize,
    /// Slots.
    pub max_num_seqs: usize,
    /// Most tokens in a step.
    pub max_num_batched_tokens: usize,
    /// Longest sequence.
    pub max_model_len: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// `LastSampled` inputs work before `collect` of the step that samples them.
    pub overlap: bool,
}

/// Everything about a sequence that does not change while it runs in a slot.
#[derive(Debug, Clone)]
pub struct Admission {
    /// How to sample.
    pub sampling: Arc<SamplingParams>,
    /// Tokens of the prompt.
    pub prompt: Arc<[u32]>,
    /// Tokens sampled before a preemption (empty for a new request): penalties count them, and
    /// the random state goes on as if nothing had happened.
    pub output: Vec<u32>,
    /// Seed of this sequence (the request's own or drawn by the engine).
    pub seed: u64,
}

/// The tokens a sequence computes in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepTokens {
    /// Known ids (prompt chunk, recomputation, or the last sampled token once collected).
    Known(Vec<u32>),
    /// The one token that the slot sampled last and that the host may not have seen yet.
    LastSampled,
    /// The last sampled token, known, and drafts of what follows it: only to executors that
    /// [verify](Executor::verifies_drafts) them, and never with `suppressed` or `mask`.
    Speculative(Vec<u32>),
}

impl StepTokens {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        match self {
            StepTokens::Known(ids) | StepTokens::Speculative(ids) => ids.len(),
            StepTokens::LastSampled => 1,
        }
    }

    /// Number of drafts among them; they come last.
    pub fn drafts(&self) -> usize {
        match self {
            StepTokens::Speculative(ids) => ids.len().saturating_sub(1),
            StepTokens::Known(_) | StepTokens::LastSampled => 0,
        }
    }

    /// No tokens at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Tokens that may be sampled: bit `t % 32` of word `t / 32` is set where token `t` is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask(pub Vec<u32>);

/// One sequence's share of a step.
#[derive(Debug, Clone)]
pub struct StepSequence {
    /// Its slot.
    pub slot: usize,
    /// Set in the first step in this slot.
    pub admission: Option<Admission>,
    /// The tokens to compute.
    pub tokens: StepTokens,
    /// Position of the first of them = keys and values already in the cache.
    pub start: usize,
    /// KV blocks of the sequence, in order, covering `start + tokens.len()` positions.
    pub blocks: Vec<u32>,
    /// Sample after the last token (false inside a chunked prompt).
    pub sample: bool,
    /// End tokens are masked out (before `min_tokens`).
    pub suppressed: Option<Arc<[u32]>>,
    /// Structured output: only these tokens may be sampled.
    pub mask: Option<Arc<TokenMask>>,
}

/// One step for the whole batch.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// Slots whose sequence ended (or was preempted) since the last step.
    pub released: Vec<usize>,
    /// The sequences to compute; slots are distinct.
    pub sequences: Vec<StepSequence>,
}

/// What one step sampled.
#[derive(Debug, Clone, Default)]
pub struct StepOutput {
    /// `(slot, token)` for each sequence with `sample`, in the step's order. A sequence with drafts
    /// gives one token and one more for each draft that was sampled too, in a row.
    pub samples: Vec<(usize, TokenOutput)>,
    /// How long the device computed this step alone, without what it waited for; zero where the
    /// backend does not know.
    pub busy: Duration,
}

/// A step that was submitted; give it back to `collect`, in order.
#[derive(Debug)]
pub struct PendingStep(pub u64);

/// A backend: computes steps over its own weights and KV cache.
pub trait Executor: Send {
    /// What it can take.
    fn limits(&self) -> &ExecutorLimits;

    /// Takes [`StepTokens::Speculative`]: samples after its first token and after each draft as long
    /// as what was sampled is the next draft. Keys and values of drafts that were not are overwritten
    /// when their positions are computed again.
    fn verifies_drafts(&self) -> bool {
        false
    }

    /// Begins a step. At most two steps are in flight, and only one unless `limits().overlap`.
    fn submit(&mut self, step: Step) -> Result<PendingStep, EngineError>;

    /// Waits for the oldest submitted step.
    fn collect(&mut self, pending: PendingStep) -> Result<StepOutput, EngineError>;
}
