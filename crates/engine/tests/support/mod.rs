//! What the simulated executor must answer, worked out from a request alone.
#![allow(dead_code, clippy::panic)] // not every test file uses all of it

use std::sync::Arc;

use powerband_engine::executor::ExecutorLimits;
use powerband_engine::request::{StopRules, TokenEvent};
use powerband_engine::sim::{chain, sampled};
use powerband_engine::{
    EngineConfig, FinishReason, GenerationRequest, NgramSpeculation, SamplingParams,
    SchedulingPolicy,
};

pub const VOCAB: usize = 50;
/// With so few tokens many a draft is right by chance.
pub const FEW_TOKENS: usize = 4;
pub const BLOCK: usize = 4;

pub fn config() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 16,
        max_model_len: 64,
        max_queue: 1000,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        policy: SchedulingPolicy::Fcfs,
        overlap: true,
        speculation: None,
        seed: 0,
    }
}

/// Drafts as many as can be, from the shortest matches.
pub fn speculation() -> NgramSpeculation {
    NgramSpeculation {
        num_speculative_tokens: 4,
        prompt_lookup_max: 3,
        prompt_lookup_min: 1,
        disable_by_batch_size: None,
    }
}

/// Size of the vocabulary of tests with these settings.
pub fn vocabulary(config: &EngineConfig) -> usize {
    match config.speculation {
        Some(_) => FEW_TOKENS,
        None => VOCAB,
    }
}

pub fn limits(config: &EngineConfig, num_blocks: usize) -> ExecutorLimits {
    ExecutorLimits {
        num_blocks,
        block_size: BLOCK,
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens,
        max_model_len: config.max_model_len,
        vocab_size: vocabulary(config),
        overlap: config.overlap,
    }
}

pub fn request(prompt: &[u32], max_tokens: usize) -> GenerationRequest {
    GenerationRequest {
        prompt: prompt.into(),
        sampling: Arc::new(SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        }),
        stop: StopRules {
            max_tokens,
            min_tokens: 0,
            stop_tokens: [].into(),
        },
        priority: 0,
        cache_salt: 0,
    }
}

/// The answer to a request, by definition and without any scheduling.
pub fn expected(request: &GenerationRequest, config: &EngineConfig) -> (Vec<u32>, FinishReason) {
    let vocab = vocabulary(config);
    let stop = &request.stop;
    let mut number = request.prompt.iter().fold(0, |n, t| chain(n, *t));
    let mut output = Vec::new();
    loop {
        let mut token = sampled(number, vocab);
        while output.len() < stop.min_tokens && stop.stop_tokens.contains(&token) {
            token = (token + 1) % vocab as u32;
        }
        output.push(token);
        number = chain(number, token);
        if output.len() >= stop.min_tokens && stop.stop_tokens.contains(&token) {
            return (output, FinishReason::Stop);
        }
        let length = request.prompt.len() + output.len();
        if output.len() >= stop.max_tokens || length >= config.max_model_len {
            return (output, FinishReason::Length);
        }
    }
}

/// Tokens and end of a stream's events.
pub fn collected(events: impl Iterator<Item = TokenEvent>) -> (Vec<u32>, Option<FinishReason>) {
    let (mut tokens, mut end) = (Vec::new(), None);
    for event in events {
        assert_eq!(end, None, "an event after the last");
        match event {
            TokenEvent::Token(output) => tokens.push(output.token),
            TokenEvent::Finished { reason, .. } => end = Some(reason),
            TokenEvent::Failed(why) => panic!("{why}"),
        }
    }
    (tokens, end)
}
