//! One step, kernel by kernel: five to a layer.

use std::collections::HashMap;

use powerband_engine::{EngineError, KvCacheDtype};
use powerband_model::spec::{Activation, ModelSpec};

use crate::buffers::{Buffers, splits};
use crate::driver::{DriverError, Kernel, Module, Shape, Stream};
use crate::formats::Format;
use crate::gemm::{Gemms, Product};
use crate::model::{Layer, Model, gate_up_rows};
use crate::options::kv_kind;
use crate::params::{
    ADD_RESIDUAL, AttentionParams, GATE, GemmParams, HeadsParams, LOGITS, RowResult, RowsParams,
    STORE_QKV, SampleParams, StepParams,
};
use crate::step::{BLOCK_SIZE, DECODING_AT, Part, ROWS_AT, StepLayout, StepSize};

/// Steps that the host's memory holds: two in flight, one being written, one spare.
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
    /// Rings in the host's memory: steps, and results with their stride.
    pub steps: u64,
    pub results: u64,
    pub results_stride: usize,
    pub gemms: Gemms,
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

/// One of the products of a step.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    kind: u32,
    format: Format,
    weight: u64,
    rows: usize,
    cols: usize,
}

/// What a [`Forward`] is made of.
pub(crate) struct Parts {
    pub model: Model,
    pub buffers: Buffers,
    pub layout: StepLayout,
    pub cache: Cache,
    pub max_model_len: usize,
    pub steps: u64,
    pub results: u64,
    pub results_stride: usize,
}

impl Forward {
    pub fn new(stream: &Stream, module: &Module, parts: Parts) -> Result<Self, DriverError> {
        let spec = &parts.model.spec;
        let columns = columns(spec);
        let (kind, head) = (kv_kind(parts.cache.dtype), spec.head_dim);
        let kernel = |name: &str| module.kernel(name, 0);
        Ok(Self {
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
            model: parts.model,
            buffers: parts.buffers,
            layout: parts.layout,
            cache: parts.cache,
            max_model_len: parts.max_model_len,
            steps: parts.steps,
            results: parts.results,
            results_stride: parts.results_stride,
            overrides: HashMap::new(),
            skip: 0,
        })
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
        for (number, layer) in self.model.layers.iter().enumerate() {
            self.layer(stream, size, number, layer)?;
        }
        let bests = self.head(stream, size)?;
        self.sample(stream, size, bests).map_err(failed)
    }

    fn begin(&self, stream: &Stream, size: StepSize) -> Result<(), DriverError> {
        let params = StepParams {
            host: self.steps,
            step: self.buffers.step,
            turn: self.buffers.turn,
            stride: self.layout.bytes as u32,
            at: self.layout.at,
        };
        if self.skip & KIND_ROWS != 0 {
            return Ok(());
        }
        stream.launch(&self.kernels.take_step, Shape::of((16, 1, 1), 256), &params)?;
        let shape = Shape::of((size.tokens, 1, 1), 256);
        stream.launch(&self.kernels.embed, shape, &self.rows(size))
    }

