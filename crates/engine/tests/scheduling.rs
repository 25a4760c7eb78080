//! Properties of the scheduler and the block pool, on random requests, limits and cancellations.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use powerband_engine::block_pool::{BlockPool, Prefix};
use powerband_engine::executor::{Executor, Step, StepOutput, StepTokens};
use powerband_engine::scheduler::Scheduler;
use powerband_engine::sequence::Sequence;
use powerband_engine::sim::{SimExecutor, SimTiming};
use powerband_engine::{
    EngineConfig, EngineStats, FinishReason, GenerationRequest, NgramSpeculation, SamplingParams,
    SchedulingPolicy, TokenOutput,
};
use proptest::prelude::*;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use support::{BLOCK, VOCAB, collected, config, expected, limits, speculation, vocabulary};

/// One request of a run: when it comes, when it is cancelled.
#[derive(Debug, Clone)]
struct Arrival {
    step: usize,
    request: GenerationRequest,
    cancelled: Option<usize>,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    // Few distinct prompts and tokens, so that prefixes are shared and stop tokens are met.
    let prompt = prop_oneof![
        (1usize..40).prop_map(|n| (0..n as u32).map(|i| i % 7).collect::<Vec<_>>()),
        prop::collection::vec(0..VOCAB as u32, 1..40),
    ];
    let arrival = (
        0usize..60,
        prompt,
        1usize..30,
        0usize..6,
        prop::collection::vec(0..VOCAB as u32, 0..4),
        prop::option::weighted(0.15, 1usize..80),
        -2i32..3,
        0u64..2,
        any::<bool>(),
    );
    let arrival = arrival.prop_map(
        |(step, prompt, max_tokens, min_tokens, stop, cancelled, priority, salt, greedy)| {
            let mut request = support::request(&prompt, max_tokens);
            request.stop.min_tokens = min_tokens.min(max_tokens);
            request.stop.stop_tokens = stop.into();
            request.priority = priority;
            request.cache_salt = salt;
            if !greedy {
                request.sampling = Arc::default();
            }
            Arrival {
                step,
                request,
                cancelled,
            }
        },
    );
    prop::collection::vec(arrival, 1..25)
}

fn speculations() -> impl Strategy<Value = Option<NgramSpeculation>> {
    let some = (1usize..6, 1usize..4, 0usize..3, prop::option::of(1usize..5)).prop_map(
        |(tokens, min, more, batch)| NgramSpeculation {
            num_speculative_tokens: tokens,
            prompt_lookup_max: min + more,
            prompt_lookup_min: min,
            disable_by_batch_size: batch,
        },
    );
    prop::option::of(some)
}

fn settings() -> impl Strategy<Value = (EngineConfig, usize)> {
    let policy = prop_oneof![
        Just(SchedulingPolicy::Fcfs),
        Just(SchedulingPolicy::Priority),
        Just(SchedulingPolicy::Sjf)
    ];
    (
        1usize..6,
        1usize..40,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        policy,
        // From just enough for the longest sequence to plenty.
        (64 / BLOCK)..120,
        speculations(),
    )
        .prop_map(
            |(seqs, tokens, caching, chunked, overlap, policy, blocks, speculation)| {
                let config = EngineConfig {
                    max_num_seqs: seqs,
                    max_num_batched_tokens: tokens.max(seqs),
                    enable_prefix_caching: caching,
                    enable_chunked_prefill: chunked,
                    policy,
                    overlap,
                    speculation,
                    ..config()
                };
                (config, blocks)
            },
        )
}

/// What must hold of every step, whatever is in it.
fn check_step(step: &Step, config: &EngineConfig, blocks: usize) {
    let tokens: usize = step.sequences.iter().map(|s| s.tokens.len()).sum();
    assert!(tokens <= config.max_num_batched_tokens, "{tokens} tokens");
    assert!(tokens > 0, "an empty step");
    let slots: HashSet<usize> = step.sequences.iter().map(|s| s.slot).collect();
    assert_eq!(slots.len(), step.sequences.len(), "a slot twice");
    assert!(slots.iter().all(|slot| *slot < config.max_num_seqs));
    let mut written = HashSet::new();
    let mut read = HashMap::new();
    for (index, sequence) in step.sequences.iter().enumerate() {
        let end = sequence.start + sequence.tokens.len();
        assert!(end <= config.max_model_len);
        if let StepTokens::Speculative(tokens) = &sequence.tokens {
            let most = config.speculation.unwrap();
            assert!((2..=1 + most.num_speculative_tokens).contains(&tokens.len()));
            let batch = most.disable_by_batch_size.unwrap_or(usize::MAX);
            assert!(step.sequences.len() <= batch);
            assert!(sequence.sample && sequence.suppressed.is_none());
        }
        assert!(
            sequence.blocks.len() * BLOCK >= end,
            "positions without a block"
        );
        assert!(
            sequence
                .blocks
                .iter()
                .all(|block| (*block as usize) < blocks)
        );
        for block in &sequence.blocks[sequence.start / BLOCK..end.div_ceil(BLOCK)] {
            assert!(written.insert(*block), "block {block} is written twice");
        }
        for block in &sequence.blocks[..sequence.start / BLOCK] {
            read.insert(*block, index);
        }
    }
    assert!(
        read.keys().all(|block| !written.contains(block)),
        "read while written"
    );
}

