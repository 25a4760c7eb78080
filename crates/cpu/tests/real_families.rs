//! Real models of other families: logits of a float32 forward pass over the dequantised weights
//! (transformers 5.24), and the greedy text of llama.cpp where both references agree on it. The
//! values are printed by `fixtures/references.py`; the models come with `powerband pull`.

#![allow(clippy::unwrap_used)] // a test

mod support;

use powerband_cpu::{Chunk, CpuOptions, Runner};
use powerband_engine::KvCacheDtype;
use powerband_model::Checkpoint;

/// A prompt and what both references make of it.
struct Case {
    prompt: &'static [u32],
    /// The largest logits after it.
    top: [(usize, f32); 5],
    /// The greedy continuation; empty where float and 8-bit activations part ways.
    greedy: &'static [u32],
}

const QWEN: [Case; 4] = [
    Case {
        // `Gravity is`
        prompt: &[38409, 374],
        top: [
            (264, 13.504),
            (537, 12.379),
            (279, 12.257),
            (429, 11.763),
            (311, 11.565),
        ],
        greedy: &[],
    },
    Case {
        // `def fibonacci(n):\n    `
        prompt: &[750, 75698, 1445, 982, 257],
        top: [
            (421, 17.525),
            (671, 15.869),
            (264, 14.816),
            (15801, 14.526),
            (4210, 14.509),
        ],
        greedy: &[
            421, 308, 2651, 220, 15, 510, 260, 470, 330, 7928, 1946, 698, 257, 4409, 308, 621, 220,
            16, 510, 260, 470, 220, 15, 198,
        ],
    },
    Case {
        // `The capital of France is`
        prompt: &[785, 6722, 315, 9625, 374],
        top: [
            (12095, 14.591),
            (7148, 10.378),
            (2598, 9.392),
            (106004, 9.312),
            (44245, 8.88),
        ],
        // Then ` Paris` or ` The`, 0.07 apart in float: bytes of activations decide either way.
        greedy: &[12095, 13],
    },
    Case {
        // `Once upon a time, in a small village by the sea, there lived`
        prompt: &[
            12522, 5193, 264, 882, 11, 304, 264, 2613, 14126, 553, 279, 9396, 11, 1052, 12163,
        ],
        top: [
            (264, 14.13),
            (1378, 12.332),
            (2326, 11.164),
            (458, 10.865),
            (3040, 10.287),
        ],
        greedy: &[
            264, 3908, 3743, 6941, 47290, 13, 47290, 572, 1602, 22208, 911, 279, 1879, 2163, 1059,
            323, 4829, 311, 3960, 803, 911, 432, 13, 2932,
        ],
    },
];

const GEMMA: [Case; 4] = [
    Case {
        // `Gravity is`
        prompt: &[2, 71499, 563],
        top: [
            (496, 21.167),
            (506, 20.92),
            (886, 19.681),
            (614, 19.353),
            (711, 18.603),
        ],
        greedy: &[
            496, 4912, 600, 46714, 7751, 8797, 1546, 1032, 236761, 1030, 563, 496, 4912, 600, 563,
            7757, 573, 506, 5776, 529, 7751, 236761, 108, 818,
        ],
    },
    Case {
        // `def fibonacci(n):\n    `
        prompt: &[2, 2063, 10779, 78113, 236769, 236749, 1473, 107, 140],
        top: [
            (584, 13.078),
            (236746, 11.914),
            (12234, 11.511),
            (236749, 11.115),
            (236865, 11.104),
        ],
        greedy: &[
            584, 538, 1251, 236743, 236771, 236787, 107, 144, 2060, 236743, 236771, 107, 140,
            36208, 538, 1251, 236743, 236770, 236787, 107, 144, 2060, 236743, 236770,
        ],
    },
    Case {
        // `The capital of France is`
        prompt: &[2, 818, 5279, 529, 7001, 563],
        top: [
            (506, 19.091),
            (496, 18.548),
            (9079, 18.269),
            (886, 18.113),
            (3224, 17.784),
        ],
        greedy: &[],
    },
    Case {
        // `Once upon a time, in a small village by the sea, there lived`
        prompt: &[
            2, 14946, 3324, 496, 990, 236764, 528, 496, 1944, 9744, 684, 506, 5442, 236764, 993,
            11742,
        ],
        top: [
            (496, 24.121),
            (614, 21.567),
            (506, 20.018),
            (886, 19.285),
            (1156, 19.244),
        ],
        greedy: &[],
    },
];

fn best(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    best.unwrap() as u32
}

fn check(file: &str, cases: &[Case]) {
    let Some(path) = support::cached_model(file) else {
        return;
    };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let options = CpuOptions {
        threads: Some(2),
        kv_dtype: KvCacheDtype::F16,
        max_num_seqs: 2,
        max_num_batched_tokens: 64,
        max_model_len: 64,
        ..CpuOptions::default()
    };
    let mut runner = Runner::new(&checkpoint.spec, &checkpoint.weights, options).unwrap();
    let blocks = [3, 1, 0, 2];
    for Case {
        prompt,
        top,
        greedy,
    } in cases
    {
        let mut chunk = Chunk {
            tokens: prompt,
            start: 0,
            blocks: &blocks,
            logits: 1,
        };
        runner.forward(&[chunk]).unwrap();
        let logits = runner.logits(0);
        for (token, wanted) in *top {
            let got = logits[token];
            // Activations are bytes.
            assert!(
                (got - wanted).abs() < 0.6,
                "{prompt:?} {token}: {got}, not {wanted}"
            );
        }
        for (i, wanted) in greedy.iter().enumerate() {
            assert_eq!(
                best(runner.logits(0)),
                *wanted,
                "token {i} after {prompt:?}"
            );
            chunk.tokens = &greedy[i..=i];
            chunk.start = prompt.len() + i;
            runner.forward(&[chunk]).unwrap();
        }
    }
}

#[test]
fn qwen2() {
    check(
        "qwen2.5-coder-0.5b/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        &QWEN,
    );
}

#[test]
fn gemma3() {
    check("gemma3-270m/gemma-3-270m-q4_k_m.gguf", &GEMMA);
}
