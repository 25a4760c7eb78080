//! Logits of random tiny models against a plain float forward pass.

#![allow(clippy::unwrap_used)] // a test

mod support;

use powerband_cpu::simd::Isa;
use powerband_cpu::{Chunk, CpuOptions, Runner};
use powerband_engine::KvCacheDtype;
use powerband_model::spec::{Activation, ModelSpec, RopeScaling, RopeStyle};
use powerband_model::{DType, Weights};
use support::{Noise, Reference, distance, random_weights, tiny};

fn options(kv_dtype: KvCacheDtype) -> CpuOptions {
    CpuOptions {
        threads: Some(2),
        kv_dtype,
        max_num_seqs: 50,
        max_num_batched_tokens: 200,
        max_model_len: 64,
        ..CpuOptions::default()
    }
}

fn prompt(len: usize, seed: u64, vocab: usize) -> Vec<u32> {
    let mut noise = Noise(seed);
    (0..len).map(|_| noise.below(vocab) as u32).collect()
}

/// Blocks of sequence `s`, out of order on purpose.
fn blocks(s: usize) -> Vec<u32> {
    (0..4).map(|b| (s * 4 + (b * 3 + 1) % 4) as u32).collect()
}

fn logits(runner: &mut Runner, tokens: &[u32], start: usize, s: usize) -> Vec<f32> {
    let blocks = blocks(s);
    let chunk = Chunk {
        tokens,
        start,
        blocks: &blocks,
        logits: 1,
    };
    assert_eq!(runner.forward(&[chunk]).unwrap(), 1);
    runner.logits(0).to_vec()
}

/// A prompt, then five steps of decoding, compared with the reference after each.
fn check(spec: &ModelSpec, weights: &Weights, options: CpuOptions, limit: f32, what: &str) {
    let tokens = prompt(40, 7, spec.vocab_size);
    let wanted = Reference::new(spec, weights).logits(&tokens);
    let mut runner = Runner::new(spec, weights, options).unwrap();
    let got = logits(&mut runner, &tokens[..35], 0, 3);
    let error = distance(&got, &wanted[34]);
    assert!(error < limit, "{what}: off by {error} after the prompt");
    for at in 35..40 {
        let got = logits(&mut runner, &tokens[at..=at], at, 3);
        let error = distance(&got, &wanted[at]);
        assert!(error < limit, "{what}: off by {error} at {at}");
    }
}

fn check_exactly(spec: &ModelSpec, what: &str) {
    let weights = random_weights(spec, DType::F32, 5);
    check(spec, &weights, options(KvCacheDtype::F32), 2e-4, what);
}

#[test]
fn shapes_of_heads() {
    for (heads, kv_heads, dim) in [
        (4, 4, 16),
        (9, 3, 64),
        (6, 1, 8),
        (14, 2, 24),
        (4, 1, 128),
        (20, 1, 16),
    ] {
        for tied in [true, false] {
            let mut spec = tiny();
            (spec.num_heads, spec.num_kv_heads, spec.head_dim) = (heads, kv_heads, dim);
            spec.rope.rotary_dim = dim;
            spec.tie_embeddings = tied;
            check_exactly(&spec, &format!("{heads}/{kv_heads} heads of {dim}"));
        }
    }
    let mut odd = tiny();
    (odd.hidden_size, odd.intermediate_size, odd.vocab_size) = (52, 70, 33);
    check_exactly(&odd, "sizes that are no whole vectors");
}

#[test]
fn rotary_styles_and_scalings() {
    let scalings = [
        RopeScaling::None,
        RopeScaling::Linear { factor: 4.0 },
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 32,
        },
        RopeScaling::Factors(vec![1.0, 1.5, 2.0, 4.0, 8.0, 8.0]),
        RopeScaling::Long {
            short: vec![1.0; 6],
            long: vec![1.0, 1.5, 2.0, 4.0, 8.0, 8.0],
            original_context: 16,
            amplitude: 1.25,
        },
    ];
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        for scaling in &scalings {
            let mut spec = tiny();
            spec.rope.style = style;
            spec.rope.scaling = scaling.clone();
            spec.rope.rotary_dim = 12;
            (spec.qk_norm, spec.qkv_bias) = (true, true);
            check_exactly(&spec, &format!("{style:?} {scaling:?}"));
        }
    }
}

