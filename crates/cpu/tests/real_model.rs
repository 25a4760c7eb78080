//! SmolLM2-135M-Instruct (Q4_1) against values from an independent float32 forward pass over the
//! dequantised weights.

#![allow(clippy::unwrap_used)] // a test

mod support;

use std::sync::Arc;

use powerband_cpu::{Chunk, CpuExecutor, CpuOptions, Runner};
use powerband_engine::executor::{Admission, Executor, Step, StepSequence, StepTokens};
use powerband_engine::{KvCacheDtype, SamplingParams};
use powerband_model::gguf::Gguf;
use powerband_model::{ModelSpec, Weights};

fn model() -> Option<(ModelSpec, Weights)> {
    let file = Gguf::open(&support::real_model()?).unwrap();
    let weights = file.weights().unwrap();
    Some((file.spec(&weights).unwrap(), weights))
}

fn options() -> CpuOptions {
    CpuOptions {
        threads: Some(2),
        kv_dtype: KvCacheDtype::F16,
        max_num_seqs: 50,
        max_num_batched_tokens: 256,
        max_model_len: 128,
        ..CpuOptions::default()
    }
}

/// "What is the capital of France? Answer in one sentence." in the model's chat template.
const CHAT: [u32; 42] = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
    19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 19842, 281, 582, 6330,
    30, 2, 198, 1, 520, 9531, 198,
];

#[test]
fn logits_are_the_references() {
    let Some((spec, weights)) = model() else {
        return;
    };
    let mut runner = Runner::new(&spec, &weights, options()).unwrap();
    let blocks: Vec<u32> = (0..8).collect();
    type Top = [(usize, f32); 5];
    let golden: [(&[u32], Top); 2] = [
        (
            &[22007, 6463, 314],
            [
                (253, 24.01),
                (260, 23.03),
                (441, 21.79),
                (1129, 21.69),
                (4959, 21.53),
            ],
        ),
        (
            &CHAT,
            [
                (504, 29.78),
                (38634, 28.28),
                (7026, 27.00),
                (57, 26.98),
                (60, 26.94),
            ],
        ),
    ];
    for (tokens, wanted) in golden {
        let chunk = Chunk {
            tokens,
            start: 0,
            blocks: &blocks,
            logits: 1,
        };
        runner.forward(&[chunk]).unwrap();
        let logits = runner.logits(0);
        for (token, value) in wanted {
            // Activations in bytes cost about a hundredth of the logits' range; how much changes by half of
            // that when only a last place is rounded otherwise.
            let error = (logits[token] - value).abs();
            assert!(
                error < 0.45,
                "token {token}: {}, not {value}",
                logits[token]
            );
        }
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        assert_eq!(best, Some(wanted[0].0));
    }
}

/// The greedy answer through the executor, alone and beside 49 other sequences, with the prompt
/// whole and in chunks, with known and with remembered tokens.
#[test]
fn the_greedy_answer_is_the_references() {
    let Some((spec, weights)) = model() else {
        return;
    };
    let mut executor = CpuExecutor::new(&spec, &weights, options()).unwrap();
    for (slot, others, cut) in [(0, 0, 42), (7, 0, 13), (49, 49, 42)] {
        let sequence = |slot: usize, tokens, start, sample, first: bool| StepSequence {
            slot,
            admission: first.then(|| Admission {
                sampling: Arc::new(SamplingParams {
                    temperature: 0.0,
                    ..SamplingParams::default()
                }),
                prompt: CHAT.as_slice().into(),
                output: Vec::new(),
                seed: 0,
            }),
            tokens,
            start,
            blocks: (slot as u32 * 8..slot as u32 * 8 + 8).collect(),
            sample,
            suppressed: None,
            mask: None,
        };
        let mut run = |sequences: Vec<StepSequence>| {
            let released = match sequences.iter().any(|s| s.admission.is_some()) {
                true => sequences.iter().map(|s| s.slot).collect(),
                false => Vec::new(),
            };
            let pending = executor
                .submit(Step {
                    released,
                    sequences,
                })
                .unwrap();
            executor.collect(pending).unwrap().samples
        };
        for other in 0..others {
            let tokens = vec![other as u32 + 100; 9];
            run(vec![sequence(
                other,
                StepTokens::Known(tokens),
                0,
                true,
                true,
            )]);
        }
        let mut answer = Vec::new();
        let (head, tail) = CHAT.split_at(cut);
        if !tail.is_empty() {
            let samples = run(vec![sequence(
                slot,
                StepTokens::Known(head.to_vec()),
                0,
                false,
                true,
            )]);
            assert!(samples.is_empty());
            let tokens = StepTokens::Known(tail.to_vec());
            answer.push(
                run(vec![sequence(slot, tokens, cut, true, false)])[0]
                    .1
                    .token,
            );
        } else {
            let tokens = StepTokens::Known(head.to_vec());
            answer.push(run(vec![sequence(slot, tokens, 0, true, true)])[0].1.token);
        }
        for step in 0..7 {
            let mut sequences: Vec<_> = (0..others)
                .map(|other| sequence(other, StepTokens::LastSampled, 9 + step, true, false))
                .collect();
            let tokens = match step % 2 {
                0 => StepTokens::LastSampled,
                _ => StepTokens::Known(vec![answer[step]]),
            };
            sequences.push(sequence(slot, tokens, 42 + step, true, false));
            let samples = run(sequences);
            assert_eq!(samples.len(), others + 1);
            assert_eq!(samples[others].0, slot);
            answer.push(samples[others].1.token);
        }
        assert_eq!(answer, [504, 3575, 282, 4649, 314, 7042, 30, 2]);
    }
}
