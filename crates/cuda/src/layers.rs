//! All layers of a decoding step in one kernel: `layers.cuh`.

use crate::buffers::Buffers;
use crate::driver::{DriverError, Kernel, Module, Shape, Stream, TensorMap};
use crate::flow::{Flow, LEAST_LAYERS, MOST_TOKENS};
use crate::formats::Format;
use crate::model::Model;
use crate::params::{GemmParams, LayerParams, LayersParams, bytes_of};
use crate::wide::{HEAD_DIM, Wide};

/// Tokens for eight at a time: the kernels there are.
const EIGHTS: [usize; 2] = [1, 2];

/// Tokens from which on the kernel for more is faster, for the models that it takes.
const WIDE_FROM: usize = 5;

/// Threads of a block: eight warps that multiply, one that meets the other blocks, two that ask for weights, and one
/// that only lends its registers.
const THREADS: u32 = 384;

/// Warps that share a ring of weights; `RING_WARPS` in `flow.cuh`.
const RING_WARPS: usize = 4;

/// Places of a ring; `LayerRing` in `layers.cuh`.
fn depth(format: Format, head_dim: usize) -> usize {
    match format {
        Format::Bf16 if head_dim > 64 => 5,
        Format::Bf16 => 6,
        Format::Nf4 | Format::Q4 | Format::M4 => 8,
        Format::Q8 | Format::F8 => 5,
    }
}

/// Tiles of columns in a place, of which a warp has 16 rows; `LayerRing` in `layers.cuh`.
fn tiles(format: Format) -> usize {
    if format == Format::Bf16 { 2 } else { 4 }
}

/// The head's format where it is not the layers', and its tiles in a place; `Beside` in `layers.cuh`.
fn beside(format: Format) -> Option<(Format, usize)> {
    match format {
        Format::Nf4 => Some((Format::Bf16, 1)),
        Format::Q4 | Format::M4 => Some((Format::Q8, 2)),
        Format::F8 => Some((Format::Q8, 4)),
        Format::Bf16 | Format::Q8 => None,
    }
}

/// Has an item of each product two times 16 rows? Not those that leave the residual, since there are few of them.
fn pairs(format: Format) -> [i32; 5] {
    match format {
        Format::Bf16 => [0; 5],
        _ => [1, 0, 1, 0, 1],
    }
}

/// Places of a ring that are on their way at once: as few as keep the memory busy, since activations wait behind them.
/// Those of codes of four bits have half the bytes.
fn pace(format: Format) -> i32 {
    match format {
        Format::Nf4 | Format::Q4 | Format::M4 => 2,
        Format::Bf16 | Format::Q8 | Format::F8 => 1,
    }
}

/// Bytes of shared memory of a block, as `layers.cuh` lays it out.
fn shared(format: Format, eights: usize, head_dim: usize) -> usize {
    let depth = depth(format, head_dim);
    let place = |(format, tiles): (Format, usize)| tiles * format.tile_bytes() / 4;
    let own = place((format, tiles(format)));
    let rings = 8 * depth * beside(format).map_or(own, |head| own.max(place(head)));
    // `FlowSums` in `flow.cuh`: places for the sums of 16 rows, some more than there are turns.
    let more = if format == Format::Bf16 { 1 } else { 2 };
    let sums = (4 / eights + more) * 8 * 8 * eights * 20 * 4;
    let attention = 8 * 8 * (head_dim + 4) * 4;
    let factors = 8 * eights * 4 + 16;
    let barriers = 8 / RING_WARPS * depth * 16;
    rings
        + sums.max(attention)
        + factors
        + 2 * size_of::<LayerParams>()
        + barriers
        + format.table_bytes()
}

