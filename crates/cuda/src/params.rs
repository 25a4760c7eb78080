//! The structures that kernels take, field by field as `kernels/*.cuh` declare them. Addresses are
//! `u64`.

use crate::driver::TensorMap;

/// Parts of a step; `STEP_PARTS` in `rows.cuh`.
pub(crate) const STEP_PARTS: usize = 12;
/// Most log-probabilities beside the sampled one's.
pub(crate) const MOST_LOGPROBS: usize = 20;

macro_rules! plain {
    ($($(#[$doc:meta])* struct $name:ident { $($field:ident: $type:ty,)* })*) => { $(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy)]
        pub(crate) struct $name { $(pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                // SAFETY: integers, floats and arrays of them; all zeros is a value of each.
                unsafe { std::mem::zeroed() }
            }
        }
    )* };
}

plain! {
    /// `epilogue.cuh`
    struct GemmParams {
        weight: u64,
        input: u64,
        squares: u64,
        k_tiles: i32,
        row_tiles: i32,
        tokens: i32,
        stages: i32,
        epilogue: i32,
        square_tiles: i32,
        square_stride: i32,
        inv_width: f32,
        eps: f32,
        hidden: u64,
        next: u64,
        next_norm: u64,
        squares_out: u64,
        width: i32,
        next_tiles: i32,
        bias: u64,
        query: u64,
        raw: u64,
        cache: u64,
        positions: u64,
        places: u64,
        rope: u64,
        q_dim: i32,
        kv_dim: i32,
        head_dim: i32,
        rotary: i32,
        kv_kind: i32,
        gated: u64,
        gated_tiles: i32,
        gelu: i32,
        gated_width: i32,
        logits: u64,
        wanted: u64,
        best_value: u64,
        best_index: u64,
        vocab: i32,
        softcap: f32,
    }
    /// `attention.cuh`
    struct AttentionParams {
        query: u64,
        cache: u64,
        out: u64,
        blocks: u64,
        sequences: u64,
        count: u64,
        tiles: u64,
        partial: u64,
        arrived: u64,
        q_dim: i32,
        kv_dim: i32,
        heads: i32,
        out_tiles: i32,
        splits: i32,
        window: i32,
        kv_kind: i32,
        scale: f32,
        warps: i32,
        most: i32,
    }
    /// `flow.cuh`
    struct FlowParams {
        clear: u64,
        clear_squares: u64,
        in_stride: i32,
        in_step: i32,
        out_stride: i32,
        out_step: i32,
        leaves: i32,
        padding: i32,
    }
    /// `flow.cuh`; query/key/value, output, gate and up, down; after the last layer the head
    struct LayerParams {
        products: [GemmParams; 5],
        attention: AttentionParams,
        flow: [FlowParams; 5],
        clear_attended: u64,
    }
    /// `layers.cuh`
    struct LayersParams {
        weights: [TensorMap; 5],
        layers: u64,
        met: u64,
        row_tiles: [i32; 5],
        k_tiles: [i32; 5],
        first: [i32; 5],
        pairs: [i32; 5],
        count: i32,
        tokens: i32,
        splits: i32,
        kv_heads: i32,
        head: i32,
        pace: i32,
    }
    /// `wide.cuh`
    struct WideParams {
        weights: [u64; 5],
        stride: u64,
        layers: u64,
        met: u64,
        sums: [[u64; 4]; 2],
        factors: u64,
        row_tiles: [i32; 5],
        k_tiles: [i32; 5],
        first: [i32; 5],
        parts: [i32; 5],
        count: i32,
        tokens: i32,
        splits: i32,
        kv_heads: i32,
        head: i32,
        pace: i32,
        quiet: i32,
        attends: i32,
        depth: i32,
        padding: i32,
    }
    /// `pack.cuh`
    struct PackParams {
        from: u64,
        to: u64,
        rows: i32,
        cols: i32,
        source: i32,
        first_row: i32,
        row_offset: i32,
        col_tiles: i32,
        head_dim: i32,
        half: i32,
        group: i32,
        lane: i32,
        deviation: f32,
        seed: u64,
    }
    /// `rows.cuh`
    struct StepParams {
        packed: u64,
        step: u64,
        turn: u64,
        stride: u32,
        at: [u32; STEP_PARTS],
    }
    /// `rows.cuh`
    struct RowsParams {
        embedding: u64,
        tokens: u64,
        last: u64,
        hidden: u64,
        next: u64,
        next_norm: u64,
        squares: u64,
        width: i32,
        next_tiles: i32,
        square_stride: i32,
        scale: f32,
        square_parts: i32,
        format: i32,
        rows: u64,
        gathered: u64,
        gathered_squares: u64,
        met: u64,
        flow_next: u64,
        absent_next: u64,
        absent_squares: u64,
        flow_codes: i32,
    }
    /// `rows.cuh`
    struct HeadsParams {
        raw: u64,
        query: u64,
        cache: u64,
        positions: u64,
        places: u64,
        rope: u64,
        q_norm: u64,
        k_norm: u64,
        q_dim: i32,
        kv_dim: i32,
        head_dim: i32,
        rotary: i32,
        kv_kind: i32,
        eps: f32,
    }
    /// `sample.cuh`
    struct SampleParams {
        logits: u64,
        best_value: u64,
        best_index: u64,
        settings: u64,
        extras: u64,
        counts: u64,
        last: u64,
        results: u64,
        rows: u64,
        turn: u64,
        done: u64,
        vocab: i32,
        tiles: i32,
        ring: i32,
        results_stride: u32,
    }
    /// `sample.cuh`
    struct RowSettings {
        slot: i32,
        plain: i32,
        temperature: f32,
        top_k: i32,
        top_p: f32,
        min_p: f32,
        repetition: f32,
        presence: f32,
        frequency: f32,
        counted: i32,
        seed_low: u32,
        seed_high: u32,
        draw: u32,
        logprobs: i32,
        bias_at: i32,
        biases: i32,
        mask_at: i32,
        padding: [i32; 3],
    }
    /// `sample.cuh`
    struct RowResult {
        token: i32,
        logprob: f32,
        top_tokens: [i32; MOST_LOGPROBS],
        top_logprobs: [f32; MOST_LOGPROBS],
        padding: [i32; 2],
    }
}

/// `GemmParams::epilogue`
pub(crate) const STORE_QKV: i32 = 0;
pub(crate) const ADD_RESIDUAL: i32 = 1;
pub(crate) const GATE: i32 = 2;
pub(crate) const LOGITS: i32 = 3;

/// `PackParams::source`
pub(crate) const FROM_F32: i32 = 0;
pub(crate) const FROM_F16: i32 = 1;
pub(crate) const FROM_BF16: i32 = 2;
pub(crate) const FROM_NOTHING: i32 = 3;
pub(crate) const FROM_BLOCKS: i32 = 4;
pub(crate) const FROM_Q4_K: i32 = 5;

/// The bytes of a structure of numbers.
pub(crate) fn bytes_of<T: Copy>(values: &[T]) -> &[u8] {
    // SAFETY: the types here have no padding that is not a field; any byte may be read.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_travels_in_arrays_is_whole_vectors() {
        assert_eq!(size_of::<RowSettings>(), 80);
        assert_eq!(size_of::<RowResult>(), 176);
        assert_eq!(size_of::<StepParams>() % 8, 0);
    }
}
