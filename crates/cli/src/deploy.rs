//! From a model's name and the engine's flags to a running engine, phase by phase.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use powerband_bench::{GpuNow, GpuWatch};
use powerband_cpu::{CpuExecutor, CpuOptions};
use powerband_cuda::{CudaExecutor, CudaOptions, WeightQuantization};
use powerband_engine::executor::ExecutorLimits;
use powerband_engine::sim::{SimExecutor, SimTiming};
use powerband_engine::{Engine, EngineConfig, Executor};
use powerband_model::spec::{RopeScaling, builtin};
use powerband_model::{ChatTemplate, Checkpoint, DType, ModelError, ModelSpec, Weights};
use powerband_server::{GpuReader, GpuReading, ModelContext};

use crate::commands::pull::locate_model;
use crate::engine_args::{Defaults, Device, EngineArgs, LoadFormat};
use crate::error::{CliError, CliResult};
use crate::loading::Loading;
use crate::weight_cache;

/// Tokens that the simulated KV cache holds.
const SIM_KV_TOKENS: usize = 1 << 20;

/// A model whose engine runs.
pub struct Deployment {
    /// The engine.
    pub engine: Engine,
    /// What the server must know of the model.
    pub model: ModelContext,
    /// What computes: `cpu`, `cuda`, `sim`.
    pub backend: &'static str,
    /// Tokens that the KV cache holds.
    pub kv_cache_tokens: usize,
}

/// Says each phase of the start with its time.
pub struct Phases {
    begun: Instant,
    last: Instant,
}

impl Phases {
    /// Begins now.
    pub fn begin() -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            last: now,
        }
    }

    /// A phase has ended.
    pub fn done(&mut self, what: impl std::fmt::Display) {
        let now = Instant::now();
        eprintln!("{:>9}  {what}", in_words(now - self.last));
        self.last = now;
    }

    /// The time since the beginning.
    pub fn total(&self) -> String {
        in_words(self.begun.elapsed())
    }
}

fn in_words(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 10.0 => format!("{:.0} ms", s * 1e3),
        s => format!("{s:.1} s"),
    }
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Cpu,
    Cuda,
    Sim,
}

impl Backend {
    /// What `--device` means on this machine.
    fn choose(device: Device) -> CliResult<Self> {
        match device {
            Device::Cpu => Ok(Self::Cpu),
            Device::Sim => Ok(Self::Sim),
            Device::Auto if powerband_cuda::probe().is_ok() => Ok(Self::Cuda),
            Device::Auto => Ok(Self::Cpu),
            Device::Cuda => match powerband_cuda::probe() {
                Ok(_) => Ok(Self::Cuda),
                Err(reason) => Err(CliError::new(format!("--device cuda: {reason}"))
                    .hint("`powerband doctor` says what would run here; --device cpu does")),
            },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Sim => "sim",
        }
    }

    fn defaults(self) -> Defaults {
        match self {
            // Rows beyond these no longer speed up a step, and only make those wait who decode beside
            // a long prompt.
            Self::Cpu => Defaults {
                max_num_seqs: 50,
                max_num_batched_tokens: 512,
            },
            Self::Cuda | Self::Sim => Defaults {
                max_num_seqs: 256,
                max_num_batched_tokens: 8192,
            },
        }
    }
}

/// Loads a model and starts its engine.
pub fn deploy(name: &str, args: &EngineArgs, phases: &mut Phases) -> CliResult<Deployment> {
    // What cannot work is told before anything is fetched or loaded.
    args.kv_dtype()?;
    args.quantization()?;
    args.weight_dtype()?;
    let backend = Backend::choose(args.device)?;
    args.engine_config(usize::MAX, backend.defaults())?;
    let (mut checkpoint, source) = open(name, args, backend, phases)?;
    if let Some(path) = &args.chat_template {
        checkpoint.chat_template = Some(Arc::new(template(path)?));
    }
    let spec = checkpoint.spec;
    let mut config = args.engine_config(spec.max_position_embeddings, backend.defaults())?;
    let executor = match backend {
        Backend::Cpu => {
            let weights = (checkpoint.weights, source.as_deref());
            on_cpu(args, &config, &spec, weights, phases)?
        }
        Backend::Cuda => on_gpu(args, &config, &spec, checkpoint.weights, phases)?,
        Backend::Sim => simulated(args, &config, &spec)?,
    };
    let limits = executor.limits();
    let kv_cache_tokens = limits.num_blocks * limits.block_size;
    if limits.max_model_len < config.max_model_len {
        eprintln!(
            "{:>9}  sequences of at most {} tokens: the KV cache holds no longer one (the model knows {}); \
             --max-model-len sets the length",
            "memory", limits.max_model_len, config.max_model_len
        );
        config.max_model_len = limits.max_model_len;
    }
    eprintln!(
        "{:>9}  the KV cache holds {kv_cache_tokens} tokens: {} sequences of --max-model-len {} at once",
        "memory",
        (kv_cache_tokens / config.max_model_len).min(config.max_num_seqs),
        config.max_model_len
    );
    if let RopeScaling::Long {
        original_context, ..
    } = spec.rope.scaling
        && config.max_model_len > original_context
    {
        eprintln!(
            "{:>9}  LongRoPE's factors for long sequences, in short ones too; \
             --max-model-len {original_context} or less takes those for short ones",
            "context"
        );
    }
    Ok(Deployment {
        engine: Engine::start(executor, config).map_err(CliError::new)?,
        model: ModelContext {
            served_names: vec![name.to_owned()],
            root: name.to_owned(),
            vocab_size: spec.vocab_size,
            eos_tokens: spec.eos_tokens,
            tokenizer: checkpoint.tokenizer,
            chat_template: checkpoint.chat_template,
            gpus: (backend == Backend::Cuda).then(gpus).flatten(),
        },
        backend: backend.name(),
        kv_cache_tokens,
    })
}

