//! Guesses that are computed beside what the scheduling rule gives.

use super::Scheduler;
use crate::executor::{StepSequence, StepTokens};
use crate::sequence::SequenceId;

impl Scheduler {
    /// Gives what is left of the budget to drafts of sequences that decode. They take no block that a
    /// running sequence may need for its next token: nobody is preempted for a guess.
    pub(super) fn add_drafts(
        &mut self,
        mut budget: usize,
        shares: &mut [(SequenceId, StepSequence)],
    ) {
        let Some(ngram) = self.config.speculation else {
            return;
        };
        if shares.len() > ngram.disable_by_batch_size.unwrap_or(usize::MAX) {
            return;
        }
        let block_size = self.pool.block_size();
        let mut hint = 0;
        for (id, share) in shares {
            let Some(index) = self.position(*id, hint) else {
                continue;
            };
            hint = index + 1;
            let StepTokens::Known(last) = &share.tokens else {
                continue;
            };
            let spare = self.pool.free().saturating_sub(self.running.len());
            let sequence = &mut self.running[index];
            let decodes = share.sample && last.len() == 1;
            if !decodes || share.suppressed.is_some() || !sequence.takes_drafts() {
                continue;
            }
            let (stop, length) = (&sequence.request.stop, sequence.tokens.len() + 1);
            let room = (sequence.blocks.len() + spare) * block_size - sequence.computed;
            let most = budget
                .min(room)
                .min(stop.max_tokens.saturating_sub(sequence.produced()))
                .min(self.config.max_model_len.saturating_sub(length));
            let drafts = ngram.propose(&sequence.tokens, most);
            if drafts.is_empty() {
                continue;
            }
            budget -= drafts.len();
            sequence.drafted = drafts.len();
            while sequence.blocks.len() * block_size < sequence.computed + drafts.len()
                && let Some(block) = self.pool.allocate()
            {
                sequence.blocks.push(block);
            }
            share.blocks.clone_from(&sequence.blocks);
            share.tokens = StepTokens::Speculative([last.as_slice(), &drafts].concat());
        }
    }
}
