//! The flags that describe an engine: shared by `serve` and `run`. Names and defaults follow `vllm serve`.

use clap::{Args, ValueEnum};
use powerband_engine::{EngineConfig, KvCacheDtype, NgramSpeculation, SchedulingPolicy};
use powerband_model::DType;

use crate::error::{CliError, CliResult};
use crate::speculative_config;

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The GPU where there is one that this build can use, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// No model: a simulated one with a set timing.
    Sim,
}

/// Where the weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LoadFormat {
    /// The checkpoint's files.
    Auto,
    /// Random numbers in the model's shape: for measuring speed without a file.
    Dummy,
}

/// How the engine runs a model.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Where the model runs
    #[arg(long, value_enum, default_value = "auto", env = "POWERBAND_DEVICE")]
    pub device: Device,
    /// Most sequences computed together; further requests wait [default: 50; serving on a GPU: 256]
    #[arg(long, env = "POWERBAND_MAX_NUM_SEQS")]
    pub max_num_seqs: Option<usize>,
    /// Most tokens computed in one step: a prompt longer than this is computed in chunks
    /// [default: 512 on a CPU, 8192 on a GPU]
    #[arg(long, env = "POWERBAND_MAX_NUM_BATCHED_TOKENS")]
    pub max_num_batched_tokens: Option<usize>,
    /// Longest sequence, prompt and output together [default: the model's own limit]
    #[arg(long, env = "POWERBAND_MAX_MODEL_LEN")]
    pub max_model_len: Option<usize>,
    /// Quantise the weights while loading: bitsandbytes (nf4), int8 (q8_0), q4_0, q4_1, and fp8 on a
    /// GPU; what is quantised in the checkpoint stays as it is
    #[arg(long, env = "POWERBAND_QUANTIZATION")]
    pub quantization: Option<String>,
    /// Disk space in the cache folder for weights that were quantised while loading, so that the next
    /// start need not (CPU); 0 keeps none
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes_or_none, default_value = "16GiB", env = "POWERBAND_WEIGHT_CACHE_BYTES")]
    pub weight_cache_bytes: u64,
    /// How keys and values are stored: auto, f32, f16, bf16, fp8_e5m2, fp8_e4m3, int8
    #[arg(long, default_value = "auto", env = "POWERBAND_KV_CACHE_DTYPE")]
    pub kv_cache_dtype: String,
    /// Memory for keys and values: bytes, or with a unit, as in 2GiB or 500M [default: what fits]
    #[arg(long, value_parser = parse_bytes, env = "POWERBAND_KV_CACHE_MEMORY_BYTES")]
    pub kv_cache_memory_bytes: Option<u64>,
    /// Share of the GPU's memory to use (GPU only)
    #[arg(long, default_value_t = 0.9, env = "POWERBAND_GPU_MEMORY_UTILIZATION")]
    pub gpu_memory_utilization: f64,
    /// Type of the weights where the checkpoint leaves it open: auto, bfloat16, float16, float32
    #[arg(long, default_value = "auto", env = "POWERBAND_DTYPE")]
    pub dtype: String,
    /// Where the weights come from
    #[arg(
        long,
        value_enum,
        default_value = "auto",
        env = "POWERBAND_LOAD_FORMAT"
    )]
    pub load_format: LoadFormat,
    /// Order in which waiting requests are admitted: fcfs, priority, sjf
    #[arg(long, default_value = "fcfs", env = "POWERBAND_SCHEDULING_POLICY")]
    pub scheduling_policy: String,
    /// Most requests waiting before further ones are refused with 429
    #[arg(long, default_value_t = 1024, env = "POWERBAND_MAX_QUEUE")]
    pub max_queue: usize,
    /// Do not reuse the keys and values of equal prompt beginnings
    #[arg(long, overrides_with = "enable_prefix_caching")]
    pub no_enable_prefix_caching: bool,
    /// Reuse the keys and values of equal prompt beginnings (the default)
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    pub enable_prefix_caching: bool,
    /// Draft tokens from what stood in the text before (not on a GPU), JSON as vLLM takes it:
    /// {"method":"ngram","num_speculative_tokens":4,"prompt_lookup_max":4,"prompt_lookup_min":2}
    /// [default: no drafts]
    #[arg(long, value_name = "JSON", value_parser = speculative_config::parse, env = "POWERBAND_SPECULATIVE_CONFIG")]
    pub speculative_config: Option<NgramSpeculation>,
    /// Threads of the CPU engine [default: the cores this process may use]
    #[arg(long, env = "POWERBAND_THREADS")]
    pub threads: Option<usize>,
    /// Seed of requests that bring none
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// A chat template (Jinja) file in place of the checkpoint's
    #[arg(long)]
    pub chat_template: Option<std::path::PathBuf>,
    /// Simulated engine (--device sim): milliseconds of every step
    #[arg(long, default_value_t = 10.0, hide = true)]
    pub sim_step_ms: f64,
    /// Simulated engine: milliseconds that each sequence adds to a step
    #[arg(long, default_value_t = 0.0, hide = true)]
    pub sim_sequence_ms: f64,
    /// Simulated engine: milliseconds that each prompt token adds to a step
    #[arg(long, default_value_t = 0.0, hide = true)]
    pub sim_prompt_token_ms: f64,
    /// Compute each step before the next one is scheduled: the reference for the overlapped loop
    #[arg(long, hide = true)]
    pub no_overlap: bool,
}

