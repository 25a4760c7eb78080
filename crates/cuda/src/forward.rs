//! One step: few tokens in one kernel for all layers, others kernel by kernel, five to a layer.

use std::collections::HashMap;

use powerband_engine::{EngineError, KvCacheDtype};
use powerband_model::spec::ModelSpec;

use crate::buffers::{Buffers, SQUARE_PARTS, splits};
use crate::driver::{DriverError, Kernel, Module, Shape, Stream};
use crate::formats::Format;
use crate::gemm::{Gemms, Product};
use crate::layers::Layers;
use crate::model::{Layer, Model, gate_up_rows};
use crate::options::kv_kind;
use crate::params::{
    ADD_RESIDUAL, AttentionParams, GATE, GemmParams, HeadsParams, LOGITS, RowResult, RowsParams,
    STORE_QKV, SampleParams, StepParams,
};
use crate::step::{Part, ROWS_AT, StepLayout, StepSize};

mod layer_params;

/// Steps that are packed at once, here and in the host's memory: two in flight, one being written, one spare.
pub(crate) const RING: usize = 4;

/// The kernels that are not matrix products.
#[derive(Debug)]
struct Kernels {
    take_step: Kernel,
    embed: Kernel,
    gather: Kernel,
    norm_heads: Kernel,
    decode: Kernel,
    prompt: Kernel,
    sample: Kernel,
}

/// Keys and values of all layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cache {
    pub at: u64,
    pub dtype: KvCacheDtype,
    /// Without the one that nobody owns, which comes last.
    pub num_blocks: usize,
}

/// Everything that a step needs, by address.
#[derive(Debug)]
pub(crate) struct Forward {
    pub model: Model,
    pub buffers: Buffers,
    pub layout: StepLayout,
    pub cache: Cache,
    pub max_model_len: usize,
    /// A ring in the host's memory: results with their stride.
    pub results: u64,
    pub results_stride: usize,
    pub gemms: Gemms,
    /// All layers as one kernel, where that is possible.
    pub layers: Option<Layers>,
    kernels: Kernels,
    /// Plans to use in place of the estimate's, by tiles of rows and columns and tokens.
    pub overrides: HashMap<(usize, usize, usize), (usize, usize)>,
    /// Leave kernels out, to see what they cost; in benchmarks only.
    pub skip: u32,
}

/// Kinds of kernels, as bits of [`Forward::skip`].
pub(crate) const KIND_QKV: u32 = 1;
pub(crate) const KIND_OUTPUT: u32 = 2;
pub(crate) const KIND_GATE_UP: u32 = 4;
pub(crate) const KIND_DOWN: u32 = 8;
pub(crate) const KIND_HEAD: u32 = 16;
pub(crate) const KIND_ATTENTION: u32 = 32;
pub(crate) const KIND_ROWS: u32 = 64;

/// Blocks of the kernel that attends when decoding that a multiprocessor has at once; in `attention.cuh`.
const DECODE_BLOCKS: usize = 2;

/// What a [`Forward`] is made of.
pub(crate) struct Parts {
    pub model: Model,
    pub buffers: Buffers,
    pub layout: StepLayout,
    pub cache: Cache,
    pub max_model_len: usize,
    pub results: u64,
    pub results_stride: usize,
}

impl Forward {
    pub fn new(stream: &Stream, module: &Module, parts: Parts) -> Result<Self, DriverError> {
        let spec = &parts.model.spec;
        let columns = columns(spec);
        let (kind, head) = (kv_kind(parts.cache.dtype), spec.head_dim);
        let kernel = |name: &str| module.kernel(name, 0);
        let mut this = Self {
            kernels: Kernels {
                take_step: kernel("take_step")?,
                embed: kernel("embed_bf16")?,
                gather: kernel("gather_rows")?,
                norm_heads: kernel("norm_heads_bf16")?,
                decode: kernel(&format!("attend_decode_bf16_{kind}_{head}_{columns}"))?,
                prompt: kernel(&format!("attend_prompt_bf16_{kind}_{head}"))?,
                sample: kernel("sample_rows")?,
            },
            gemms: Gemms::new(&stream.device, module)?,
            layers: None,
            model: parts.model,
            buffers: parts.buffers,
            layout: parts.layout,
            cache: parts.cache,
            max_model_len: parts.max_model_len,
            results: parts.results,
            results_stride: parts.results_stride,
            overrides: HashMap::new(),
            skip: 0,
        };
        let params = (0..this.model.layers.len())
            .map(|number| this.layer_params(number, SQUARE_PARTS, 1))
            .collect();
        let head = this.head_params(SQUARE_PARTS);
        this.layers = Layers::new(stream, module, &this.model, &this.buffers, params, head)?;
        Ok(this)
    }

