//! Quantised weights by an independent path: what codes should be worth, worked out on the host from
//! the definitions of the formats.

use half::f16;
use powerband_model::spec::ModelSpec;
use powerband_model::{DType, ModelError, Tensor, Weights};

use crate::options::WeightQuantization;

/// The levels of 4-bit normal floats as bitsandbytes publishes them.
const NF4: [f64; 16] = [
    -1.0,
    -0.696_192_800_998_687_7,
    -0.525_073_051_452_636_7,
    -0.394_917_488_098_144_53,
    -0.284_441_381_692_886_35,
    -0.184_773_430_228_233_34,
    -0.091_050_036_251_544_95,
    0.0,
    0.079_580_299_556_255_34,
    0.160_930_201_411_247_25,
    0.246_112_301_945_686_34,
    0.337_915_241_718_292_24,
    0.440_709_829_330_444_34,
    0.562_617_003_917_694_1,
    0.722_956_836_223_602_3,
    1.0,
];

fn nearest(levels: &[f64], x: f64) -> f64 {
    let closer = |best: f64, &level: &f64| match (level - x).abs() < (best - x).abs() {
        true => level,
        false => best,
    };
    levels.iter().fold(f64::INFINITY, closer)
}

/// All finite numbers of fp8 e4m3, of both signs: place `2 c + s` has that of code `c` and sign `s`.
fn e4m3() -> Vec<f64> {
    let positive = (0..127u32).map(|code| {
        let (exponent, mantissa) = (code >> 3, f64::from(code & 7));
        match exponent {
            0 => mantissa / 8.0 * 2f64.powi(-6),
            e => (1.0 + mantissa / 8.0) * 2f64.powi(e as i32 - 7),
        }
    });
    positive.flat_map(|v| [v, -v]).collect()
}

/// What is left of a row of `cols` in blocks of 64 of that method.
fn in_blocks_of_64(method: WeightQuantization, values: &[f32], cols: usize) -> Vec<f32> {
    let (levels, largest) = match method {
        WeightQuantization::Fp8 => (e4m3(), 448.0),
        _ => (NF4.to_vec(), 1.0),
    };
    let mut out = Vec::with_capacity(values.len());
    for block in values.chunks(cols).flat_map(|row| row.chunks(64)) {
        let most = block.iter().fold(0f32, |m, v| m.max(v.abs()));
        let kept = f64::from(f16::from_f32(most / largest as f32).to_f32());
        // 4-bit codes are chosen for the exact scale, as bitsandbytes does.
        let chosen_by = match method {
            WeightQuantization::Fp8 => kept,
            _ => f64::from(most),
        };
        out.extend(block.iter().map(|v| match most == 0.0 {
            true => 0.0,
            false => (nearest(&levels, f64::from(*v) / chosen_by) * kept) as f32,
        }));
    }
    out
}

/// A matrix of `cols` columns as `method` keeps it, in f32.
///
/// # Errors
/// Rows that are no whole number of the type's blocks.
pub(crate) fn kept(
    method: WeightQuantization,
    values: &[f32],
    cols: usize,
) -> Result<Vec<f32>, ModelError> {
    let dtype = match method {
        WeightQuantization::Q4_0 => DType::Q4_0,
        WeightQuantization::Q4_1 => DType::Q4_1,
        WeightQuantization::Q8_0 => DType::Q8_0,
        _ => return Ok(in_blocks_of_64(method, values, cols)),
    };
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let shape = vec![values.len() / cols, cols];
    Ok(Tensor::owned("", DType::F32, shape, bytes)?
        .quantize(dtype)?
        .to_f32())
}