impl EngineArgs {
    /// The KV type that `--kv-cache-dtype` names.
    pub fn kv_dtype(&self) -> CliResult<KvCacheDtype> {
        Ok(match self.kv_cache_dtype.as_str() {
            "auto" | "bf16" | "bfloat16" => KvCacheDtype::BF16,
            "f16" | "float16" | "fp16" => KvCacheDtype::F16,
            "f32" | "float32" => KvCacheDtype::F32,
            "fp8_e5m2" => KvCacheDtype::Fp8E5M2,
            "fp8" | "fp8_e4m3" => KvCacheDtype::Fp8E4M3,
            "int8" => KvCacheDtype::Int8,
            other => {
                return Err(
                    CliError::new(format!("--kv-cache-dtype: unknown type {other:?}"))
                        .hint("use one of auto, f32, f16, bf16, fp8_e5m2, fp8_e4m3, int8"),
                );
            }
        })
    }

    /// The type of the weights of `--dtype`; `None` for auto.
    pub fn weight_dtype(&self) -> CliResult<Option<DType>> {
        Ok(match self.dtype.as_str() {
            "auto" => None,
            "bfloat16" | "bf16" => Some(DType::BF16),
            "float16" | "half" | "f16" => Some(DType::F16),
            "float32" | "float" | "f32" => Some(DType::F32),
            other => {
                return Err(CliError::new(format!("--dtype: unknown type {other:?}"))
                    .hint("use one of auto, bfloat16, float16, float32"));
            }
        })
    }

    /// The type that `--quantization` asks for.
    pub fn quantization(&self) -> CliResult<Option<DType>> {
        Ok(match self.quantization.as_deref() {
            None | Some("none") => None,
            Some("q8_0" | "int8") => Some(DType::Q8_0),
            Some("q4_0") => Some(DType::Q4_0),
            Some("q4_1") => Some(DType::Q4_1),
            Some("bitsandbytes" | "nf4") => Some(DType::NF4),
            // A checkpoint says itself how it was quantised; the flag would change nothing. (Any
            // checkpoint can become fp8 on a GPU, which no type of a tensor stands for.)
            Some("gptq" | "awq" | "fp8" | "gguf") => None,
            Some(other) => {
                return Err(
                    CliError::new(format!("--quantization: unknown method {other:?}"))
                        .hint("use q8_0, q4_0, q4_1 or bitsandbytes"),
                );
            }
        })
    }

