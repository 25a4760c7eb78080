//! Choosing a token from logits on the host.
//!
//! Order, as in vLLM: penalties, bias, forbidden tokens; then greedy, or temperature, min-p, top-k,
//! top-p and a draw. Log-probabilities are those of the model, before any of this. The draw is a
//! function of the seed and of the number of tokens produced, so that a preempted sequence goes on
//! as if nothing had happened, whatever else is in the batch.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;

use crate::executor::{Admission, TokenMask};
use crate::request::{SamplingParams, TokenLogprobs, TokenOutput};

/// What sampling keeps of each slot.
#[derive(Debug, Default)]
pub struct Sampler {
    slots: Vec<Option<Slot>>,
    /// Candidates of the draw in progress: logit and token.
    candidates: Vec<(f32, u32)>,
}

#[derive(Debug)]
struct Slot {
    params: Arc<SamplingParams>,
    seed: u64,
    produced: u64,
    /// Tokens that penalties look at: how often each stands in the output (0: in the prompt only).
    seen: HashMap<u32, u32, RandomState>,
}

impl Slot {
    fn new(admission: &Admission) -> Self {
        let mut slot = Self {
            params: admission.sampling.clone(),
            seed: admission.seed,
            produced: admission.output.len() as u64,
            seen: HashMap::default(),
        };
        if slot.penalises() {
            for &token in admission.prompt.iter() {
                slot.seen.entry(token).or_insert(0);
            }
            for &token in &admission.output {
                *slot.seen.entry(token).or_insert(0) += 1;
            }
        }
        slot
    }

    fn penalises(&self) -> bool {
        let p = &self.params;
        p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0
    }

    fn produced(&mut self, token: u32) {
        self.produced += 1;
        if self.penalises() {
            *self.seen.entry(token).or_insert(0) += 1;
        }
    }

