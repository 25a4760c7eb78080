//! From a model's name and the engine's flags to a running engine, phase by phase.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use powerband_cpu::{CpuExecutor, CpuOptions};
use powerband_engine::executor::ExecutorLimits;
use powerband_engine::sim::{SimExecutor, SimTiming};
use powerband_engine::{Engine, EngineConfig, Executor};
use powerband_model::{ChatTemplate, Checkpoint, DType, ModelSpec, Weights, spec::builtin};
use powerband_server::ModelContext;

use crate::commands::pull::locate_model;
use crate::engine_args::{Device, EngineArgs, LoadFormat, Quantization};
use crate::error::{CliError, CliResult};

/// Tokens of a step on a CPU: enough rows for full speed, few enough for those who decode beside a
/// long prompt.
const CPU_BATCHED_TOKENS: usize = 512;
/// A step of the simulated executor.
const SIM_BATCHED_TOKENS: usize = 8192;
/// Tokens that the simulated KV cache holds.
const SIM_KV_TOKENS: usize = 1 << 20;

/// A model whose engine runs.
pub struct Deployment {
    /// The engine.
    pub engine: Engine,
    /// What the server must know of the model.
    pub model: ModelContext,
    /// What computes: `cpu`, `sim`.
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

/// Loads a model and starts its engine.
pub fn deploy(name: &str, args: &EngineArgs, phases: &mut Phases) -> CliResult<Deployment> {
    // What cannot work is told before anything is fetched or loaded.
    let kv_dtype = args.kv_dtype()?;
    let quantization = args.quantization()?;
    let dtype = args.weight_dtype()?;
    if args.device == Device::Cuda {
        return Err(CliError::new("--device cuda is not built yet").hint("use --device cpu"));
    }
    args.engine_config(usize::MAX, SIM_BATCHED_TOKENS)?;
    let mut checkpoint = open(name, args, dtype, phases)?;
    if let Some(path) = &args.chat_template {
        checkpoint.chat_template = Some(Arc::new(template(path)?));
    }
    let spec = checkpoint.spec.clone();
    let context = spec.max_position_embeddings;
    let (executor, config, backend): (Box<dyn Executor>, _, _) = if args.device == Device::Sim {
        let config = args.engine_config(context, SIM_BATCHED_TOKENS)?;
        (Box::new(simulated(args, &config, &spec)?), config, "sim")
    } else {
        let config = args.engine_config(context, CPU_BATCHED_TOKENS)?;
        let weights = converted(checkpoint.weights, quantization, dtype);
        let options = CpuOptions {
            threads: args.threads,
            kv_dtype,
            kv_cache_bytes: args.kv_cache_memory_bytes.map(|bytes| bytes as usize),
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens,
            max_model_len: config.max_model_len,
            isa: None,
        };
        let executor = CpuExecutor::new(&spec, &weights, options).map_err(CliError::new)?;
        let runner = executor.runner();
        phases.done(format_args!(
            "weights ready on the CPU ({}, {} threads)",
            runner.isa().name(),
            runner.threads()
        ));
        let tokens = executor.limits().num_blocks * executor.limits().block_size;
        eprintln!(
            "   memory  {}: {tokens} tokens, {} sequences of --max-model-len {} at once",
            executor.memory_budget(),
            (tokens / config.max_model_len).min(config.max_num_seqs),
            config.max_model_len
        );
        (Box::new(executor), config, "cpu")
    };
    let limits = executor.limits();
    let kv_cache_tokens = limits.num_blocks * limits.block_size;
    Ok(Deployment {
        engine: Engine::start(executor, config).map_err(CliError::new)?,
        model: ModelContext {
            served_names: vec![name.to_owned()],
            root: name.to_owned(),
            vocab_size: spec.vocab_size,
            eos_tokens: spec.eos_tokens,
            tokenizer: checkpoint.tokenizer,
            chat_template: checkpoint.chat_template,
        },
        backend,
        kv_cache_tokens,
    })
}

/// The checkpoint that `name` means, or random weights in its shape.
fn open(
    name: &str,
    args: &EngineArgs,
    dtype: Option<DType>,
    phases: &mut Phases,
) -> CliResult<Checkpoint> {
    let invented = args.load_format == LoadFormat::Dummy || args.device == Device::Sim;
    if invented && let Some(spec) = builtin(name) {
        return Ok(Checkpoint::dummy(
            spec,
            dtype.unwrap_or(DType::BF16),
            args.seed,
        ));
    }
    let path = locate_model(name).map_err(|error| match builtin(name) {
        Some(_) => CliError::new(format!("{name}: {}", error.message))
            .hint("--load-format dummy runs this model with random weights and needs no file"),
        None => error,
    })?;
    phases.done(format_args!("{} is here", path.display()));
    let checkpoint = Checkpoint::open(&path).map_err(|error| {
        CliError::new(error).hint(
            "`powerband pull` fetches a model whole and checks it; GGUF files and Hugging Face folders \
             with safetensors are read",
        )
    })?;
    let spec = &checkpoint.spec;
    phases.done(format_args!(
        "opened: {}, {} layers, context {}, {}{}",
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
        }
    ));
    match invented {
        true => Ok(Checkpoint {
            weights: Weights::dummy(&checkpoint.spec, dtype.unwrap_or(DType::BF16), args.seed),
            ..checkpoint
        }),
        false => Ok(checkpoint),
    }
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
fn converted(
    weights: Weights,
    quantization: Option<Quantization>,
    dtype: Option<DType>,
) -> Weights {
    match (quantization, dtype) {
        (Some(Quantization::To(dtype)), _) | (None, Some(dtype)) => weights.stored_as(dtype),
        (Some(Quantization::Nf4), _) => {
            eprintln!(
                "warning: --quantization bitsandbytes: nf4 is not built for the CPU yet; the weights \
                 are stored as q4_0 instead, also 4 bits in blocks"
            );
            weights.stored_as(DType::Q4_0)
        }
        (None, None) => weights,
    }
}

fn simulated(args: &EngineArgs, config: &EngineConfig, spec: &ModelSpec) -> CliResult<SimExecutor> {
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
    Ok(SimExecutor::new(limits, timing))
}
