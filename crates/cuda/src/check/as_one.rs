//! The kernel of all layers against a kernel for each product.

use powerband_engine::{EngineError, KvCacheDtype, SamplingParams};
use powerband_model::Weights;

use super::Check;
use super::models::{Running, generate, options, prompts, shuffled};
use super::speed::{Tuning, set_tuning, tuning};
use crate::{CudaExecutor, CudaOptions, WeightQuantization};

pub(crate) fn run(report: &mut dyn FnMut(&Check)) {
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
    // Only the kernels for more tokens take so many; 33 are too many for them.
    cases.extend([17, 24, 31, 32, 33].map(|n| (llama, n, 9, BF16, None)));
    cases.extend([
        (llama, 30, 600, Fp8E5M2, None),
        (llama, 20, 15, Fp8E4M3, None),
    ]);
    cases.extend([10, 18, 32].map(|n| (small, n, 5, BF16, None)));
    for (model, count, from, kv_dtype, quantization) in cases {
        let options = CudaOptions {
            dummy_seed: Some(7),
            kv_cache_bytes: Some(1 << 30),
            quantization,
            ..options(kv_dtype)
        };
        let result = layers_as_one(model, count, from, options).map_err(|error| error.to_string());
        let format = quantization.map_or("bf16".to_owned(), |q| format!("{q:?}"));
        let name =
            format!("layers as one, {model} {format}, {count} sequences from {from}, {kv_dtype:?}");
        report(&Check::of(&name, result, 0.1));
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
    // So many sequences that all of them decode in the same step only if their prompts are short.
    let (longer, wanted) = if count > 16 { (1, 24) } else { (7, 16) };
    // A kernel for each product, the kernel for few tokens, and as it is used.
    for (layers, wide) in [(0, 0), (own.layers.min(16), 99), (own.layers, own.wide)] {
        set_tuning(
            &mut executor,
            Tuning {
                layers,
                wide,
                ..own
            },
        )?;
        let lengths: Vec<usize> = (0..count).map(|i| from + longer * i).collect();
        let blocks = shuffled(count, from + 300, 5);
        let prompts = prompts(&spec, &lengths, 3).into_iter().zip(blocks);
        let mut running: Vec<_> = prompts
            .enumerate()
            .map(|(i, (prompt, blocks))| Running::new(i, prompt, sampling.clone(), blocks))
            .collect();
        generate(&mut executor, &mut running, wanted, 300)?;
        ways.push(running);
    }
    let mut worst = 0f64;
    let others = ways[1].iter().chain(&ways[2]);
    for (one, other) in ways[0].iter().chain(&ways[0]).zip(others) {
        for (a, b) in one.outputs.iter().zip(&other.outputs) {
            if a.token != b.token {
                break;
            }
            let (Some(a), Some(b)) = (&a.logprobs, &b.logprobs) else {
                return Ok(f64::INFINITY);
            };
            worst = worst.max(f64::from((a.logprob - b.logprob).abs()));
        }
    }
    // Random weights have many near ties, but the first token comes from the same prompt step.
    let first = |running: &[Running]| running[0].outputs.first().map(|o| o.token);
    match ways.iter().all(|way| first(way) == first(&ways[0])) {
        true => Ok(worst),
        false => Ok(f64::INFINITY),
    }
}
