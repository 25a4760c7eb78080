//! Weights onto the GPU: raw bytes through page-locked memory, two pieces in turn, and a kernel
//! that puts them into tiles, of bf16 or of codes. Quantised types whose codes no format keeps are
//! expanded by the host's cores on the way.

use std::collections::HashMap;

use powerband_engine::EngineError;
use powerband_model::{DType, Tensor, Weights, dequant};

use crate::driver::{DeviceMemory, DriverError, Event, HostMemory, Kernel, Module, Shape, Stream};
use crate::formats::Format;
use crate::model::Model;
use crate::params::{
    FROM_BF16, FROM_BLOCKS, FROM_F16, FROM_F32, FROM_NOTHING, FROM_Q4_K, PackParams, bytes_of,
};
use crate::rope;

/// Bytes of a piece.
const PIECE: usize = 16 << 20;
/// Of random weights.
const DEVIATION: f32 = 0.02;

/// How rows of a checkpoint's matrix become rows of ours.
#[derive(Debug, Clone, Copy, Default)]
struct Rows {
    offset: usize,
    /// Heads whose elements are put side by side: elements of a head, and of a half.
    head_dim: usize,
    half: usize,
    /// Rows of the gate (0) or of the other half (1), in groups of so many.
    group: usize,
    lane: usize,
}

struct Slot {
    host: HostMemory,
    device: DeviceMemory,
    free: Event,
}

/// Loads all weights of `model` and waits for them. With `dummy_seed` they are random.
///
/// # Errors
/// A tensor is missing or of the wrong shape, or the driver fails.
pub(crate) fn load(
    stream: &Stream,
    module: &Module,
    model: &Model,
    weights: &Weights,
    dummy_seed: Option<u64>,
    max_model_len: usize,
) -> Result<(), EngineError> {
    let device = &stream.device;
    let slot = || -> Result<Slot, DriverError> {
        Ok(Slot {
            host: HostMemory::new(device, PIECE)?,
            device: DeviceMemory::new(device, PIECE)?,
            free: Event::new(device)?,
        })
    };
    let slots = match dummy_seed {
        Some(_) => Vec::new(),
        None => vec![slot().map_err(wrong)?, slot().map_err(wrong)?],
    };
    let mut loader = Loader {
        stream,
        pack: packers(module).map_err(wrong)?,
        weights,
        dummy_seed,
        tensors: 0,
        slots,
        turn: 0,
        plus_one: model.spec.norm_plus_one,
    };
    loader.all(model, max_model_len)?;
    stream.synchronize().map_err(wrong)
}

/// The kernels that put weights into tiles.
pub(crate) fn packers(module: &Module) -> Result<HashMap<Format, Kernel>, DriverError> {
    let one = |format: Format| {
        let kernel = module.kernel(&format!("pack_{}", format.name()), 0)?;
        Ok((format, kernel))
    };
    Format::ALL.into_iter().map(one).collect()
}

fn wrong(error: DriverError) -> EngineError {
    match error.out_of_memory {
        true => EngineError::Memory(format!("no memory for loading the weights: {error}")),
        false => EngineError::Executor(error.to_string()),
    }
}

struct Loader<'a> {
    stream: &'a Stream,
    pack: HashMap<Format, Kernel>,
    weights: &'a Weights,
    dummy_seed: Option<u64>,
    tensors: u64,
    slots: Vec<Slot>,
    turn: usize,
    plus_one: bool,
}