    /// The kernel for all layers, if it computes a step of that size.
    fn as_one(&self, size: StepSize) -> Option<&Layers> {
        let layers = self.layers.as_ref()?;
        let decodes = size.tiles == 0 && size.decoding == size.tokens && size.all_sampled;
        let whole = self.skip == 0;
        (decodes && whole && layers.takes(size.tokens)).then_some(layers)
    }

    /// Sums of squares that a step keeps for 64 columns.
    fn square_parts(&self, size: StepSize) -> usize {
        match size.tokens <= self.gemms.skinny || self.as_one(size).is_some() {
            true => SQUARE_PARTS,
            false => 1,
        }
    }

    fn part(&self, part: Part) -> u64 {
        self.buffers.step + self.layout.at(part)
    }

    fn header(&self, int: usize) -> u64 {
        self.part(Part::Header) + 4 * int as u64
    }

    /// Launches a step of that size, which lies in the ring.
    pub fn launch(&self, stream: &Stream, size: StepSize) -> Result<(), EngineError> {
        let failed = |error: DriverError| EngineError::Executor(error.to_string());
        self.begin(stream, size).map_err(failed)?;
        let one = self.as_one(size);
        match one {
            Some(layers) => layers
                .launch(stream, size.tokens, self.splits(size))
                .map_err(failed)?,
            None => {
                for (number, layer) in self.model.layers.iter().enumerate() {
                    self.layer(stream, size, number, layer)?;
                }
            }
        }
        let bests = match one {
            // One for each block.
            Some(layers) if layers.with_head() => stream.device.multiprocessors,
            _ => self.head(stream, size)?,
        };
        self.sample(stream, size, bests).map_err(failed)
    }

    fn begin(&self, stream: &Stream, size: StepSize) -> Result<(), DriverError> {
        let params = StepParams {
            packed: self.buffers.packed,
            step: self.buffers.step,
            turn: self.buffers.turn,
            stride: self.layout.bytes as u32,
            at: self.layout.at,
        };
        if self.skip & KIND_ROWS != 0 {
            return Ok(());
        }
        stream.launch(&self.kernels.take_step, Shape::of((16, 1, 1), 256), &params)?;
        // A warp for each tile of columns: one after the other they would wait for the embedding in turn.
        let threads = (32 * self.model.spec.hidden_size.div_ceil(64)).min(1024);
        let shape = Shape::of((size.tokens, 1, 1), threads as u32);
        stream.launch(&self.kernels.embed, shape, &self.rows(size))
    }

    fn rows(&self, size: StepSize) -> RowsParams {
        let (spec, b) = (&self.model.spec, &self.buffers);
        let first = self.model.layers.first();
        let ends = self.as_one(size).map(|layers| layers.ends);
        let ([flow_next, absent_next, absent_squares], codes) = ends.unwrap_or_default();
        RowsParams {
            embedding: self.model.embedding,
            tokens: self.part(Part::Tokens),
            last: b.last,
            hidden: b.hidden,
            next: b.next,
            next_norm: first.map_or(self.model.final_norm, |layer| layer.attention_norm),
            squares: b.squares,
            width: spec.hidden_size as i32,
            next_tiles: spec.hidden_size.div_ceil(64) as i32,
            square_stride: b.most_tokens as i32,
            scale: spec.embedding_scale,
            square_parts: self.square_parts(size) as i32,
            format: self.model.formats.embedding.id(),
            rows: self.part(Part::Rows),
            gathered: b.gathered,
            gathered_squares: b.gathered_squares,
            met: b.met,
            flow_next,
            absent_next,
            absent_squares,
            flow_codes: i32::from(codes),
        }
    }

    fn layer(
        &self,
        stream: &Stream,
        size: StepSize,
        number: usize,
        layer: &Layer,
    ) -> Result<(), EngineError> {
        let failed = |error: DriverError| EngineError::Executor(error.to_string());
        let params = self.layer_params(number, self.square_parts(size), self.splits(size));
        let [qkv, output, gate_up, down, _] = params.products;
        let formats = &layer.formats;
        self.multiply(stream, KIND_QKV, formats.qkv, size.tokens, qkv)?;
        if self.model.spec.qk_norm {
            self.norm_heads(stream, size, layer, qkv.cache)
                .map_err(failed)?;
        }
        self.attend(stream, size, &params.attention)
            .map_err(failed)?;
        self.multiply(stream, KIND_OUTPUT, formats.output, size.tokens, output)?;
        self.multiply(stream, KIND_GATE_UP, formats.gate_up, size.tokens, gate_up)?;
        self.multiply(stream, KIND_DOWN, formats.down, size.tokens, down)?;
        Ok(())
    }

