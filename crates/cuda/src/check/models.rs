//! Whole small models against f64: chunked prompts and decoding in the same steps, several
//! sequences, shuffled blocks, overlapped steps.

use std::sync::Arc;

use powerband_engine::executor::{Admission, Executor, Step, StepSequence, StepTokens};
use powerband_engine::{EngineError, KvCacheDtype, SamplingParams, TokenOutput};
use powerband_model::spec::{Activation, ModelSpec, Rope, RopeScaling, RopeStyle, plain_llama};
use powerband_model::{DType, Weights};

use super::Check;
use super::random::{self, Random};
use super::{quantised, reference};
use crate::{CudaExecutor, CudaOptions, WeightQuantization};

/// A small model with sizes that fill no tile.
pub(crate) fn tiny() -> ModelSpec {
    ModelSpec {
        vocab_size: 301,
        num_layers: 2,
        num_kv_heads: 2,
        intermediate_size: 168,
        max_position_embeddings: 4096,
        ..plain_llama(96, 6, 16)
    }
}

pub(crate) fn heads(mut spec: ModelSpec, heads: usize, kv: usize, head_dim: usize) -> ModelSpec {
    spec.num_heads = heads;
    spec.num_kv_heads = kv;
    spec.head_dim = head_dim;
    spec.rope.rotary_dim = head_dim;
    spec.attention_scale = 1.0 / (head_dim as f32).sqrt();
    spec
}

fn specs() -> Vec<(&'static str, ModelSpec)> {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64,
    };
    vec![
        ("model tiny", tiny()),
        (
            "model llama",
            ModelSpec {
                hidden_size: 256,
                intermediate_size: 640,
                vocab_size: 1000,
                rope: Rope {
                    scaling: llama3,
                    ..heads(tiny(), 8, 2, 64).rope
                },
                ..heads(tiny(), 8, 2, 64)
            },
        ),
        (
            "model gguf",
            ModelSpec {
                tie_embeddings: false,
                rope: Rope {
                    style: RopeStyle::Interleaved,
                    ..heads(tiny(), 9, 3, 32).rope
                },
                ..heads(tiny(), 9, 3, 32)
            },
        ),
        (
            "model qwen2",
            ModelSpec {
                qkv_bias: true,
                ..heads(tiny(), 14, 2, 64)
            },
        ),
        (
            "model qwen3",
            ModelSpec {
                qk_norm: true,
                hidden_size: 192,
                ..heads(tiny(), 4, 2, 128)
            },
        ),
        ("model wide group", heads(tiny(), 16, 1, 32)),
        (
            "model heads of 128",
            ModelSpec {
                sliding_window: Some(37),
                sliding_pattern: 2,
                ..heads(tiny(), 6, 2, 128)
            },
        ),
        (
            "model sliding",
            ModelSpec {
                sliding_window: Some(37),
                sliding_pattern: 2,
                logit_softcap: Some(20.0),
                activation: Activation::GeluTanh,
                norm_plus_one: true,
                embedding_scale: 3.0,
                ..heads(tiny(), 4, 4, 32)
            },
        ),
    ]
}

pub(crate) fn run(filter: &str, report: &mut dyn FnMut(&Check)) {
    let bf16 = (KvCacheDtype::BF16, 0.15);
    for (name, spec) in specs().iter().filter(|(name, _)| name.contains(filter)) {
        let mut kinds = vec![bf16];
        if *name == "model llama" || *name == "model tiny" {
            kinds.extend([(KvCacheDtype::Fp8E4M3, 0.8), (KvCacheDtype::Fp8E5M2, 1.6)]);
        }
        for (dtype, bound) in kinds {
            let title = format!("{name} {dtype:?}");
            for check in compare(&title, spec, dtype, bound) {
                report(&check);
            }
        }
    }
    many_sequences(filter, report);
    super::as_one::run(filter, report);
    for (name, method, bound) in [
        ("model nf4", WeightQuantization::Nf4, 0.2),
        ("model fp8", WeightQuantization::Fp8, 0.2),
        ("model int8", WeightQuantization::Q8_0, 0.2),
        // Quantised on the host and on the GPU: some codes differ by one.
        ("model int4", WeightQuantization::Q4_0, 0.6),
    ] {
        if name.contains(filter) {
            report(&quantised_model(name, &in_whole_blocks(), method, bound));
        }
    }
    for (name, dtype) in [
        ("model NF4", DType::NF4),
        ("model Q8_0", DType::Q8_0),
        ("model Q4_0", DType::Q4_0),
        ("model Q4_1", DType::Q4_1),
    ] {
        if name.contains(filter) {
            let weights = random::weights(&in_whole_blocks(), 11).stored_as(dtype);
            let result = compare_with(
                &in_whole_blocks(),
                [&weights, &weights],
                options(KvCacheDtype::BF16),
                &LENGTHS,
                Some(20),
            );
            report(&Check::of(name, result, 0.2));
        }
    }
    if "model long".contains(filter) {
        for check in long_context() {
            report(&check);
        }
    }
}