/// Hands back what opening a model took and freed: a vocabulary is read by way of many small pieces,
/// which the allocator would keep.
fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes a number, and touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The GPUs' readings for `/metrics`, where NVIDIA's management library is there.
fn gpus() -> Option<GpuReader> {
    let watch = GpuWatch::start().ok()?;
    let reading = |gpu: GpuNow| GpuReading {
        index: gpu.index,
        name: gpu.name,
        memory_total_bytes: gpu.memory_total_bytes,
        memory_used_bytes: gpu.memory_used_bytes,
        utilization: gpu.utilization,
        power_w: gpu.power_w,
        energy_j: gpu.energy_j,
        sm_clock_mhz: gpu.sm_clock_mhz,
        temperature_c: gpu.temperature_c,
        throttle_reasons: gpu.throttle_reasons,
    };
    let read = move || watch.now().into_iter().map(reading).collect();
    Some(GpuReader(Arc::new(read)))
}

fn on_cpu(
    args: &EngineArgs,
    config: &EngineConfig,
    spec: &ModelSpec,
    (weights, source): (Weights, Option<&Path>),
    phases: &mut Phases,
) -> CliResult<Box<dyn Executor>> {
    let weights = converted(weights, args)?;
    let (mut weights, kept) = weight_cache::attach(weights, spec, source, args.weight_cache_bytes);
    let loading = Loading::watch(&mut weights);
    let options = CpuOptions {
        threads: args.threads,
        kv_dtype: args.kv_dtype()?,
        kv_cache_bytes: args.kv_cache_memory_bytes.map(|bytes| bytes as usize),
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens,
        max_model_len: config.max_model_len,
        max_drafts: config.speculation.map_or(0, |s| s.num_speculative_tokens),
        isa: None,
    };
    let executor = CpuExecutor::new(spec, &weights, options).map_err(CliError::new)?;
    loading.done();
    let runner = executor.runner();
    phases.done(format_args!(
        "weights ready on the CPU: {} ({}, {} threads)",
        runner.weight_formats().join(" and "),
        runner.isa().name(),
        runner.threads()
    ));
    if let Some(kept) = kept {
        eprintln!("{:>9}  {}", "cache", weight_cache::in_words(kept.finish()));
    }
    eprintln!("{:>9}  {}", "memory", executor.memory_budget());
    Ok(Box::new(executor))
}

fn on_gpu(
    args: &EngineArgs,
    config: &EngineConfig,
    spec: &ModelSpec,
    mut weights: Weights,
    phases: &mut Phases,
) -> CliResult<Box<dyn Executor>> {
    let loading = Loading::watch(&mut weights);
    let options = CudaOptions {
        kv_dtype: args.kv_dtype()?,
        kv_cache_bytes: args.kv_cache_memory_bytes.map(|bytes| bytes as usize),
        gpu_memory_utilization: args.gpu_memory_utilization,
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens,
        max_model_len: config.max_model_len,
        fit_model_len: args.max_model_len.is_none(),
        dummy_seed: (args.load_format == LoadFormat::Dummy).then_some(args.seed),
        quantization: match args.quantization()? {
            Some(DType::NF4) => Some(WeightQuantization::Nf4),
            Some(DType::Q8_0) => Some(WeightQuantization::Q8_0),
            Some(DType::Q4_0) => Some(WeightQuantization::Q4_0),
            Some(DType::Q4_1) => Some(WeightQuantization::Q4_1),
            _ if args.quantization.as_deref() == Some("fp8") => Some(WeightQuantization::Fp8),
            _ => None,
        },
        ..CudaOptions::default()
    };
    let executor = CudaExecutor::new(spec, &weights, options).map_err(CliError::new)?;
    loading.done();
    phases.done(format_args!(
        "weights ready on the {}",
        executor.device_name()
    ));
    eprintln!("{:>9}  {}", "memory", executor.memory_budget());
    Ok(Box::new(executor))
}