    /// The size of a product, for measuring.
    pub fn product(&self, kind: u32, tokens: usize) -> Product {
        let spec = &self.model.spec;
        let d = spec.hidden_size;
        let (rows, cols, epilogue) = match kind {
            KIND_QKV => (spec.q_dim() + 2 * spec.kv_dim(), d, STORE_QKV),
            KIND_OUTPUT => (d, spec.q_dim(), ADD_RESIDUAL),
            KIND_GATE_UP => (gate_up_rows(spec), d, GATE),
            KIND_DOWN => (d, spec.intermediate_size, ADD_RESIDUAL),
            _ => (spec.vocab_size, d, LOGITS),
        };
        let layer = self.model.formats.layers.first();
        let format = match kind {
            KIND_QKV => layer.map(|layer| layer.qkv),
            KIND_OUTPUT => layer.map(|layer| layer.output),
            KIND_GATE_UP => layer.map(|layer| layer.gate_up),
            KIND_DOWN => layer.map(|layer| layer.down),
            _ => Some(self.model.formats.head),
        };
        Product {
            format: format.unwrap_or(Format::Bf16),
            row_tiles: rows.div_ceil(64),
            k_tiles: cols.div_ceil(64),
            tokens,
            epilogue,
        }
    }

    /// Returns how many best tokens the head leaves for each row.
    fn multiply(
        &self,
        stream: &Stream,
        kind: u32,
        format: Format,
        tokens: usize,
        mut params: GemmParams,
    ) -> Result<usize, EngineError> {
        if self.skip & kind != 0 {
            return Ok(0);
        }
        let product = Product {
            format,
            row_tiles: params.row_tiles as usize,
            k_tiles: params.k_tiles as usize,
            tokens,
            epilogue: params.epilogue,
        };
        let chosen = self
            .overrides
            .get(&(product.row_tiles, product.k_tiles, tokens));
        let plan = chosen
            .and_then(|&(index, parts)| self.gemms.plan_as(product, index, parts))
            .or_else(|| self.gemms.plan(product));
        let Some(plan) = plan else {
            let reason = "a GPU with so little shared memory a block".to_owned();
            return Err(EngineError::Unsupported(reason));
        };
        params.tokens = tokens as i32;
        params.stages = plan.stages;
        stream
            .launch(&plan.kernel, plan.shape, &params)
            .map_err(|error| EngineError::Executor(error.to_string()))?;
        // Best tokens of a row: one for each tile, or one for each block.
        Ok(plan.bests(product))
    }

    fn norm_heads(
        &self,
        stream: &Stream,
        size: StepSize,
        layer: &Layer,
        cache: u64,
    ) -> Result<(), DriverError> {
        let (spec, b) = (&self.model.spec, &self.buffers);
        let params = HeadsParams {
            raw: b.raw,
            query: b.query,
            cache,
            positions: self.part(Part::Positions),
            places: self.part(Part::Places),
            rope: self.model.rope,
            q_norm: layer.q_norm,
            k_norm: layer.k_norm,
            q_dim: spec.q_dim() as i32,
            kv_dim: spec.kv_dim() as i32,
            head_dim: spec.head_dim as i32,
            rotary: spec.rope.rotary_dim as i32,
            kv_kind: kv_kind(self.cache.dtype),
            eps: spec.norm_eps,
        };
        let shape = Shape::of((size.tokens, 1, 1), 256);
        stream.launch(&self.kernels.norm_heads, shape, &params)
    }

    /// Parts that share a sequence's context when a step of that size decodes.
    fn splits(&self, size: StepSize) -> usize {
        splits(&self.model.spec, size.decoding, self.max_model_len).min(self.buffers.most_splits)
    }

    fn attend(
        &self,
        stream: &Stream,
        size: StepSize,
        params: &AttentionParams,
    ) -> Result<(), DriverError> {
        if self.skip & KIND_ATTENTION != 0 {
            return Ok(());
        }
        let spec = &self.model.spec;
        if size.decoding > 0 {
            let most = decode_warps(spec);
            let there = DECODE_BLOCKS * most * stream.device.multiprocessors;
            let warps = item_warps(size.decoding * spec.num_kv_heads, most, there);
            let sequences = size.decoding.div_ceil(most / warps);
            let grid = (spec.num_kv_heads, sequences, params.splits as usize);
            let params = AttentionParams {
                warps: warps as i32,
                most: size.decoding as i32,
                ..*params
            };
            let shape = Shape::of(grid, 32 * most as u32);
            stream.launch(&self.kernels.decode, shape, &params)?;
        }
        if size.tiles > 0 {
            let grid = (size.tiles, spec.num_kv_heads, 1);
            stream.launch(&self.kernels.prompt, Shape::of(grid, 128), params)?;
        }
        Ok(())
    }