/// The kernels for a model's format.
#[derive(Debug)]
pub(crate) struct Layers {
    kernels: Vec<(usize, Kernel, Shape)>,
    params: LayersParams,
    /// The kernel for more tokens.
    pub wide: Option<Wide>,
    /// Tokens from which on it is used.
    pub wide_from: usize,
    /// Where embedding leaves the first input, and clears the head's and its squares; are the weights codes?
    pub ends: ([u64; 3], bool),
    /// Tokens up to which they are used: in all their sizes faster than a kernel for each product.
    pub most_tokens: usize,
    /// Places of a ring that are on their way at once.
    pub pace: i32,
}

/// The format of all layers' matrices, and the bytes from one layer's to the next's.
fn alike(model: &Model) -> Option<(Format, u64)> {
    let (first, second) = (model.layers.first()?, model.layers.get(1)?);
    let format = first.formats.qkv;
    let stride = second.qkv - first.qkv;
    let same = |(number, layer): (usize, &crate::model::Layer)| {
        let f = layer.formats;
        let weights = [layer.qkv, layer.output, layer.gate_up, layer.down];
        let firsts = [first.qkv, first.output, first.gate_up, first.down];
        [f.qkv, f.output, f.gate_up, f.down] == [format; 4]
            && weights
                .iter()
                .zip(firsts)
                .all(|(at, first)| *at == first + number as u64 * stride)
    };
    model
        .layers
        .iter()
        .enumerate()
        .all(same)
        .then_some((format, stride))
}

impl Layers {
    /// None where they do not fit: an older GPU, a model whose layers differ in more than their
    /// weights, or heads and sizes that the kernel does not know. `params` and `head` are what a kernel for each product
    /// is told; here they are put where the kernels read them, and what the blocks hand each other is made absent.
    pub fn new(
        stream: &Stream,
        module: &Module,
        model: &Model,
        buffers: &Buffers,
        mut params: Vec<LayerParams>,
        head: GemmParams,
    ) -> Result<Option<Self>, DriverError> {
        let (device, spec) = (&stream.device, &model.spec);
        let heads =
            matches!(spec.head_dim, 64 | 128) && spec.num_heads / spec.num_kv_heads.max(1) <= 8;
        let Some((format, stride)) = alike(model) else {
            return Ok(None);
        };
        if !device.has_clusters() || !heads || spec.qk_norm || params.len() < LEAST_LAYERS {
            return Ok(None);
        }
        // Of a tile that is not full nobody computes the last columns, and who reads it would wait for them.
        if spec.hidden_size % 64 != 0 || spec.intermediate_size % 64 != 0 {
            return Ok(None);
        }
        let mut kernels = Vec::new();
        for eights in EIGHTS {
            let shared = shared(format, eights, spec.head_dim);
            if shared > device.shared_per_block {
                return Ok(None);
            }
            let name = format!("layers_{}_{eights}_{}", format.name(), spec.head_dim);
            let shape = Shape {
                shared: shared as u32,
                ..Shape::of((device.multiprocessors, 1, 1), THREADS)
            };
            kernels.push((eights * 8, module.kernel(&name, shared)?, shape));
        }
        let other = beside(format).filter(|(other, _)| *other == model.formats.head);
        let same = format == model.formats.head;
        let head = (same || other.is_some()).then_some(head);
        let (head_format, head_tiles) = other.unwrap_or((format, tiles(format)));
        let flow = Flow::new(buffers.flow, spec);
        flow.place(&mut params, head, buffers);
        // What reads bf16 reads its inputs in their order.
        if let (true, Some(last)) = (head_format == Format::Bf16, params.last_mut()) {
            last.flow[3].leaves = 1;
        }
        stream.set_bytes(buffers.flow, 0xFF, flow.bytes())?;
        stream.upload(buffers.layers, bytes_of(&params))?;
        stream.synchronize()?;

        let products = params[0].products;
        let [mut row_tiles, mut k_tiles] = [[0; 5]; 2];
        let pairs = pairs(format);
        let items = |product: usize| (products[product].row_tiles as usize * 4) >> pairs[product];
        // Output and down begin at the same block, so that the same threads have the same part of the residual; the
        // others go on from where the one before has ended.
        let after_output = items(1) % device.multiprocessors;
        let after_qkv = (after_output + items(0)) % device.multiprocessors;
        let mut weights = LayersParams::default().weights;
        for (i, product) in products[..4].iter().chain(&head).enumerate() {
            (row_tiles[i], k_tiles[i]) = (product.row_tiles, product.k_tiles);
            let (format, tiles) = match i {
                4 => (head_format, head_tiles),
                _ => (format, tiles(format)),
            };
            let tile = format.tile_bytes() as u64;
            let all = (product.row_tiles * product.k_tiles) as u64;
            weights[i] = TensorMap::new(
                product.weight,
                [tile / 8, all, if i == 4 { 1 } else { params.len() as u64 }],
                [tile, stride],
                [tile as u32 / 32, (RING_WARPS * tiles) as u32, 1],
            )?;
        }
        // It is compiled for Hopper's matrix instructions alone.
        let known = device.major == 9
            && format == Format::Bf16
            && spec.head_dim == HEAD_DIM
            && spec.logit_softcap.is_none();
        let wide = match known {
            true => {
                let layers = (&params[0], params.len(), stride);
                let at = (buffers.layers, buffers.met);
                Wide::new(stream, module, spec, &flow, layers, head, at)?
            }
            false => None,
        };
        Ok(Some(Self {
            most_tokens: MOST_TOKENS,
            wide,
            wide_from: WIDE_FROM,
            kernels,
            pace: pace(format),
            ends: (flow.ends(), format != Format::Bf16),
            params: LayersParams {
                weights,
                layers: buffers.layers,
                met: buffers.met,
                row_tiles,
                k_tiles,
                first: [
                    after_output as i32,
                    0,
                    after_qkv as i32,
                    0,
                    after_output as i32,
                ],
                pairs,
                head: i32::from(head.is_some()) + i32::from(other.is_some()),
                count: params.len() as i32,
                kv_heads: spec.num_kv_heads as i32,
                ..LayersParams::default()
            },
        }))
    }

