//! Kernels of the K formats: blocks of 256 weights, whose scales are small integers of their own
//! times one number a block.
//!
//! A block of a tile is: the codes of eight times 32 columns, the integer scales, the integer minima
//! (16 bytes each, a lane a row), then the numbers that multiply them, in half precision. As many
//! bits a weight as in the file, or a few hundredths more.

use super::codes::Codes;
use super::kernels::{Sums, TileData, each, fetch_ahead};
use crate::activations::PanelData;
use crate::simd::{BEGIN, Simd};

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
                fetch_ahead::<S, T>(s, w.bytes, b, bytes / PARTS);
                let q = C::load(s, codes.add(part * C::BYTES));
                let scale = s.mul(d, s.load_i8(scales.add(16 * part).cast()));
                let minimum = s.mul(dmin, s.load_i8(minima.add(16 * part).cast()));
                s.add_block_with(&mut acc, &q, (scale, minimum), a.at(b * T));
            }
        }
    }
    // SAFETY: a row of `sums` is 16 values.
    each!(t, { unsafe { s.store(sums[t].as_mut_ptr(), acc[t]) } });
}

/// 16 columns of weights for a kernel with a scale for each.
struct Half<S: Simd> {
    codes: [S::B; 4],
    scale: S::F,
    /// The block of the panel, and which half of it.
    place: (usize, usize),
}

impl<S: Simd> Half<S> {
    /// Adds these columns of all rows, for weights `scale (q - 32)`.
    ///
    /// # Safety
    /// The panel has the place.
    #[inline(always)]
    unsafe fn add<const T: usize>(self, s: S, a: PanelData, acc: &mut [S::F; T]) {
        let (b, half) = self.place;
        each!(t, {
            // SAFETY: the caller's promise.
            unsafe {
                let e = b * T + t;
                let x = a.codes.as_ptr().add(e * 32 + 16 * half);
                let begin = s.isplat(*a.halves.as_ptr().add(2 * e + half));
                let i = s.four_dot7(begin, self.codes, x);
                acc[t] = s.fma(a.scaled(s, i, e), self.scale, acc[t]);
            }
        });
    }

    /// The same for weights `scale q + 32 minimum`.
    ///
    /// # Safety
    /// As [`Half::add`].
    #[inline(always)]
    unsafe fn add_with<const T: usize>(
        self,
        s: S,
        minimum: S::F,
        a: PanelData,
        acc: &mut [S::F; T],
    ) {
        let (b, half) = self.place;
        each!(t, {
            // SAFETY: the caller's promise.
            unsafe {
                let e = b * T + t;
                let x = a.codes.as_ptr().add(e * 32 + 16 * half);
                let i = s.four_dot7(s.isplat(BEGIN), self.codes, x);
                acc[t] = s.fma(a.scaled(s, i, e), self.scale, acc[t]);
                let sum = s.isplat(*a.halves.as_ptr().add(2 * e + half));
                acc[t] = s.fma(a.scaled(s, sum, e), minimum, acc[t]);
            }
        });
    }
}

/// Weights `d s (q - 32)`, a scale for 16.
///
/// All rows take the first 16 columns of a part before any takes the others: what both need does not
/// fit the registers at once.
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
                fetch_ahead::<S, T>(s, w.bytes, b, bytes / PARTS);
                let q = C::load(s, codes.add(part * C::BYTES));
                let scales = scales.add(32 * part);
                let first = Half {
                    codes: [q[0], q[1], q[2], q[3]],
                    scale: s.mul(d, s.load_i8(scales.cast())),
                    place: (b, 0),
                };
                first.add(s, a, &mut acc);
                let last = Half {
                    codes: [q[4], q[5], q[6], q[7]],
                    scale: s.mul(d, s.load_i8(scales.add(16).cast())),
                    place: (b, 1),
                };
                last.add(s, a, &mut acc);
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
                fetch_ahead::<S, T>(s, w.bytes, b, bytes / PARTS);
                let q = C::load(s, codes.add(part * C::BYTES));
                let (scales, minima) = (scales.add(32 * part), minima.add(32 * part));
                let first = Half {
                    codes: [q[0], q[1], q[2], q[3]],
                    scale: s.mul(d, s.load_i8(scales.cast())),
                    place: (b, 0),
                };
                first.add_with(s, s.mul(dmin, s.load_i8(minima.cast())), a, &mut acc);
                let last = Half {
                    codes: [q[4], q[5], q[6], q[7]],
                    scale: s.mul(d, s.load_i8(scales.add(16).cast())),
                    place: (b, 1),
                };
                let minimum = s.mul(dmin, s.load_i8(minima.add(16).cast()));
                last.add_with(s, minimum, a, &mut acc);
            }
        }
    }
    // SAFETY: a row of `sums` is 16 values.
    each!(t, { unsafe { s.store(sums[t].as_mut_ptr(), acc[t]) } });
}
