//! How much of the GPU's memory the parts take, and how large the KV cache may be.

use std::fmt;

use powerband_engine::{EngineError, KvCacheDtype, human_bytes};
use powerband_model::ModelSpec;

use crate::options::CudaOptions;
use crate::step::BLOCK_SIZE;

/// Left free for the driver: graphs, and what it allocates behind our back.
const RESERVE: usize = 128 << 20;

/// Bytes of the parts, and what fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Weights in tiles.
    pub weights: usize,
    /// Activations, logits and what sampling keeps.
    pub activations: usize,
    /// Keys and values.
    pub kv_cache: usize,
    /// Tokens that the cache holds.
    pub kv_tokens: usize,
    /// Longest sequence.
    pub max_model_len: usize,
}

impl MemoryBudget {
    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.activations + self.kv_cache
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "weights {}, activations {}, KV cache {} ({} tokens: {:.1} sequences of {})",
            human_bytes(self.weights),
            human_bytes(self.activations),
            human_bytes(self.kv_cache),
            self.kv_tokens,
            self.kv_tokens as f64 / self.max_model_len as f64,
            self.max_model_len
        )
    }
}

/// Bytes of a block over all layers.
pub(crate) fn block_bytes(spec: &ModelSpec, dtype: KvCacheDtype) -> usize {
    spec.kv_bytes_per_token(dtype.bytes()) * BLOCK_SIZE
}

/// Is there room for weights and activations at all?
pub(crate) fn check_fixed(
    needed: usize,
    free: usize,
    options: &CudaOptions,
) -> Result<(), EngineError> {
    if needed + RESERVE <= free {
        return Ok(());
    }
    Err(EngineError::Memory(format!(
        "weights and activations need {}, but {} of GPU memory are free; a smaller --max-num-batched-tokens (now {}) or --max-num-seqs (now {}) needs less, or give a smaller or quantised model",
        human_bytes(needed + RESERVE),
        human_bytes(free),
        options.max_num_batched_tokens,
        options.max_num_seqs
    )))
}

/// The longest sequence: that of the settings, or with `fit_model_len` what the KV cache holds if that is
/// less.
pub(crate) fn model_len(
    spec: &ModelSpec,
    options: &CudaOptions,
    free: usize,
    total: usize,
) -> usize {
    let least = CudaOptions {
        max_model_len: 1,
        ..options.clone()
    };
    match kv_blocks(spec, &least, free, total) {
        Ok(blocks) if options.fit_model_len => options.max_model_len.min(blocks * BLOCK_SIZE),
        _ => options.max_model_len,
    }
}

