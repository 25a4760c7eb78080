//! What a task does with the blocks that it sees: scores of their keys, weights of the scores, and their values
//! weighted.

// Loops over constants index several arrays of registers at once.
#![allow(clippy::needless_range_loop)]

use crate::kv::{BLOCK_SIZE, Element};
use crate::linear::each;
use crate::ops;
use crate::simd::{Simd, prefetch_far};

/// Keys of one or two blocks.
pub(super) struct Keys {
    pub keys: [*const u8; 2],
    /// Blocks to ask for meanwhile: keys and values.
    pub later: [*const u8; 2],
    /// Scales of the keys, of element types that have them.
    pub scales: [*const f32; 2],
    pub dim: usize,
}

/// Scores of `T` query rows with the 16 keys of each of `K` blocks.
///
/// # Safety
/// `T` rows of queries and of scores, each the given number of values apart; a head's keys in
/// each block.
#[inline(always)]
pub(super) unsafe fn score<S: Simd, E: Element, const T: usize, const K: usize>(
    s: S,
    keys: &Keys,
    (q, stride): (*const f32, usize),
    (to, width): (*mut f32, usize),
) {
    let mut acc = [[s.splat(0.0); K]; T];
    for i in 0..keys.dim {
        let mut k = [s.splat(0.0); K];
        for c in 0..K {
            // SAFETY: element `i` of 16 keys.
            k[c] = unsafe { E::load(s, keys.keys[c].add(i * BLOCK_SIZE * E::BYTES)) };
            prefetch_far(keys.later[c].wrapping_add(i * 2 * BLOCK_SIZE * E::BYTES));
        }
        each!(t, {
            // SAFETY: element `i` of each query.
            let x = s.splat(unsafe { *q.add(t * stride + i) });
            for c in 0..K {
                acc[t][c] = s.fma(k[c], x, acc[t][c]);
            }
        });
    }
    if E::SCALED {
        for c in 0..K {
            // SAFETY: the scales of 16 keys.
            let scale = unsafe { s.load(keys.scales[c]) };
            each!(t, {
                acc[t][c] = s.mul(acc[t][c], scale);
            });
        }
    }
    each!(t, {
        for c in 0..K {
            // SAFETY: 16 scores of each row and block.
            unsafe { s.store(to.add(t * width + c * BLOCK_SIZE), acc[t][c]) }
        }
    });
}

/// Turns scores into weights `e^(score - largest)`, 0 outside `low..high`; returns their sum.
#[inline(always)]
pub(super) fn softmax<S: Simd>(
    s: S,
    scores: &mut [f32],
    low: usize,
    high: usize,
    softcap: Option<f32>,
) -> f32 {
    let mut largest = s.splat(f32::NEG_INFINITY);
    for (b, scores) in scores.chunks_exact_mut(BLOCK_SIZE).enumerate() {
        let first = b * BLOCK_SIZE;
        // SAFETY: 16 scores.
        unsafe {
            let mut v = s.load(scores.as_ptr());
            if let Some(cap) = softcap {
                v = ops::softcap(s, v, cap);
            }
            let (low, high) = (low.saturating_sub(first), high.saturating_sub(first));
            v = s.within(low, high, v, f32::NEG_INFINITY);
            s.store(scores.as_mut_ptr(), v);
            largest = s.max(largest, v);
        }
    }
    let largest = s.splat(s.largest(largest));
    let mut sum = s.splat(0.0);
    for scores in scores.chunks_exact_mut(BLOCK_SIZE) {
        // SAFETY: 16 scores.
        unsafe {
            let p = ops::exp(s, s.sub(s.load(scores.as_ptr()), largest));
            s.store(scores.as_mut_ptr(), p);
            sum = s.add(sum, p);
        }
    }
    s.sum(sum)
}

/// A run of vectors of the values of all visible blocks.
pub(super) struct Chunk<'a, P> {
    pub blocks: &'a [u32],
    /// Keys in these blocks that exist.
    pub keys: usize,
    /// A head's values in a block.
    pub part: &'a P,
    /// First byte in a position's values.
    pub offset: usize,
    /// Bytes from one position to the next.
    pub row_bytes: usize,
    /// Bytes from a block's values to their scales, of element types that have them.
    pub scales: usize,
}

/// Adds to `T` rows of `to` the values weighted by `T` rows of `p`, `C` vectors wide. Keys beyond
/// the last are not read: what a block held before may not be a number.
///
/// # Safety
/// `T` rows of `p` (`width` apart) and of `to` (`stride` apart, `C` vectors wide).
#[inline(always)]
pub(super) unsafe fn weigh<S: Simd, E: Element, const T: usize, const C: usize>(
    s: S,
    chunk: &Chunk<'_, impl Fn(u32, bool) -> *const u8>,
    p: *const f32,
    width: usize,
    to: *mut f32,
    stride: usize,
) {
    let mut acc = [[s.splat(0.0); C]; T];
    for (b, &block) in chunk.blocks.iter().enumerate() {
        let values = (chunk.part)(block, true);
        let first = b * BLOCK_SIZE;
        for j in 0..BLOCK_SIZE.min(chunk.keys - first) {
            // SAFETY: position `j` of the block, weight `first + j` of each row.
            unsafe {
                let from = values.add(j * chunk.row_bytes + chunk.offset);
                let mut v = [s.splat(0.0); C];
                for c in 0..C {
                    v[c] = E::load(s, from.add(c * 16 * E::BYTES));
                }
                let scale = if E::SCALED {
                    *values.add(chunk.scales).cast::<f32>().add(j)
                } else {
                    1.0
                };
                each!(t, {
                    let weight = *p.add(t * width + first + j);
                    let weight = s.splat(if E::SCALED { weight * scale } else { weight });
                    for c in 0..C {
                        acc[t][c] = s.fma(weight, v[c], acc[t][c]);
                    }
                });
            }
        }
    }
    each!(t, {
        for c in 0..C {
            // SAFETY: row `t` of the output is `C` vectors wide.
            unsafe { s.store(to.add(t * stride + c * 16), acc[t][c]) }
        }
    });
}
