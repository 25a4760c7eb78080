//! A step as the GPU reads it: arrays of integers at fixed offsets, in page-locked memory.

use powerband_engine::executor::{Step, StepSequence, StepTokens};
use powerband_model::ModelSpec;

use crate::options::CudaOptions;
use crate::params::{RowSettings, STEP_PARTS, bytes_of};
use crate::slots::Slots;

/// Tokens that a block of the KV cache holds.
pub(crate) const BLOCK_SIZE: usize = 16;

/// The parts, in order. The header holds the bytes of each part, then the two counts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Header,
    Tokens,
    Positions,
    Places,
    Sequences,
    Blocks,
    Rows,
    Wanted,
    Settings,
    Tiles,
    Extras,
}

/// Where in the header the number of decoding sequences and that of sampled rows stand.
pub(crate) const DECODING_AT: usize = 16;
pub(crate) const ROWS_AT: usize = 17;
const HEADER_INTS: usize = 32;

/// Offsets and sizes of the parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepLayout {
    pub at: [u32; STEP_PARTS],
    room: [usize; STEP_PARTS],
    pub bytes: usize,
    /// Queries of one sequence that a block of the prompt kernel takes.
    pub tile: usize,
}

impl StepLayout {
    pub fn new(spec: &ModelSpec, options: &CudaOptions) -> Self {
        let (tokens, slots) = (options.max_num_batched_tokens, options.max_num_seqs);
        // Padded to the next size of a graph.
        let (tokens, rows) = (tokens.max(slots) + 256, slots + 256);
        let columns = if spec.head_dim <= 64 { 128 } else { 64 };
        let tile = columns / (spec.num_heads / spec.num_kv_heads).max(1);
        let ints = [
            HEADER_INTS,
            tokens,
            tokens,
            tokens,
            slots * 4,
            slots * options.max_model_len.div_ceil(BLOCK_SIZE),
            rows,
            rows,
            rows * size_of::<RowSettings>() / 4,
            2 * (tokens / tile + slots),
            slots * (spec.vocab_size.div_ceil(32) + 512),
            0,
        ];
        let mut layout = Self {
            at: [0; STEP_PARTS],
            room: [0; STEP_PARTS],
            bytes: 0,
            tile,
        };
        for (part, ints) in ints.into_iter().enumerate() {
            layout.at[part] = layout.bytes as u32;
            layout.room[part] = ints;
            layout.bytes += (ints * 4).next_multiple_of(256);
        }
        layout
    }

    pub fn at(&self, part: Part) -> u64 {
        u64::from(self.at[part as usize])
    }
}

/// Numbers of things in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StepSize {
    pub tokens: usize,
    /// Sequences with one token; they come first.
    pub decoding: usize,
    pub rows: usize,
    /// Blocks of the prompt kernel for each key head.
    pub tiles: usize,
    /// Each token is sampled, in order.
    pub all_sampled: bool,
}

/// The arrays of one step, filled anew each time.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    places: Vec<i32>,
    sequences: Vec<i32>,
    blocks: Vec<i32>,
    rows: Vec<i32>,
    wanted: Vec<i32>,
    settings: Vec<RowSettings>,
    tiles: Vec<i32>,
    extras: Vec<i32>,
    /// Slot and row of each sampled sequence, in the step's order.
    pub samples: Vec<(usize, usize)>,
}

/// What a step is checked against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    pub max_model_len: usize,
    pub vocab_size: usize,
    pub num_blocks: usize,
}

impl Batch {
    /// Fills the arrays. Nothing outside `self` has changed when this fails.
    pub fn fill(
        &mut self,
        step: &Step,
        slots: &Slots,
        bounds: &Bounds,
        layout: &StepLayout,
    ) -> Result<StepSize, String> {
        self.clear();
        let total: usize = step.sequences.iter().map(|s| s.tokens.len()).sum();
        if total > bounds.max_num_batched_tokens || step.sequences.len() > bounds.max_num_seqs {
            return Err(format!(
                "a step of {total} tokens in {} sequences; the limits are {} and {}",
                step.sequences.len(),
                bounds.max_num_batched_tokens,
                bounds.max_num_seqs
            ));
        }
        let single = |s: &&StepSequence| s.tokens.len() == 1;
        let mut row_of_slot = vec![None; bounds.max_num_seqs];
        for sequence in step.sequences.iter().filter(single) {
            self.push(sequence, slots, bounds, &mut row_of_slot)?;
        }
        let decoding = self.tokens.len();
        for sequence in step.sequences.iter().filter(|s| !single(s)) {
            let number = (self.sequences.len() / 4) as i32;
            for first in (0..sequence.tokens.len()).step_by(layout.tile) {
                self.tiles.extend([number, first as i32]);
            }
            self.push(sequence, slots, bounds, &mut row_of_slot)?;
        }
        let sampled = step.sequences.iter().filter(|s| s.sample);
        let with_row = sampled.filter_map(|s| Some((s.slot, row_of_slot[s.slot]?)));
        self.samples.extend(with_row);
        if self.extras.len() > layout.room[Part::Extras as usize] {
            return Err("more biases and masks in one step than there is room for".to_owned());
        }
        Ok(StepSize {
            tokens: self.tokens.len(),
            decoding,
            rows: self.rows.len(),
            tiles: self.tiles.len() / 2,
            all_sampled: self.rows.len() == self.tokens.len(),
        })
    }