/// The checkpoint that `name` means and where it is, or random weights in its shape.
fn open(
    name: &str,
    args: &EngineArgs,
    backend: Backend,
    phases: &mut Phases,
) -> CliResult<(Checkpoint, Option<PathBuf>)> {
    let dtype = args.weight_dtype()?.unwrap_or(DType::BF16);
    let invented = args.load_format == LoadFormat::Dummy || args.device == Device::Sim;
    if invented && let Some(spec) = builtin(name) {
        return Ok((Checkpoint::dummy(spec, dtype, args.seed), None));
    }
    let path = locate_model(name).map_err(|error| match builtin(name) {
        Some(_) => CliError::new(format!("{name}: {}", error.message))
            .hint("--load-format dummy runs this model with random weights and needs no file"),
        None => error,
    })?;
    phases.done(format_args!("{} is here", path.display()));
    let opened = match invented {
        true => Checkpoint::open_invented(&path, dtype, args.seed),
        false => Checkpoint::open(&path),
    };
    let checkpoint = opened.map_err(|error| {
        let hint = match error {
            ModelError::NoWeights { .. } => {
                "`powerband pull` fetches a model whole; --load-format dummy runs this one with random \
                 weights"
            }
            _ => {
                "`powerband pull` fetches a model whole and checks it; GGUF files and Hugging Face folders \
                 with safetensors are read"
            }
        };
        CliError::new(error).hint(hint)
    })?;
    trim();
    if let Some(method @ ("gptq" | "awq" | "fp8" | "gguf")) = args.quantization.as_deref() {
        let stored = checkpoint.converted.as_deref().unwrap_or("gguf");
        let told =
            !stored.to_ascii_lowercase().starts_with(method) || (method == "gguf" && path.is_dir());
        // The GPU's kernels also know fp8, so that any checkpoint can become it there.
        if told && !(method == "fp8" && backend == Backend::Cuda) {
            return Err(CliError::new(format!(
                "--quantization {method}: this checkpoint is not stored so"
            ))
            .hint("leave the flag out: a checkpoint says itself how it was quantised"));
        }
    }
    let spec = &checkpoint.spec;
    phases.done(format_args!(
        "opened: {}, {} layers, context {}, {}{}{}",
        spec.architecture,
        spec.num_layers,
        spec.max_position_embeddings,
        match &checkpoint.tokenizer {
            Some(_) => "with tokenizer",
            None => "no tokenizer: token ids only",
        },
        match &checkpoint.chat_template {
            Some(_) => " and chat template",
            None => ", no chat template",
        },
        match &checkpoint.converted {
            Some(how) => format!("; {how}"),
            None => String::new(),
        }
    ));
    Ok((checkpoint, (!invented).then_some(path)))
}

fn template(path: &Path) -> CliResult<ChatTemplate> {
    let problem = |error: &dyn std::fmt::Display| {
        CliError::new(format!("--chat-template {}: {error}", path.display()))
            .hint("it must be a Jinja file, as in a model's tokenizer_config.json")
    };
    let source = std::fs::read_to_string(path).map_err(|error| problem(&error))?;
    ChatTemplate::new(&source, "", "").map_err(|error| problem(&error))
}

/// The weights as the flags want them.
fn converted(weights: Weights, args: &EngineArgs) -> CliResult<Weights> {
    Ok(match (args.quantization()?, args.weight_dtype()?) {
        (Some(dtype), _) | (None, Some(dtype)) => weights.stored_as(dtype),
        (None, None) => weights,
    })
}

fn simulated(
    args: &EngineArgs,
    config: &EngineConfig,
    spec: &ModelSpec,
) -> CliResult<Box<dyn Executor>> {
    let time = |flag: &str, ms: f64| {
        Duration::try_from_secs_f64(ms / 1e3)
            .map_err(|error| CliError::new(format!("{flag} {ms}: {error}")))
    };
    let block_size = 16;
    let limits = ExecutorLimits {
        num_blocks: SIM_KV_TOKENS.max(config.max_model_len).div_ceil(block_size),
        block_size,
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens,
        max_model_len: config.max_model_len,
        vocab_size: spec.vocab_size,
        overlap: true,
    };
    let timing = SimTiming {
        step: time("--sim-step-ms", args.sim_step_ms)?,
        per_sequence: time("--sim-sequence-ms", args.sim_sequence_ms)?,
        per_prompt_token: time("--sim-prompt-token-ms", args.sim_prompt_token_ms)?,
    };
    Ok(Box::new(SimExecutor::new(limits, timing)))
}
