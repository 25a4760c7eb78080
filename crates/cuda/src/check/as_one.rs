//! The kernel of all layers: small models against f64, those of full size against a kernel for each product.

use powerband_engine::{EngineError, KvCacheDtype, SamplingParams};
use powerband_model::spec::ModelSpec;
use powerband_model::{DType, Weights};

use super::models::{
    LENGTHS, Running, compare_with, generate, heads, in_whole_blocks, options, prompts,
    quantised_model, shuffled, tiny,
};
use super::quantised::fp8_checkpoint;
use super::speed::{Tuning, set_tuning, tuning};
use super::{Check, random};
use crate::flow::LEAST_LAYERS;
use crate::{CudaExecutor, CudaOptions, WeightQuantization};

pub(crate) fn run(filter: &str, report: &mut dyn FnMut(&Check)) {
    deep(filter, report);
    full_size(filter, report);
}

/// With as few layers as the kernel takes and one more; of 12 sequences all decode together at first, and fewer than
/// eight in the end.
fn deep(filter: &str, report: &mut dyn FnMut(&Check)) {
    let layers = |spec| ModelSpec {
        num_layers: LEAST_LAYERS + 1,
        ..spec
    };
    let lengths: Vec<usize> = LENGTHS.into_iter().cycle().take(12).collect();
    let wide = heads(in_whole_blocks(), 4, 2, 128);
    let odd = ModelSpec {
        hidden_size: 160,
        ..heads(tiny(), 5, 1, 64)
    };
    for (name, spec, stored) in [
        ("model deep", in_whole_blocks(), None),
        ("model deep, heads of 128", wide, None),
        // Tiles that are not full: a model for a kernel for each product.
        ("model deep, odd sizes", odd, None),
        ("model deep, NF4", in_whole_blocks(), Some(DType::NF4)),
        ("model deep, Q4_0", in_whole_blocks(), Some(DType::Q4_0)),
        ("model deep, Q4_1", in_whole_blocks(), Some(DType::Q4_1)),
    ] {
        if name.contains(filter) {
            let spec = layers(spec);
            let weights = random::stored(&spec, 11, stored);
            let both = [&weights, &weights];
            let options = options(KvCacheDtype::BF16);
            let result = compare_with(&spec, both, options, &lengths, Some(20));
            report(&Check::of(name, result, 0.25));
        }
    }
    for (name, method) in [
        ("model deep, fp8", WeightQuantization::Fp8),
        ("model deep, int8", WeightQuantization::Q8_0),
    ] {
        if name.contains(filter) {
            let spec = layers(in_whole_blocks());
            report(&quantised_model(name, &spec, method, 0.25));
        }
    }
    for (name, whole) in [
        ("model deep, F8_E4M3", false),
        ("model deep, F8_E4M3 in the head too", true),
    ] {
        if name.contains(filter) {
            let spec = layers(in_whole_blocks());
            let weights = fp8_checkpoint(&spec, &random::weights(&spec, 11), whole);
            let result = weights.map_err(|error| error.to_string());
            let result = result.and_then(|weights| {
                let options = options(KvCacheDtype::BF16);
                compare_with(&spec, [&weights, &weights], options, &lengths, Some(20))
            });
            report(&Check::of(name, result, 0.25));
        }
    }
}