impl Loader<'_> {
    fn all(&mut self, model: &Model, max_model_len: usize) -> Result<(), EngineError> {
        let spec = &model.spec;
        let (d, q, kv, ff) = (
            spec.hidden_size,
            spec.q_dim(),
            spec.kv_dim(),
            spec.intermediate_size,
        );
        let plain = Rows::default();
        let embedding = "model.embed_tokens.weight";
        let shape = [spec.vocab_size, d];
        let to = (model.formats.embedding, model.embedding);
        self.matrix(embedding, shape, to, plain)?;
        if !spec.tie_embeddings {
            let to = (model.formats.head, model.head);
            self.matrix("lm_head.weight", shape, to, plain)?;
        }
        let half = rope::apart(&spec.rope);
        let heads = |offset| Rows {
            offset,
            head_dim: if half > 0 { spec.head_dim } else { 0 },
            half,
            ..plain
        };
        let values = Rows {
            offset: q + kv,
            ..plain
        };
        let half_of = |lane| Rows {
            group: 8,
            lane,
            ..plain
        };
        for (number, layer) in model.layers.iter().enumerate() {
            let name = |rest: &str| format!("model.layers.{number}.{rest}");
            let projection = |which: &str| name(&format!("self_attn.{which}_proj.weight"));
            let formats = &layer.formats;
            let to = (formats.qkv, layer.qkv);
            self.matrix(&projection("q"), [q, d], to, heads(0))?;
            self.matrix(&projection("k"), [kv, d], to, heads(q))?;
            self.matrix(&projection("v"), [kv, d], to, values)?;
            let to = (formats.output, layer.output);
            self.matrix(&projection("o"), [d, q], to, plain)?;
            let to = (formats.gate_up, layer.gate_up);
            self.matrix(&name("mlp.gate_proj.weight"), [ff, d], to, half_of(0))?;
            self.matrix(&name("mlp.up_proj.weight"), [ff, d], to, half_of(1))?;
            let to = (formats.down, layer.down);
            self.matrix(&name("mlp.down_proj.weight"), [d, ff], to, plain)?;
            self.norm(&name("input_layernorm.weight"), d, layer.attention_norm, 0)?;
            self.norm(
                &name("post_attention_layernorm.weight"),
                d,
                layer.mlp_norm,
                0,
            )?;
            if spec.qk_norm {
                let head = spec.head_dim;
                self.norm(&name("self_attn.q_norm.weight"), head, layer.q_norm, half)?;
                self.norm(&name("self_attn.k_norm.weight"), head, layer.k_norm, half)?;
            }
            if spec.qkv_bias {
                let mut bias = Vec::new();
                for (which, len, half) in [("q", q, half), ("k", kv, half), ("v", kv, 0)] {
                    let values =
                        self.vector(&name(&format!("self_attn.{which}_proj.bias")), len, 0.0)?;
                    for head in values.chunks(spec.head_dim) {
                        bias.extend(in_our_order(head, half));
                    }
                }
                self.upload(layer.qkv_bias, bytes_of(&bias))?;
            }
        }
        self.norm("model.norm.weight", d, model.final_norm, 0)?;
        let table = rope::table(&spec.rope, max_model_len);
        self.upload(model.rope, bytes_of(&table))
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, EngineError> {
        let tensor = self
            .weights
            .get(name)
            .map_err(|error| EngineError::Config(error.to_string()))?;
        if tensor.shape != shape {
            return Err(EngineError::Config(format!(
                "tensor {name} has shape {:?}; the model's configuration asks for {shape:?}",
                tensor.shape
            )));
        }
        Ok(tensor)
    }

    fn vector(&self, name: &str, len: usize, dummy: f32) -> Result<Vec<f32>, EngineError> {
        match self.dummy_seed {
            Some(_) => Ok(vec![dummy; len]),
            None => Ok(self.tensor(name, &[len])?.to_f32()),
        }
    }

    fn norm(&self, name: &str, len: usize, to: u64, half: usize) -> Result<(), EngineError> {
        let one = if self.plus_one { 0.0 } else { 1.0 };
        let mut values = self.vector(name, len, one)?;
        if self.plus_one {
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        self.upload(to, bytes_of(&in_our_order(&values, half)))
    }

    /// Small things, one by one.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), EngineError> {
        self.stream.upload(to, bytes).map_err(wrong)?;
        self.stream.synchronize().map_err(wrong)
    }

    fn matrix(
        &mut self,
        name: &str,
        [rows, cols]: [usize; 2],
        (format, to): (Format, u64),
        order: Rows,
    ) -> Result<(), EngineError> {
        self.tensors += 1;
        let mut params = PackParams {
            to,
            cols: cols as i32,
            row_offset: order.offset as i32,
            col_tiles: cols.div_ceil(64) as i32,
            head_dim: order.head_dim as i32,
            half: order.half as i32,
            group: order.group as i32,
            lane: order.lane as i32,
            ..PackParams::default()
        };
        if let Some(seed) = self.dummy_seed {
            params.source = FROM_NOTHING;
            params.deviation = DEVIATION;
            params.seed = seed.wrapping_add(self.tensors << 40);
            return self.pack(format, params, 0, rows, 0);
        }
        let tensor = self.tensor(name, &[rows, cols])?;
        let stored = tensor.bytes().len() / rows.max(1);
        // Rows travel as they are, or as f32.
        let (source, travel) =
            source_of(format, tensor.dtype).map_or((FROM_F32, cols * 4), |source| (source, stored));
        params.source = source;
        let expand = source == FROM_F32 && tensor.dtype != DType::F32;
        let per_piece = PIECE / travel.max(1);
        if per_piece == 0 {
            let reason = format!("rows of {cols} elements in tensor {name}");
            return Err(EngineError::Unsupported(reason));
        }
        for first in (0..rows).step_by(per_piece) {
            let count = per_piece.min(rows - first);
            let from = &tensor.bytes()[first * stored..(first + count) * stored];
            self.turn = (self.turn + 1) % self.slots.len();
            let slot = &mut self.slots[self.turn];
            slot.free.wait().map_err(wrong)?;
            let piece = slot.host.slice(0, count * travel);
            match expand {
                true => expand_rows(tensor.dtype, from, stored, piece, travel),
                false => piece.copy_from_slice(from),
            }
            self.stream.upload(slot.device.at, piece).map_err(wrong)?;
            params.from = slot.device.at;
            self.pack(format, params, first, count, travel)?;
            let slot = &self.slots[self.turn];
            self.stream.record(&slot.free).map_err(wrong)?;
        }
        Ok(())
    }

    fn pack(
        &self,
        format: Format,
        params: PackParams,
        first: usize,
        rows: usize,
        row_bytes: usize,
    ) -> Result<(), EngineError> {
        let Some(kernel) = self.pack.get(&format) else {
            return Ok(());
        };
        launch_pack(
            self.stream,
            kernel,
            format,
            params,
            (first, rows, row_bytes),
        )
        .map_err(wrong)
    }
}