/// Runs everything to its end and compares with the definition.
fn play(mut arrivals: Vec<Arrival>, config: &EngineConfig, blocks: usize) -> EngineStats {
    for Arrival { request, .. } in &mut arrivals {
        let stop = &mut request.stop.stop_tokens;
        *stop = stop.iter().map(|t| t % vocabulary(config) as u32).collect();
    }
    let limits = limits(config, blocks);
    let mut executor = SimExecutor::new(limits.clone(), SimTiming::default());
    let mut scheduler = Scheduler::new(config.clone(), &limits);
    let mut streams: Vec<Option<UnboundedReceiver<_>>> = arrivals.iter().map(|_| None).collect();
    let mut in_flight = VecDeque::new();
    let depth = if config.overlap { 2 } else { 1 };
    let mut step_number = 0;
    loop {
        for (id, arrival) in arrivals.iter().enumerate() {
            if arrival.step == step_number {
                let (events, receiver) = unbounded_channel();
                streams[id] = Some(receiver);
                let request = arrival.request.clone();
                let work = request.prompt.len() + request.stop.max_tokens;
                let place = scheduler.place(id as u64, request.priority, work);
                scheduler.add(Sequence::new(id as u64, request, events, place, 0));
            }
            if arrival.cancelled.map(|after| arrival.step + after) == Some(step_number) {
                scheduler.cancel(id as u64);
            }
        }
        while in_flight.len() < depth
            && let Some((step, plan)) = scheduler.schedule()
        {
            check_step(&step, config, blocks);
            let pending = executor.submit(step).unwrap();
            in_flight.push_back((pending, plan));
        }
        scheduler.check().unwrap();
        if let Some((pending, plan)) = in_flight.pop_front() {
            let output = executor.collect(pending).unwrap();
            scheduler.apply(&plan, output).unwrap();
            scheduler.check().unwrap();
        } else if scheduler.is_idle() && step_number > 60 {
            break;
        } else {
            assert!(
                scheduler.is_idle(),
                "requests wait and nothing can be computed"
            );
        }
        step_number += 1;
        assert!(step_number < 20_000, "somebody starves");
    }
    let stats = scheduler.stats();
    assert_eq!((stats.running, stats.waiting), (0, 0));
    assert_eq!(stats.kv_blocks_free, blocks, "blocks leaked");
    assert_eq!(stats.finished.iter().sum::<u64>(), arrivals.len() as u64);
    for (arrival, stream) in arrivals.iter().zip(&mut streams) {
        let stream = stream.as_mut().unwrap();
        let (tokens, end) = collected(std::iter::from_fn(|| stream.try_recv().ok()));
        let (wanted, reason) = expected(&arrival.request, config);
        match end {
            Some(FinishReason::Abort) => {
                assert!(arrival.cancelled.is_some());
                assert!(wanted.starts_with(&tokens));
            }
            end => assert_eq!((tokens, end), (wanted, Some(reason))),
        }
    }
    let drafts = &stats.speculation;
    assert!(drafts.accepted_tokens <= drafts.draft_tokens);
    let places: u64 = drafts.accepted_per_position.iter().sum();
    assert_eq!(places, drafts.accepted_tokens);
    stats
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_request_gets_its_own_answer_within_the_limits(
        (config, blocks) in settings(),
        arrivals in arrivals(),
    ) {
        play(arrivals, &config, blocks);
    }

    #[test]
    fn the_pool_counts_right(operations in prop::collection::vec((0u8..4, 0usize..8, 1usize..20), 1..60)) {
        let mut pool = BlockPool::new(16, 2);
        let mut held: Vec<Vec<u32>> = Vec::new();
        for (kind, pick, length) in operations {
            let tokens: Vec<u32> = (0..length as u32).map(|i| i * (pick as u32 % 2)).collect();
            match kind {
                // A sequence takes what it finds, then new blocks, and registers them.
                0 | 1 => {
                    let (mut blocks, mut prefix) = pool.lookup(0, &tokens);
                    let found = blocks.len();
                    pool.share(&blocks);
                    for chunk in tokens.chunks_exact(2).skip(found) {
                        let Some(block) = pool.allocate() else { break };
                        blocks.push(block);
                        prefix = pool.register(prefix, chunk, block);
                    }
                    held.push(blocks);
                }
                2 if !held.is_empty() => {
                    let blocks = held.swap_remove(pick % held.len());
                    pool.release(&blocks);
                }
                _ => {
                    let start = Prefix::Start { salt: pick as u64 };
                    if let Some(block) = pool.allocate() {
                        pool.register(start, &[pick as u32, 99], block);
                        held.push(vec![block]);
                    }
                }
            }
            pool.check(held.iter().map(Vec::as_slice)).unwrap();
            prop_assert!(pool.free() <= pool.total());
        }
    }
}

