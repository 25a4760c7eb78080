//! What formats cost in quality: perplexity and greedy agreement on a text, one row a format of the
//! weights and of the KV cache.
//!
//!     cargo run --release -p powerband-cpu --example quality -- MODEL TEXT [WINDOWS] [TOKENS]
//!
//! MODEL is a GGUF file or a Hugging Face folder. WINDOWS (default 50) pieces of TOKENS (default 192)
//! tokens are taken evenly from the text and computed side by side, a token a step, so that every
//! key and value passes through the cache. Agreement is the share of positions with the same most
//! likely token as the reference: f32 weights and f32 cache, which also leaves activations in f32.

use std::path::Path;

use powerband_cpu::{Chunk, CpuOptions, Runner};
use powerband_engine::KvCacheDtype;
use powerband_model::{Checkpoint, DType, Weights};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A row: what the weights are quantised to (`None`: they stay as in the file), the type of single
/// numbers that they are then expanded to (`None`: they are computed in blocks), and the cache.
type Row = (Option<DType>, Option<DType>, KvCacheDtype);

/// The reference is the first.
const ROWS: [Row; 13] = [
    (None, Some(DType::F32), KvCacheDtype::F32),
    (Some(DType::NF4), Some(DType::F32), KvCacheDtype::F32),
    (None, Some(DType::BF16), KvCacheDtype::F32),
    (Some(DType::Q8_0), None, KvCacheDtype::F32),
    (Some(DType::Q4_1), None, KvCacheDtype::F32),
    (Some(DType::Q4_0), None, KvCacheDtype::F32),
    (Some(DType::NF4), None, KvCacheDtype::F32),
    (None, None, KvCacheDtype::F32),
    (None, None, KvCacheDtype::F16),
    (None, None, KvCacheDtype::BF16),
    (None, None, KvCacheDtype::Int8),
    (None, None, KvCacheDtype::Fp8E4M3),
    (None, None, KvCacheDtype::Fp8E5M2),
];

/// What a row's model makes of the text.
struct Outcome {
    /// Sum of the negative log likelihoods of the text's tokens.
    surprise: f64,
    /// The most likely token at each position.
    best: Vec<u32>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, rest @ ..] = &arguments[..] else {
        return Err("usage: quality MODEL TEXT [WINDOWS] [TOKENS]".into());
    };
    let number = |i: usize, default: usize| match rest.get(i) {
        Some(text) => text.parse::<usize>(),
        None => Ok(default),
    };
    let (count, len) = (number(0, 50)?, number(1, 192)?);
    let tokenizer = Checkpoint::open(Path::new(model))?.tokenizer;
    let tokenizer = tokenizer.ok_or("the model has no tokenizer")?;
    let tokens = tokenizer.encode(&std::fs::read_to_string(text)?, false)?;
    if count == 0 || len < 2 || tokens.len() / count < len {
        return Err(format!("{} tokens are not {count} windows of {len}", tokens.len()).into());
    }
    let every = tokens.len() / count;
    let windows: Vec<&[u32]> = (0..count).map(|i| &tokens[i * every..][..len]).collect();
    println!("{count} windows of {len} tokens out of {}\n", tokens.len());
    println!("| weights | KV cache | perplexity | change | same greedy token |");
    println!("|---|---|---|---|---|");
    let mut reference: Option<Outcome> = None;
    for (stored, expand, kv_dtype) in ROWS {
        let Checkpoint { spec, weights, .. } = Checkpoint::open(Path::new(model))?;
        let weights = match stored {
            Some(dtype) => weights.stored_as(dtype),
            None => weights,
        };
        let weights = match expand {
            Some(dtype) => expanded(&weights, dtype)?,
            None => weights,
        };
        let options = CpuOptions {
            kv_dtype,
            max_num_seqs: count,
            max_num_batched_tokens: count.max(16),
            max_model_len: len,
            ..CpuOptions::default()
        };
        let mut runner = Runner::new(&spec, &weights, options)?;
        let outcome = read(&mut runner, &windows)?;
        let predictions = outcome.best.len();
        let perplexity = |outcome: &Outcome| (outcome.surprise / predictions as f64).exp();
        let first = reference.as_ref().unwrap_or(&outcome);
        let same = outcome.best.iter().zip(&first.best).filter(|(a, b)| a == b);
        let computed = runner.weight_formats().join(" and ");
        println!(
            "| {} | {kv_dtype:?} | {:.3} | {:+.2} % | {:.1} % |",
            match (stored, expand) {
                (None, None) => format!("the file's ({computed})"),
                (Some(dtype), Some(_)) => format!("{}, computed in {computed}", dtype.name()),
                _ => computed,
            },
            perplexity(&outcome),
            (perplexity(&outcome) / perplexity(first) - 1.0) * 100.0,
            same.count() as f64 / predictions as f64 * 100.0,
        );
        reference.get_or_insert(outcome);
    }
    Ok(())
}

/// The weights with every matrix, in blocks or not, as single numbers of that type.
fn expanded(weights: &Weights, dtype: DType) -> Result<Weights> {
    let tensors = weights.names().into_iter().map(|name| {
        let tensor = weights.get(name)?;
        match tensor.shape.len() {
            2 => tensor.quantize(dtype),
            _ => Ok(tensor),
        }
    });
    Ok(Weights::new(
        tensors.collect::<std::result::Result<Vec<_>, _>>()?,
    ))
}

/// All windows side by side, a token a step.
fn read(runner: &mut Runner, windows: &[&[u32]]) -> Result<Outcome> {
    let len = windows[0].len();
    let per_window = len.div_ceil(16);
    let blocks: Vec<Vec<u32>> = (0..windows.len())
        .map(|w| {
            (0..per_window)
                .map(|b| (w * per_window + b) as u32)
                .collect()
        })
        .collect();
    let mut outcome = Outcome {
        surprise: 0.0,
        best: Vec::new(),
    };
    for at in 0..len - 1 {
        let chunks: Vec<Chunk<'_>> = windows
            .iter()
            .zip(&blocks)
            .map(|(window, blocks)| Chunk {
                tokens: &window[at..=at],
                start: at,
                blocks,
                logits: 1,
            })
            .collect();
        runner.forward(&chunks)?;
        for (w, window) in windows.iter().enumerate() {
            let logits = runner.logits(w);
            let mut best = 0;
            for (token, x) in logits.iter().enumerate() {
                if *x > logits[best] {
                    best = token;
                }
            }
            let largest = f64::from(logits[best]);
            let sum: f64 = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
            let wanted = f64::from(logits[window[at + 1] as usize]);
            outcome.surprise += largest + sum.ln() - wanted;
            outcome.best.push(best as u32);
        }
    }
    Ok(outcome)
}
