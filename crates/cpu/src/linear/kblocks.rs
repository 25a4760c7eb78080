//! Kernels of the K formats: blocks of 256 weights, whose scales are small integers of their own
//! times one number a block.
//!
//! A block of a tile is: the codes of eight times 32 columns, the integer scales, the integer minima
//! (16 bytes each, a lane a row), then the numbers that multiply them, in half precision. As many
//! bits a weight as in the file, or a few hundredths more.

use super::codes::Codes;
use super::kernels::{Sums, TileData, dot32, each, fetch_ahead};
use crate::activations::PanelData;
use crate::simd::Simd;

/// Times 32 columns in a block.
const PARTS: usize = 8;

/// Bytes of a block for 16 rows with `scales` integer scales a row and `minima` minima.
pub const fn block_bytes(code_bytes: usize, scales: usize, minima: usize) -> usize {
    let numbers = if minima > 0 { 2 } else { 1 };
    PARTS * code_bytes + 16 * (scales + minima) + 32 * numbers
}

/// Weights `d s q - dmin m`, a scale and a minimum for 32.
///
/// # Safety
/// Tile and panel are as long as their formats say.
#[inline(always)]
pub(super) unsafe fn with_minima<S: Simd, C: Codes, const T: usize>(
    s: S,
    w: TileData,
    a: PanelData,
    sums: &mut Sums,
) {
    let bytes = const { block_bytes(C::BYTES, 8, 8) };
    let mut acc = [s.splat(0.0); T];
    for block in 0..w.length {
        // SAFETY: block `block` of the tile, and its eight of the panel.
        unsafe {
            let codes = w.bytes.as_ptr().add(block * bytes);
            let scales = codes.add(PARTS * C::BYTES);
            let minima = scales.add(16 * PARTS);
            let numbers: *const u16 = minima.add(16 * PARTS).cast();
            let d = s.load_f16(numbers);
            let dmin = s.sub(s.splat(0.0), s.load_f16(numbers.add(16)));
            for part in 0..PARTS {
                let b = block * PARTS + part;
                fetch_ahead(w.bytes, b, bytes / PARTS);
                let q = C::load(s, codes.add(part * C::BYTES));
                let scale = s.mul(d, s.load_i8(scales.add(16 * part).cast()));
                let minimum = s.mul(dmin, s.load_i8(minima.add(16 * part).cast()));
                each!(t, {
                    let e = b * T + t;
                    let x = a.codes.as_ptr().add(e * 32);
                    let i = dot32(s, s.isplat(0), &q, x);
                    acc[t] = s.fma(minimum, s.splat(*a.sums.as_ptr().add(e)), acc[t]);
                    let scale = s.mul(scale, s.splat(*a.scales.as_ptr().add(e)));
                    acc[t] = s.fma(s.to_f32(i), scale, acc[t]);
                });
            }
        }
    }
    // SAFETY: a row of `sums` is 16 values.
    each!(t, { unsafe { s.store(sums[t].as_mut_ptr(), acc[t]) } });
}

/// Adds the dot products of the first and of the last 16 of 32 columns to a sum each.
///
/// # Safety
/// There are 32 activations at `x`.
#[inline(always)]
unsafe fn dot16<S: Simd>(s: S, i: [S::I; 2], q: &[S::B; 8], x: *const i8) -> [S::F; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let first = s.dot7(i[0], q[0], x);
        let last = s.dot7(i[1], q[4], x.add(16));
        let first = s.dot7(first, q[1], x.add(4));
        let last = s.dot7(last, q[5], x.add(20));
        let first = s.dot7(first, q[2], x.add(8));
        let last = s.dot7(last, q[6], x.add(24));
        let first = s.dot7(first, q[3], x.add(12));
        let last = s.dot7(last, q[7], x.add(28));
        [s.to_f32(first), s.to_f32(last)]
    }
}