/// The ways to run the engine: steps scheduled ahead or not, with or without drafts.
const LOOPS: [(bool, bool); 3] = [(false, false), (true, false), (false, true)];

/// A pool that runs dry at every possible place: each size from the smallest that works.
#[test]
fn whenever_blocks_run_out_the_answers_stay_the_same() {
    for (overlap, speculation) in LOOPS {
        let config = EngineConfig {
            overlap,
            speculation: speculation.then(support::speculation),
            ..config()
        };
        let mut accepted = 0;
        for blocks in config.max_model_len / BLOCK..60 {
            let arrivals = (0..8u32)
                .map(|i| Arrival {
                    step: i as usize / 2,
                    request: support::request(&[i, i + 1, 3, 4, 5, 6, i], 40 - i as usize),
                    cancelled: None,
                })
                .collect();
            accepted += play(arrivals, &config, blocks).speculation.accepted_tokens;
        }
        assert_eq!(accepted > 0, speculation);
    }
}

/// A request leaves at every possible step of its life; the others do not notice.
#[test]
fn whenever_a_request_leaves_nothing_is_lost() {
    for (overlap, speculation) in LOOPS {
        let config = EngineConfig {
            overlap,
            speculation: speculation.then(support::speculation),
            ..config()
        };
        for leaves in 0..70 {
            let arrivals = (0..6u32)
                .map(|i| Arrival {
                    step: 0,
                    request: support::request(&[1, 2, 3, 4, 5, 6, 7, 8, i], 20),
                    cancelled: (i == 1).then_some(leaves),
                })
                .collect();
            play(arrivals, &config, 20);
        }
    }
}

/// The second of two equal prompts computes only its last block.
#[test]
fn a_prefix_is_computed_once() {
    let config = config();
    let limits = limits(&config, 64);
    let mut executor = SimExecutor::new(limits.clone(), SimTiming::default());
    let mut scheduler = Scheduler::new(config, &limits);
    let prompt: Vec<u32> = (0..15).collect();
    for id in 0..2 {
        let (events, _receiver) = unbounded_channel();
        let place = scheduler.place(id, 0, 16);
        let request = support::request(&prompt, 1);
        scheduler.add(Sequence::new(id, request, events, place, 0));
        let (step, plan) = scheduler.schedule().unwrap();
        let computed = step.sequences[0].tokens.len();
        assert_eq!(computed, if id == 0 { 15 } else { 3 });
        let pending = executor.submit(step).unwrap();
        let output = executor.collect(pending).unwrap();
        scheduler.apply(&plan, output).unwrap();
    }
    let stats = scheduler.stats();
    assert_eq!(
        (stats.prefix_cache_queries, stats.prefix_cache_hits),
        (30, 12)
    );
}

/// The first step of a request that decodes beside others, `change`d before.
fn first_decoding_step(
    config: &EngineConfig,
    blocks: usize,
    change: impl Fn(&mut GenerationRequest),
) -> Step {
    let limits = limits(config, blocks);
    let mut executor = SimExecutor::new(limits.clone(), SimTiming::default());
    let mut scheduler = Scheduler::new(config.clone(), &limits);
    // Whatever is sampled, of four tokens, stood in the prompt before, and so did what follows it.
    let mut request = support::request(&[0, 1, 2, 3, 0, 1, 2, 3], 20);
    change(&mut request);
    let (events, _receiver) = unbounded_channel();
    let place = scheduler.place(0, 0, 16);
    scheduler.add(Sequence::new(0, request, events, place, 0));
    let (step, plan) = scheduler.schedule().unwrap();
    assert_eq!(step.sequences[0].tokens.drafts(), 0);
    let pending = executor.submit(step).unwrap();
    let output = executor.collect(pending).unwrap();
    scheduler.apply(&plan, output).unwrap();
    scheduler.schedule().unwrap().0
}

