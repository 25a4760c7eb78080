//! The [`Executor`]: steps of the engine on the [`Runner`].
//!
//! With few cores nothing is gained by computing on a thread of its own, so a step is computed
//! when it is submitted and only one is in flight.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use powerband_engine::executor::{
    Executor, ExecutorLimits, PendingStep, Step, StepOutput, StepTokens,
};
use powerband_engine::{EngineError, Sampler};
use powerband_model::{ModelSpec, Weights};

use crate::forward::Chunk;
use crate::kv::BLOCK_SIZE;
use crate::memory::MemoryBudget;
use crate::runner::{CpuOptions, Runner};

/// The executor on a CPU.
#[derive(Debug)]
pub struct CpuExecutor {
    runner: Runner,
    limits: ExecutorLimits,
    sampler: Sampler,
    /// The token that each slot sampled last.
    last: Vec<Option<u32>>,
    done: VecDeque<(u64, StepOutput)>,
    submitted: u64,
    failed: bool,
}

impl CpuExecutor {
    /// An executor of a model with these weights.
    ///
    /// # Errors
    /// As [`Runner::new`].
    pub fn new(
        spec: &ModelSpec,
        weights: &Weights,
        options: CpuOptions,
    ) -> Result<Self, EngineError> {
        let runner = Runner::new(spec, weights, options)?;
        let options = runner.options();
        let limits = ExecutorLimits {
            num_blocks: runner.num_blocks(),
            block_size: BLOCK_SIZE,
            max_num_seqs: options.max_num_seqs,
            max_num_batched_tokens: options.max_num_batched_tokens,
            max_model_len: options.max_model_len,
            vocab_size: spec.vocab_size,
            overlap: false,
        };
        Ok(Self {
            last: vec![None; limits.max_num_seqs],
            runner,
            sampler: Sampler::new(limits.max_num_seqs),
            limits,
            done: VecDeque::new(),
            submitted: 0,
            failed: false,
        })
    }

    /// Bytes of the parts.
    pub fn memory_budget(&self) -> MemoryBudget {
        self.runner.memory_budget()
    }

    /// The model and its cache.
    pub fn runner(&self) -> &Runner {
        &self.runner
    }

    fn compute(&mut self, step: &Step) -> Result<StepOutput, EngineError> {
        let wrong = |reason: String| EngineError::Executor(reason);
        for &slot in &step.released {
            if let Some(last) = self.last.get_mut(slot) {
                *last = None;
                self.sampler.release(slot);
            }
        }
        let mut sampled_before = Vec::with_capacity(step.sequences.len());
        for sequence in &step.sequences {
            let slot = sequence.slot;
            let Some(last) = self.last.get_mut(slot) else {
                return Err(wrong(format!("there is no slot {slot}")));
            };
            if let Some(admission) = &sequence.admission {
                *last = admission.output.last().copied();
                self.sampler.admit(slot, admission);
            }
            if sequence.tokens == StepTokens::LastSampled && last.is_none() {
                return Err(wrong(format!("slot {slot} has sampled nothing yet")));
            }
            sampled_before.push(last.unwrap_or(0));
        }
        let chunks: Vec<Chunk<'_>> = step
            .sequences
            .iter()
            .zip(&sampled_before)
            .map(|(sequence, last)| Chunk {
                tokens: match &sequence.tokens {
                    StepTokens::Known(ids) | StepTokens::Speculative(ids) => ids,
                    StepTokens::LastSampled => std::slice::from_ref(last),
                },
                start: sequence.start,
                blocks: &sequence.blocks,
                logits: match sequence.sample {
                    true => 1 + sequence.tokens.drafts(),
                    false => 0,
                },
            })
            .collect();
        self.runner.forward(&chunks)?;
        let mut output = StepOutput::default();
        let mut first = 0;
        for (sequence, chunk) in step.sequences.iter().zip(&chunks) {
            let drafts =
                &chunk.tokens[chunk.tokens.len().saturating_sub(sequence.tokens.drafts())..];
            for at in 0..chunk.logits {
                let output_token = self.sampler.sample(
                    sequence.slot,
                    self.runner.logits(first + at),
                    sequence.suppressed.as_deref(),
                    sequence.mask.as_deref(),
                );
                let token = output_token.token;
                self.last[sequence.slot] = Some(token);
                output.samples.push((sequence.slot, output_token));
                // What was computed after a wrong draft is of no use.
                if drafts.get(at) != Some(&token) {
                    break;
                }
            }
            first += chunk.logits;
        }
        self.runner.sampled();
        Ok(output)
    }
}

impl Executor for CpuExecutor {
    fn limits(&self) -> &ExecutorLimits {
        &self.limits
    }

    fn verifies_drafts(&self) -> bool {
        self.runner.options().max_drafts > 0
    }

    fn submit(&mut self, step: Step) -> Result<PendingStep, EngineError> {
        if self.failed {
            let reason = "a step before this one failed halfway".to_owned();
            return Err(EngineError::Executor(reason));
        }
        if !self.done.is_empty() {
            let reason = "a step was submitted before the one before it was collected".to_owned();
            return Err(EngineError::Executor(reason));
        }
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.compute(&step)));
        let mut output = outcome.unwrap_or_else(|_| {
            // The cache may be half written.
            self.failed = true;
            Err(EngineError::Executor(
                "a kernel panicked; please report this with the model's name".to_owned(),
            ))
        })?;
        output.busy = begun.elapsed();
        self.submitted += 1;
        self.done.push_back((self.submitted, output));
        Ok(PendingStep(self.submitted))
    }

    fn collect(&mut self, pending: PendingStep) -> Result<StepOutput, EngineError> {
        match self.done.pop_front() {
            Some((number, output)) if number == pending.0 => Ok(output),
            _ => Err(EngineError::Executor(format!(
                "step {} is not the oldest one in flight",
                pending.0
            ))),
        }
    }
}