    /// Penalties, bias and what may not be sampled.
    fn adjust(&self, logits: &mut [f32], suppressed: Option<&[u32]>, mask: Option<&TokenMask>) {
        let p = &self.params;
        for (&token, &count) in &self.seen {
            let Some(logit) = logits.get_mut(token as usize) else {
                continue;
            };
            if p.repetition_penalty != 1.0 {
                match *logit > 0.0 {
                    true => *logit /= p.repetition_penalty,
                    false => *logit *= p.repetition_penalty,
                }
            }
            if count > 0 {
                *logit -= p.presence_penalty + p.frequency_penalty * count as f32;
            }
        }
        for &(token, bias) in &p.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        for &token in suppressed.unwrap_or_default() {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        if let Some(mask) = mask {
            for (token, logit) in logits.iter_mut().enumerate() {
                let word = mask.0.get(token / 32).copied().unwrap_or(0);
                if word >> (token % 32) & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

impl Sampler {
    /// A sampler for `slots` slots.
    pub fn new(slots: usize) -> Self {
        Self {
            slots: std::iter::repeat_with(|| None).take(slots).collect(),
            candidates: Vec::new(),
        }
    }

    /// A sequence begins in a slot.
    pub fn admit(&mut self, slot: usize, admission: &Admission) {
        self.slots[slot] = Some(Slot::new(admission));
    }

    /// The sequence in a slot ended.
    pub fn release(&mut self, slot: usize) {
        self.slots[slot] = None;
    }

    /// Samples the next token of the sequence in `slot` from `logits` (`[vocab]`, changed in place).
    /// A slot that was never admitted is sampled greedily.
    pub fn sample(
        &mut self,
        slot: usize,
        logits: &mut [f32],
        suppressed: Option<&[u32]>,
        mask: Option<&TokenMask>,
    ) -> TokenOutput {
        let Some(slot) = &mut self.slots[slot] else {
            let token = argmax(logits);
            return TokenOutput {
                token,
                logprobs: None,
            };
        };
        let params = slot.params.clone();
        let raw = params.logprobs.map(|top| (top, logits.to_vec()));
        slot.adjust(logits, suppressed, mask);
        let token = if params.is_greedy() {
            argmax(logits)
        } else {
            let uniform = uniform(slot.seed, slot.produced);
            draw(logits, &params, uniform, &mut self.candidates)
        };
        slot.produced(token);
        let logprobs = raw.map(|(top, raw)| logprobs(&raw, token, top as usize));
        TokenOutput { token, logprobs }
    }
}

/// The largest logit's token, the lowest such id; numbers that are none count as the smallest.
pub fn argmax(logits: &[f32]) -> u32 {
    // Only the part that has it is searched for its place.
    const PART: usize = 1024;
    let (mut largest, mut first) = (f32::NEG_INFINITY, 0);
    for (number, part) in logits.chunks(PART).enumerate() {
        let here = maximum(part);
        if here > largest {
            (largest, first) = (here, number * PART);
        }
    }
    let place = logits[first..].iter().position(|&logit| logit == largest);
    place.map_or(0, |place| (first + place) as u32)
}

/// Largest of `values`, in lanes so that the compiler makes vectors of it.
fn maximum(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 32];
    let (chunks, rest) = values.as_chunks::<32>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    let all = lanes.iter().chain(rest);
    all.fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
}

/// A number in 0..1 for the `index`-th token of a seed (splitmix64, as in "Fast splittable
/// pseudorandom number generators", Steele et al. 2014).
fn uniform(seed: u64, index: u64) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let start = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let step = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mix(start.wrapping_add(step)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Draws from the softmax of `logits / temperature`, cut down by min-p, top-k and top-p.
fn draw(
    logits: &[f32],
    params: &SamplingParams,
    uniform: f64,
    candidates: &mut Vec<(f32, u32)>,
) -> u32 {
    let largest = maximum(logits);
    if !largest.is_finite() {
        return argmax(logits);
    }
    let scale = 1.0 / params.temperature;
    // p / p_max = exp((logit - largest) / temperature) >= min_p
    let least = match params.min_p > 0.0 {
        true => largest + params.min_p.ln() * params.temperature,
        false => f32::NEG_INFINITY,
    };
    candidates.clear();
    let enough = |logit: f32| logit >= least && logit > f32::NEG_INFINITY;
    let numbered = logits.iter().zip(0u32..);
    candidates.extend(numbered.filter_map(|(&l, token)| enough(l).then_some((l, token))));
    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, likelier);
        candidates.truncate(top_k);
    }
    let weight = |&(logit, _): &(f32, u32)| f64::from(((logit - largest) * scale).exp());
    let mut total: f64 = candidates.iter().map(weight).sum();
    if params.top_p < 1.0 {
        total = nucleus(candidates, total * f64::from(params.top_p), weight);
    }
    let mut left = uniform * total;
    for candidate in candidates.iter() {
        left -= weight(candidate);
        if left < 0.0 {
            return candidate.1;
        }
    }
    candidates.last().map_or(0, |candidate| candidate.1)
}

/// Keeps the fewest likeliest candidates that weigh `wanted` together; returns their weight. Sorts
/// only as far as needed: the nucleus is a handful of tokens of many thousand.
fn nucleus(
    candidates: &mut Vec<(f32, u32)>,
    wanted: f64,
    weight: impl Fn(&(f32, u32)) -> f64,
) -> f64 {
    let (mut sorted, mut kept, mut next) = (0, 0.0, 64);
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let count = next.min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count - 1, likelier);
        }
        rest[..count].sort_unstable_by(likelier);
        for candidate in &rest[..count] {
            kept += weight(candidate);
            sorted += 1;
            if kept >= wanted {
                candidates.truncate(sorted);
                return kept;
            }
        }
        next *= 8;
    }
    kept
}