    fn rows(&self, size: StepSize) -> RowsParams {
        let (spec, b) = (&self.model.spec, &self.buffers);
        let first = self.model.layers.first();
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
            square_parts: self.gemms.square_parts(size.tokens) as i32,
            format: self.model.formats.embedding.id(),
            rows: self.part(Part::Rows),
            gathered: b.gathered,
            gathered_squares: b.gathered_squares,
        }
    }

    fn layer_cache(&self, number: usize) -> u64 {
        let element = self.cache.dtype.bytes();
        let block = 2 * self.model.spec.kv_dim() * BLOCK_SIZE * element;
        self.cache.at + (number * (self.cache.num_blocks + 1) * block) as u64
    }

    fn layer(
        &self,
        stream: &Stream,
        size: StepSize,
        number: usize,
        layer: &Layer,
    ) -> Result<(), EngineError> {
        let (spec, b) = (&self.model.spec, &self.buffers);
        let failed = |error: DriverError| EngineError::Executor(error.to_string());
        let (d, q, kv) = (spec.hidden_size, spec.q_dim(), spec.kv_dim());
        let cache = self.layer_cache(number);
        let params = GemmParams {
            input: b.next,
            epilogue: STORE_QKV,
            bias: layer.qkv_bias,
            query: b.query,
            raw: if spec.qk_norm { b.raw } else { 0 },
            cache,
            positions: self.part(Part::Positions),
            places: self.part(Part::Places),
            rope: self.model.rope,
            q_dim: q as i32,
            kv_dim: kv as i32,
            head_dim: spec.head_dim as i32,
            rotary: spec.rope.rotary_dim as i32,
            kv_kind: kv_kind(self.cache.dtype),
            ..self.normed(size)
        };
        let matrix = |kind, format, weight, rows, cols| Matrix {
            kind,
            format,
            weight,
            rows,
            cols,
        };
        let formats = &layer.formats;
        let qkv = matrix(KIND_QKV, formats.qkv, layer.qkv, q + 2 * kv, d);
        self.multiply(stream, size.tokens, qkv, params)?;
        if spec.qk_norm {
            self.norm_heads(stream, size, layer, cache)
                .map_err(failed)?;
        }
        self.attend(stream, size, number, cache).map_err(failed)?;

        let following = self.model.layers.get(number + 1);
        let after = following.map_or(self.model.final_norm, |next| next.attention_norm);
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
        let params = residual(b.attended, layer.mlp_norm);
        let output = matrix(KIND_OUTPUT, formats.output, layer.output, d, q);
        self.multiply(stream, size.tokens, output, params)?;
        let params = GemmParams {
            input: b.next,
            epilogue: GATE,
            gated: b.gated,
            gated_tiles: spec.intermediate_size.div_ceil(64) as i32,
            gelu: i32::from(spec.activation == Activation::GeluTanh),
            gated_width: spec.intermediate_size as i32,
            ..self.normed(size)
        };
        let (rows, ff) = (gate_up_rows(spec), spec.intermediate_size);
        let gate_up = matrix(KIND_GATE_UP, formats.gate_up, layer.gate_up, rows, d);
        self.multiply(stream, size.tokens, gate_up, params)?;
        let down = matrix(KIND_DOWN, formats.down, layer.down, d, ff);
        self.multiply(stream, size.tokens, down, residual(b.gated, after))?;
        Ok(())
    }

    /// Parameters of a product whose input still lacks its norm's factor.
    fn normed(&self, size: StepSize) -> GemmParams {
        let spec = &self.model.spec;
        GemmParams {
            squares: self.buffers.squares,
            square_tiles: (spec.hidden_size.div_ceil(64) * self.gemms.square_parts(size.tokens))
                as i32,
            square_stride: self.buffers.most_tokens as i32,
            inv_width: 1.0 / spec.hidden_size as f32,
            eps: spec.norm_eps,
            ..GemmParams::default()
        }
    }

    /// The size of a product, for measuring.
    pub fn product(&self, kind: u32, tokens: usize) -> Product {
        let spec = &self.model.spec;
        let d = spec.hidden_size;
        let (rows, cols) = match kind {
            KIND_QKV => (spec.q_dim() + 2 * spec.kv_dim(), d),
            KIND_OUTPUT => (d, spec.q_dim()),
            KIND_GATE_UP => (gate_up_rows(spec), d),
            KIND_DOWN => (d, spec.intermediate_size),
            _ => (spec.vocab_size, d),
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
        }
    }

    fn multiply(
        &self,
        stream: &Stream,
        tokens: usize,
        matrix: Matrix,
        mut params: GemmParams,
    ) -> Result<usize, EngineError> {
        if self.skip & matrix.kind != 0 {
            return Ok(0);
        }
        let product = Product {
            format: matrix.format,
            row_tiles: matrix.rows.div_ceil(64),
            k_tiles: matrix.cols.div_ceil(64),
            tokens,
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
        params.weight = matrix.weight;
        params.k_tiles = product.k_tiles as i32;
        params.row_tiles = product.row_tiles as i32;
        params.tokens = tokens as i32;
        params.stages = plan.stages;
        params.near = plan.near;
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

    fn attend(
        &self,
        stream: &Stream,
        size: StepSize,
        number: usize,
        cache: u64,
    ) -> Result<(), DriverError> {
        if self.skip & KIND_ATTENTION != 0 {
            return Ok(());
        }
        let (spec, b) = (&self.model.spec, &self.buffers);
        let window = match spec.is_sliding(number) {
            true => spec.sliding_window.unwrap_or(0),
            false => 0,
        };
        let splits = splits(spec, size.decoding, self.max_model_len).min(b.most_splits);
        let params = AttentionParams {
            query: b.query,
            cache,
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
        };
        if size.decoding > 0 {
            let grid = (spec.num_kv_heads, size.decoding, splits);
            // `DECODE_WARPS` in `attention.cuh`
            let wide = spec.head_dim * columns(spec) > 128;
            let threads = if wide { 128 } else { 256 };
            stream.launch(&self.kernels.decode, Shape::of(grid, threads), &params)?;
        }
        if size.tiles > 0 {
            let grid = (size.tiles, spec.num_kv_heads, 1);
            stream.launch(&self.kernels.prompt, Shape::of(grid, 128), &params)?;
        }
        Ok(())
    }

    /// Returns how many best tokens each row has.
    fn head(&self, stream: &Stream, size: StepSize) -> Result<usize, EngineError> {
        if size.rows == 0 {
            return Ok(0);
        }
        let (spec, b) = (&self.model.spec, &self.buffers);
        let mut params = GemmParams {
            input: b.next,
            epilogue: LOGITS,
            logits: b.logits,
            wanted: self.part(Part::Wanted),
            best_value: b.best_value,
            best_index: b.best_index,
            vocab: spec.vocab_size as i32,
            softcap: spec.logit_softcap.unwrap_or(0.0),
            ..self.normed(size)
        };
        if !size.all_sampled {
            let shape = Shape::of((size.rows, 1, 1), 128);
            stream
                .launch(&self.kernels.gather, shape, &self.rows(size))
                .map_err(|error| EngineError::Executor(error.to_string()))?;
            params.input = b.gathered;
            params.squares = b.gathered_squares;
        }
        let matrix = Matrix {
            kind: KIND_HEAD,
            format: self.model.formats.head,
            weight: self.model.head,
            rows: spec.vocab_size,
            cols: spec.hidden_size,
        };
        self.multiply(stream, size.rows, matrix, params)
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

/// Bytes of the results of one step.
pub(crate) fn results_bytes(max_num_seqs: usize) -> usize {
    (max_num_seqs * size_of::<RowResult>()).next_multiple_of(256)
}
