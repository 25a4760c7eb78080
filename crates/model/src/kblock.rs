//! The integers in GGUF's K blocks: 256 weights in sub-blocks, which have small integer scales
//! under one or two scales of half precision.

use half::f16;

use crate::DType;

/// Weights in a block.
pub const WEIGHTS: usize = 256;

/// A block taken apart: weight `i` is
/// `d * scales[i / 16] * (codes[i] - offset) - dmin * minima[i / 16]`.
#[derive(Debug, Clone, PartialEq)]
pub struct KBlock {
    /// A number a weight.
    pub codes: [u8; WEIGHTS],
    /// What is taken from a code.
    pub offset: u8,
    /// A scale for 16 weights; formats with one for 32 have each twice.
    pub scales: [i8; 16],
    /// A minimum for as many.
    pub minima: [u8; 16],
    /// The scale of the scales.
    pub d: f16,
    /// The scale of the minima.
    pub dmin: f16,
}

fn half_at(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// Code `i` of those that lie two bits each in 64 bytes: a byte holds codes 32 apart.
fn two_bits(packed: &[u8], i: usize) -> u8 {
    let (part, within) = (i / 128, i % 128);
    packed[part * 32 + within % 32] >> (2 * (within / 32)) & 3
}

/// Scales and minima of eight sub-blocks of Q4_K and Q5_K, six bits each, each twice.
fn scales_and_minima(packed: &[u8]) -> ([i8; 16], [u8; 16]) {
    let (mut scales, mut minima) = ([0; 16], [0; 16]);
    for s in 0..8 {
        let (scale, minimum) = if s < 4 {
            (packed[s] & 63, packed[s + 4] & 63)
        } else {
            (
                (packed[s + 4] & 15) | packed[s - 4] >> 6 << 4,
                packed[s + 4] >> 4 | packed[s] >> 6 << 4,
            )
        };
        scales[2 * s..2 * s + 2].fill(scale as i8);
        minima[2 * s..2 * s + 2].fill(minimum);
    }
    (scales, minima)
}

impl KBlock {
    /// Takes apart a stored block; `None` if `dtype` is no K format or `bytes` no whole block.
    pub fn read(dtype: DType, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != dtype.block().1 {
            return None;
        }
        match dtype {
            DType::Q2_K => Some(Self::q2(bytes)),
            DType::Q3_K => Some(Self::q3(bytes)),
            DType::Q4_K => Some(Self::q4(bytes)),
            DType::Q5_K => Some(Self::q5(bytes)),
            DType::Q6_K => Some(Self::q6(bytes)),
            _ => None,
        }
    }

    /// `scales[16]` (low nibble scale, high nibble minimum), `qs[64]`, d, dmin.
    pub(crate) fn q2(b: &[u8]) -> Self {
        Self {
            codes: std::array::from_fn(|i| two_bits(&b[16..80], i)),
            offset: 0,
            scales: std::array::from_fn(|s| (b[s] & 15) as i8),
            minima: std::array::from_fn(|s| b[s] >> 4),
            d: half_at(b, 80),
            dmin: half_at(b, 82),
        }
    }

    /// `hmask[32]`, `qs[64]`, 16 six-bit scales in 12 bytes, d.
    pub(crate) fn q3(b: &[u8]) -> Self {
        let (high, qs, packed) = (&b[..32], &b[32..96], &b[96..108]);
        let scale = |s: usize| {
            let low = if s < 8 {
                packed[s] & 15
            } else {
                packed[s - 8] >> 4
            };
            let top = packed[8 + s % 4] >> (2 * (s / 4)) & 3;
            (low | top << 4) as i8 - 32
        };
        Self {
            codes: std::array::from_fn(|i| two_bits(qs, i) | (high[i % 32] >> (i / 32) & 1) << 2),
            offset: 4,
            scales: std::array::from_fn(scale),
            minima: [0; 16],
            d: half_at(b, 108),
            dmin: f16::ZERO,
        }
    }

    /// d, dmin, scales and minima in 12 bytes, `qs[128]`: a byte holds codes 32 apart.
    pub(crate) fn q4(b: &[u8]) -> Self {
        let (scales, minima) = scales_and_minima(&b[4..16]);
        Self {
            codes: std::array::from_fn(|i| b[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15),
            offset: 0,
            scales,
            minima,
            d: half_at(b, 0),
            dmin: half_at(b, 2),
        }
    }

    /// As [`KBlock::q4`], with a fifth bit in `qh[32]` before `qs[128]`.
    pub(crate) fn q5(b: &[u8]) -> Self {
        let (scales, minima) = scales_and_minima(&b[4..16]);
        Self {
            codes: std::array::from_fn(|i| {
                let low = b[48 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
                low | (b[16 + i % 32] >> (i / 32) & 1) << 4
            }),
            offset: 0,
            scales,
            minima,
            d: half_at(b, 0),
            dmin: half_at(b, 2),
        }
    }

    /// `ql[128]`, `qh[64]`, `scales[16]` signed, d.
    pub(crate) fn q6(b: &[u8]) -> Self {
        let code = |i: usize| {
            let (part, within) = (i / 128, i % 128);
            let nibble = b[part * 64 + within % 64] >> (within / 64 * 4) & 15;
            nibble | two_bits(&b[128..192], i) << 4
        };
        Self {
            codes: std::array::from_fn(code),
            offset: 32,
            scales: std::array::from_fn(|s| b[192 + s] as i8),
            minima: [0; 16],
            d: half_at(b, 208),
            dmin: f16::ZERO,
        }
    }
}
