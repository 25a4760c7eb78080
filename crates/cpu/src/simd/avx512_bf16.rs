//! The instruction for pairs of bf16: two products a lane where f32 has one.

use std::arch::x86_64::*;

use super::prefetch_far;
use crate::activations::BLOCK;
use crate::linear::{AHEAD, Sums, each};

/// Pairs of a block.
const PAIRS: usize = BLOCK / 2;
/// Bytes of a block of a weight tile: a vector a pair.
const BYTES: usize = 64 * PAIRS;

/// `sums[t][i]` = row `i` of the tile times row `t` of the panel. A tile's block holds 16 vectors of a pair
/// for each of its 16 rows; a panel's block holds `T` rows of 16 pairs.
///
/// A sum takes the second of a pair, then the first, and rounds after each; what is denormal counts as zero.
///
/// # Safety
/// The CPU has the instructions. There are `blocks` blocks at `tile` and at `panel`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn multiply<const T: usize>(
    tile: *const u8,
    blocks: usize,
    panel: *const u16,
    sums: &mut Sums,
) {
    let mut acc = [_mm512_setzero_ps(); T];
    for b in 0..blocks {
        // SAFETY: block `b` of both; what is asked for need not exist.
        unsafe {
            let (w, a) = (tile.add(b * BYTES), panel.add(b * T * BLOCK));
            for pair in 0..PAIRS {
                prefetch_far(w.wrapping_add(AHEAD + 64 * pair));
                let w: __m512bh = std::mem::transmute(_mm512_loadu_si512(w.add(64 * pair).cast()));
                each!(t, {
                    let at = a.add(t * BLOCK + 2 * pair).cast::<i32>();
                    let x = _mm512_set1_epi32(at.read_unaligned());
                    acc[t] =
                        _mm512_dpbf16_ps(acc[t], w, std::mem::transmute::<__m512i, __m512bh>(x));
                });
            }
        }
    }
    each!(t, {
        // SAFETY: a row of `sums` is 16 values.
        unsafe { _mm512_storeu_ps(sums[t].as_mut_ptr(), acc[t]) }
    });
}