    /// The engine's settings for a model with a context of `model_len` tokens.
    pub fn engine_config(&self, model_len: usize, defaults: Defaults) -> CliResult<EngineConfig> {
        let max_model_len = self.max_model_len.unwrap_or(model_len);
        let at_least_one = |flag: &str, value: usize| match value {
            0 => Err(CliError::new(format!("{flag} must be at least 1"))),
            value => Ok(value),
        };
        if max_model_len > model_len {
            return Err(CliError::new(format!(
                "--max-model-len {max_model_len} is more than the model's context of {model_len} tokens"
            ))
            .hint(format!("use --max-model-len {model_len} or less")));
        }
        if !(0.0..=1.0).contains(&self.gpu_memory_utilization) {
            return Err(CliError::new(format!(
                "--gpu-memory-utilization {} is no share between 0 and 1",
                self.gpu_memory_utilization
            )));
        }
        let max_num_seqs = self.max_num_seqs.unwrap_or(defaults.max_num_seqs);
        let max_num_seqs = at_least_one("--max-num-seqs", max_num_seqs)?;
        let batched_tokens = at_least_one(
            "--max-num-batched-tokens",
            self.max_num_batched_tokens
                .unwrap_or(defaults.max_num_batched_tokens.max(max_num_seqs)),
        )?;
        if batched_tokens < max_num_seqs {
            return Err(CliError::new(format!(
                "--max-num-batched-tokens {batched_tokens} is less than --max-num-seqs {max_num_seqs}: \
                 a step could not give every sequence its token"
            ))
            .hint(format!("use --max-num-batched-tokens {max_num_seqs} or more")));
        }
        Ok(EngineConfig {
            max_num_seqs,
            max_num_batched_tokens: batched_tokens,
            max_model_len: at_least_one("--max-model-len", max_model_len)?,
            max_queue: at_least_one("--max-queue", self.max_queue)?,
            enable_prefix_caching: !self.no_enable_prefix_caching,
            enable_chunked_prefill: true,
            policy: match self.scheduling_policy.as_str() {
                "fcfs" => SchedulingPolicy::Fcfs,
                "priority" => SchedulingPolicy::Priority,
                "sjf" => SchedulingPolicy::Sjf,
                other => {
                    return Err(CliError::new(format!(
                        "--scheduling-policy: unknown policy {other:?}"
                    ))
                    .hint("use fcfs, priority or sjf"));
                }
            },
            overlap: !self.no_overlap,
            speculation: self.speculative_config,
            seed: self.seed,
        })
    }
}

/// What a backend takes where no flag says otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// `--max-num-seqs`.
    pub max_num_seqs: usize,
    /// `--max-num-batched-tokens`, unless `--max-num-seqs` is more.
    pub max_num_batched_tokens: usize,
}

/// Bytes with an optional unit: 4096, 512M, 2GiB, 1.5GB.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024f64.powi(2),
        "g" | "gib" => 1024f64.powi(3),
        "t" | "tib" => 1024f64.powi(4),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        other => {
            return Err(format!(
                "unknown unit {other:?}; use for example 512M or 2GiB"
            ));
        }
    };
    let value: f64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no number of bytes, as in 512M or 2GiB"))?;
    if !value.is_finite() || value * factor < 1.0 || value * factor > 2f64.powi(50) {
        return Err(format!("{text:?} is out of range"));
    }
    Ok((value * factor) as u64)
}

/// As [`parse_bytes`], or 0.
fn parse_bytes_or_none(text: &str) -> Result<u64, String> {
    match text.trim() {
        "0" => Ok(0),
        text => parse_bytes(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_with_units() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("1.5k"), Ok(1536));
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        assert_eq!(parse_bytes("2 GB"), Ok(2_000_000_000));
        for bad in ["", "G", "-1", "1X", "0", "1e99", "inf", "9999999T"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_bytes_or_none("0"), Ok(0));
        assert_eq!(parse_bytes_or_none("1K"), Ok(1024));
        assert!(parse_bytes_or_none("-1").is_err());
    }
}