    fn fitting(&self, tokens: usize) -> Option<&(usize, Kernel, Shape)> {
        self.kernels.iter().find(|(most, ..)| *most >= tokens)
    }

    /// Is there a kernel for a step of so many tokens?
    pub fn takes(&self, tokens: usize) -> bool {
        tokens <= self.most_tokens
    }

    /// Do they compute the head too?
    pub fn with_head(&self) -> bool {
        self.params.head != 0
    }

    pub fn launch(&self, stream: &Stream, tokens: usize, splits: usize) -> Result<(), DriverError> {
        if let Some(wide) = self.wide.as_ref().filter(|_| tokens >= self.wide_from) {
            return wide.launch(stream, tokens, splits);
        }
        let (_, kernel, shape) = self.fitting(tokens).ok_or_else(|| none_for(tokens))?;
        let params = LayersParams {
            tokens: tokens as i32,
            splits: splits as i32,
            pace: self.pace,
            ..self.params
        };
        stream.launch(kernel, *shape, &params)
    }
}

/// There is no kernel for a step of so many tokens.
pub(crate) fn none_for(tokens: usize) -> DriverError {
    DriverError {
        call: "all layers in one kernel",
        reason: format!("there is none for {tokens} tokens"),
        out_of_memory: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_fit_into_a_multiprocessor_of_hopper() {
        for format in Format::ALL {
            for eights in EIGHTS {
                for head_dim in [64, 128] {
                    let bytes = shared(format, eights, head_dim);
                    assert!(bytes <= 227 << 10, "{format:?} {eights}: {bytes}");
                    // The parameters behind it hold addresses of eight bytes.
                    assert_eq!((bytes - format.table_bytes()) % 8, 0);
                }
            }
        }
    }
}
