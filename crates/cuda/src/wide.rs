//! All layers of a decoding step in one kernel, for more tokens: `wide.cuh`.

use powerband_model::ModelSpec;

use crate::driver::{DriverError, Kernel, Module, Shape, Stream};
use crate::flow::{Flow, MOST_TOKENS};
use crate::layers::none_for;
use crate::params::{GemmParams, LayerParams, WideParams};

/// Elements of a head that they are for: with 128 they would lack registers, and nobody has measured that.
pub(crate) const HEAD_DIM: usize = 64;

/// Threads of a block: eight warps that multiply, four that fetch activations, one that meets the other blocks, one
/// that asks for weights, and two that only lend their registers.
const THREADS: u32 = 512;

/// Places of the ring that are on their way at once, and while what others compute is waited for.
const PACE: [i32; 2] = [3, 1];

/// Bytes of shared memory of a block as `wide.cuh` lays it out: of a place of the ring, and of the rest.
fn shared(head_dim: usize) -> (usize, usize) {
    let place = 2 * 8192 + 2 * MOST_TOKENS * 128 + 3 * 8;
    let sums = 2 * MOST_TOKENS * 68 * 4;
    let attention = 8 * 8 * (head_dim + 4) * 4;
    let rest = sums.max(attention) + 2 * MOST_TOKENS * 4 + 32 + 2 * size_of::<LayerParams>();
    (place, rest)
}

/// Blocks that share the columns of a product, so that all blocks of the GPU have about as much to do: the one of
/// `choices` with which a block multiplies the fewest tiles.
fn parts(products: &[&GemmParams], choices: &[i32], blocks: i32) -> i32 {
    let rounds = |all: i32, by: i32| (all + by - 1) / by;
    let tiles = |parts: i32| -> i32 {
        let each = products
            .iter()
            .map(|p| rounds(p.row_tiles * parts, blocks) * rounds(p.k_tiles, parts));
        each.sum()
    };
    let fits = |parts: &i32| products.iter().all(|p| p.k_tiles >= *parts);
    let choices = choices.iter().copied().filter(fits);
    choices.min_by_key(|parts| tiles(*parts)).unwrap_or(0)
}

/// The kernel.
#[derive(Debug)]
pub(crate) struct Wide {
    kernel: Kernel,
    shape: Shape,
    params: WideParams,
    /// Places of the ring that are on their way at once, and while what others compute is waited for.
    pub pace: [i32; 2],
}

impl Wide {
    /// For a model whose layers' weights lie `stride` bytes apart, as bf16; None where the kernel does not fit.
    pub fn new(
        stream: &Stream,
        module: &Module,
        spec: &ModelSpec,
        flow: &Flow,
        layers: (&LayerParams, usize, u64),
        head: Option<GemmParams>,
        at: (u64, u64),
    ) -> Result<Option<Self>, DriverError> {
        let device = &stream.device;
        let blocks = device.multiprocessors as i32;
        let (first_layer, count, stride) = layers;
        let (place, rest) = shared(spec.head_dim);
        let depth = device.shared_per_block.saturating_sub(rest) / place;
        if depth < 4 {
            return Ok(None);
        }
        let bytes = depth * place + rest;
        let kernel = module.kernel(&format!("wide_bf16_{MOST_TOKENS}_{}", spec.head_dim), bytes)?;
        let shape = Shape {
            shared: bytes as u32,
            ..Shape::of((device.multiprocessors, 1, 1), THREADS)
        };
        let [qkv, output, gate_up, down, _] = &first_layer.products;
        let of_qkv = parts(&[qkv], &[2, 4], blocks);
        // The same for both, so that the same threads have the same part of the residual.
        let of_rows = parts(&[output, down], &[4, 2], blocks);
        if of_qkv == 0 || of_rows == 0 {
            return Ok(None);
        }
        let mut params = WideParams {
            stride,
            layers: at.0,
            met: at.1,
            sums: flow.sums,
            factors: flow.factors,
            parts: [of_qkv, of_rows, 0, of_rows, 0],
            head: i32::from(head.is_some()),
            count: count as i32,
            depth: depth as i32,
            kv_heads: spec.num_kv_heads as i32,
            ..WideParams::default()
        };
        let products = [
            Some(qkv),
            Some(output),
            Some(gate_up),
            Some(down),
            head.as_ref(),
        ];
        for (i, product) in products.into_iter().enumerate() {
            let Some(product) = product else { continue };
            params.weights[i] = product.weight;
            (params.row_tiles[i], params.k_tiles[i]) = (product.row_tiles, product.k_tiles);
        }
        // Output and down begin at the same block, for the same reason; the others go on from where the one before
        // has ended.
        let after_output = output.row_tiles * of_rows % blocks;
        let after_qkv = (after_output + qkv.row_tiles * of_qkv) % blocks;
        params.first = [after_output, 0, 0, 0, 0];
        params.attends = after_qkv;
        Ok(Some(Self {
            kernel,
            shape,
            params,
            pace: PACE,
        }))
    }

    pub fn launch(&self, stream: &Stream, tokens: usize, splits: usize) -> Result<(), DriverError> {
        if tokens > MOST_TOKENS {
            return Err(none_for(tokens));
        }
        let params = WideParams {
            tokens: tokens as i32,
            splits: splits as i32,
            pace: self.pace[0],
            quiet: self.pace[1],
            ..self.params
        };
        stream.launch(&self.kernel, self.shape, &params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_about_as_much_to_do() {
        let product = |row_tiles, k_tiles| GemmParams {
            row_tiles,
            k_tiles,
            ..GemmParams::default()
        };
        let [qkv, output, down] = [product(48, 32), product(32, 32), product(32, 128)];
        assert_eq!(parts(&[&qkv], &[2, 4], 132), 2);
        assert_eq!(parts(&[&output, &down], &[4, 2], 132), 4);
        // Too few columns for four.
        assert_eq!(parts(&[&product(9, 3), &down], &[4, 2], 132), 2);
        assert_eq!(parts(&[&product(9, 1)], &[4, 2], 132), 0);
    }

    #[test]
    fn rings_have_places_enough_on_hopper() {
        let (place, rest) = shared(HEAD_DIM);
        assert!(10 * place + rest <= 227 << 10);
        assert_eq!(rest % 8, 0);
    }
}
