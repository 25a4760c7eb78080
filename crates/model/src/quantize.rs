//! From f32 to stored blocks: for synthetic models and for quantising at load time.

use half::{bf16, f16};

use crate::{DType, ModelError, Tensor};

/// Stores `values` (a whole number of blocks) as `dtype`, appended to `out`.
/// Formats: F32, F16, BF16, Q8_0, Q4_0, Q4_1.
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
        other => {
            return Err(ModelError::Unsupported(format!(
                "quantising to {}; use q8_0, q4_0 or q4_1",
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
    /// The same tensor stored as `dtype` (F32, F16, BF16, Q8_0, Q4_0, Q4_1), row by row.
    ///
    /// # Errors
    /// Another format, or rows that are no whole number of blocks.
    pub fn quantize(&self, dtype: DType) -> Result<Tensor, ModelError> {
        let mut row = vec![0.0; self.cols()];
        let mut bytes = Vec::new();
        for r in 0..self.rows() {
            self.dequantize_row(r, &mut row)?;
            quantize_row(dtype, &row, &mut bytes)?;
        }
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
