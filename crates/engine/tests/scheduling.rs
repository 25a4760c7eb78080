//! Properties of the scheduler and the block pool, on random requests, limits and cancellations.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::{HashMap, HashSet, VecDeque};

use powerband_engine::block_pool::{BlockPool, Prefix};
use powerband_engine::executor::{Executor, Step};
use powerband_engine::scheduler::Scheduler;
use powerband_engine::sequence::Sequence;
use powerband_engine::sim::{SimExecutor, SimTiming};
use powerband_engine::{EngineConfig, FinishReason, GenerationRequest, SchedulingPolicy};
use proptest::prelude::*;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use support::{BLOCK, VOCAB, collected, config, expected, limits};

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
    );
    let arrival = arrival.prop_map(
        |(step, prompt, max_tokens, min_tokens, stop, cancelled, priority, salt)| {
            let mut request = support::request(&prompt, max_tokens);
            request.stop.min_tokens = min_tokens.min(max_tokens);
            request.stop.stop_tokens = stop.into();
            request.priority = priority;
            request.cache_salt = salt;
            Arrival {
                step,
                request,
                cancelled,
            }
        },
    );
    prop::collection::vec(arrival, 1..25)
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
    )
        .prop_map(
            |(seqs, tokens, caching, chunked, overlap, policy, blocks)| {
                let config = EngineConfig {
                    max_num_seqs: seqs,
                    max_num_batched_tokens: tokens.max(seqs),
                    enable_prefix_caching: caching,
                    enable_chunked_prefill: chunked,
                    policy,
                    overlap,
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
fn play(arrivals: Vec<Arrival>, config: &EngineConfig, blocks: usize) {
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
        let (wanted, reason) = expected(&arrival.request, config.max_model_len);
        match end {
            Some(FinishReason::Abort) => {
                assert!(arrival.cancelled.is_some());
                assert!(wanted.starts_with(&tokens));
            }
            end => assert_eq!((tokens, end), (wanted, Some(reason))),
        }
    }
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

/// A pool that runs dry at every possible place: each size from the smallest that works.
#[test]
fn whenever_blocks_run_out_the_answers_stay_the_same() {
    for overlap in [false, true] {
        let config = EngineConfig {
            overlap,
            ..config()
        };
        for blocks in config.max_model_len / BLOCK..60 {
            let arrivals = (0..8u32)
                .map(|i| Arrival {
                    step: i as usize / 2,
                    request: support::request(&[i, i + 1, 3, 4, 5, 6, i], 40 - i as usize),
                    cancelled: None,
                })
                .collect();
            play(arrivals, &config, blocks);
        }
    }
}

/// A request leaves at every possible step of its life; the others do not notice.
#[test]
fn whenever_a_request_leaves_nothing_is_lost() {
    for overlap in [false, true] {
        let config = EngineConfig {
            overlap,
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
