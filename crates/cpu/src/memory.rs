//! How much memory the parts take, and how large the KV cache may be.

use std::fmt;

use powerband_engine::{EngineError, KvCacheDtype, human_bytes};
use powerband_model::ModelSpec;

use crate::kv::{BLOCK_SIZE, Layout};

/// Share of the free memory that the KV cache takes at most unless its size is given.
const DEFAULT_SHARE: f64 = 0.5;
/// Without a flag the cache is at most this large (or one sequence of full length): with the prefix
/// cache every block is used in turn, so all of it ends up resident (vLLM's default on a CPU).
const DEFAULT_MOST: usize = 4 << 30;

/// Bytes of the parts of an executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Packed weights.
    pub weights: usize,
    /// Activations and logits of the largest step.
    pub activations: usize,
    /// Keys and values, once all blocks are used.
    pub kv_cache: usize,
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
            "weights {}, activations up to {}, KV cache up to {}",
            human_bytes(self.weights),
            human_bytes(self.activations),
            human_bytes(self.kv_cache)
        )
    }
}

/// What is asked of the KV cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KvDemand {
    /// `--kv-cache-memory-bytes`.
    pub bytes: Option<usize>,
    /// Longest sequence.
    pub max_model_len: usize,
    /// Sequences at once.
    pub max_num_seqs: usize,
}

/// Blocks of the pool, with `available` bytes free beside weights and activations.
///
/// # Errors
/// Not even one sequence of full length fits; or more is asked for than is free.
pub(crate) fn kv_blocks(
    spec: &ModelSpec,
    layout: Layout,
    demand: KvDemand,
    available: Option<usize>,
) -> Result<usize, EngineError> {
    let block = layout.block_bytes() * spec.num_layers;
    let per_sequence = demand.max_model_len.div_ceil(BLOCK_SIZE);
    let least = per_sequence.saturating_mul(block);
    let most = per_sequence.saturating_mul(demand.max_num_seqs.max(1));
    let blocks = match (demand.bytes, available) {
        (Some(bytes), Some(available)) if bytes > available => {
            return Err(EngineError::Memory(format!(
                "--kv-cache-memory-bytes {bytes} ({}) is more than the {} of memory that are free beside the weights; --kv-cache-memory-bytes {available} would fit",
                human_bytes(bytes),
                human_bytes(available),
            )));
        }
        (Some(bytes), _) => bytes / block,
        (None, available) => {
            let plenty = most.min(per_sequence.max(DEFAULT_MOST / block));
            let share = available.map(|a| (a as f64 * DEFAULT_SHARE) as usize / block);
            plenty.min(share.unwrap_or(usize::MAX))
        }
    };
    if blocks >= per_sequence {
        return Ok(blocks.min(u32::MAX as usize));
    }
    let fits = blocks * BLOCK_SIZE;
    Err(EngineError::Memory(format!(
        "a KV cache of {} holds {fits} tokens, but --max-model-len is {}; give --kv-cache-memory-bytes {least} or more, or --max-model-len {fits} or less{}",
        human_bytes(blocks * block),
        demand.max_model_len,
        match layout.dtype {
            KvCacheDtype::Fp8E5M2 | KvCacheDtype::Fp8E4M3 | KvCacheDtype::Int8 => "",
            _ => ", or --kv-cache-dtype fp8_e5m2",
        }
    )))
}

/// Bytes that this process may still use: what the system has free, within its container.
pub(crate) fn available() -> Option<usize> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let system = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<usize>()
        .ok()?
        .checked_mul(1024)?;
    let number =
        |path: &str| -> Option<usize> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    let container = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(most, used)| most.saturating_sub(used));
    Some(container.map_or(system, |container| container.min(system)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(bytes: Option<usize>, len: usize, available: Option<usize>) -> Result<usize, String> {
        let spec = powerband_model::spec::builtin("smollm2-135m").unwrap();
        let layout = Layout {
            dtype: KvCacheDtype::F16,
            heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
        };
        let demand = KvDemand {
            bytes,
            max_model_len: len,
            max_num_seqs: 50,
        };
        kv_blocks(&spec, layout, demand, available).map_err(|error| error.to_string())
    }

    const TOKEN: usize = 2 * 30 * 3 * 64 * 2;

    #[test]
    fn the_default_is_what_all_sequences_need_within_bounds() {
        // All sequences at full length, where that is little.
        assert_eq!(blocks(None, 512, None), Ok(50 * 32));
        assert_eq!(blocks(None, 512, Some(1 << 40)), Ok(50 * 32));
        // Half of what is free.
        let half = 512 * 10 * TOKEN;
        assert_eq!(blocks(None, 512, Some(2 * half)), Ok(10 * 32));
        assert_eq!(blocks(Some(half), 512, Some(2 * half)), Ok(10 * 32));
        // Never more than 4 GiB.
        let plenty = (4 << 30) / (16 * TOKEN);
        assert_eq!(blocks(None, 8192, Some(1 << 40)), Ok(plenty));
    }

    #[test]
    fn what_does_not_fit_names_a_value_that_does() {
        let least = 2048 * TOKEN;
        let error = blocks(Some(least - 1), 2048, None).unwrap_err();
        assert!(
            error.contains(&format!("--kv-cache-memory-bytes {least} ")),
            "{error}"
        );
        assert_eq!(blocks(Some(least), 2048, None), Ok(128));
        let error = blocks(Some(least), 2048, Some(least - 5)).unwrap_err();
        assert!(
            error.contains(&format!("--kv-cache-memory-bytes {}", least - 5)),
            "{error}"
        );
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available().is_none_or(|bytes| bytes > 1 << 20));
    }
}
