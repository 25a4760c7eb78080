//! A model with its cache, ready to compute: no slots, no sampling.

use powerband_engine::{EngineError, KvCacheDtype};
use powerband_model::{ModelSpec, Weights};

use crate::forward::{Chunk, Machine, Workspace, forward};
use crate::kv::{BLOCK_SIZE, KvCache, Layout};
use crate::memory::{self, KvDemand, MemoryBudget};
use crate::model::Model;
use crate::profile::{Phase, Profile};
use crate::simd::Isa;
use crate::threads::{Pool, default_threads};

/// Settings of the CPU backend.
#[derive(Debug, Clone)]
pub struct CpuOptions {
    /// Threads that compute; `None`: the physical cores that this process may use.
    pub threads: Option<usize>,
    /// How keys and values are stored.
    pub kv_dtype: KvCacheDtype,
    /// Bytes of the KV cache (`--kv-cache-memory-bytes`); `None`: what all sequences at full
    /// length need, within 4 GiB and half of the free memory.
    pub kv_cache_bytes: Option<usize>,
    /// Most sequences at once.
    pub max_num_seqs: usize,
    /// Most tokens in a step.
    pub max_num_batched_tokens: usize,
    /// Longest sequence.
    pub max_model_len: usize,
    /// Most drafts of a sequence in a step (speculation); 0: none.
    pub max_drafts: usize,
    /// Instruction set; `None`: the best that this CPU has.
    pub isa: Option<Isa>,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self {
            threads: None,
            kv_dtype: KvCacheDtype::F16,
            kv_cache_bytes: None,
            max_num_seqs: 50,
            max_num_batched_tokens: 512,
            max_model_len: 2048,
            max_drafts: 0,
            isa: None,
        }
    }
}

/// A model with its cache.
#[derive(Debug)]
pub struct Runner {
    model: Model,
    cache: KvCache,
    work: Workspace,
    machine: Machine,
    options: CpuOptions,
    budget: MemoryBudget,
}

impl Runner {
    /// Packs the weights and reserves the cache.
    ///
    /// # Errors
    /// A setting that is out of range, a tensor that is missing or of the wrong shape, or too
    /// little memory; the text names the flag.
    pub fn new(
        spec: &ModelSpec,
        weights: &Weights,
        options: CpuOptions,
    ) -> Result<Self, EngineError> {
        check(spec, &options)?;
        let threads = options.threads.unwrap_or_else(default_threads);
        let pool = Pool::new(threads).map_err(|error| {
            EngineError::Config(format!(
                "cannot start {threads} threads (--threads): {error}"
            ))
        })?;
        let mut machine = Machine {
            pool,
            isa: options.isa.unwrap_or_else(Isa::detect),
            profile: Profile::default(),
        };
        let model = Model::load(&mut machine.pool, spec, weights, options.max_model_len)?;
        let (tokens, sequences) = (options.max_num_batched_tokens, options.max_num_seqs);
        let sampled = sampled_most(&options);
        let activations = Workspace::bytes(spec, tokens, sampled);
        let layout = Layout {
            dtype: options.kv_dtype,
            heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
        };
        let demand = KvDemand {
            bytes: options.kv_cache_bytes,
            max_model_len: options.max_model_len,
            max_num_seqs: sequences,
        };
        let free = memory::available().map(|bytes| bytes.saturating_sub(activations));
        let num_blocks = memory::kv_blocks(spec, layout, demand, free)?;
        let budget = MemoryBudget {
            weights: model.memory(),
            activations,
            kv_cache: num_blocks * layout.block_bytes() * spec.num_layers,
        };
        Ok(Self {
            work: Workspace::new(&model, tokens, sampled)?,
            cache: KvCache::new(layout, spec.num_layers, num_blocks)?,
            model,
            machine,
            options,
            budget,
        })
    }

    /// Bytes of the parts.
    pub fn memory_budget(&self) -> MemoryBudget {
        self.budget
    }

    /// KV blocks in the pool.
    pub fn num_blocks(&self) -> usize {
        self.cache.num_blocks
    }

