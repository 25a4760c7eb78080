//! An executor without a model: a timing model in place of kernels.
//!
//! It keeps a cache of its own, one number a position, made from the token there and the number
//! before it. What it samples depends on the last number alone and thus on every position of the
//! sequence: a block that is lost, shared wrongly or overwritten changes the output. That makes it
//! the scheduler's test bed beside a mock server.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::EngineError;
use crate::executor::{Executor, ExecutorLimits, PendingStep, Step, StepOutput, StepTokens};
use crate::request::{TokenLogprobs, TokenOutput};

/// How long a step takes: `step + sequences * per_sequence + prompt tokens * per_prompt_token`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SimTiming {
    /// Every step.
    pub step: Duration,
    /// Each sequence in it.
    pub per_sequence: Duration,
    /// Each token beyond the first of a sequence.
    pub per_prompt_token: Duration,
}

/// The simulated executor.
#[derive(Debug)]
pub struct SimExecutor {
    limits: ExecutorLimits,
    timing: SimTiming,
    cache: Vec<u64>,
    /// The token that each slot sampled last, and how many log-probabilities it wants.
    slots: Vec<(Option<u32>, Option<u32>)>,
    in_flight: VecDeque<(u64, StepOutput, Instant)>,
    submitted: u64,
}

/// The number of a position: from the number before it (0 at the start) and the token.
pub fn chain(before: u64, token: u32) -> u64 {
    let mixed = (before ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29) ^ 1
}

/// The token that follows a position with this number.
pub fn sampled(number: u64, vocab_size: usize) -> u32 {
    ((number >> 17) % vocab_size as u64) as u32
}

impl SimExecutor {
    /// An executor with these limits.
    pub fn new(limits: ExecutorLimits, timing: SimTiming) -> Self {
        Self {
            cache: vec![0; limits.num_blocks * limits.block_size],
            slots: vec![(None, None); limits.max_num_seqs],
            in_flight: VecDeque::new(),
            submitted: 0,
            limits,
            timing,
        }
    }

    fn compute(&mut self, step: &Step) -> Result<(StepOutput, Duration), String> {
        let size = self.limits.block_size;
        let mut output = StepOutput::default();
        let mut total = 0;
        for &slot in &step.released {
            *self.slots.get_mut(slot).ok_or("a slot out of range")? = (None, None);
        }
        for sequence in &step.sequences {
            let slot = self
                .slots
                .get_mut(sequence.slot)
                .ok_or("a slot out of range")?;
            if let Some(admission) = &sequence.admission {
                *slot = (
                    admission.output.last().copied(),
                    admission.sampling.logprobs,
                );
            }
            let last;
            let tokens = match &sequence.tokens {
                StepTokens::Known(tokens) | StepTokens::Speculative(tokens) => tokens.as_slice(),
                StepTokens::LastSampled => {
                    last = slot.0.ok_or("a slot that sampled nothing goes on")?;
                    std::slice::from_ref(&last)
                }
            };
            total += tokens.len();
            let blocks = &sequence.blocks;
            let place = |position: usize| {
                let block = blocks.get(position / size).copied();
                let block = block.filter(|&block| (block as usize) < self.limits.num_blocks);
                block.map(|block| block as usize * size + position % size)
            };
            let mut number = match sequence.start.checked_sub(1) {
                Some(before) => self.cache[place(before).ok_or("no block before the chunk")?],
                None => 0,
            };
            let first_sampled = tokens.len().saturating_sub(1 + sequence.tokens.drafts());
            let mut sampling = sequence.sample;
            for (index, &token) in tokens.iter().enumerate() {
                number = chain(number, token);
                let position = sequence.start + index;
                self.cache[place(position).ok_or("no block for a position")?] = number;
                if sampling && index >= first_sampled {
                    let mut token = sampled(number, self.limits.vocab_size);
                    let suppressed = sequence.suppressed.as_deref().unwrap_or_default();
                    while suppressed.contains(&token) {
                        token = (token + 1) % self.limits.vocab_size as u32;
                    }
                    slot.0 = Some(token);
                    let logprobs = slot.1.map(|_| TokenLogprobs {
                        logprob: 0.0,
                        top: vec![(token, 0.0)],
                    });
                    output
                        .samples
                        .push((sequence.slot, TokenOutput { token, logprobs }));
                    sampling = tokens.get(index + 1) == Some(&token);
                }
            }
        }
        let sequences = step.sequences.len() as u32;
        let prompt = (total as u32).saturating_sub(sequences);
        let takes = self.timing.step
            + self.timing.per_sequence * sequences
            + self.timing.per_prompt_token * prompt;
        Ok((output, takes))
    }
}

impl Executor for SimExecutor {
    fn limits(&self) -> &ExecutorLimits {
        &self.limits
    }

    fn verifies_drafts(&self) -> bool {
        true
    }

    fn submit(&mut self, step: Step) -> Result<PendingStep, EngineError> {
        let most = if self.limits.overlap { 2 } else { 1 };
        if self.in_flight.len() >= most {
            let reason = format!("{most} steps are in flight already");
            return Err(EngineError::Executor(reason));
        }
        let (mut output, takes) = self.compute(&step).map_err(EngineError::Executor)?;
        output.busy = takes;
        let now = Instant::now();
        let free = self.in_flight.back().map_or(now, |(_, _, end)| *end);
        self.submitted += 1;
        self.in_flight
            .push_back((self.submitted, output, free.max(now) + takes));
        Ok(PendingStep(self.submitted))
    }

    fn collect(&mut self, pending: PendingStep) -> Result<StepOutput, EngineError> {
        match self.in_flight.pop_front() {
            Some((number, output, end)) if number == pending.0 => {
                std::thread::sleep(end.saturating_duration_since(Instant::now()));
                Ok(output)
            }
            _ => Err(EngineError::Executor(format!(
                "step {} is not the oldest one in flight",
                pending.0
            ))),
        }
    }
}