#[test]
fn what_families_add() {
    type Change = fn(&mut ModelSpec);
    let changes: [(&str, Change); 10] = [
        ("layers without rotation", |s| s.unrotated_pattern = 2),
        ("bias", |s| s.qkv_bias = true),
        ("head norms", |s| s.qk_norm = true),
        ("sandwich norms", |s| s.sandwich_norms = true),
        ("norms plus one", |s| s.norm_plus_one = true),
        ("gelu", |s| s.activation = Activation::GeluTanh),
        ("attention cap", |s| s.attention_softcap = Some(2.0)),
        ("logit cap", |s| s.logit_softcap = Some(3.0)),
        ("embedding scale", |s| s.embedding_scale = 8.0),
        ("two windows", |s| {
            s.num_layers = 3;
            s.sliding_window = Some(18);
            s.sliding_pattern = 3;
            s.local_rope_theta = Some(100.0);
        }),
    ];
    let mut all = tiny();
    for (what, change) in changes {
        let mut spec = tiny();
        change(&mut spec);
        check_exactly(&spec, what);
        change(&mut all);
    }
    check_exactly(&all, "all at once");
}

#[test]
fn weight_formats() {
    // Activations are bytes beside quantised weights: that is what the wider limit is for. Where one
    // instruction multiplies pairs of bfloat16, they are that beside such weights.
    for (dtype, limit) in [
        (DType::F32, 2e-4),
        (DType::F16, 2e-4),
        (DType::BF16, 2e-4),
        (DType::Q8_0, 0.08),
        (DType::Q4_0, 0.08),
        (DType::Q4_1, 0.08),
        // So are the levels.
        (DType::NF4, 0.2),
    ] {
        for isa in Isa::all() {
            let pairs = dtype == DType::BF16 && isa.multiplies_pairs();
            let limit = if pairs { 0.03 } else { limit };
            let mut spec = tiny();
            spec.qkv_bias = true;
            if dtype == DType::NF4 {
                // Whole blocks of 64.
                spec.intermediate_size = 128;
            }
            let weights = random_weights(&spec, dtype, 9);
            let options = CpuOptions {
                isa: Some(isa),
                ..options(KvCacheDtype::F32)
            };
            check(
                &spec,
                &weights,
                options,
                limit,
                &format!("{} {}", dtype.name(), isa.name()),
            );
        }
    }
}

#[test]
fn cache_formats() {
    for (dtype, limit) in [
        (KvCacheDtype::F32, 2e-4),
        (KvCacheDtype::F16, 5e-3),
        (KvCacheDtype::BF16, 4e-2),
        (KvCacheDtype::Int8, 0.08),
        (KvCacheDtype::Fp8E4M3, 0.3),
        (KvCacheDtype::Fp8E5M2, 0.6),
    ] {
        for isa in Isa::all() {
            let spec = tiny();
            let weights = random_weights(&spec, DType::F32, 5);
            let options = CpuOptions {
                isa: Some(isa),
                ..options(dtype)
            };
            check(
                &spec,
                &weights,
                options,
                limit,
                &format!("{dtype:?} {}", isa.name()),
            );
        }
    }
}

/// The same bits alone and in a batch of 50, whole and in chunks, on one thread and on three.
#[test]
fn batching_and_chunking_change_no_bit() {
    for (dtype, kv) in [
        (DType::Q4_1, KvCacheDtype::F16),
        (DType::Q8_0, KvCacheDtype::Int8),
        (DType::NF4, KvCacheDtype::Fp8E4M3),
        (DType::BF16, KvCacheDtype::BF16),
    ] {
        let mut spec = tiny();
        (spec.num_heads, spec.num_kv_heads) = (6, 2);
        spec.head_dim = 64;
        spec.rope.rotary_dim = 64;
        spec.sliding_window = Some(20);
        spec.sliding_pattern = 2;
        spec.intermediate_size = 128;
        let weights = random_weights(&spec, dtype, 11);
        let prompts: Vec<_> = (0..50).map(|s| prompt(20 + s % 9, s as u64, 250)).collect();
        for isa in Isa::all() {
            let with = |threads| CpuOptions {
                isa: Some(isa),
                threads: Some(threads),
                ..options(kv)
            };
            let mut alone = Runner::new(&spec, &weights, with(1)).unwrap();
            let mut wanted = Vec::new();
            for (s, tokens) in prompts.iter().enumerate() {
                let (first, last) = tokens.split_at(tokens.len() - 1);
                logits(&mut alone, first, 0, s);
                wanted.push(logits(&mut alone, last, first.len(), s));
            }
            let mut chunked = Runner::new(&spec, &weights, with(3)).unwrap();
            for (s, tokens) in prompts.iter().enumerate() {
                let cut = 1 + s % (tokens.len() - 1);
                logits(&mut chunked, &tokens[..cut], 0, s);
                let got = logits(&mut chunked, &tokens[cut..], cut, s);
                assert_eq!(got, wanted[s], "chunked at {cut}, {}", isa.name());
            }
            let mut batched = Runner::new(&spec, &weights, with(2)).unwrap();
            let all_blocks: Vec<_> = (0..50).map(blocks).collect();
            for (s, tokens) in prompts.iter().enumerate() {
                logits(&mut batched, &tokens[..tokens.len() - 1], 0, s);
            }
            let chunks: Vec<_> = prompts
                .iter()
                .zip(&all_blocks)
                .map(|(tokens, blocks)| Chunk {
                    tokens: &tokens[tokens.len() - 1..],
                    start: tokens.len() - 1,
                    blocks,
                    logits: 1,
                })
                .collect();
            batched.forward(&chunks).unwrap();
            for (s, wanted) in wanted.iter().enumerate() {
                assert_eq!(batched.logits(s), wanted, "batched, {}", isa.name());
            }
        }
    }
}

