//! From f32 to stored blocks: for synthetic models and for quantising at load time.

use half::{bf16, f16};

use crate::dequant::NF4;
use crate::parallel::fill_rows;
use crate::{DType, ModelError, Tensor};

/// Stores `values` (a whole number of blocks) as `dtype`, appended to `out`.
/// Formats: F32, F16, BF16, Q8_0, Q4_0, Q4_1, NF4.
///
/// # Errors
/// Another format, or no whole number of blocks.
pub fn quantize_row(dtype: DType, values: &[f32], out: &mut Vec<u8>) -> Result<(), ModelError> {
    let (weights, _) = dtype.block();
    let bytes = dtype.bytes_for(values.len()).ok_or_else(|| {
        ModelError::Unsupported(format!(
            "{} values are no whole number of {} blocks of {weights}",
            values.len(),
            dtype.name()
        ))
    })?;
    let store: fn(&[f32], &mut Vec<u8>) = match dtype {
        DType::F32 => |x, out| out.extend(x[0].to_le_bytes()),
        DType::F16 => |x, out| out.extend(f16::from_f32(x[0]).to_le_bytes()),
        DType::BF16 => |x, out| out.extend(bf16::from_f32(x[0]).to_le_bytes()),
        DType::Q8_0 => q8_0,
        DType::Q4_0 => q4_0,
        DType::Q4_1 => q4_1,
        DType::NF4 => nf4,
        other => {
            return Err(ModelError::Unsupported(format!(
                "quantising to {}; use q8_0, q4_0, q4_1 or nf4",
                other.name()
            )));
        }
    };
    out.reserve(bytes);
    for block in values.chunks_exact(weights) {
        store(block, out);
    }
    Ok(())
}

impl Tensor {
    /// The same tensor stored as `dtype` (F32, F16, BF16, Q8_0, Q4_0, Q4_1, NF4), row by row, on
    /// all cores.
    ///
    /// # Errors
    /// Another format, or rows that are no whole number of blocks.
    pub fn quantize(&self, dtype: DType) -> Result<Tensor, ModelError> {
        let mut row = vec![0.0; self.cols()];
        // What cannot be done shows in the first row.
        quantize_row(dtype, &row, &mut Vec::new())?;
        if self.rows() > 0 {
            self.dequantize_row(0, &mut row)?;
        }
        let row_bytes = dtype.bytes_for(self.cols()).unwrap_or(0);
        let bytes = fill_rows(self.rows(), row_bytes, |number, out| {
            let (mut row, mut stored) = (vec![0.0; self.cols()], Vec::new());
            if self.dequantize_row(number, &mut row).is_ok()
                && quantize_row(dtype, &row, &mut stored).is_ok()
            {
                out.copy_from_slice(&stored);
            }
        });
        Tensor::owned(self.name.clone(), dtype, self.shape.clone(), bytes)
    }
}

/// `1 / d`, or 0 where every weight is 0.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn q8_0(x: &[f32], out: &mut Vec<u8>) {
    let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let d = largest / 127.0;
    let scale = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(x.iter().map(|v| (v * scale).round() as i8 as u8));
}

/// Packs 32 numbers below 16: the first half in the low nibbles.
fn pack_nibbles(q: impl Fn(f32) -> u8, x: &[f32], out: &mut Vec<u8>) {
    let (low, high) = x.split_at(16);
    out.extend(low.iter().zip(high).map(|(l, h)| q(*l) | q(*h) << 4));
}

fn q4_0(x: &[f32], out: &mut Vec<u8>) {
    // The extreme value, whatever its sign, becomes -8: the one code without a mirror image.
    let extreme = x
        .iter()
        .fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let d = extreme / -8.0;
    let scale = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    pack_nibbles(|v| (v * scale + 8.5).clamp(0.0, 15.0) as u8, x, out);
}

fn q4_1(x: &[f32], out: &mut Vec<u8>) {
    let min = x.iter().fold(f32::INFINITY, |m, v| m.min(*v));
    let max = x.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let d = (max - min) / 15.0;
    let scale = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(f16::from_f32(min).to_le_bytes());
    pack_nibbles(|v| ((v - min) * scale + 0.5).clamp(0.0, 15.0) as u8, x, out);
}

/// Halfway between one level of [`NF4`] and the next.
const NF4_BOUNDS: [f32; 15] = {
    let mut bounds = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        bounds[i] = f32::midpoint(NF4[i], NF4[i + 1]);
        i += 1;
    }
    bounds
};

/// The place in [`NF4`] of the level nearest to `x`: as many as there are bounds below it. All are
/// compared, which takes a few vector instructions and no branch.
fn nearest_nf4(x: f32) -> u8 {
    NF4_BOUNDS.iter().map(|bound| u8::from(x > *bound)).sum()
}

fn nf4(x: &[f32], out: &mut Vec<u8>) {
    let most = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let scale = inverse(most);
    out.extend(most.to_le_bytes());
    for half in x.chunks_exact(32) {
        pack_nibbles(|v| nearest_nf4(v * scale), half, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nf4_takes_the_nearest_level_of_each_block() {
        let values: Vec<f32> = (0..128)
            .map(|i| ((i * 37 % 128) as f32 - 61.5) * if i < 64 { 0.01 } else { 3.0 })
            .collect();
        let mut stored = Vec::new();
        quantize_row(DType::NF4, &values, &mut stored).unwrap();
        assert_eq!(stored.len(), 72);
        let tensor = Tensor::owned("w", DType::NF4, vec![1, 128], stored).unwrap();
        for (block, back) in values.chunks(64).zip(tensor.to_f32().chunks(64)) {
            let most = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (x, y) in block.iter().zip(back) {
                let error = |level: &f32| (level * most - x).abs();
                let least = NF4.iter().map(error).fold(f32::INFINITY, f32::min);
                assert!((x - y).abs() <= least + most * 1e-6, "{x} became {y}");
            }
        }
        let zeros = Tensor::owned("z", DType::F32, vec![1, 64], vec![0; 256]).unwrap();
        assert_eq!(zeros.quantize(DType::NF4).unwrap().to_f32(), vec![0.0; 64]);
    }

    #[test]
    fn tensors_are_converted_row_by_row_on_all_cores() {
        let values: Vec<u8> = (0..3000 * 64)
            .flat_map(|i: u32| ((i % 1013) as f32 - 500.0).to_le_bytes())
            .collect();
        let tensor = Tensor::owned("w", DType::F32, vec![3000, 64], values).unwrap();
        let dense = tensor.to_f32();
        for dtype in [DType::Q8_0, DType::NF4, DType::BF16] {
            let mut wanted = Vec::new();
            for row in dense.chunks_exact(64) {
                quantize_row(dtype, row, &mut wanted).unwrap();
            }
            assert_eq!(tensor.quantize(dtype).unwrap().bytes(), wanted);
        }
    }
}
