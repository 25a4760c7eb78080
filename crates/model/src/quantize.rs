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

/// The largest magnitude in a block, eight at a time.
fn largest(x: &[f32]) -> f32 {
    let mut most = [0.0f32; 8];
    for eight in x.chunks_exact(8) {
        for (most, v) in most.iter_mut().zip(eight) {
            *most = if v.abs() > *most { v.abs() } else { *most };
        }
    }
    most.into_iter().fold(0.0, f32::max)
}

fn q8_0(x: &[f32], out: &mut Vec<u8>) {
    let d = largest(x) / 127.0;
    let scale = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    // To the nearest without a call of the library's function, which has no instruction on CPUs
    // that this code must also run on.
    let nearest = |v: &f32| (v * scale + 0.5f32.copysign(*v)) as i32 as u8;
    out.extend(x.iter().map(nearest));
}

/// Packs 32 numbers below 16: the first half in the low nibbles.
fn pack_nibbles(q: impl Fn(f32) -> u8, x: &[f32], out: &mut Vec<u8>) {
    let (low, high) = x.split_at(16);
    out.extend(low.iter().zip(high).map(|(l, h)| q(*l) | q(*h) << 4));
}

fn q4_0(x: &[f32], out: &mut Vec<u8>) {
    // The extreme value, whatever its sign, becomes -8: the one code without a mirror image.
    let most = largest(x);
    let extreme = x.iter().copied().find(|v| v.abs() == most).unwrap_or(0.0);
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
    let most = largest(x);
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
    fn bytes_are_the_nearest_and_nibbles_have_the_extreme_at_their_end() {
        let mut x = [0.0; 32];
        let given = [0.4, 0.5, -0.5, 2.4, -3.6, 126.5, -127.0, 63.49];
        x[20..28].copy_from_slice(&given);
        let mut stored = Vec::new();
        quantize_row(DType::Q8_0, &x, &mut stored).unwrap();
        // A scale of 1 in half precision, then the bytes.
        assert_eq!(stored[..2], [0x00, 0x3c]);
        let bytes: Vec<i8> = stored[22..30].iter().map(|b| *b as i8).collect();
        assert_eq!(bytes, [0, 1, -1, 2, -4, 127, -127, 63]);
        assert!(stored[2..22].iter().all(|b| *b == 0));

        let mut x = [0.0; 32];
        (x[3], x[17], x[31]) = (-4.0, 2.0, 3.4);
        let mut stored = Vec::new();
        quantize_row(DType::Q4_0, &x, &mut stored).unwrap();
        // -4 is code 0 at a scale of a half; zero is 8, 2 is 12, 3.4 is 14.8, rounded to 15.
        assert_eq!(stored[..2], [0x00, 0x38]);
        assert_eq!((stored[5], stored[3], stored[17]), (0x80, 0xc8, 0xf8));
    }

    #[test]
    fn rows_of_single_numbers_of_any_length_come_back() {
        for count in [1, 7, 63, 64, 65, 200] {
            let values: Vec<f32> = (0..count).map(|i| (i as f32 - 31.0) * 0.25).collect();
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let mut stored = Vec::new();
                quantize_row(dtype, &values, &mut stored).unwrap();
                let tensor = Tensor::owned("w", dtype, vec![1, count], stored).unwrap();
                assert_eq!(tensor.to_f32(), values, "{} {count}", dtype.name());
            }
        }
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
