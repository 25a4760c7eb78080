//! A real model against values that another implementation gave: SmolLM2-135M-Instruct as Q4_1, whose
//! codes the GPU keeps. Logits of an independent f32 forward pass; llama.cpp answers the same.

use std::path::Path;

use powerband_engine::{KvCacheDtype, SamplingParams};
use powerband_model::Checkpoint;

use super::Check;
use super::models::{Running, generate, options, shuffled};
use crate::CudaExecutor;

/// "What is the capital of France? Answer in one sentence." in the model's chat template.
const CHAT: [u32; 42] = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
    19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 19842, 281, 582, 6330,
    30, 2, 198, 1, 520, 9531, 198,
];
/// Its greedy answer.
const ANSWER: [u32; 8] = [504, 3575, 282, 4649, 314, 7042, 30, 2];
/// "Gravity is", and the logits that follow.
const GRAVITY: [u32; 3] = [22007, 6463, 314];
const AFTER_GRAVITY: [(u32, f32); 5] = [
    (253, 24.01),
    (260, 23.03),
    (441, 21.79),
    (1129, 21.69),
    (4959, 21.53),
];

/// Checks the model in that GGUF file.
pub fn run_model(path: &Path, report: &mut dyn FnMut(&Check)) {
    for dtype in [KvCacheDtype::BF16, KvCacheDtype::Fp8E4M3] {
        let name = |what: &str| format!("SmolLM2-135M Q4_1, KV {dtype:?}: {what}");
        match answers(path, dtype) {
            Ok((answer, error)) => {
                report(&Check {
                    passed: answer == ANSWER,
                    detail: format!("{answer:?}"),
                    name: name("greedy answer"),
                });
                let bound = if dtype == KvCacheDtype::BF16 {
                    0.3
                } else {
                    1.0
                };
                report(&Check::within(name("distances of logits"), error, bound));
            }
            Err(error) => report(&Check::failed(name("answer"), error)),
        }
    }
}

fn answers(path: &Path, dtype: KvCacheDtype) -> Result<(Vec<u32>, f64), String> {
    let checkpoint = Checkpoint::open(path).map_err(|error| error.to_string())?;
    let mut executor = CudaExecutor::new(&checkpoint.spec, &checkpoint.weights, options(dtype))
        .map_err(|error| error.to_string())?;
    let sampling = SamplingParams {
        temperature: 0.0,
        logprobs: Some(20),
        ..SamplingParams::default()
    };
    let blocks = shuffled(2, 64, 5);
    let prompts = [CHAT.to_vec(), GRAVITY.to_vec()];
    let mut running: Vec<_> = prompts
        .into_iter()
        .zip(blocks)
        .enumerate()
        .map(|(slot, (prompt, blocks))| Running::new(slot, prompt, sampling.clone(), blocks))
        .collect();
    generate(&mut executor, &mut running, ANSWER.len(), 300).map_err(|error| error.to_string())?;
    let answer = running[0].tokens[CHAT.len()..].to_vec();
    let first = running[1].outputs.first();
    let Some(logprobs) = first.and_then(|output| output.logprobs.as_ref()) else {
        return Err("no log-probabilities".to_owned());
    };
    let find = |token: u32| logprobs.top.iter().find(|(id, _)| *id == token);
    // Log-probabilities differ from logits by the same number everywhere.
    let Some((_, best)) = find(AFTER_GRAVITY[0].0) else {
        return Err("the likeliest token is another one".to_owned());
    };
    let worst = AFTER_GRAVITY.iter().map(|(token, logit)| {
        find(*token).map_or(f64::INFINITY, |(_, found)| {
            f64::from(((best - found) - (AFTER_GRAVITY[0].1 - logit)).abs())
        })
    });
    Ok((answer, worst.fold(0.0, f64::max)))
}
