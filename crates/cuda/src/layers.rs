//! All layers of a decoding step in one kernel: `layers.cuh`.

use std::ops::RangeInclusive;

use crate::buffers::Buffers;
use crate::driver::{Device, DriverError, Kernel, Module, Shape, Stream, TensorMap};
use crate::formats::Format;
use crate::gemm::sums_bytes;
use crate::model::Model;
use crate::params::{LayerParams, LayersParams, bytes_of};

/// Tokens for eight at a time: the kernels there are.
const EIGHTS: [usize; 2] = [1, 2];

/// Threads of a block: eight warps that multiply, one that meets the other blocks, one that asks for weights,
/// and two that only lend their registers.
const THREADS: u32 = 384;

/// Places of a warp's ring; `LayerRing` in `layers.cuh`.
fn depth(format: Format) -> usize {
    match format {
        Format::Bf16 => 6,
        Format::Nf4 | Format::Q4 | Format::M4 => 8,
        Format::Q8 | Format::F8 => 5,
    }
}

/// Tiles of columns in a place, of which a warp has 16 rows; `LayerRing` in `layers.cuh`.
fn tiles(format: Format) -> usize {
    if format == Format::Bf16 { 2 } else { 4 }
}

/// Places of a warp's ring that are on their way at once: as few as keep the memory busy, since activations wait
/// behind them. One is best on an H100, with 3,350 GB/s; two are 9 % faster than one on an H200, with 4,900.
fn pace(device: &Device) -> i32 {
    if device.bandwidth > FAST_MEMORY { 2 } else { 1 }
}

/// GB/s, between those two.
const FAST_MEMORY: usize = 4_000;

/// Tokens for which one kernel is faster, measured on an H200 (`docs/cuda.md`): there its meetings cost more than
/// the starts of kernels, unless the products are slow because of their codes or of their tokens.
fn used(device: &Device, format: Format) -> RangeInclusive<usize> {
    match format {
        Format::Bf16 if device.bandwidth > FAST_MEMORY => 5..=8,
        _ => 1..=8,
    }
}

/// Bytes of shared memory of a block, as `layers.cuh` lays it out.
fn shared(format: Format, eights: usize) -> usize {
    let rings = 8 * depth(format) * tiles(format) * format.tile_bytes() / 4;
    let sums = sums_bytes(eights);
    let attention = 8 * 8 * (128 + 4) * 4;
    let factors = 8 * eights * 4 + 16;
    let barriers = 8 * depth(format) * 16;
    rings
        + sums.max(attention)
        + factors
        + size_of::<LayerParams>()
        + barriers
        + format.table_bytes()
}

/// The kernels for a model's format.
#[derive(Debug)]
pub(crate) struct Layers {
    kernels: Vec<(usize, Kernel, Shape)>,
    params: LayersParams,
    /// Tokens for which they are used, since they are faster than a kernel for each product.
    pub used: RangeInclusive<usize>,
    /// Places of a warp's ring that are on their way at once.
    pub pace: i32,
}

/// The format of all matrices, and the bytes from one layer's to the next's.
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
    /// weights, or heads that the kernel does not know.
    pub fn new(
        device: &Device,
        module: &Module,
        model: &Model,
        buffers: &Buffers,
        params: &[LayerParams],
    ) -> Result<Option<Self>, DriverError> {
        let spec = &model.spec;
        let heads =
            matches!(spec.head_dim, 64 | 128) && spec.num_heads / spec.num_kv_heads.max(1) <= 8;
        let (Some((format, stride)), Some(first)) = (alike(model), params.first()) else {
            return Ok(None);
        };
        if !device.has_clusters() || !heads || spec.qk_norm {
            return Ok(None);
        }
        let mut kernels = Vec::new();
        for eights in EIGHTS {
            let shared = shared(format, eights);
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
        let products = &first.products;
        let [mut row_tiles, mut k_tiles] = [[0; 4]; 2];
        let mut weights = LayersParams::default().weights;
        for (i, product) in products.iter().enumerate() {
            (row_tiles[i], k_tiles[i]) = (product.row_tiles, product.k_tiles);
            let tile = format.tile_bytes() as u64;
            let all = (product.row_tiles * product.k_tiles) as u64;
            weights[i] = TensorMap::new(
                product.weight,
                [tile / 8, all, params.len() as u64],
                [tile, stride],
                [tile as u32 / 32, tiles(format) as u32, 1],
            )?;
        }
        Ok(Some(Self {
            used: used(device, format),
            kernels,
            pace: pace(device),
            params: LayersParams {
                weights,
                layers: buffers.layers,
                met: buffers.met,
                row_tiles,
                k_tiles,
                count: params.len() as i32,
                kv_heads: spec.num_kv_heads as i32,
                ..LayersParams::default()
            },
        }))
    }

    fn fitting(&self, tokens: usize) -> Option<&(usize, Kernel, Shape)> {
        let used = self.used.contains(&tokens);
        let kernels = if used { self.kernels.as_slice() } else { &[] };
        kernels.iter().find(|(most, ..)| *most >= tokens)
    }

    /// Is there a kernel for a step of so many tokens?
    pub fn takes(&self, tokens: usize) -> bool {
        self.fitting(tokens).is_some()
    }

    /// Puts the layers' parameters where the kernels read them.
    pub fn upload(
        stream: &Stream,
        buffers: &Buffers,
        params: &[LayerParams],
    ) -> Result<(), DriverError> {
        stream.upload(buffers.layers, bytes_of(params))?;
        stream.synchronize()
    }

    pub fn launch(&self, stream: &Stream, tokens: usize, splits: usize) -> Result<(), DriverError> {
        let Some((_, kernel, shape)) = self.fitting(tokens) else {
            return Err(DriverError {
                call: "all layers in one kernel",
                reason: format!("there is none for {tokens} tokens"),
                out_of_memory: false,
            });
        };
        let params = LayersParams {
            tokens: tokens as i32,
            splits: splits as i32,
            pace: self.pace,
            ..self.params
        };
        stream.launch(kernel, *shape, &params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_fit_into_a_multiprocessor_of_hopper() {
        for format in Format::ALL {
            for eights in EIGHTS {
                let bytes = shared(format, eights);
                assert!(bytes <= 227 << 10, "{format:?} {eights}: {bytes}");
                // The parameters behind it hold addresses of eight bytes.
                assert_eq!((bytes - format.table_bytes()) % 8, 0);
            }
        }
    }
}