    /// What the head is told, but for the number of tokens.
    fn head_params(&self, square_parts: usize) -> GemmParams {
        let (spec, b) = (&self.model.spec, &self.buffers);
        GemmParams {
            weight: self.model.head,
            row_tiles: spec.vocab_size.div_ceil(64) as i32,
            k_tiles: spec.hidden_size.div_ceil(64) as i32,
            input: b.next,
            epilogue: LOGITS,
            logits: b.logits,
            wanted: self.part(Part::Wanted),
            best_value: b.best_value,
            best_index: b.best_index,
            vocab: spec.vocab_size as i32,
            softcap: spec.logit_softcap.unwrap_or(0.0),
            ..self.normed(square_parts)
        }
    }

    /// Returns how many best tokens each row has.
    fn head(&self, stream: &Stream, size: StepSize) -> Result<usize, EngineError> {
        if size.rows == 0 {
            return Ok(0);
        }
        let mut params = self.head_params(self.square_parts(size));
        if !size.all_sampled {
            let shape = Shape::of((size.rows, 1, 1), 128);
            stream
                .launch(&self.kernels.gather, shape, &self.rows(size))
                .map_err(|error| EngineError::Executor(error.to_string()))?;
            params.input = self.buffers.gathered;
            params.squares = self.buffers.gathered_squares;
        }
        let format = self.model.formats.head;
        self.multiply(stream, KIND_HEAD, format, size.rows, params)
    }

    fn sample(&self, stream: &Stream, size: StepSize, bests: usize) -> Result<(), DriverError> {
        if self.skip & KIND_ROWS != 0 {
            return Ok(());
        }
        let (spec, b) = (&self.model.spec, &self.buffers);
        let params = SampleParams {
            logits: b.logits,
            best_value: b.best_value,
            best_index: b.best_index,
            settings: self.part(Part::Settings),
            extras: self.part(Part::Extras),
            counts: b.counts,
            last: b.last,
            results: self.results,
            rows: self.header(ROWS_AT),
            turn: b.turn,
            done: b.done,
            vocab: spec.vocab_size as i32,
            tiles: bests as i32,
            ring: RING as i32,
            results_stride: self.results_stride as u32,
        };
        // Blocks that share a row, as many as find room beside each other.
        let team = match size.rows {
            _ if !stream.device.has_clusters() => 1,
            0..=16 => 8,
            17..=32 => 4,
            33..=64 => 2,
            _ => 1,
        };
        let shape = Shape {
            cluster: team,
            ..Shape::of((size.rows.max(1) * team as usize, 1, 1), 1024)
        };
        stream.launch(&self.kernels.sample, shape, &params)
    }
}

/// Tiles of eight query heads that share a key head.
fn columns(spec: &ModelSpec) -> usize {
    if spec.num_heads / spec.num_kv_heads > 8 {
        2
    } else {
        1
    }
}

/// Warps of a block of the kernel that attends when decoding: `DECODE_WARPS` in `attention.cuh`.
fn decode_warps(spec: &ModelSpec) -> usize {
    match spec.head_dim * columns(spec) > 128 {
        true => 4,
        false => 8,
    }
}

/// Of the `most` warps of a block as many as have one of `items`, a key/value head of a short sequence, together: a power of
/// two, so that all items are at once on a GPU that has `there` such warps. Eight only where half of the GPU is enough:
/// they find little to do, and what each has must be brought together.
fn item_warps(items: usize, most: usize, there: usize) -> usize {
    let each = there / items.max(1);
    let most = if each < 16 { most.min(4) } else { most };
    1 << each.clamp(1, most).ilog2()
}

/// Bytes of the results of one step.
pub(crate) fn results_bytes(max_num_seqs: usize) -> usize {
    (max_num_seqs * size_of::<RowResult>()).next_multiple_of(256)
}

#[cfg(test)]
mod tests {
    use super::item_warps;

    #[test]
    fn the_more_sequences_the_fewer_warps_have_one() {
        let warps = |sequences: usize| item_warps(sequences * 8, 8, 2 * 8 * 132);
        assert_eq!(
            [1, 16, 17, 66, 67, 132, 133, 1000].map(warps),
            [8, 8, 4, 4, 2, 2, 1, 1]
        );
        assert_eq!(item_warps(8, 4, 2 * 4 * 132), 4);
    }
}