fn full_size(filter: &str, report: &mut dyn FnMut(&Check)) {
    use KvCacheDtype::{BF16, Fp8E4M3, Fp8E5M2};
    use WeightQuantization::{Fp8, Nf4, Q4_0, Q4_1, Q8_0};
    let (llama, small) = ("llama-3.2-1b", "smollm2-135m");
    let mut cases = vec![
        (llama, 2, 1200, Fp8E4M3, None),
        (llama, 2, 1200, BF16, None),
        (llama, 3, 40, Fp8E5M2, None),
        (llama, 8, 15, Fp8E4M3, Some(Nf4)),
        // Fewer columns than the warps have tiles, and more layers.
        (small, 1, 20, BF16, None),
        (small, 7, 20, BF16, None),
        (small, 11, 600, BF16, None),
    ];
    cases.extend([1, 5, 8, 12, 16].map(|n| (llama, n, 20, BF16, None)));
    cases.extend([Fp8, Q8_0, Q4_0, Q4_1].map(|q| (llama, 6, 33, BF16, Some(q))));
    cases.extend([Fp8, Q8_0, Q4_0, Q4_1, Nf4].map(|q| (small, 9, 33, BF16, Some(q))));
    cases.extend([Fp8, Q8_0, Q4_0, Q4_1, Nf4].map(|q| (llama, 15, 12, Fp8E5M2, Some(q))));
    cases.extend([
        (llama, 16, 400, Fp8E5M2, None),
        (llama, 14, 15, Fp8E4M3, None),
        // Too many for them, until some have ended.
        (llama, 17, 9, BF16, None),
    ]);
    cases.extend([10, 16].map(|n| (small, n, 5, BF16, None)));
    for (model, count, from, kv_dtype, quantization) in cases {
        let format = quantization.map_or("bf16".to_owned(), |q| format!("{q:?}"));
        let name =
            format!("layers as one, {model} {format}, {count} sequences from {from}, {kv_dtype:?}");
        if !name.contains(filter) {
            continue;
        }
        let options = CudaOptions {
            dummy_seed: Some(7),
            kv_cache_bytes: Some(1 << 30),
            quantization,
            ..options(kv_dtype)
        };
        let result = layers_as_one(model, count, from, options).map_err(|error| error.to_string());
        // Keys and values of two bits of mantissa make more of a last bit.
        let bound = if kv_dtype == Fp8E5M2 { 0.15 } else { 0.1 };
        report(&Check::of(&name, result, bound));
    }
}

/// At full size with random weights: the largest difference of log-probabilities while both chose the same tokens.
fn layers_as_one(
    model: &str,
    count: usize,
    from: usize,
    options: CudaOptions,
) -> Result<f64, EngineError> {
    let spec = powerband_model::spec::builtin(model)
        .ok_or_else(|| EngineError::Config(format!("no built-in model {model}")))?;
    let mut executor = CudaExecutor::new(&spec, &Weights::default(), options)?;
    let sampling = SamplingParams {
        temperature: 0.0,
        logprobs: Some(5),
        ..SamplingParams::default()
    };
    let mut ways = Vec::new();
    let own = tuning(&mut executor);
    // A kernel for each product, the kernel for few tokens, and as it is used.
    for (layers, wide) in [(0, 0), (own.layers, 99), (own.layers, own.wide)] {
        set_tuning(
            &mut executor,
            Tuning {
                layers,
                wide,
                ..own
            },
        )?;
        let lengths: Vec<usize> = (0..count).map(|i| from + 7 * i).collect();
        let blocks = shuffled(count, from + 300, 5);
        let prompts = prompts(&spec, &lengths, 3).into_iter().zip(blocks);
        let mut running: Vec<_> = prompts
            .enumerate()
            .map(|(i, (prompt, blocks))| Running::new(i, prompt, sampling.clone(), blocks))
            .collect();
        generate(&mut executor, &mut running, 16, 300)?;
        ways.push(running);
    }
    let mut worst = 0f64;
    for way in &ways[1..] {
        let mut equal = 0;
        for (one, other) in ways[0].iter().zip(way) {
            for (number, (a, b)) in one.outputs.iter().zip(&other.outputs).enumerate() {
                if a.token != b.token {
                    break;
                }
                let (Some(a), Some(b)) = (&a.logprobs, &b.logprobs) else {
                    return Ok(f64::INFINITY);
                };
                worst = worst.max(f64::from((a.logprob - b.logprob).abs()));
                // No step of decoding has made the first.
                equal += usize::from(number > 0);
            }
        }
        // Random weights have many near ties, but not as many: a kernel that leaves anything parts from the others at
        // once.
        if equal < count.div_ceil(2) {
            return Ok(f64::INFINITY);
        }
    }
    // The first token comes from the same prompt step.
    let first = |running: &[Running]| running[0].outputs.first().map(|o| o.token);
    match ways.iter().all(|way| first(way) == first(&ways[0])) {
        true => Ok(worst),
        false => Ok(f64::INFINITY),
    }
}
