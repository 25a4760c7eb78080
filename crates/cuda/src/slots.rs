//! What the host keeps of each slot: how it samples, and how far its random numbers are.

use std::sync::Arc;

use powerband_engine::SamplingParams;
use powerband_engine::executor::{Admission, StepSequence};

use crate::params::{MOST_LOGPROBS, RowSettings};

/// Below this temperature the likeliest token is taken.
const GREEDY_BELOW: f32 = 1e-5;

#[derive(Debug, Clone)]
struct Slot {
    params: Arc<SamplingParams>,
    seed: u64,
    /// Tokens sampled, those of steps in flight too.
    produced: u64,
    /// In this slot, so that its last token is on the GPU.
    sampled: bool,
}

impl Slot {
    fn new(admission: &Admission) -> Self {
        Self {
            params: admission.sampling.clone(),
            seed: admission.seed,
            produced: admission.output.len() as u64,
            sampled: false,
        }
    }

    fn counted(&self) -> bool {
        let p = &self.params;
        p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0
    }
}

/// All slots.
#[derive(Debug)]
pub(crate) struct Slots(Vec<Option<Slot>>);

impl Slots {
    pub fn new(slots: usize) -> Self {
        Self(vec![None; slots])
    }

    pub fn release(&mut self, slot: usize) {
        if let Some(place) = self.0.get_mut(slot) {
            *place = None;
        }
    }

    /// A sequence begins. Returns its counts for the GPU if it has penalties.
    pub fn admit(&mut self, slot: usize, admission: &Admission, vocab: usize) -> Option<Vec<u16>> {
        let place = self.0.get_mut(slot)?;
        let new = place.insert(Slot::new(admission));
        if !new.counted() {
            return None;
        }
        let mut counts = vec![0u16; vocab];
        for token in admission.prompt.iter() {
            if let Some(count) = counts.get_mut(*token as usize) {
                *count |= 0x8000;
            }
        }
        for token in &admission.output {
            if let Some(count) = counts
                .get_mut(*token as usize)
                .filter(|c| **c & 0x7FFF < 0x7FFF)
            {
                *count += 1;
            }
        }
        Some(counts)
    }

    pub fn has_sampled(&self, slot: usize) -> bool {
        self.0
            .get(slot)
            .is_some_and(|s| s.as_ref().is_some_and(|s| s.sampled))
    }

    /// A step that samples in this slot was begun.
    pub fn sampling(&mut self, slot: usize) {
        if let Some(Some(slot)) = self.0.get_mut(slot) {
            slot.produced += 1;
            slot.sampled = true;
        }
    }

    /// How many top log-probabilities were asked for.
    pub fn logprobs(&self, slot: usize) -> Option<usize> {
        let params = &self.0.get(slot)?.as_ref()?.params;
        params.logprobs.map(|n| (n as usize).min(MOST_LOGPROBS))
    }

    /// How the next token of `sequence` is sampled; lists go into `extras`. A sequence without a
    /// slot of its own is sampled greedily. A sequence that begins now was admitted already.
    pub fn settings(
        &self,
        sequence: &StepSequence,
        vocab: usize,
        extras: &mut Vec<i32>,
    ) -> RowSettings {
        let mut row = RowSettings {
            slot: sequence.slot as i32,
            plain: 1,
            top_p: 1.0,
            repetition: 1.0,
            logprobs: -1,
            mask_at: -1,
            ..RowSettings::default()
        };
        let begun = sequence.admission.as_ref().map(Slot::new);
        let slot = begun
            .as_ref()
            .or(self.0.get(sequence.slot).and_then(Option::as_ref));
        let mut biases = Vec::new();
        if let Some(slot) = slot {
            let p = &slot.params;
            row.temperature = if p.temperature < GREEDY_BELOW {
                0.0
            } else {
                p.temperature
            };
            row.top_k = p.top_k.min(i32::MAX as u32) as i32;
            row.top_p = p.top_p;
            row.min_p = p.min_p;
            row.repetition = p.repetition_penalty;
            row.presence = p.presence_penalty;
            row.frequency = p.frequency_penalty;
            row.counted = i32::from(slot.counted());
            row.seed_low = slot.seed as u32;
            row.seed_high = (slot.seed >> 32) as u32;
            row.draw = slot.produced as u32;
            row.logprobs = p
                .logprobs
                .map_or(-1, |n| n.min(MOST_LOGPROBS as u32) as i32);
            biases.extend(p.logit_bias.iter().copied());
        }
        let suppressed = sequence.suppressed.as_deref().unwrap_or_default();
        biases.extend(suppressed.iter().map(|token| (*token, f32::NEG_INFINITY)));
        row.bias_at = extras.len() as i32;
        for (token, bias) in biases {
            if (token as usize) < vocab {
                extras.extend([token as i32, bias.to_bits() as i32]);
                row.biases += 1;
            }
        }
        if let Some(mask) = &sequence.mask {
            row.mask_at = extras.len() as i32;
            let words = vocab.div_ceil(32);
            let given = mask.0.iter().map(|word| *word as i32);
            extras.extend(given.chain(std::iter::repeat(0)).take(words));
        }
        let plain = row.temperature == 0.0 && row.counted == 0 && row.logprobs < 0;
        row.plain = i32::from(plain && row.biases == 0 && row.mask_at < 0);
        row
    }
}
