//! Random weights for measuring speed without a checkpoint (`--load-format dummy`).

use std::collections::HashMap;
use std::sync::Arc;

use crate::quantize::quantize_row;
use crate::{DType, ModelSpec, Tensor};

/// Makes each tensor of a specification on demand, the same every time.
#[derive(Debug)]
pub(crate) struct DummyWeights {
    shapes: HashMap<String, Vec<usize>>,
    dtype: DType,
    seed: u64,
    norm: f32,
}

/// Standard deviation of the weights.
const DEVIATION: f32 = 0.02;

impl DummyWeights {
    pub(crate) fn new(spec: &ModelSpec, dtype: DType, seed: u64) -> Self {
        let norm = if spec.norm_plus_one { 0.0 } else { 1.0 };
        Self {
            shapes: spec.tensors().into_iter().collect(),
            dtype,
            seed,
            norm,
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.shapes.keys().map(String::as_str)
    }

    /// Norms and biases stay f32, as in GGUF files; rows that are no whole number of blocks too.
    fn dtype_of(&self, shape: &[usize]) -> DType {
        let (block, _) = self.dtype.block();
        let whole = shape.last().is_some_and(|n| n.is_multiple_of(block));
        if shape.len() > 1 && whole {
            self.dtype
        } else {
            DType::F32
        }
    }

    pub(crate) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shapes.get(name).cloned()
    }

    pub(crate) fn dtype(&self, name: &str) -> Option<DType> {
        self.shapes.get(name).map(|shape| self.dtype_of(shape))
    }

    pub(crate) fn total_bytes(&self) -> usize {
        let bytes = |s: &Vec<usize>| self.dtype_of(s).bytes_for(s.iter().product());
        self.shapes.values().filter_map(bytes).sum()
    }

    pub(crate) fn make(&self, name: &str) -> Option<Tensor> {
        let shape = self.shapes.get(name)?;
        let dtype = self.dtype_of(shape);
        let (rows, cols) = (
            shape.iter().rev().skip(1).product::<usize>(),
            *shape.last()?,
        );
        let mut random = SplitMix::for_tensor(self.seed, name);
        let mut row = vec![0.0; cols];
        let mut stored = Vec::new();
        // Filled in place: an embedding of half a gigabyte must not exist twice.
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, dtype.bytes_for(rows * cols)?).collect();
        let row_bytes = dtype.bytes_for(cols)?;
        for place in Arc::get_mut(&mut bytes)?.chunks_exact_mut(row_bytes) {
            if shape.len() > 1 {
                row.fill_with(|| random.small());
            } else if name.ends_with("norm.weight") {
                row.fill(self.norm);
            }
            stored.clear();
            quantize_row(dtype, &row, &mut stored).ok()?;
            place.copy_from_slice(&stored);
        }
        Tensor::owned(name, dtype, shape.clone(), bytes).ok()
    }
}

/// A fast generator: one multiply-and-shift mix a number (splitmix64).
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    /// A stream of its own for each tensor (FNV-1a of the name).
    pub(crate) fn for_tensor(seed: u64, name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Near enough to a normal distribution: four 16-bit uniform numbers, added.
    fn small(&mut self) -> f32 {
        let bits = self.next();
        let sum = (0..4)
            .map(|i| (bits >> (16 * i)) as u16 as f32)
            .sum::<f32>()
            / 65535.0;
        // The sum of four uniform numbers has mean 2 and variance 1/3.
        (sum - 2.0) * DEVIATION * 3f32.sqrt()
    }
}