/// Drafts: logits after several tokens of a chunk are to the bit those of one token at a time.
#[test]
fn logits_after_each_draft_are_those_of_single_steps() {
    for (dtype, kv) in [
        (DType::Q8_0, KvCacheDtype::F16),
        (DType::Q4_1, KvCacheDtype::Int8),
        (DType::BF16, KvCacheDtype::BF16),
    ] {
        let spec = tiny();
        let weights = random_weights(&spec, dtype, 5);
        let tokens = prompt(40, 3, spec.vocab_size);
        for isa in Isa::all() {
            let options = CpuOptions {
                isa: Some(isa),
                max_drafts: 4,
                ..options(kv)
            };
            let mut single = Runner::new(&spec, &weights, options.clone()).unwrap();
            let mut drafted = Runner::new(&spec, &weights, options).unwrap();
            logits(&mut single, &tokens[..14], 0, 1);
            logits(&mut drafted, &tokens[..14], 0, 1);
            for (at, count) in [(14, 5), (19, 2), (21, 1), (22, 3)] {
                let blocks = [blocks(1), blocks(2)];
                let chunk = |s: usize, count, logits| Chunk {
                    tokens: &tokens[at..at + count],
                    start: at,
                    blocks: &blocks[s],
                    logits,
                };
                // Behind a sequence that is in the middle of its prompt.
                let rows = drafted.forward(&[chunk(1, 2, 0), chunk(0, count, count)]);
                assert_eq!(rows.unwrap(), count);
                for row in 0..count {
                    let one = &tokens[at + row..=at + row];
                    let wanted = logits(&mut single, one, at + row, 1);
                    assert_eq!(drafted.logits(row), wanted, "{} at {at}", isa.name());
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let spec = tiny();
    let weights = random_weights(&spec, DType::F32, 1);
    let mut runner = Runner::new(&spec, &weights, options(KvCacheDtype::F32)).unwrap();
    let blocks = [0, 1];
    let good = Chunk {
        tokens: &[1, 2],
        start: 0,
        blocks: &blocks,
        logits: 0,
    };
    assert_eq!(runner.forward(&[good]).unwrap(), 0);
    let far = [1_000_000];
    let bad = [
        Chunk {
            tokens: &[250],
            ..good
        },
        Chunk {
            tokens: &[],
            ..good
        },
        Chunk { start: 31, ..good },
        // Two rows of logits where nothing is drafted.
        Chunk { logits: 2, ..good },
        Chunk {
            start: usize::MAX,
            ..good
        },
        Chunk {
            blocks: &far,
            ..good
        },
    ];
    for chunk in bad {
        assert!(runner.forward(&[chunk]).is_err(), "{chunk:?}");
    }
    let long = vec![1; 201];
    assert!(
        runner
            .forward(&[Chunk {
                tokens: &long,
                ..good
            }])
            .is_err()
    );

    let mut wrong = spec.clone();
    wrong.hidden_size = 96;
    let error = Runner::new(&wrong, &weights, options(KvCacheDtype::F32)).unwrap_err();
    assert!(
        error.to_string().contains("model.embed_tokens.weight"),
        "{error}"
    );
    let zero = CpuOptions {
        max_num_seqs: 0,
        ..options(KvCacheDtype::F32)
    };
    let error = Runner::new(&spec, &weights, zero).unwrap_err();
    assert!(error.to_string().contains("--max-num-seqs"), "{error}");
    let little = CpuOptions {
        kv_cache_bytes: Some(100),
        ..options(KvCacheDtype::F32)
    };
    let error = Runner::new(&spec, &weights, little).unwrap_err();
    assert!(
        error.to_string().contains("--kv-cache-memory-bytes"),
        "{error}"
    );
}