pub(crate) const LENGTHS: [usize; 8] = [1, 5, 16, 17, 49, 130, 3, 200];

/// A model whose rows are whole blocks of every type.
pub(crate) fn in_whole_blocks() -> ModelSpec {
    ModelSpec {
        hidden_size: 256,
        intermediate_size: 640,
        vocab_size: 1000,
        ..heads(tiny(), 8, 2, 64)
    }
}

/// Quantised while loading, against weights that the host quantised.
pub(crate) fn quantised_model(
    name: &str,
    spec: &ModelSpec,
    method: WeightQuantization,
    bound: f64,
) -> Check {
    let weights = random::weights(spec, 11);
    let kept = match quantised::weights_as(method, spec, &weights) {
        Ok(kept) => kept,
        Err(error) => return Check::failed(name, error),
    };
    let options = CudaOptions {
        quantization: Some(method),
        ..options(KvCacheDtype::BF16)
    };
    let result = compare_with(spec, [&weights, &kept], options, &LENGTHS, Some(20));
    Check::of(name, result, bound)
}

/// A sequence that is being generated.
pub(crate) struct Running {
    pub slot: usize,
    pub tokens: Vec<u32>,
    pub prompt: usize,
    pub computed: usize,
    pub outputs: Vec<TokenOutput>,
    pub blocks: Vec<u32>,
    pub sampling: Arc<SamplingParams>,
    pub admitted: bool,
    pub seed: u64,
    /// Tokens whose sampling was submitted.
    pub asked: usize,
}

impl Running {
    pub fn new(slot: usize, prompt: Vec<u32>, sampling: SamplingParams, blocks: Vec<u32>) -> Self {
        Self {
            slot,
            prompt: prompt.len(),
            tokens: prompt,
            computed: 0,
            outputs: Vec::new(),
            blocks,
            sampling: Arc::new(sampling),
            admitted: false,
            seed: slot as u64,
            asked: 0,
        }
    }

    /// Its share of the next step, of at most `budget` tokens.
    fn next(&mut self, budget: usize, wanted: usize) -> Option<StepSequence> {
        if self.asked >= wanted || budget == 0 {
            return None;
        }
        let (tokens, sample) = match self.computed < self.prompt {
            true => {
                let count = budget.min(self.prompt - self.computed);
                let known = self.tokens[self.computed..self.computed + count].to_vec();
                (
                    StepTokens::Known(known),
                    self.computed + count == self.prompt,
                )
            }
            false => (StepTokens::LastSampled, true),
        };
        let admission = (!self.admitted).then(|| Admission {
            sampling: self.sampling.clone(),
            prompt: self.tokens[..self.prompt].into(),
            output: Vec::new(),
            seed: self.seed,
        });
        self.admitted = true;
        let start = self.computed;
        self.computed += tokens.len();
        self.asked += usize::from(sample);
        Some(StepSequence {
            slot: self.slot,
            admission,
            tokens,
            start,
            blocks: self.blocks[..self.computed.div_ceil(16)].to_vec(),
            sample,
            suppressed: None,
            mask: None,
        })
    }
}

/// Generates `wanted` tokens for each, with two steps in flight.
pub(crate) fn generate(
    executor: &mut CudaExecutor,
    running: &mut [Running],
    wanted: usize,
    budget: usize,
) -> Result<(), EngineError> {
    let mut pending = Vec::new();
    loop {
        let mut left = budget;
        let mut step = Step::default();
        for sequence in running.iter_mut() {
            // Prompts in pieces of at most 50, so that steps are mixed.
            if let Some(next) = sequence.next(left.min(50), wanted) {
                left -= next.tokens.len();
                step.sequences.push(next);
            }
        }
        let done = step.sequences.is_empty();
        if !done {
            pending.push(executor.submit(step)?);
        }
        if pending.len() == 2 || (done && !pending.is_empty()) {
            for (slot, output) in executor.collect(pending.remove(0))?.samples {
                let Some(owner) = running.iter_mut().find(|r| r.slot == slot) else {
                    return Err(EngineError::Executor(format!("a sample of slot {slot}")));
                };
                owner.tokens.push(output.token);
                owner.outputs.push(output);
            }
        }
        if done && pending.is_empty() {
            return Ok(());
        }
    }
}

pub(crate) fn options(dtype: KvCacheDtype) -> CudaOptions {
    CudaOptions {
        kv_dtype: dtype,
        kv_cache_bytes: Some(64 << 20),
        max_num_seqs: 70,
        max_num_batched_tokens: 300,
        max_model_len: 2048,
        ..super::options()
    }
}

pub(crate) fn prompts(spec: &ModelSpec, lengths: &[usize], seed: u64) -> Vec<Vec<u32>> {
    let mut random = Random(seed);
    let mut token = |_| random.below(spec.vocab_size) as u32;
    lengths
        .iter()
        .map(|&n| (0..n).map(&mut token).collect())
        .collect()
}