/// Blocks of the pool, with `free` of `total` bytes free once everything else is allocated.
pub(crate) fn kv_blocks(
    spec: &ModelSpec,
    options: &CudaOptions,
    free: usize,
    total: usize,
) -> Result<usize, EngineError> {
    let block = block_bytes(spec, options.kv_dtype);
    let per_sequence = options.max_model_len.div_ceil(BLOCK_SIZE);
    // One more block is nobody's.
    let least = (per_sequence + 1) * block;
    let usable = free.saturating_sub(RESERVE);
    let share = options.gpu_memory_utilization;
    let used = total - free;
    let bytes = match options.kv_cache_bytes {
        Some(bytes) if bytes > usable => {
            return Err(EngineError::Memory(format!(
                "--kv-cache-memory-bytes {bytes} ({}) is more than the {} of GPU memory that are free beside the weights; --kv-cache-memory-bytes {usable} would fit",
                human_bytes(bytes),
                human_bytes(usable)
            )));
        }
        Some(bytes) => bytes,
        None => ((total as f64 * share) as usize)
            .saturating_sub(used)
            .min(usable),
    };
    if bytes >= least {
        return Ok((bytes / block - 1).min((i32::MAX as usize) / BLOCK_SIZE - 1));
    }
    let fits = (bytes / block).saturating_sub(1) * BLOCK_SIZE;
    let wanted = (used + least) as f64 / total as f64;
    let advice = match options.kv_cache_bytes {
        Some(_) => format!("give --kv-cache-memory-bytes {least} or more"),
        None if usable >= least && wanted < 1.0 => {
            let share = (wanted * 100.0).ceil() / 100.0;
            format!("give --gpu-memory-utilization {share:.2} or more")
        }
        None => "free some of the GPU's memory".to_owned(),
    };
    Err(EngineError::Memory(format!(
        "a KV cache of {} holds {fits} tokens, but --max-model-len is {}; {advice}, or --max-model-len {} or less{}",
        human_bytes(bytes),
        options.max_model_len,
        fits.max(1),
        match options.kv_dtype.bytes() {
            1 => "",
            _ => ", or --kv-cache-dtype fp8_e5m2",
        }
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(options: CudaOptions, free: usize, total: usize) -> Result<usize, String> {
        let spec = powerband_model::spec::builtin("smollm2-135m").unwrap();
        kv_blocks(&spec, &options, free, total).map_err(|error| error.to_string())
    }

    #[test]
    fn the_cache_takes_its_share_of_the_whole_gpu() {
        let token = 2 * 30 * 3 * 64 * 2;
        let (free, total) = (3usize << 30, 4usize << 30);
        let found = blocks(CudaOptions::default(), free, total).unwrap();
        let expected = ((total as f64 * 0.9) as usize - (total - free)) / (16 * token) - 1;
        assert_eq!(found, expected);
        let bytes = Some(100 * 16 * token);
        let options = CudaOptions {
            kv_cache_bytes: bytes,
            max_model_len: 1024,
            ..CudaOptions::default()
        };
        assert_eq!(blocks(options, free, total), Ok(99));
    }

    #[test]
    fn a_model_in_four_bits_serves_fifty_in_four_gigabytes() {
        use crate::{buffers::Buffers, formats::Formats, model::Model, step::StepLayout};
        let spec = powerband_model::spec::builtin("llama-3.2-1b").unwrap();
        let options = CudaOptions {
            quantization: Some(crate::WeightQuantization::Nf4),
            kv_dtype: KvCacheDtype::Fp8E5M2,
            max_num_seqs: 50,
            max_model_len: spec.max_position_embeddings,
            fit_model_len: true,
            dummy_seed: Some(0),
            ..CudaOptions::default()
        };
        let formats = Formats::choose(&spec, &powerband_model::Weights::default(), &options);
        let layout = StepLayout::new(&spec, &options);
        let weights = Model::new(0, &spec, &formats, options.max_model_len).end as usize;
        let buffers = Buffers::new(0, &spec, &options, &layout).end as usize;
        // Of the 4 GiB, what the driver keeps for a process.
        let total = 4usize << 30;
        let free = total - (500 << 20) - weights - buffers;
        let len = model_len(&spec, &options, free, total);
        assert!(len < spec.max_position_embeddings, "{len}");
        let fitting = CudaOptions {
            max_model_len: len,
            ..options
        };
        let blocks = kv_blocks(&spec, &fitting, free, total).unwrap();
        assert!(blocks * BLOCK_SIZE >= 50 * 1024, "{blocks}");
    }

    #[test]
    fn what_does_not_fit_names_a_value_that_does() {
        let total = 4usize << 30;
        let tight = CudaOptions {
            gpu_memory_utilization: 0.5,
            ..CudaOptions::default()
        };
        let free = total / 2;
        let error = blocks(tight.clone(), free, total).unwrap_err();
        let share = error
            .split("--gpu-memory-utilization ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .and_then(|value| value.parse::<f64>().ok())
            .unwrap();
        let wider = CudaOptions {
            gpu_memory_utilization: share,
            ..tight
        };
        assert!(blocks(wider, free, total).is_ok(), "{error}");
        let huge = CudaOptions {
            kv_cache_bytes: Some(total),
            ..CudaOptions::default()
        };
        let error = blocks(huge, free, total).unwrap_err();
        let fits = format!("--kv-cache-memory-bytes {} would fit", free - RESERVE);
        assert!(error.contains(&fits), "{error}");
    }
}