    /// The architecture.
    pub fn spec(&self) -> &ModelSpec {
        &self.model.spec
    }

    /// The settings.
    pub fn options(&self) -> &CpuOptions {
        &self.options
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.machine.pool.threads()
    }

    /// The formats that the weight matrices are computed in.
    pub fn weight_formats(&self) -> Vec<&'static str> {
        self.model.formats()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.machine.isa
    }

    /// Where the time goes.
    pub fn profile(&mut self) -> &mut Profile {
        &mut self.machine.profile
    }

    /// The time since the forward pass was for sampling.
    pub(crate) fn sampled(&mut self) {
        self.machine.profile.lap(Phase::Sampling);
    }

    /// Computes chunks of distinct sequences and writes their keys and values. Returns after how many
    /// tokens the chunks asked for logits; see [`Runner::logits`].
    ///
    /// # Errors
    /// A chunk does not fit the limits, its blocks, the vocabulary or the context; nothing was
    /// computed then.
    pub fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<usize, EngineError> {
        self.check_chunks(chunks).map_err(EngineError::Executor)?;
        forward(
            &mut self.model,
            &mut self.cache,
            &mut self.work,
            &mut self.machine,
            chunks,
        )?;
        Ok(chunks.iter().map(|chunk| chunk.logits).sum())
    }

    /// The `index`-th logits that the chunks of the last step asked for, `[vocab_size]`: chunk by chunk,
    /// and token by token in each.
    pub fn logits(&mut self, index: usize) -> &mut [f32] {
        let vocab = self.model.spec.vocab_size;
        &mut self.work.logits.row_mut(index)[..vocab]
    }

    fn check_chunks(&self, chunks: &[Chunk<'_>]) -> Result<(), String> {
        let options = &self.options;
        let tokens: usize = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        if tokens > options.max_num_batched_tokens || chunks.len() > options.max_num_seqs {
            return Err(format!(
                "a step of {tokens} tokens in {} sequences; the limits are {} and {}",
                chunks.len(),
                options.max_num_batched_tokens,
                options.max_num_seqs
            ));
        }
        for chunk in chunks {
            let end = chunk.start.saturating_add(chunk.tokens.len());
            if chunk.tokens.is_empty() || end > options.max_model_len {
                return Err(format!(
                    "{} tokens at position {}; sequences have 1 to {}",
                    chunk.tokens.len(),
                    chunk.start,
                    options.max_model_len
                ));
            }
            if chunk.logits > chunk.tokens.len().min(1 + options.max_drafts) {
                return Err(format!(
                    "logits after {} of {} tokens; there is room for {}",
                    chunk.logits,
                    chunk.tokens.len(),
                    1 + options.max_drafts
                ));
            }
            let vocab = self.model.spec.vocab_size;
            if let Some(token) = chunk.tokens.iter().find(|t| **t as usize >= vocab) {
                return Err(format!(
                    "token {token} is outside the vocabulary of {vocab}"
                ));
            }
            let known = |block: &u32| (*block as usize) < self.cache.num_blocks;
            if chunk.blocks.len() * BLOCK_SIZE < end || !chunk.blocks.iter().all(known) {
                return Err(format!(
                    "{} blocks for {end} positions, in a pool of {}",
                    chunk.blocks.len(),
                    self.cache.num_blocks
                ));
            }
        }
        Ok(())
    }
}

/// Most tokens of a step that are sampled after.
fn sampled_most(options: &CpuOptions) -> usize {
    let each = options.max_drafts.saturating_add(1);
    let all = options.max_num_seqs.saturating_mul(each);
    all.min(options.max_num_batched_tokens)
}

/// Are the settings in range and do they fit the model?
fn check(spec: &ModelSpec, options: &CpuOptions) -> Result<(), EngineError> {
    let positive = [
        ("--max-num-seqs", options.max_num_seqs),
        ("--max-num-batched-tokens", options.max_num_batched_tokens),
        ("--max-model-len", options.max_model_len),
        ("--threads", options.threads.unwrap_or(1)),
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
    Ok(())
}
