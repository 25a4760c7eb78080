//! Random numbers and random models.

use half::bf16;
use powerband_model::spec::ModelSpec;
use powerband_model::{DType, Tensor, Weights};

/// A small generator (splitmix64).
pub(crate) struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }

    /// About normal, with standard deviation 1.
    pub fn normal(&mut self) -> f32 {
        let uniform = |bits: u64| (bits & 0xFFFF) as f32 / 65536.0;
        let bits = self.bits();
        let sum: f32 = (0..4).map(|i| uniform(bits >> (16 * i))).sum();
        (sum - 2.0) * 3f32.sqrt()
    }

    /// Numbers that bf16 holds exactly.
    pub fn bf16s(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        let one = |r: &mut Self| bf16::from_f32(r.normal() * deviation).to_f32();
        (0..count).map(|_| one(self)).collect()
    }
}

/// Weights with activations of about 1 in every layer, and logits that differ.
pub(crate) fn weights(spec: &ModelSpec, seed: u64) -> Weights {
    let mut random = Random(seed);
    let tensors = spec.tensors().into_iter().filter_map(|(name, shape)| {
        let count = shape.iter().product();
        let fan_in = *shape.last()? as f32;
        let values = match shape.len() {
            1 if name.ends_with("norm.weight") => {
                let near_one = random.bf16s(count, 0.2);
                let base = if spec.norm_plus_one { 0.0 } else { 1.0 };
                near_one.into_iter().map(|w| w + base).collect()
            }
            1 => random.bf16s(count, 0.5),
            _ if name.contains("embed") || name.contains("lm_head") => {
                random.bf16s(count, 2.0 / fan_in.sqrt())
            }
            _ => random.bf16s(count, 1.0 / fan_in.sqrt()),
        };
        let bytes: Vec<u8> = match shape.len() {
            1 => values.iter().flat_map(|w| w.to_le_bytes()).collect(),
            _ => values
                .iter()
                .flat_map(|w| bf16::from_f32(*w).to_le_bytes())
                .collect(),
        };
        let dtype = if shape.len() == 1 {
            DType::F32
        } else {
            DType::BF16
        };
        Tensor::owned(name, dtype, shape, bytes).ok()
    });
    Weights::new(tensors)
}

/// [`weights`], stored as a type or as they are.
pub(crate) fn stored(spec: &ModelSpec, seed: u64, dtype: Option<DType>) -> Weights {
    let weights = weights(spec, seed);
    match dtype {
        Some(dtype) => weights.stored_as(dtype),
        None => weights,
    }
}
