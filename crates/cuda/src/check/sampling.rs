//! Sampling against the probabilities that follow from the logits.

use std::sync::Arc;

use powerband_engine::executor::{Admission, Executor, Step, StepSequence, StepTokens, TokenMask};
use powerband_engine::{EngineError, KvCacheDtype, SamplingParams};

use super::models::{options, shuffled, tiny};
use super::{Check, random, reference};
use crate::CudaExecutor;

const SLOTS: usize = 64;
const ROUNDS: usize = 60;

pub(crate) fn run(filter: &str, report: &mut dyn FnMut(&Check)) {
    if !"sampling".contains(filter) {
        return;
    }
    let base = SamplingParams::default();
    let cases = [
        (
            "temperature",
            SamplingParams {
                temperature: 0.7,
                ..base.clone()
            },
        ),
        (
            "top-k",
            SamplingParams {
                top_k: 7,
                ..base.clone()
            },
        ),
        (
            "top-p",
            SamplingParams {
                top_p: 0.6,
                ..base.clone()
            },
        ),
        (
            "min-p",
            SamplingParams {
                min_p: 0.2,
                ..base.clone()
            },
        ),
        (
            "top-k and top-p",
            SamplingParams {
                top_k: 20,
                top_p: 0.7,
                temperature: 1.3,
                ..base.clone()
            },
        ),
        (
            "penalties",
            SamplingParams {
                repetition_penalty: 1.5,
                presence_penalty: 0.5,
                frequency_penalty: 0.3,
                ..base.clone()
            },
        ),
        (
            "bias",
            SamplingParams {
                logit_bias: vec![(3, 4.0), (9, -100.0)],
                logprobs: Some(3),
                ..base.clone()
            },
        ),
    ];
    for (name, params) in cases {
        let title = format!("sampling {name}");
        match shares(params, false) {
            Ok(error) => report(&Check::within(title, error, 0.04)),
            Err(error) => report(&Check::failed(title, error)),
        }
    }
    match shares(base, true) {
        Ok(error) => report(&Check::within("sampling mask", error, 0.04)),
        Err(error) => report(&Check::failed("sampling mask", error)),
    }
}

const PROMPT: [u32; 6] = [5, 17, 5, 200, 44, 5];
const OUTPUT: [u32; 3] = [44, 80, 80];

