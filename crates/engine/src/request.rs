//! What is asked of the engine and what comes back.

use std::sync::Arc;

/// How the next token is chosen from the logits. Ranges are checked at the edge.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0: greedy.
    pub temperature: f32,
    /// Keep the k most likely; 0: all.
    pub top_k: u32,
    /// Keep the smallest set with this probability.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the likeliest.
    pub min_p: f32,
    /// Divides (positive) or multiplies (negative) logits of tokens in prompt or output.
    pub repetition_penalty: f32,
    /// Subtracted once from logits of tokens in the output.
    pub presence_penalty: f32,
    /// Subtracted as often as a token stands in the output.
    pub frequency_penalty: f32,
    /// Same seed, same prompt, same parameters: same tokens.
    pub seed: Option<u64>,
    /// Return this many top log-probabilities beside the sampled one's; `None`: no log-probabilities.
    pub logprobs: Option<u32>,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
}

/// Below this temperature the likeliest token is taken (vLLM's limit).
const GREEDY_BELOW: f32 = 1e-5;

impl SamplingParams {
    /// Takes the likeliest token, whatever the seed.
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY_BELOW
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            logprobs: None,
            logit_bias: Vec::new(),
        }
    }
}

/// When a sequence ends. Stop strings are not the engine's: whoever detokenizes drops the stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StopRules {
    /// Most output tokens.
    pub max_tokens: usize,
    /// No end token is sampled before this many output tokens.
    pub min_tokens: usize,
    /// Tokens that end the sequence (the model's end tokens and the request's own); empty with `ignore_eos`.
    pub stop_tokens: Arc<[u32]>,
}

/// A request as the engine sees it.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// Token ids, at least one.
    pub prompt: Arc<[u32]>,
    /// How to sample.
    pub sampling: Arc<SamplingParams>,
    /// When to stop.
    pub stop: StopRules,
    /// Lower is sooner (policy `priority`).
    pub priority: i32,
    /// Requests share cached prefixes only within one salt.
    pub cache_salt: u64,
}

/// Log-probabilities of one sampled token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Of the sampled token.
    pub logprob: f32,
    /// The likeliest tokens, descending.
    pub top: Vec<(u32, f32)>,
}

/// One sampled token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenOutput {
    /// The id.
    pub token: u32,
    /// When asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was sampled (it is the last token of the stream).
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
    /// Cancelled, or the engine shut down.
    Abort,
}

/// What a stream yields, in order; `Finished` or `Failed` is the last.
#[derive(Debug, Clone)]
pub enum TokenEvent {
    /// A sampled token.
    Token(TokenOutput),
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Prompt tokens whose keys and values came from the prefix cache.
        cached_tokens: usize,
    },
    /// The engine failed on this request.
    Failed(String),
}
