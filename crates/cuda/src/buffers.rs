//! Where everything lies in the GPU's memory. A layout is a function of the settings: made once
//! from address 0 to learn its size, and once more from the address of the allocation.

use powerband_model::ModelSpec;

use crate::flow::Flow;
use crate::forward::RING;
use crate::options::CudaOptions;
use crate::params::LayerParams;
use crate::step::StepLayout;

/// Hands out addresses one after the other.
#[derive(Debug)]
pub(crate) struct Places {
    next: u64,
}

impl Places {
    pub fn from(base: u64) -> Self {
        Self { next: base }
    }

    pub fn take(&mut self, bytes: usize) -> u64 {
        let at = self.next.next_multiple_of(1024);
        self.next = at + bytes as u64;
        at
    }

    pub fn end(&self) -> u64 {
        self.next
    }
}

/// Parts of 64 columns that have sums of squares of their own, at most.
pub(crate) const SQUARE_PARTS: usize = 4;

/// Bytes of a matrix in tiles of 64 by 64.
pub(crate) fn tiled_bytes(rows: usize, cols: usize) -> usize {
    rows.div_ceil(64) * cols.div_ceil(64) * 8192
}

/// Sums, activations and what sampling keeps.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Buffers {
    /// Tokens of a step, rounded up.
    pub most_tokens: usize,
    /// Parts that share one sequence's context at most.
    pub most_splits: usize,
    pub hidden: u64,
    pub next: u64,
    pub squares: u64,
    pub query: u64,
    pub raw: u64,
    pub attended: u64,
    pub gated: u64,
    pub gathered: u64,
    pub gathered_squares: u64,
    pub logits: u64,
    pub best_value: u64,
    pub best_index: u64,
    pub partial: u64,
    pub arrived: u64,
    pub counts: u64,
    pub last: u64,
    pub turn: u64,
    pub done: u64,
    /// `LayerParams` of all layers, and how often blocks have met.
    pub layers: u64,
    pub met: u64,
    /// What the blocks of the kernel of all layers hand each other.
    pub flow: u64,
    /// A ring of packed steps, and the one whose turn it is, spread out.
    pub packed: u64,
    pub step: u64,
    pub end: u64,
}

/// Parts that the context of each of `sequences` is shared by at most.
pub(crate) fn splits(spec: &ModelSpec, sequences: usize, max_model_len: usize) -> usize {
    let most = max_model_len.div_ceil(512).clamp(1, 32);
    (1024 / (sequences * spec.num_kv_heads).max(1)).clamp(1, most)
}

impl Buffers {
    pub fn new(base: u64, spec: &ModelSpec, options: &CudaOptions, layout: &StepLayout) -> Self {
        let tokens = options.max_num_batched_tokens.next_multiple_of(256);
        let rows = options.max_num_seqs.next_multiple_of(256);
        let (d, slots) = (spec.hidden_size, options.max_num_seqs);
        let (tiles, vocab_tiles) = (d.div_ceil(64), spec.vocab_size.div_ceil(64));
        let raw = if spec.qk_norm {
            spec.q_dim() + 2 * spec.kv_dim()
        } else {
            0
        };
        let most = (1..=slots)
            .map(|n| n * splits(spec, n, options.max_model_len))
            .max()
            .unwrap_or(1);
        // A best token for each tile of rows, or for each block.
        let best = vocab_tiles.max(1024);
        let mut places = Places::from(base);
        let mut take = |bytes| places.take(bytes);
        let mut this = Self {
            most_tokens: tokens,
            most_splits: splits(spec, 1, options.max_model_len),
            hidden: take(tokens * d * 4),
            next: take(tiled_bytes(tokens, d)),
            squares: take(SQUARE_PARTS * tiles * tokens * 4),
            query: take(tokens * spec.q_dim() * 2),
            raw: take(tokens * raw * 4),
            attended: take(tiled_bytes(tokens, spec.q_dim())),
            gated: take(tiled_bytes(tokens, spec.intermediate_size)),
            gathered: take(tiled_bytes(rows, d)),
            gathered_squares: take(SQUARE_PARTS * tiles * tokens * 4),
            logits: take(slots * spec.vocab_size * 4),
            best_value: take(rows * best * 4),
            best_index: take(rows * best * 4),
            partial: take(most * spec.num_heads * (spec.head_dim + 2) * 4),
            arrived: take(slots * spec.num_kv_heads * 4),
            counts: take(slots * spec.vocab_size * 2),
            last: take(slots * 4),
            turn: take(4),
            done: take(4),
            layers: take(spec.num_layers * size_of::<LayerParams>()),
            met: take(4),
            flow: take(Flow::new(0, spec).bytes()),
            packed: take(RING * layout.bytes),
            step: take(layout.bytes),
            end: 0,
        };
        this.end = places.end();
        this
    }
}