/// The largest difference between how often a token was drawn and its probability.
fn shares(params: SamplingParams, masked: bool) -> Result<f64, String> {
    let text = |error: EngineError| error.to_string();
    let spec = tiny();
    let weights = random::weights(&spec, 31);
    let mut executor =
        CudaExecutor::new(&spec, &weights, options(KvCacheDtype::BF16)).map_err(text)?;
    let tokens: Vec<u32> = PROMPT.iter().chain(&OUTPUT).copied().collect();
    let blocks = shuffled(SLOTS, 16, 1);
    let suppressed: Arc<[u32]> = [7u32, 8].as_slice().into();
    let mask = masked.then(|| {
        let words = (0..spec.vocab_size.div_ceil(32)).map(|i| 0x5555_0F0Fu32.rotate_left(i as u32));
        Arc::new(TokenMask(words.collect()))
    });
    let mut drawn = vec![0usize; spec.vocab_size];
    let mut repeated = 0;
    let mut first = Vec::new();
    for round in 0..ROUNDS {
        let mut step = Step::default();
        for (slot, blocks) in blocks.iter().enumerate() {
            let seed = (round * SLOTS + slot) as u64;
            step.released.push(slot);
            step.sequences.push(StepSequence {
                slot,
                admission: Some(Admission {
                    sampling: Arc::new(params.clone()),
                    prompt: PROMPT.as_slice().into(),
                    output: OUTPUT.to_vec(),
                    seed,
                }),
                tokens: StepTokens::Known(match round {
                    0 => tokens[..4].to_vec(),
                    _ => tokens[8..].to_vec(),
                }),
                start: if round == 0 { 0 } else { 8 },
                blocks: blocks.clone(),
                sample: round > 0,
                suppressed: Some(suppressed.clone()),
                mask: mask.clone(),
            });
        }
        if round == 0 {
            // Two steps for the prompt: room for all slots' tokens is not there at once.
            let pending = executor.submit(step.clone()).map_err(text)?;
            executor.collect(pending).map_err(text)?;
            for sequence in &mut step.sequences {
                sequence.admission = None;
                sequence.tokens = StepTokens::Known(tokens[4..8].to_vec());
                sequence.start = 4;
            }
            step.released.clear();
        }
        let pending = executor.submit(step).map_err(text)?;
        let output = executor.collect(pending).map_err(text)?;
        let ids: Vec<u32> = output
            .samples
            .iter()
            .map(|(_, sample)| sample.token)
            .collect();
        if round == 1 {
            first.clone_from(&ids);
        }
        if round == 2 {
            repeated = ids.iter().zip(&first).filter(|(a, b)| a == b).count();
        }
        ids.iter().for_each(|id| drawn[*id as usize] += 1);
    }
    if params.temperature > 0.5 && repeated == SLOTS {
        return Err("different seeds drew the same tokens".to_owned());
    }
    let logits = reference::logits(&spec, &weights, &tokens, tokens.len() - 1);
    let logits = logits.map_err(|error| error.to_string())?;
    let expected = probabilities(&logits[0], &params, mask.as_deref(), &suppressed);
    let total = drawn.iter().sum::<usize>() as f64;
    let differences = drawn.iter().zip(&expected).map(|(count, p)| {
        let impossible = *p == 0.0 && *count > total as usize / 200;
        if impossible {
            1.0
        } else {
            (*count as f64 / total - p).abs()
        }
    });
    Ok(differences.fold(0.0, f64::max))
}

/// What sampling should draw from.
fn probabilities(
    logits: &[f64],
    params: &SamplingParams,
    mask: Option<&TokenMask>,
    suppressed: &[u32],
) -> Vec<f64> {
    let mut logits = logits.to_vec();
    for (token, logit) in logits.iter_mut().enumerate() {
        let id = token as u32;
        let times = OUTPUT.iter().filter(|t| **t == id).count() as f64;
        if PROMPT.contains(&id) || times > 0.0 {
            let penalty = f64::from(params.repetition_penalty);
            *logit = if *logit > 0.0 {
                *logit / penalty
            } else {
                *logit * penalty
            };
        }
        *logit -= f64::from(params.frequency_penalty) * times;
        if times > 0.0 {
            *logit -= f64::from(params.presence_penalty);
        }
        for (_, bias) in params.logit_bias.iter().filter(|(t, _)| *t == id) {
            *logit += f64::from(*bias);
        }
        let allowed = mask.is_none_or(|m| m.0[token / 32] >> (token % 32) & 1 == 1);
        if suppressed.contains(&id) || !allowed {
            *logit = f64::NEG_INFINITY;
        }
        *logit /= f64::from(params.temperature);
    }
    let log = reference::log_softmax(&logits);
    let mut order: Vec<usize> = (0..log.len()).collect();
    order.sort_by(|a, b| log[*b].total_cmp(&log[*a]));
    let best = order.first().map_or(0.0, |i| log[*i].exp());
    order.retain(|i| log[*i].exp() >= f64::from(params.min_p) * best && log[*i].is_finite());
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    let whole: f64 = order.iter().map(|i| log[*i].exp()).sum();
    let mut kept = 0.0;
    let mut probabilities = vec![0.0; log.len()];
    for i in order {
        if kept >= whole * f64::from(params.top_p) {
            break;
        }
        kept += log[i].exp();
        probabilities[i] = log[i].exp();
    }
    probabilities.iter_mut().for_each(|p| *p /= kept);
    probabilities
}
