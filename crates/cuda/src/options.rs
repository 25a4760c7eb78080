//! Settings of the backend.

use powerband_engine::{EngineError, KvCacheDtype};
use powerband_model::ModelSpec;

/// What matrices of floats become while they are loaded (`--quantization`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum WeightQuantization {
    /// bitsandbytes' 4-bit normal floats; embedding and head stay bf16, as there.
    Nf4,
    /// As GGUF's Q4_0; embedding and head, here and below, as Q8_0.
    Q4_0,
    /// As GGUF's Q4_1.
    Q4_1,
    /// As GGUF's Q8_0.
    Q8_0,
    /// fp8 (e4m3), 64 weights of a row to a scale.
    Fp8,
}

/// Settings of the CUDA backend.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    /// Which GPU.
    pub ordinal: usize,
    /// How keys and values are stored: `BF16`, `Fp8E5M2` or `Fp8E4M3`.
    pub kv_dtype: KvCacheDtype,
    /// Bytes of the KV cache (`--kv-cache-memory-bytes`); `None`: what `gpu_memory_utilization` leaves.
    pub kv_cache_bytes: Option<usize>,
    /// Share of the GPU's memory that may be in use once everything is loaded
    /// (`--gpu-memory-utilization`).
    pub gpu_memory_utilization: f64,
    /// Most sequences at once.
    pub max_num_seqs: usize,
    /// Most tokens in a step.
    pub max_num_batched_tokens: usize,
    /// Longest sequence.
    pub max_model_len: usize,
    /// Nobody asked for that length: take a smaller one if the KV cache holds no more.
    pub fit_model_len: bool,
    /// Make random weights on the GPU (`--load-format dummy`); the given ones are not read then.
    pub dummy_seed: Option<u64>,
    /// Quantise while loading; what is quantised in the checkpoint already is kept.
    pub quantization: Option<WeightQuantization>,
    /// Record a graph for each size of decoding batch; off: launch kernel by kernel.
    pub graphs: bool,
    /// Kernels from this file instead of the built-in ones, for trying changes out.
    pub fatbin: Option<std::path::PathBuf>,
    /// Treat the GPU as one of this compute capability, for trying out what other generations are given; such kernels
    /// come with `fatbin`.
    pub generation: Option<(i32, i32)>,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            ordinal: 0,
            kv_dtype: KvCacheDtype::BF16,
            kv_cache_bytes: None,
            gpu_memory_utilization: 0.9,
            max_num_seqs: 256,
            max_num_batched_tokens: 8192,
            max_model_len: 2048,
            fit_model_len: false,
            dummy_seed: None,
            quantization: None,
            graphs: true,
            fatbin: None,
            generation: None,
        }
    }
}

/// `KvKind` in `common.cuh`.
pub(crate) fn kv_kind(dtype: KvCacheDtype) -> i32 {
    match dtype {
        KvCacheDtype::Fp8E5M2 => 1,
        KvCacheDtype::Fp8E4M3 => 2,
        _ => 0,
    }
}

/// Are the settings in range, and do the kernels know the model?
pub(crate) fn check(spec: &ModelSpec, options: &CudaOptions) -> Result<(), EngineError> {
    spec.check().map_err(EngineError::Config)?;
    let positive = [
        ("--max-num-seqs", options.max_num_seqs),
        ("--max-num-batched-tokens", options.max_num_batched_tokens),
        ("--max-model-len", options.max_model_len),
    ];
    if let Some((flag, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Err(EngineError::Config(format!("{flag} must be at least 1")));
    }
    if options.max_model_len > spec.max_position_embeddings {
        return Err(EngineError::Config(format!(
            "--max-model-len {} is more than the {} positions that the model knows",
            options.max_model_len, spec.max_position_embeddings
        )));
    }
    let share = options.gpu_memory_utilization;
    if !(share > 0.0 && share <= 1.0) {
        return Err(EngineError::Config(format!(
            "--gpu-memory-utilization {share} is not between 0 and 1"
        )));
    }
    let group = spec.num_heads / spec.num_kv_heads.max(1);
    let missing = [
        (
            ![16, 32, 64, 128].contains(&spec.head_dim),
            format!("heads of {} elements on a GPU", spec.head_dim),
        ),
        (group > 16, format!("{group} query heads a key head on a GPU")),
        (spec.sandwich_norms, "norms after the blocks (Gemma 2 and 3) on a GPU".to_owned()),
        (spec.unrotated_pattern > 0, "layers without rotation (SmolLM3) on a GPU".to_owned()),
        (
            spec.attention_softcap.is_some(),
            "capped attention scores (Gemma 2) on a GPU".to_owned(),
        ),
        (
            spec.local_rope_theta.is_some(),
            "two rotary bases (Gemma 3) on a GPU".to_owned(),
        ),
        (!spec.hidden_size.is_multiple_of(4), "a hidden size that is no multiple of 4 on a GPU".to_owned()),
        (
            matches!(
                options.kv_dtype,
                KvCacheDtype::F16 | KvCacheDtype::F32 | KvCacheDtype::Int8
            ),
            "f16, f32 and int8 keys and values on a GPU; give --kv-cache-dtype bfloat16, fp8_e5m2 or fp8_e4m3".to_owned(),
        ),
    ];
    match missing.into_iter().find(|(is, _)| *is) {
        Some((_, what)) => Err(EngineError::Unsupported(what)),
        None => Ok(()),
    }
}