/// Packs `rows` rows of `row_bytes`, the first of which is row `first` of its matrix.
pub(crate) fn launch_pack(
    stream: &Stream,
    kernel: &Kernel,
    format: Format,
    params: PackParams,
    (first, rows, row_bytes): (usize, usize, usize),
) -> Result<(), DriverError> {
    // A grid has at most 65,535 rows.
    for start in (0..rows).step_by(32768) {
        let count = (rows - start).min(32768);
        let mut piece = params;
        piece.rows = count as i32;
        piece.first_row = (first + start) as i32;
        piece.from += (start * row_bytes) as u64;
        let blocks = match format {
            Format::Bf16 => (params.cols as usize).div_ceil(2048),
            _ => (params.col_tiles as usize).div_ceil(16),
        };
        stream.launch(kernel, Shape::of((blocks, count, 1), 256), &piece)?;
    }
    Ok(())
}

/// How rows of `dtype` are read for `format`; none: they must become f32 first.
pub(crate) fn source_of(format: Format, dtype: DType) -> Option<i32> {
    match dtype {
        DType::F32 => Some(FROM_F32),
        DType::F16 => Some(FROM_F16),
        DType::BF16 => Some(FROM_BF16),
        DType::Q4_K if format.keeps(dtype) => Some(FROM_Q4_K),
        _ if format.keeps(dtype) => Some(FROM_BLOCKS),
        _ => None,
    }
}

/// Elements of one head in the order that rotation wants.
fn in_our_order(values: &[f32], half: usize) -> Vec<f32> {
    let mut ordered = vec![0.0; values.len()];
    for (i, &value) in values.iter().enumerate() {
        if let Some(place) = ordered.get_mut(rope::place(half, i)) {
            *place = value;
        }
    }
    ordered
}

/// Expands rows of a quantised format to f32, on all cores.
fn expand_rows(dtype: DType, from: &[u8], stored: usize, to: &mut [u8], row_bytes: usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let rows = from.len() / stored;
    let share = rows.div_ceil(cores).max(1);
    std::thread::scope(|scope| {
        let pieces = from
            .chunks(share * stored)
            .zip(to.chunks_mut(share * row_bytes));
        for (from, to) in pieces {
            scope.spawn(move || {
                let mut row = vec![0.0; row_bytes / 4];
                for (from, to) in from.chunks(stored).zip(to.chunks_mut(row_bytes)) {
                    dequant::dequantize(dtype, from, &mut row);
                    to.copy_from_slice(bytes_of(&row));
                }
            });
        }
    });
}