/// Blocks for `sequences` of up to `len` tokens, in no order.
pub(crate) fn shuffled(sequences: usize, len: usize, seed: u64) -> Vec<Vec<u32>> {
    let per = len.div_ceil(16);
    let mut blocks: Vec<u32> = (0..(sequences * per) as u32).collect();
    let mut random = Random(seed);
    for i in (1..blocks.len()).rev() {
        blocks.swap(i, random.below(i + 1));
    }
    blocks.chunks(per).map(<[u32]>::to_vec).collect()
}

fn compare(title: &str, spec: &ModelSpec, dtype: KvCacheDtype, bound: f64) -> Vec<Check> {
    let weights = random::weights(spec, 11);
    let one = |(kind, logprobs)| {
        let name = format!("{title} {kind}");
        let both = [&weights, &weights];
        let result = compare_with(spec, both, options(dtype), &LENGTHS, logprobs);
        Check::of(name, result, bound)
    };
    [("logprobs", Some(20)), ("greedy", None)].map(one).into()
}

/// The largest error of a model that is given the first weights and should behave as the second.
pub(crate) fn compare_with(
    spec: &ModelSpec,
    [weights, kept]: [&Weights; 2],
    options: CudaOptions,
    lengths: &[usize],
    logprobs: Option<u32>,
) -> Result<f64, String> {
    let text = |error: EngineError| error.to_string();
    let mut executor = CudaExecutor::new(spec, weights, options).map_err(text)?;
    let sampling = SamplingParams {
        temperature: 0.0,
        logprobs,
        ..SamplingParams::default()
    };
    let prompts = prompts(spec, lengths, 3);
    let longest = lengths.iter().max().map_or(0, |n| n + 32);
    let blocks = shuffled(lengths.len(), longest, 5);
    let mut running: Vec<_> = prompts
        .into_iter()
        .zip(blocks)
        .enumerate()
        // Slots from the middle, in no order.
        .map(|(i, (prompt, blocks))| {
            Running::new((i * 3 + 3) % 70, prompt, sampling.clone(), blocks)
        })
        .collect();
    generate(&mut executor, &mut running, 20, 300).map_err(text)?;
    let mut worst = 0f64;
    for sequence in &running {
        worst = worst.max(error_of(spec, kept, sequence)?);
    }
    Ok(worst)
}

/// The largest difference of log-probabilities; of the sampled token from the best one, too.
fn error_of(spec: &ModelSpec, weights: &Weights, sequence: &Running) -> Result<f64, String> {
    let tokens = &sequence.tokens;
    let logits = reference::logits(spec, weights, tokens, sequence.prompt - 1);
    let logits = logits.map_err(|error| error.to_string())?;
    let mut worst = 0f64;
    if sequence.outputs.is_empty() {
        return Err("nothing was sampled".to_owned());
    }
    for (output, logits) in sequence.outputs.iter().zip(&logits) {
        let expected = reference::log_softmax(logits);
        let best = expected.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v));
        let at = |token: u32| {
            expected
                .get(token as usize)
                .copied()
                .unwrap_or(f64::INFINITY)
        };
        worst = worst.max(best - at(output.token));
        if let Some(logprobs) = &output.logprobs {
            let pairs = std::iter::once((output.token, logprobs.logprob))
                .chain(logprobs.top.iter().copied());
            for (token, value) in pairs {
                let error = (f64::from(value) - at(token)).abs();
                worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
            }
        }
    }
    Ok(worst)
}

/// Contexts long enough that several blocks of threads share them.
fn long_context() -> Vec<Check> {
    let spec = heads(tiny(), 4, 2, 64);
    let weights = random::weights(&spec, 21);
    let result = compare_with(
        &spec,
        [&weights, &weights],
        options(KvCacheDtype::BF16),
        &[1500, 700, 1],
        Some(5),
    );
    vec![Check::of("model long", result, 0.15)]
}

/// More sequences than eight decode together: the kernel for 16 tokens, and those for more.
fn many_sequences(filter: &str, report: &mut dyn FnMut(&Check)) {
    let spec = in_whole_blocks();
    let (plain, codes) = (KvCacheDtype::BF16, KvCacheDtype::Fp8E5M2);
    for count in [12, 24, 40] {
        let lengths: Vec<usize> = LENGTHS.into_iter().cycle().take(count).collect();
        for (kind, stored, dtype, bound) in [
            ("", None, plain, 0.15),
            (" NF4 fp8_e5m2", Some(DType::NF4), codes, 1.6),
            (" Q8_0 fp8_e5m2", Some(DType::Q8_0), codes, 1.6),
        ] {
            let name = format!("model many {count}{kind}");
            if name.contains(filter) {
                let weights = random::stored(&spec, 31, stored);
                let both = [&weights, &weights];
                let result = compare_with(&spec, both, options(dtype), &lengths, Some(20));
                report(&Check::of(&name, result, bound));
            }
        }
    }
}
