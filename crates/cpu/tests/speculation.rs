//! Drafts through the whole engine on the CPU: the tokens are those of an engine without them.

#![allow(clippy::unwrap_used, clippy::panic)] // a test

mod support;

use std::sync::Arc;
use std::time::Duration;

use powerband_cpu::{CpuExecutor, CpuOptions};
use powerband_engine::request::{StopRules, TokenEvent};
use powerband_engine::{
    Engine, EngineConfig, EngineStats, FinishReason, GenerationRequest, KvCacheDtype,
    NgramSpeculation, SamplingParams, SchedulingPolicy,
};
use powerband_model::{Checkpoint, DType, ModelSpec, Weights};
use support::{Noise, random_weights, tiny};

const DRAFTS: NgramSpeculation = NgramSpeculation {
    num_speculative_tokens: 4,
    prompt_lookup_max: 4,
    prompt_lookup_min: 1,
    disable_by_batch_size: None,
};

/// What an engine answers to requests that come together, and what it says of itself.
fn answers(
    (spec, weights): (&ModelSpec, &Weights),
    options: &CpuOptions,
    speculation: Option<NgramSpeculation>,
    requests: &[GenerationRequest],
) -> (Vec<(Vec<u32>, FinishReason)>, EngineStats) {
    let options = CpuOptions {
        max_drafts: speculation.map_or(0, |s| s.num_speculative_tokens),
        ..options.clone()
    };
    let config = EngineConfig {
        max_num_seqs: options.max_num_seqs,
        max_num_batched_tokens: options.max_num_batched_tokens,
        max_model_len: options.max_model_len,
        max_queue: 100,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        policy: SchedulingPolicy::Fcfs,
        overlap: true,
        speculation,
        seed: 0,
    };
    let executor = CpuExecutor::new(spec, weights, options).unwrap();
    let engine = Engine::start(Box::new(executor), config).unwrap();
    let streams: Vec<_> = requests
        .iter()
        .map(|request| engine.submit(request.clone()).unwrap())
        .collect();
    let answers = streams.into_iter().map(|mut stream| {
        let mut tokens = Vec::new();
        loop {
            match stream.blocking_next() {
                Some(TokenEvent::Token(output)) => tokens.push(output.token),
                Some(TokenEvent::Finished { reason, .. }) => return (tokens, reason),
                other => panic!("{other:?}"),
            }
        }
    });
    let answers = answers.collect();
    engine.shutdown(Duration::from_secs(10));
    let stats = engine.stats();
    assert_eq!(stats.kv_blocks_free, stats.kv_blocks_total);
    (answers, stats)
}

fn request(prompt: &[u32], max_tokens: usize, sampling: SamplingParams) -> GenerationRequest {
    GenerationRequest {
        prompt: prompt.into(),
        sampling: Arc::new(sampling),
        stop: StopRules {
            max_tokens,
            min_tokens: 0,
            stop_tokens: [].into(),
        },
        priority: 0,
        cache_salt: 0,
    }
}

fn greedy() -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    }
}

/// Requests of every kind beside one another, in a cache too small for all of them.
#[test]
fn a_mixed_batch_gets_the_answers_it_gets_without_drafts() {
    let spec = tiny();
    let weights = random_weights(&spec, DType::Q8_0, 9);
    let mut noise = Noise(3);
    let mut requests = Vec::new();
    for i in 0..24 {
        let begin: Vec<u32> = (0..20).map(|t| t * 3 % 50).collect();
        let rest: Vec<u32> = (0..4 + i % 5).map(|_| noise.below(250) as u32).collect();
        let prompt = [begin, rest.clone(), rest].concat();
        let sampling = match i % 6 {
            0 => SamplingParams {
                seed: Some(i as u64),
                ..SamplingParams::default()
            },
            1 => SamplingParams {
                repetition_penalty: 1.02,
                frequency_penalty: 0.02,
                ..greedy()
            },
            2 => SamplingParams {
                logit_bias: vec![(7, 0.5)],
                ..greedy()
            },
            3 => SamplingParams {
                logprobs: Some(2),
                ..greedy()
            },
            _ => greedy(),
        };
        let mut request = request(&prompt, 30 + i % 20, sampling);
        if i % 4 == 3 {
            request.stop.min_tokens = 5;
            request.stop.stop_tokens = (0..25).map(|t| t * 10).collect();
        }
        requests.push(request);
    }
    let mut options = CpuOptions {
        threads: Some(2),
        kv_dtype: KvCacheDtype::F16,
        kv_cache_bytes: Some(1 << 20),
        max_num_seqs: 5,
        max_num_batched_tokens: 48,
        max_model_len: 96,
        ..CpuOptions::default()
    };
    let whole = CpuExecutor::new(&spec, &weights, options.clone()).unwrap();
    let block_bytes = (1 << 20) / whole.runner().num_blocks();
    let model = (&spec, &weights);
    let (wanted, plain) = answers(model, &options, None, &requests);
    assert_eq!(plain.speculation.drafts, 0);
    // Two sequences of full length, and little more.
    options.kv_cache_bytes = Some(14 * block_bytes);
    let (got, stats) = answers(model, &options, Some(DRAFTS), &requests);
    assert_eq!(got, wanted);
    let drafts = &stats.speculation;
    assert!(drafts.accepted_tokens > 20, "{drafts:?}");
    assert!(drafts.accepted_tokens < drafts.draft_tokens, "{drafts:?}");
    assert!(stats.preemptions > 0 && stats.prefix_cache_hits > 0);
    assert!(wanted.iter().any(|(_, end)| *end == FinishReason::Stop));
}

/// "Repeat this text" and an ordinary question in the real model's chat template.
#[test]
fn the_real_model_repeats_a_text_in_fewer_steps() {
    let Some(path) = support::real_model() else {
        return;
    };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let (spec, weights) = (checkpoint.spec, checkpoint.weights);
    let tokenizer = checkpoint.tokenizer.unwrap();
    let ask = |text: &str| {
        let text = format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n");
        let ids = tokenizer.encode(&text, true).unwrap();
        let mut request = request(&ids, 60, greedy());
        request.stop.stop_tokens = spec.eos_tokens.clone().into();
        request
    };
    let requests = [
        ask(
            "Repeat this text word by word: The quick brown fox jumps over the lazy dog and runs \
             into the deep dark forest, where it meets an old grey wolf.",
        ),
        ask("What is the capital of France? Answer in one sentence."),
        ask("Count from one to twenty."),
    ];
    let options = CpuOptions {
        threads: Some(2),
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        max_model_len: 256,
        ..CpuOptions::default()
    };
    let model = (&spec, &weights);
    let (wanted, plain) = answers(model, &options, None, &requests);
    let (got, stats) = answers(model, &options, Some(DRAFTS), &requests);
    assert_eq!(got, wanted);
    assert!(stats.speculation.accepted_tokens > 20, "{stats:?}");
    assert!(stats.steps < plain.steps, "{} {}", stats.steps, plain.steps);
}
