//! Which tokens are computed next: the one scheduling rule.
//!
//! Every sequence has a number of computed positions and a number of tokens; each step hands out a
//! budget of tokens so that sequences catch up: running ones first, then waiting ones while budget,
//! slots and KV blocks allow. Decoding, chunked prefill, prefix hits and recomputation after a
//! preemption are all this rule (it is vLLM V1's).
//!
//! Drafts are positions beyond this rule: they take what is left of a step's budget and blocks that
//! nobody is about to need, and count as computed only once the executor has sampled them too.
//!
//! When blocks run out the running sequence that is last in the policy's order gives its blocks back
//! and is computed again later; nobody is admitted in a step that preempted.

mod drafts;

use std::collections::HashMap;

use ahash::RandomState;

use crate::EngineConfig;
use crate::block_pool::{BlockPool, Prefix};
use crate::executor::{ExecutorLimits, Step, StepOutput, StepSequence, StepTokens};
use crate::queue::{Place, WaitingQueue};
use crate::request::{FinishReason, TokenOutput};
use crate::sequence::{Sequence, SequenceId};
use crate::stats::{EngineStats, SpeculationStats};

/// Who sampled in a step; goes back to [`Scheduler::apply`] with the step's output.
#[derive(Debug)]
pub struct StepPlan {
    /// Each sequence that samples, in the step's order.
    sampling: Vec<Sampling>,
}

#[derive(Debug)]
struct Sampling {
    id: SequenceId,
    slot: usize,
    drafts: usize,
}

impl StepPlan {
    /// Does each sequence give one token, or up to as many more as it had drafts?
    fn check(&self, output: &StepOutput) -> Result<(), String> {
        let mut rest = output.samples.as_slice();
        for &Sampling { slot, drafts, .. } in &self.sampling {
            let count = rest.iter().take_while(|(other, _)| *other == slot).count();
            if count == 0 || count > 1 + drafts {
                return Err(format!(
                    "slot {slot} gave {count} tokens in a step with {drafts} drafts"
                ));
            }
            rest = &rest[count..];
        }
        match rest.first() {
            None => Ok(()),
            Some((slot, _)) => Err(format!("slot {slot} gave a token unasked")),
        }
    }
}

/// All requests, the KV blocks and the rule.
#[derive(Debug)]
pub struct Scheduler {
    config: EngineConfig,
    pool: BlockPool,
    /// In the policy's order.
    running: Vec<Sequence>,
    waiting: WaitingQueue<Sequence>,
    /// Places of waiting sequences.
    places: HashMap<SequenceId, Place, RandomState>,
    free_slots: Vec<usize>,
    /// Slots that ended since the last step.
    released: Vec<usize>,
    stats: EngineStats,
}

impl Scheduler {
    /// A scheduler for an executor with these limits.
    pub fn new(config: EngineConfig, limits: &ExecutorLimits) -> Self {
        let slots = config.max_num_seqs.min(limits.max_num_seqs);
        let most_drafts = config.speculation.map_or(0, |s| s.num_speculative_tokens);
        Self {
            pool: BlockPool::new(limits.num_blocks, limits.block_size),
            running: Vec::with_capacity(slots),
            waiting: WaitingQueue::default(),
            places: HashMap::default(),
            free_slots: (0..slots).rev().collect(),
            released: Vec::new(),
            stats: EngineStats {
                speculation: SpeculationStats::new(most_drafts),
                ..EngineStats::default()
            },
            config,
        }
    }

    /// Takes a request into the queue.
    pub fn add(&mut self, sequence: Sequence) {
        self.places.insert(sequence.id, sequence.place);
        self.waiting.insert(sequence.place, sequence);
    }

    /// Where a request goes that arrives now.
    pub fn place(&self, arrival: SequenceId, priority: i32, work: usize) -> Place {
        Place::new(
            self.config.policy,
            arrival,
            self.stats.steps,
            priority,
            work,
        )
    }