/// Weights `d s (q - 32)`, a scale for 16.
///
/// # Safety
/// As [`with_minima`].
#[inline(always)]
pub(super) unsafe fn halves<S: Simd, C: Codes, const T: usize>(
    s: S,
    w: TileData,
    a: PanelData,
    sums: &mut Sums,
) {
    const {
        assert!(C::OFFSET == 32, "that is what the panel's halves are for");
    }
    let bytes = const { block_bytes(C::BYTES, 16, 0) };
    let mut acc = [s.splat(0.0); T];
    for block in 0..w.length {
        // SAFETY: as in `with_minima`.
        unsafe {
            let codes = w.bytes.as_ptr().add(block * bytes);
            let scales = codes.add(PARTS * C::BYTES);
            let d = s.load_f16(scales.add(32 * PARTS).cast());
            let d = s.mul(d, s.splat(const { 1.0 / C::FACTOR }));
            for part in 0..PARTS {
                let b = block * PARTS + part;
                fetch_ahead(w.bytes, b, bytes / PARTS);
                let q = C::load(s, codes.add(part * C::BYTES));
                let from: *const i8 = scales.add(32 * part).cast();
                let (first, last) = (s.load_i8(from), s.load_i8(from.add(16)));
                let (first, last) = (s.mul(d, first), s.mul(d, last));
                each!(t, {
                    let e = b * T + t;
                    let from = a.halves.as_ptr().add(2 * e);
                    let begin = [s.isplat(*from), s.isplat(*from.add(1))];
                    let x = dot16(s, begin, &q, a.codes.as_ptr().add(e * 32));
                    let x = s.fma(x[1], last, s.mul(x[0], first));
                    acc[t] = s.fma(x, s.splat(*a.scales.as_ptr().add(e)), acc[t]);
                });
            }
        }
    }
    // SAFETY: a row of `sums` is 16 values.
    each!(t, { unsafe { s.store(sums[t].as_mut_ptr(), acc[t]) } });
}

/// Weights `d s q - dmin m`, a scale and a minimum for 16.
///
/// # Safety
/// As [`with_minima`].
#[inline(always)]
pub(super) unsafe fn halves_with_minima<S: Simd, C: Codes, const T: usize>(
    s: S,
    w: TileData,
    a: PanelData,
    sums: &mut Sums,
) {
    let bytes = const { block_bytes(C::BYTES, 16, 16) };
    let mut acc = [s.splat(0.0); T];
    for block in 0..w.length {
        // SAFETY: as in `with_minima`.
        unsafe {
            let codes = w.bytes.as_ptr().add(block * bytes);
            let scales = codes.add(PARTS * C::BYTES);
            let minima = scales.add(32 * PARTS);
            let numbers: *const u16 = minima.add(32 * PARTS).cast();
            let d = s.load_f16(numbers);
            // The panel's halves are sums times -32.
            let dmin = s.mul(s.splat(1.0 / 32.0), s.load_f16(numbers.add(16)));
            for part in 0..PARTS {
                let b = block * PARTS + part;
                fetch_ahead(w.bytes, b, bytes / PARTS);
                let q = C::load(s, codes.add(part * C::BYTES));
                let from: *const i8 = scales.add(32 * part).cast();
                let (first, last) = (s.load_i8(from), s.load_i8(from.add(16)));
                let (first, last) = (s.mul(d, first), s.mul(d, last));
                let from: *const i8 = minima.add(32 * part).cast();
                let (low, high) = (s.load_i8(from), s.load_i8(from.add(16)));
                let (low, high) = (s.mul(dmin, low), s.mul(dmin, high));
                each!(t, {
                    let e = b * T + t;
                    let zero = s.isplat(0);
                    let x = dot16(s, [zero, zero], &q, a.codes.as_ptr().add(e * 32));
                    let x = s.fma(x[1], last, s.mul(x[0], first));
                    let from = a.halves.as_ptr().add(2 * e);
                    let x = s.fma(low, s.to_f32(s.isplat(*from)), x);
                    let x = s.fma(high, s.to_f32(s.isplat(*from.add(1))), x);
                    acc[t] = s.fma(x, s.splat(*a.scales.as_ptr().add(e)), acc[t]);
                });
            }
        }
    }
    // SAFETY: a row of `sums` is 16 values.
    each!(t, { unsafe { s.store(sums[t].as_mut_ptr(), acc[t]) } });
}