/// All weights of a model as they are left by quantising them while loading.
///
/// # Errors
/// A tensor is missing or cannot be quantised.
pub(crate) fn weights_as(
    method: WeightQuantization,
    spec: &ModelSpec,
    weights: &Weights,
) -> Result<Weights, ModelError> {
    let mut tensors = Vec::new();
    for (name, shape) in spec.tensors() {
        let tensor = weights.get(&name)?;
        let spared = name.contains("embed") || name.contains("lm_head");
        let method = match spared {
            true if method == WeightQuantization::Nf4 => None,
            true => Some(WeightQuantization::Q8_0),
            false => Some(method),
        };
        let values = match (method, shape.len()) {
            (Some(method), 2) => kept(method, &tensor.to_f32(), shape[1])?,
            _ => tensor.to_f32(),
        };
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.push(Tensor::owned(name, DType::F32, shape, bytes)?);
    }
    Ok(Weights::new(tensors))
}

/// Numbers in blocks of 64 as a checkpoint of fp8 has them ([`DType::F8_E4M3`]): an f32, which is not
/// rounded to f16 here, and the codes beside.
pub(crate) fn fp8_blocks(values: &[f32]) -> Vec<u8> {
    let levels = e4m3();
    let mut out = Vec::with_capacity(values.len() / 64 * 68);
    for block in values.chunks(64) {
        let scale = block.iter().fold(0f32, |m, v| m.max(v.abs())) / 448.0;
        out.extend(scale.to_le_bytes());
        out.extend(block.iter().map(|v| {
            let level = nearest(&levels, f64::from(*v) / f64::from(scale));
            let place = levels.iter().position(|l| *l == level).unwrap_or(0);
            (place / 2 + place % 2 * 128) as u8
        }));
    }
    out
}

/// A model as a checkpoint of fp8 has it: embedding and head are spared, but for a `whole` one.
///
/// # Errors
/// A tensor is missing, or its rows are no whole blocks.
pub(crate) fn fp8_checkpoint(
    spec: &ModelSpec,
    weights: &Weights,
    whole: bool,
) -> Result<Weights, ModelError> {
    let mut tensors = Vec::new();
    for (name, shape) in spec.tensors() {
        let tensor = weights.get(&name)?;
        let codes = shape.len() == 2 && (whole || name.contains("_proj"));
        tensors.push(match codes {
            true => {
                let blocks = fp8_blocks(&tensor.to_f32());
                Tensor::owned(name, DType::F8_E4M3, shape, blocks)?
            }
            false => tensor,
        });
    }
    Ok(Weights::new(tensors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nf4_by_hand() {
        // bitsandbytes' own order of magnitude: the largest is 2, so 0.3 is 0.15 of it, and the
        // levels beside that are 0.0796 and 0.1609.
        let mut block = vec![0.0; 64];
        block[..5].copy_from_slice(&[2.0, 0.3, -0.15, -1.5, 0.079]);
        let found = in_blocks_of_64(WeightQuantization::Nf4, &block, 64);
        let expected = [
            2.0,
            2.0 * 0.160_930_2,
            2.0 * -0.091_050_036,
            2.0 * -0.696_192_8,
            0.0,
        ];
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }

    #[test]
    fn e4m3_by_hand() {
        let all = e4m3();
        assert_eq!(all.iter().copied().fold(0.0, f64::max), 448.0);
        assert!(all.contains(&0.001_953_125) && all.contains(&-0.4375));
        let row: Vec<f32> = vec![448.0, 17.0, 0.3];
        let found = in_blocks_of_64(WeightQuantization::Fp8, &row, 3);
        assert_eq!(found, [448.0, 16.0, 0.3125]);
    }

    #[test]
    fn blocks_of_e4m3_by_hand() {
        let mut values = vec![0.0; 128];
        values[..4].copy_from_slice(&[-224.0, 8.5, 0.15, -0.001]);
        let blocks = fp8_blocks(&values);
        assert_eq!(
            (blocks.len(), &blocks[..4]),
            (136, &0.5f32.to_le_bytes()[..])
        );
        // -448, 17 (that is 16), 0.3 (0.3125) and -0.002 (the smallest).
        assert_eq!(blocks[4..9], [0xfe, 0x58, 0x2a, 0x81, 0]);
        assert!(blocks[68..].iter().all(|byte| *byte == 0));
    }
}