    /// Ends a request that nobody reads any more.
    pub fn cancel(&mut self, id: SequenceId) {
        if let Some(place) = self.places.remove(&id) {
            if let Some(sequence) = self.waiting.remove(place) {
                self.end(sequence, FinishReason::Abort);
            }
        } else if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            self.end_running(index, FinishReason::Abort);
        }
    }

    /// Ends all requests.
    pub fn abort_all(&mut self) {
        while !self.running.is_empty() {
            self.end_running(self.running.len() - 1, FinishReason::Abort);
        }
        while let Some(sequence) = self.waiting.pop_first() {
            self.end(sequence, FinishReason::Abort);
        }
        self.places.clear();
    }

    /// Takes all requests out, to be failed one by one.
    pub fn drain(&mut self) -> Vec<Sequence> {
        let mut all = std::mem::take(&mut self.running);
        all.extend(std::iter::from_fn(|| self.waiting.pop_first()));
        self.places.clear();
        for sequence in &mut all {
            self.leave(sequence);
        }
        all
    }

    /// No requests at all?
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// A snapshot.
    pub fn stats(&self) -> EngineStats {
        let total = self.pool.total();
        EngineStats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            kv_blocks_total: total,
            kv_blocks_free: self.pool.free(),
            kv_cache_usage: (total - self.pool.free()) as f64 / total.max(1) as f64,
            ..self.stats.clone()
        }
    }

    /// The next step; `None` when nothing can be computed before a step in flight is applied.
    pub fn schedule(&mut self) -> Option<(Step, StepPlan)> {
        let mut sequences = Vec::with_capacity(self.running.len() + 1);
        let mut budget = self.config.max_num_batched_tokens;
        let preempted = self.schedule_running(&mut budget, &mut sequences);
        if !preempted {
            self.admit(&mut budget, &mut sequences);
        }
        self.add_drafts(budget, &mut sequences);
        // Only now: a block must not be found by others in the step that computes it.
        self.register_prefixes();
        if sequences.is_empty() {
            return None;
        }
        self.stats.steps += 1;
        let sampling = sequences.iter().filter(|(_, share)| share.sample);
        let plan = StepPlan {
            sampling: sampling
                .map(|(id, share)| Sampling {
                    id: *id,
                    slot: share.slot,
                    drafts: share.tokens.drafts(),
                })
                .collect(),
        };
        let step = Step {
            released: std::mem::take(&mut self.released),
            sequences: sequences.into_iter().map(|(_, share)| share).collect(),
        };
        Some((step, plan))
    }

    /// Gives running sequences their share. Returns whether one was preempted.
    fn schedule_running(
        &mut self,
        budget: &mut usize,
        shares: &mut Vec<(SequenceId, StepSequence)>,
    ) -> bool {
        let mut preempted = false;
        let mut index = 0;
        while index < self.running.len() && *budget > 0 {
            let sequence = &self.running[index];
            // Its last token is in flight: there is nothing left to compute. Or how far it has come
            // is known only with the step in flight.
            let complete = sequence.is_complete(self.config.max_model_len);
            if (sequence.in_flight > 0 && complete) || sequence.drafted > 0 {
                index += 1;
                continue;
            }
            let count = self.chunk(sequence.lag(), *budget);
            if count == 0 {
                index += 1;
                continue;
            }
            let until = sequence.computed + count;
            let mut this_one_left = false;
            while self.running[index].blocks.len() * self.pool.block_size() < until {
                match self.pool.allocate() {
                    Some(block) => self.running[index].blocks.push(block),
                    None => {
                        preempted = true;
                        let victim = self.running.len() - 1;
                        self.preempt(victim);
                        if victim == index {
                            this_one_left = true;
                            break;
                        }
                    }
                }
            }
            if this_one_left {
                break;
            }
            let sequence = &mut self.running[index];
            shares.push((sequence.id, share(sequence, count)));
            *budget -= count;
            index += 1;
        }
        preempted
    }

    /// Moves waiting requests into free slots, in order, while the first one fits.
    fn admit(&mut self, budget: &mut usize, shares: &mut Vec<(SequenceId, StepSequence)>) {
        let block_size = self.pool.block_size();
        while *budget > 0
            && let Some(&slot) = self.free_slots.last()
            && let Some(first) = self.waiting.first()
            // Preempted with a token in flight: it goes on once that token is known.
            && first.in_flight == 0
        {
            let (cached, prefix) = match self.config.enable_prefix_caching {
                true => self.pool.lookup(first.request.cache_salt, &first.tokens),
                false => {
                    let salt = first.request.cache_salt;
                    (Vec::new(), Prefix::Start { salt })
                }
            };
            let count = self.chunk(first.tokens.len() - cached.len() * block_size, *budget);
            let needed = first.tokens.len().div_ceil(block_size) - cached.len();
            let available = self.pool.free() - self.pool.count_free(&cached);
            // All of the prompt must fit, and a block for each that runs: else the newcomer takes
            // the room in which the others are about to grow and is thrown out in the next step.
            if count == 0 || available < needed + self.running.len() {
                break;
            }
            let Some(mut sequence) = self.waiting.pop_first() else {
                break;
            };
            self.places.remove(&sequence.id);
            self.free_slots.pop();
            self.pool.share(&cached);
            sequence.computed = cached.len() * block_size;
            sequence.registered = cached.len();
            sequence.prefix = prefix;
            sequence.blocks = cached;
            sequence.slot = Some(slot);
            sequence.unannounced = true;
            let new_blocks = std::iter::from_fn(|| self.pool.allocate()).take(needed);
            sequence.blocks.extend(new_blocks);
            if sequence.cached_tokens.is_none() {
                sequence.cached_tokens = Some(sequence.computed);
                self.stats.prompt_tokens += sequence.tokens.len() as u64;
                if self.config.enable_prefix_caching {
                    self.stats.prefix_cache_queries += sequence.tokens.len() as u64;
                    self.stats.prefix_cache_hits += sequence.computed as u64;
                }
            }
            shares.push((sequence.id, share(&mut sequence, count)));
            *budget -= count;
            let at = self
                .running
                .partition_point(|other| other.place < sequence.place);
            self.running.insert(at, sequence);
        }
    }

    /// Where a sequence runs. The running order changes slowly: what is asked for next nearly always
    /// stands behind what was asked for last.
    fn position(&self, id: SequenceId, hint: usize) -> Option<usize> {
        (hint..self.running.len())
            .chain(0..hint.min(self.running.len()))
            .find(|&index| self.running[index].id == id)
    }

    /// How many of `lag` positions are computed in this step.
    fn chunk(&self, lag: usize, budget: usize) -> usize {
        let longest = self.config.max_num_batched_tokens;
        match lag <= budget || self.config.enable_chunked_prefill || lag > longest {
            true => lag.min(budget),
            false => 0,
        }
    }

    /// Makes blocks findable that are full of known, computed tokens.
    fn register_prefixes(&mut self) {
        if !self.config.enable_prefix_caching {
            return;
        }
        let size = self.pool.block_size();
        for sequence in &mut self.running {
            let full = sequence.computed.min(sequence.tokens.len()) / size;
            while sequence.registered < full {
                let at = sequence.registered;
                let tokens = &sequence.tokens[at * size..(at + 1) * size];
                sequence.prefix = self
                    .pool
                    .register(sequence.prefix, tokens, sequence.blocks[at]);
                sequence.registered += 1;
            }
        }
    }

    fn preempt(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        self.leave(&mut sequence);
        sequence.computed = 0;
        self.stats.preemptions += 1;
        self.add(sequence);
    }

    /// Gives back the slot and the blocks.
    fn leave(&mut self, sequence: &mut Sequence) {
        if let Some(slot) = sequence.slot.take() {
            self.free_slots.push(slot);
            self.released.push(slot);
        }
        self.pool.release(&std::mem::take(&mut sequence.blocks));
        sequence.registered = 0;
    }

    fn end_running(&mut self, index: usize, reason: FinishReason) {
        let sequence = self.running.remove(index);
        self.end(sequence, reason);
    }

    fn end(&mut self, mut sequence: Sequence, reason: FinishReason) {
        self.leave(&mut sequence);
        self.stats.finished[reason as usize] += 1;
        sequence.finish(reason);
    }

    /// Takes in what a step sampled. Samples of sequences that ended meanwhile are dropped.
    ///
    /// # Errors
    /// The output does not belong to the plan.
    pub fn apply(&mut self, plan: &StepPlan, output: StepOutput) -> Result<(), String> {
        plan.check(&output)?;
        let longest = self.config.max_model_len;
        let mut samples = output.samples.into_iter().peekable();
        let mut hint = 0;
        for &Sampling { id, slot, drafts } in &plan.sampling {
            let own = |(other, _): &(usize, TokenOutput)| *other == slot;
            let mut tokens = std::iter::from_fn(|| Some(samples.next_if(own)?.1));
            let mut taken = 0;
            if let Some(index) = self.position(id, hint) {
                let end;
                (taken, end) = self.running[index].extend(&mut tokens, longest);
                hint = match end {
                    Some(reason) => {
                        self.end_running(index, reason);
                        index
                    }
                    None => index + 1,
                };
            } else if let Some(&place) = self.places.get(&id)
                && let Some(sequence) = self.waiting.get_mut(place)
            {
                // Preempted while its token was in flight.
                let end;
                (taken, end) = sequence.extend(&mut tokens, longest);
                if let Some(reason) = end {
                    self.places.remove(&id);
                    if let Some(sequence) = self.waiting.remove(place) {
                        self.end(sequence, reason);
                    }
                }
            }
            tokens.for_each(drop);
            self.stats.generation_tokens += taken as u64;
            if drafts > 0 {
                self.stats
                    .speculation
                    .count(drafts, taken.saturating_sub(1));
            }
        }
        #[cfg(debug_assertions)]
        self.check()?;
        Ok(())
    }

    /// Checks that slots and blocks are all accounted for.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let held = self
            .running
            .iter()
            .map(|sequence| sequence.blocks.as_slice());
        self.pool.check(held)?;
        let slots = self.config.max_num_seqs.max(self.free_slots.len());
        let mut taken = vec![false; slots];
        let used = self.running.iter().filter_map(|sequence| sequence.slot);
        for slot in used.chain(self.free_slots.iter().copied()) {
            if std::mem::replace(&mut taken[slot], true) {
                return Err(format!("slot {slot} is taken twice"));
            }
        }
        match self.places.len() == self.waiting.len() {
            true => Ok(()),
            false => Err("the queue and its index differ".to_owned()),
        }
    }
}

/// What `sequence` computes when it gets `count` positions; counts them as computed.
fn share(sequence: &mut Sequence, count: usize) -> StepSequence {
    let start = sequence.computed;
    let sample = count == sequence.lag();
    let known = &sequence.tokens[start.min(sequence.tokens.len())..];
    let tokens = match known.len() >= count {
        true => StepTokens::Known(known[..count].to_vec()),
        false => StepTokens::LastSampled,
    };
    let share = StepSequence {
        slot: sequence.slot.unwrap_or_default(),
        admission: sequence.unannounced.then(|| sequence.admission()),
        tokens,
        start,
        blocks: sequence.blocks.clone(),
        sample,
        suppressed: sample.then(|| sequence.suppressed()).flatten(),
        mask: None,
    };
    sequence.unannounced = false;
    sequence.computed += count;
    if sample {
        sequence.in_flight += 1;
    }
    share
}