/// Descending by logit, ascending by token.
fn likelier(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Log-probabilities of the sampled and of the `top` likeliest tokens.
fn logprobs(logits: &[f32], token: u32, top: usize) -> TokenLogprobs {
    let largest = maximum(logits);
    let sum: f64 = logits.iter().map(|l| f64::from((l - largest).exp())).sum();
    let normaliser = largest + sum.ln() as f32;
    let mut likeliest: Vec<(f32, u32)> = logits.iter().copied().zip(0u32..).collect();
    let top = top.min(likeliest.len());
    if top < likeliest.len() && top > 0 {
        likeliest.select_nth_unstable_by(top - 1, likelier);
    }
    likeliest.truncate(top);
    likeliest.sort_unstable_by(likelier);
    TokenLogprobs {
        logprob: logits
            .get(token as usize)
            .map_or(f32::NAN, |l| l - normaliser),
        top: likeliest
            .into_iter()
            .map(|(logit, token)| (token, logit - normaliser))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(params: SamplingParams, seed: u64, output: &[u32]) -> Admission {
        Admission {
            sampling: Arc::new(params),
            prompt: [5, 6].as_slice().into(),
            output: output.to_vec(),
            seed,
        }
    }

    fn sample(params: SamplingParams, logits: &[f32], output: &[u32]) -> TokenOutput {
        let mut sampler = Sampler::new(1);
        sampler.admit(0, &admission(params, 1, output));
        sampler.sample(0, &mut logits.to_vec(), None, None)
    }

    /// How often each token is drawn from `logits` in 20,000 draws of one sequence.
    fn shares(params: SamplingParams, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(1);
        sampler.admit(0, &admission(params, 3, &[]));
        let mut shares = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            let output = sampler.sample(0, &mut logits.to_vec(), None, None);
            shares[output.token as usize] += 1.0 / 20_000.0;
        }
        shares
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        for (token, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!((a - b).abs() < 0.015, "token {token}: {a} is not {b}");
        }
    }

    /// Logits with these probabilities at temperature 1.
    fn of(probabilities: &[f64]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() as f32 + 7.0).collect()
    }

    const P: [f64; 5] = [0.1, 0.4, 0.05, 0.3, 0.15];

    #[test]
    fn draws_follow_the_distribution() {
        assert_near(&shares(SamplingParams::default(), &of(&P)), &P);
        let hot = SamplingParams {
            temperature: 2.0,
            ..Default::default()
        };
        let roots: Vec<f64> = P.iter().map(|p| p.sqrt()).collect();
        let sum: f64 = roots.iter().sum();
        let expected: Vec<f64> = roots.iter().map(|r| r / sum).collect();
        assert_near(&shares(hot, &of(&P)), &expected);
    }

    #[test]
    fn filters_cut_the_distribution() {
        let cut = |top_k, top_p, min_p| SamplingParams {
            top_k,
            top_p,
            min_p,
            ..Default::default()
        };
        let two = [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0, 0.0];
        assert_near(&shares(cut(2, 1.0, 0.0), &of(&P)), &two);
        assert_near(&shares(cut(0, 0.65, 0.0), &of(&P)), &two);
        assert_near(&shares(cut(0, 1.0, 0.5), &of(&P)), &two);
        let one = [0.0, 1.0, 0.0, 0.0, 0.0];
        assert_near(&shares(cut(1, 1.0, 0.0), &of(&P)), &one);
        assert_near(&shares(cut(0, 0.0, 0.0), &of(&P)), &one);
        assert_near(&shares(cut(3, 0.9, 0.9), &of(&P)), &one);
        // Top-p counts what top-k left: 0.4 / 0.7 of it is not yet 0.6.
        assert_near(&shares(cut(2, 0.6, 0.0), &of(&P)), &two);
    }

    #[test]
    fn a_nucleus_in_a_large_vocabulary_is_the_sorted_one() {
        let logits: Vec<f32> = (0..5000u32)
            .map(|i| ((i * 7919) % 5000) as f32 / 900.0)
            .collect();
        let weight = |c: &(f32, u32)| f64::from(c.0.exp());
        let mut all: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
        all.sort_by(likelier);
        let total: f64 = all.iter().map(weight).sum();
        for share in [0.001, 0.1, 0.5, 0.99, 1.0] {
            let mut kept = 0.0;
            let expected: Vec<_> = all
                .iter()
                .take_while(|c| {
                    let more = kept < total * share;
                    kept += weight(c);
                    more
                })
                .copied()
                .collect();
            let mut candidates: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
            nucleus(&mut candidates, total * share, weight);
            assert!(candidates.len().abs_diff(expected.len()) <= 1, "{share}");
            assert_eq!(
                candidates[..expected.len() - 1],
                expected[..expected.len() - 1]
            );
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_wherever_it_goes_on() {
        let params = SamplingParams::default();
        let logits = of(&P);
        let mut sampler = Sampler::new(2);
        sampler.admit(0, &admission(params.clone(), 9, &[]));
        let tokens: Vec<u32> = (0..50)
            .map(|_| sampler.sample(0, &mut logits.clone(), None, None).token)
            .collect();
        assert!(tokens.iter().any(|t| *t != tokens[0]));
        sampler.admit(1, &admission(params, 9, &tokens[..20]));
        let rest: Vec<u32> = (0..30)
            .map(|_| sampler.sample(1, &mut logits.clone(), None, None).token)
            .collect();
        assert_eq!(rest, tokens[20..]);
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let greedy = SamplingParams {
            temperature: 0.0,
            ..Default::default()
        };
        let logits = [0.0, 3.0, f32::NAN, 3.0, -1.0];
        assert_eq!(sample(greedy.clone(), &logits, &[]).token, 1);
        let long: Vec<f32> = (0..1000).map(|i| -((i - 700) as f32).abs()).collect();
        assert_eq!(sample(greedy, &long, &[]).token, 700);
    }

    #[test]
    fn penalties_count_prompt_and_output_as_defined() {
        let logits = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, -1.0];
        let greedy = SamplingParams {
            temperature: 0.0,
            ..Default::default()
        };
        // Token 5 stands in the prompt, 4 twice in the output.
        let repetition = SamplingParams {
            repetition_penalty: 2.0,
            ..greedy.clone()
        };
        assert_eq!(sample(repetition, &logits, &[4, 4]).token, 3);
        let presence = SamplingParams {
            presence_penalty: 1.5,
            ..greedy.clone()
        };
        assert_eq!(sample(presence, &logits, &[4, 4]).token, 5);
        let frequency = SamplingParams {
            frequency_penalty: 0.6,
            logit_bias: vec![(5, -100.0), (99, 1e9)],
            ..greedy
        };
        assert_eq!(sample(frequency, &logits, &[4, 4]).token, 3);
    }

    #[test]
    fn forbidden_tokens_are_never_sampled() {
        let mut sampler = Sampler::new(1);
        sampler.admit(0, &admission(SamplingParams::default(), 1, &[]));
        let mask = TokenMask(vec![0b01101]);
        for _ in 0..1000 {
            let output = sampler.sample(0, &mut of(&P), Some(&[3, 1000]), Some(&mask));
            assert!([0, 2].contains(&output.token), "{}", output.token);
        }
    }

    #[test]
    fn log_probabilities_are_the_models_own() {
        let params = SamplingParams {
            temperature: 0.0,
            logprobs: Some(2),
            logit_bias: vec![(1, -100.0)],
            ..Default::default()
        };
        let output = sample(params, &of(&P), &[]);
        assert_eq!(output.token, 3);
        let found = output.logprobs.unwrap();
        assert!((found.logprob - 0.3f32.ln()).abs() < 1e-5);
        assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3]);
        assert!((found.top[0].1 - 0.4f32.ln()).abs() < 1e-5);
    }
}