    fn clear(&mut self) {
        for list in [
            &mut self.tokens,
            &mut self.positions,
            &mut self.places,
            &mut self.sequences,
            &mut self.blocks,
            &mut self.rows,
            &mut self.wanted,
            &mut self.tiles,
            &mut self.extras,
        ] {
            list.clear();
        }
        self.settings.clear();
        self.samples.clear();
    }

    fn push(
        &mut self,
        sequence: &StepSequence,
        slots: &Slots,
        bounds: &Bounds,
        row_of_slot: &mut [Option<usize>],
    ) -> Result<(), String> {
        let (slot, count) = (sequence.slot, sequence.tokens.len());
        let Some(row) = row_of_slot.get_mut(slot) else {
            return Err(format!("there is no slot {slot}"));
        };
        let end = sequence.start.saturating_add(count);
        if count == 0 || end > bounds.max_model_len {
            return Err(format!(
                "{count} tokens at position {}; sequences have 1 to {}",
                sequence.start, bounds.max_model_len
            ));
        }
        let needed = end.div_ceil(BLOCK_SIZE);
        let known = |block: &u32| (*block as usize) < bounds.num_blocks;
        let Some(blocks) = sequence.blocks.get(..needed) else {
            return Err(format!(
                "{} blocks for {end} positions",
                sequence.blocks.len()
            ));
        };
        if !blocks.iter().all(known) {
            let most = bounds.num_blocks;
            return Err(format!("a block outside the pool of {most}"));
        }
        match &sequence.tokens {
            StepTokens::Known(ids) => {
                if let Some(id) = ids.iter().find(|id| **id as usize >= bounds.vocab_size) {
                    let most = bounds.vocab_size;
                    return Err(format!("token {id} is outside the vocabulary of {most}"));
                }
                self.tokens.extend(ids.iter().map(|id| *id as i32));
            }
            StepTokens::LastSampled => match sequence.admission.as_ref().map(|a| a.output.last()) {
                // Sampled before a preemption, in another slot perhaps.
                Some(Some(last)) => self.tokens.push(*last as i32),
                None if slots.has_sampled(slot) => self.tokens.push(-1 - slot as i32),
                _ => return Err(format!("slot {slot} has sampled nothing yet")),
            },
            StepTokens::Speculative(_) => {
                return Err("drafts, which this executor does not verify".to_owned());
            }
        }
        let first = self.positions.len() as i32;
        let table = self.blocks.len() as i32;
        self.sequences
            .extend([first, count as i32, sequence.start as i32, table]);
        self.blocks.extend(blocks.iter().map(|block| *block as i32));
        for position in sequence.start..end {
            self.positions.push(position as i32);
            let block = blocks[position / BLOCK_SIZE] as usize;
            self.places
                .push((block * BLOCK_SIZE + position % BLOCK_SIZE) as i32);
        }
        if sequence.sample {
            *row = Some(self.rows.len());
            self.rows.push(first + count as i32 - 1);
            let settings = slots.settings(sequence, bounds.vocab_size, &mut self.extras);
            self.wanted.push(i32::from(settings.plain == 0));
            self.settings.push(settings);
        }
        Ok(())
    }

    /// Adds tokens that nobody asked for, up to the size of a graph. They write into block
    /// `scratch`, which belongs to no sequence.
    pub fn pad(&mut self, size: usize, scratch: usize) {
        for i in self.tokens.len()..size {
            self.tokens.push(0);
            self.positions.push(0);
            self.places
                .push((scratch * BLOCK_SIZE + i % BLOCK_SIZE) as i32);
        }
        self.wanted.resize(size.max(self.wanted.len()), 0);
    }

    /// Writes the arrays one after the other, as the GPU takes them, and returns how many bytes that are.
    pub fn write(&self, size: &StepSize, to: &mut [u8]) -> usize {
        let parts: [(Part, &[u8]); 10] = [
            (Part::Tokens, bytes_of(&self.tokens)),
            (Part::Positions, bytes_of(&self.positions)),
            (Part::Places, bytes_of(&self.places)),
            (Part::Sequences, bytes_of(&self.sequences)),
            (Part::Blocks, bytes_of(&self.blocks)),
            (Part::Rows, bytes_of(&self.rows)),
            (Part::Wanted, bytes_of(&self.wanted)),
            (Part::Settings, bytes_of(&self.settings)),
            (Part::Tiles, bytes_of(&self.tiles)),
            (Part::Extras, bytes_of(&self.extras)),
        ];
        let mut header = [0i32; HEADER_INTS];
        header[Part::Header as usize] = (HEADER_INTS * 4) as i32;
        header[DECODING_AT] = size.decoding as i32;
        header[ROWS_AT] = size.rows as i32;
        let mut at = HEADER_INTS * 4;
        for (part, bytes) in parts {
            to[at..at + bytes.len()].copy_from_slice(bytes);
            header[part as usize] = bytes.len() as i32;
            at += bytes.len().next_multiple_of(16);
        }
        to[..HEADER_INTS * 4].copy_from_slice(bytes_of(&header));
        at
    }
}
