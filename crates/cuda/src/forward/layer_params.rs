//! What the kernels of a layer are told.

use powerband_model::spec::Activation;

use super::Forward;
use crate::model::gate_up_rows;
use crate::options::kv_kind;
use crate::params::{ADD_RESIDUAL, AttentionParams, GATE, GemmParams, LayerParams, STORE_QKV};
use crate::step::{BLOCK_SIZE, DECODING_AT, Part};

impl Forward {
    fn layer_cache(&self, number: usize) -> u64 {
        let element = self.cache.dtype.bytes();
        let block = 2 * self.model.spec.kv_dim() * BLOCK_SIZE * element;
        self.cache.at + (number * (self.cache.num_blocks + 1) * block) as u64
    }

    /// What the products and the attention of a layer are told, but for the number of tokens.
    pub(super) fn layer_params(
        &self,
        number: usize,
        square_parts: usize,
        splits: usize,
    ) -> LayerParams {
        let (spec, b) = (&self.model.spec, &self.buffers);
        let layer = &self.model.layers[number];
        let (d, q, kv) = (spec.hidden_size, spec.q_dim(), spec.kv_dim());
        let (rows, ff) = (gate_up_rows(spec), spec.intermediate_size);
        let of = |weight, rows: usize, cols: usize, params| GemmParams {
            weight,
            row_tiles: rows.div_ceil(64) as i32,
            k_tiles: cols.div_ceil(64) as i32,
            ..params
        };
        let qkv = GemmParams {
            input: b.next,
            epilogue: STORE_QKV,
            bias: layer.qkv_bias,
            query: b.query,
            raw: if spec.qk_norm { b.raw } else { 0 },
            cache: self.layer_cache(number),
            positions: self.part(Part::Positions),
            places: self.part(Part::Places),
            rope: self.model.rope,
            q_dim: q as i32,
            kv_dim: kv as i32,
            head_dim: spec.head_dim as i32,
            rotary: spec.rope.rotary_dim as i32,
            kv_kind: kv_kind(self.cache.dtype),
            ..self.normed(square_parts)
        };
        let residual = |input, next_norm| GemmParams {
            input,
            epilogue: ADD_RESIDUAL,
            square_stride: b.most_tokens as i32,
            hidden: b.hidden,
            next: b.next,
            next_norm,
            squares_out: b.squares,
            width: d as i32,
            next_tiles: d.div_ceil(64) as i32,
            ..GemmParams::default()
        };
        let gate_up = GemmParams {
            input: b.next,
            epilogue: GATE,
            gated: b.gated,
            gated_tiles: ff.div_ceil(64) as i32,
            gelu: i32::from(spec.activation == Activation::GeluTanh),
            gated_width: ff as i32,
            ..self.normed(square_parts)
        };
        let following = self.model.layers.get(number + 1);
        let after = following.map_or(self.model.final_norm, |next| next.attention_norm);
        LayerParams {
            products: [
                of(layer.qkv, q + 2 * kv, d, qkv),
                of(layer.output, d, q, residual(b.attended, layer.mlp_norm)),
                of(layer.gate_up, rows, d, gate_up),
                of(layer.down, d, ff, residual(b.gated, after)),
                GemmParams::default(),
            ],
            attention: self.attention_params(number, splits),
            ..LayerParams::default()
        }
    }

    /// Parameters of a product whose input still lacks its norm's factor.
    pub(super) fn normed(&self, square_parts: usize) -> GemmParams {
        let spec = &self.model.spec;
        GemmParams {
            squares: self.buffers.squares,
            square_tiles: (spec.hidden_size.div_ceil(64) * square_parts) as i32,
            square_stride: self.buffers.most_tokens as i32,
            inv_width: 1.0 / spec.hidden_size as f32,
            eps: spec.norm_eps,
            ..GemmParams::default()
        }
    }

    fn attention_params(&self, number: usize, splits: usize) -> AttentionParams {
        let (spec, b) = (&self.model.spec, &self.buffers);
        let window = match spec.is_sliding(number) {
            true => spec.sliding_window.unwrap_or(0),
            false => 0,
        };
        AttentionParams {
            query: b.query,
            cache: self.layer_cache(number),
            out: b.attended,
            blocks: self.part(Part::Blocks),
            sequences: self.part(Part::Sequences),
            count: self.header(DECODING_AT),
            tiles: self.part(Part::Tiles),
            partial: b.partial,
            arrived: b.arrived,
            q_dim: spec.q_dim() as i32,
            kv_dim: spec.kv_dim() as i32,
            heads: spec.num_heads as i32,
            out_tiles: spec.q_dim().div_ceil(64) as i32,
            splits: splits as i32,
            window: i32::try_from(window).unwrap_or(0),
            kv_kind: kv_kind(self.cache.dtype),
            scale: spec.attention_scale * std::f32::consts::LOG2_E,
            ..AttentionParams::default()
        }
    }
}