#[test]
fn only_greedy_sequences_have_drafts_and_no_more_than_fit() {
    let config = EngineConfig {
        speculation: Some(speculation()),
        ..config()
    };
    let drafts = |config: &EngineConfig, blocks, change: &dyn Fn(&mut GenerationRequest)| {
        let step = first_decoding_step(config, blocks, change);
        step.sequences[0].tokens.drafts()
    };
    assert_eq!(drafts(&config, 40, &|_| ()), 4);
    for sampling in [
        SamplingParams::default(),
        SamplingParams {
            temperature: 0.0,
            logprobs: Some(0),
            ..SamplingParams::default()
        },
    ] {
        let sampling = Arc::new(sampling);
        let change = |r: &mut GenerationRequest| r.sampling = sampling.clone();
        assert_eq!(drafts(&config, 40, &change), 0);
    }
    // Nothing is drafted that could not be sampled any more.
    for (max_tokens, most) in [(2, 0), (3, 1), (4, 2)] {
        let change = |r: &mut GenerationRequest| r.stop.max_tokens = max_tokens;
        assert_eq!(drafts(&config, 40, &change), most);
    }
    let short = EngineConfig {
        max_model_len: 12,
        ..config.clone()
    };
    assert_eq!(drafts(&short, 40, &|_| ()), 2);
    // End tokens that must not be sampled yet.
    let change = |r: &mut GenerationRequest| {
        r.stop.min_tokens = 9;
        r.stop.stop_tokens = [40].into();
    };
    assert_eq!(drafts(&config, 40, &change), 0);
    // Two blocks of four hold the prompt and a third the last token; one is left for its growth.
    for (blocks, most) in [(3, 3), (4, 3), (5, 4)] {
        assert_eq!(drafts(&config, blocks, &|_| ()), most, "{blocks} blocks");
    }
    let tight = EngineConfig {
        max_num_batched_tokens: 3,
        ..config.clone()
    };
    let step = first_decoding_step(&tight, 40, |r| r.prompt = [0, 1, 2].as_slice().into());
    assert!(step.sequences[0].tokens.len() <= 3);
}

/// A prompt that goes on as a wrong draft did finds nothing of what the draft left in the cache.
#[test]
fn refused_drafts_are_found_by_nobody() {
    let config = EngineConfig {
        speculation: Some(speculation()),
        max_num_batched_tokens: 64,
        ..config()
    };
    let limits = limits(&config, 200);
    let mut executor = SimExecutor::new(limits.clone(), SimTiming::default());
    let mut scheduler = Scheduler::new(config.clone(), &limits);
    let mut next = 0;
    // The answer to a request, and its text with the drafts of each of its steps behind it.
    let mut answer = |request: &GenerationRequest| {
        let (events, mut receiver) = unbounded_channel();
        let place = scheduler.place(next, 0, 16);
        scheduler.add(Sequence::new(next, request.clone(), events, place, 0));
        next += 1;
        let mut text = request.prompt.to_vec();
        let mut drafted = Vec::new();
        while let Some((step, plan)) = scheduler.schedule() {
            if let StepTokens::Speculative(tokens) = &step.sequences[0].tokens {
                drafted.push([text.as_slice(), &tokens[1..]].concat());
            }
            let pending = executor.submit(step).unwrap();
            let output = executor.collect(pending).unwrap();
            text.extend(output.samples.iter().map(|(_, sample)| sample.token));
            scheduler.apply(&plan, output).unwrap();
        }
        let answer = collected(std::iter::from_fn(|| receiver.try_recv().ok()));
        assert_eq!(answer.0, expected(request, &config).0);
        drafted
    };
    let drafted = answer(&support::request(&[0, 1, 2, 3, 0, 1, 2, 3], 40));
    assert!(drafted.len() > 10);
    for mut text in drafted {
        text.push(0);
        answer(&support::request(&text, 3));
    }
}

/// What an executor gives must be what was asked for.
#[test]
fn tokens_that_nobody_asked_for_are_refused() {
    let config = EngineConfig {
        speculation: Some(speculation()),
        ..config()
    };
    for (count, good) in [(0, false), (1, true), (2, false)] {
        let limits = limits(&config, 40);
        let mut scheduler = Scheduler::new(config.clone(), &limits);
        let (events, _receiver) = unbounded_channel();
        let place = scheduler.place(0, 0, 16);
        let request = support::request(&[1, 2, 3], 9);
        scheduler.add(Sequence::new(0, request, events, place, 0));
        let (step, plan) = scheduler.schedule().unwrap();
        let token = TokenOutput {
            token: 1,
            logprobs: None,
        };
        let samples = vec![(step.sequences[0].slot, token); count];
        let applied = scheduler.apply(
            &plan,
            StepOutput {
                samples,
                ..StepOutput::default()
            },
        );
        assert_eq!(applied.is_ok(), good, "{count}: {applied:?}");
    }
}
