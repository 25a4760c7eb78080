//! From stored blocks to f32: the reference every kernel is compared with.
//!
//! Written for clarity, one function a format. Block layouts are GGUF's.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::kblock::KBlock;
use crate::{DType, ModelError, Tensor};

impl Tensor {
    /// Expands row `row` (`0..rows()`) into `out`, `cols()` values.
    ///
    /// # Errors
    /// `row` or the length of `out` is wrong.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<(), ModelError> {
        let wrong = |reason: String| ModelError::Tensor {
            name: self.name.clone(),
            reason,
        };
        if out.len() != self.cols() {
            return Err(wrong(format!(
                "a row is {} values, not {}",
                self.cols(),
                out.len()
            )));
        }
        let row_bytes = self.dtype.bytes_for(self.cols()).unwrap_or(0);
        let bytes = row
            .checked_mul(row_bytes)
            .and_then(|start| self.bytes().get(start..start.checked_add(row_bytes)?))
            .ok_or_else(|| wrong(format!("there is no row {row}; it has {}", self.rows())))?;
        dequantize(self.dtype, bytes, out);
        Ok(())
    }

    /// All elements, row-major. Allocates four bytes an element.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows() * self.cols()];
        dequantize(self.dtype, self.bytes(), &mut out);
        out
    }
}

/// Expands whole blocks of `bytes` into `out`; stops at the shorter of the two.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let (weights, block_bytes) = dtype.block();
    let expand: fn(&[u8], &mut [f32]) = match dtype {
        DType::F32 => return f32s(bytes, out),
        DType::F16 => return f16s(bytes, out),
        DType::BF16 => return bf16s(bytes, out),
        DType::Q4_0 => q4_0,
        DType::Q4_1 => q4_1,
        DType::Q5_0 => q5_0,
        DType::Q5_1 => q5_1,
        DType::Q8_0 => q8_0,
        DType::NF4 => nf4,
        DType::F8_E4M3 => f8,
        DType::Q2_K => |b, y| k(&KBlock::q2(b), y),
        DType::Q3_K => |b, y| k(&KBlock::q3(b), y),
        DType::Q4_K => |b, y| k(&KBlock::q4(b), y),
        DType::Q5_K => |b, y| k(&KBlock::q5(b), y),
        DType::Q6_K => |b, y| k(&KBlock::q6(b), y),
    };
    for (block, y) in bytes
        .chunks_exact(block_bytes)
        .zip(out.chunks_exact_mut(weights))
    {
        expand(block, y);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn f32s(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in bytes.chunks_exact(4).zip(out) {
        *y = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
}

fn f16s(bytes: &[u8], out: &mut [f32]) {
    // Many at once: whether the CPU has an instruction for it is asked each time.
    let mut some = [f16::ZERO; 64];
    for (bytes, y) in bytes.chunks(2 * some.len()).zip(out.chunks_mut(some.len())) {
        let some = &mut some[..y.len().min(bytes.len() / 2)];
        for (to, b) in some.iter_mut().zip(bytes.chunks_exact(2)) {
            *to = f16::from_le_bytes([b[0], b[1]]);
        }
        some.convert_to_f32_slice(&mut y[..some.len()]);
    }
}

fn bf16s(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in bytes.chunks_exact(2).zip(out) {
        *y = bf16::from_le_bytes([b[0], b[1]]).to_f32();
    }
}

fn q4_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (i, q) in b[2..].iter().enumerate() {
        y[i] = d * (f32::from(q & 15) - 8.0);
        y[i + 16] = d * (f32::from(q >> 4) - 8.0);
    }
}

fn q4_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (i, q) in b[4..].iter().enumerate() {
        y[i] = d * f32::from(q & 15) + m;
        y[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// The 32 five-bit numbers of a Q5 block: fifth bits in `high` (4 bytes), nibbles in `low` (16).
pub fn five_bits(high: &[u8], low: &[u8]) -> [u8; 32] {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    std::array::from_fn(|i| {
        let nibble = if i < 16 {
            low[i] & 15
        } else {
            low[i - 16] >> 4
        };
        nibble | ((high >> i & 1) as u8) << 4
    })
}

fn q5_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (y, q) in y.iter_mut().zip(five_bits(&b[2..6], &b[6..])) {
        *y = d * (f32::from(q) - 16.0);
    }
}

fn q5_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (y, q) in y.iter_mut().zip(five_bits(&b[4..8], &b[8..])) {
        *y = d * f32::from(q) + m;
    }
}

fn q8_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (y, q) in y.iter_mut().zip(&b[2..]) {
        *y = d * f32::from(*q as i8);
    }
}

/// The 16 levels of 4-bit normal floats: quantiles of a normal distribution, the outermost 1 and
/// one of them 0 (Dettmers et al., QLoRA, 2023).
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

fn nf4(b: &[u8], y: &mut [f32]) {
    let most = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    for (codes, y) in b[4..].chunks_exact(16).zip(y.chunks_exact_mut(32)) {
        for (i, q) in codes.iter().enumerate() {
            y[i] = NF4[usize::from(q & 15)] * most;
            y[i + 16] = NF4[usize::from(q >> 4)] * most;
        }
    }
}

/// Eight bits with 4 exponent and 3 mantissa bits (`float8_e4m3fn`: no infinities).
pub fn e4m3(byte: u8) -> f32 {
    if byte & 0x7f == 0x7f {
        return f32::NAN;
    }
    // An f16 whose exponent is 8 too small.
    let bits = u16::from(byte & 0x7f) << 7 | u16::from(byte & 0x80) << 8;
    f16::from_bits(bits).to_f32() * 256.0
}

fn f8(b: &[u8], y: &mut [f32]) {
    let scale = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    for (y, code) in y.iter_mut().zip(&b[4..]) {
        *y = e4m3(*code) * scale;
    }
}

/// A K block: `d scale (q - offset) - dmin minimum`.
fn k(block: &KBlock, y: &mut [f32]) {
    let (d, dmin, offset) = (
        block.d.to_f32(),
        block.dmin.to_f32(),
        f32::from(block.offset),
    );
    for (part, (y, codes)) in y
        .chunks_exact_mut(16)
        .zip(block.codes.chunks_exact(16))
        .enumerate()
    {
        let (scale, minimum) = (block.scales[part], block.minima[part]);
        for (y, q) in y.iter_mut().zip(codes) {
            *y = d * f32::from(scale) * (f32::from(*q) - offset) - dmin * f32::from(minimum);
        }
    }
}
