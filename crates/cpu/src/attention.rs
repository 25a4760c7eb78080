//! Attention over the paged cache, for decoding sequences and prompt chunks alike.
//!
//! A task is some consecutive queries of a sequence under one key/value head: the query heads
//! that share it are computed together, so keys and values are read once for all. Each query's
//! scores are added up element by element, its weights block by block and its output key by key,
//! always from the first visible block on: chunking and batching change no bit.

// Loops over constants index several arrays of registers at once.
#![allow(clippy::needless_range_loop)]

use std::cell::RefCell;
use std::marker::PhantomData;

use powerband_model::ModelSpec;

use crate::buffer::{Parts, Rows};
use crate::kv::{BLOCK_SIZE, Element, KvCache, Layout, with_element};
use crate::linear::each;
use crate::ops;
use crate::sections::{Sections, by_rows};
use crate::simd::{Isa, Kernel, Simd, prefetch};
use crate::threads::Pool;

/// Query rows (queries times heads that share keys) that a task aims at.
const TASK_ROWS: usize = 12;

/// Tasks that each thread should find before the heads of one are computed one after the other.
const TASKS_PER_THREAD: usize = 4;

/// Blocks from the keys that are computed to those that are asked for.
const FETCH_AHEAD: usize = 2;

/// What a layer's attention is like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Query heads for each key/value head.
    pub group: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Soft cap on the scores.
    pub softcap: Option<f32>,
    /// Keys that a query sees, itself included.
    pub window: Option<usize>,
}

impl Shape {
    /// That of layer `layer`.
    pub fn of(spec: &ModelSpec, layer: usize) -> Self {
        Self {
            group: spec.num_heads / spec.num_kv_heads,
            scale: spec.attention_scale,
            softcap: spec.attention_softcap,
            window: spec.sliding_window.filter(|_| spec.is_sliding(layer)),
        }
    }
}

/// Consecutive queries of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Queries<'a> {
    /// Row of the first in the batch.
    pub row: usize,
    /// How many.
    pub len: usize,
    /// Position of the first.
    pub start: usize,
    /// The sequence's blocks from position 0 on.
    pub blocks: &'a [u32],
}

/// Cuts the sequences of a batch into tasks.
pub fn tasks<'a>(sequences: &[Queries<'a>], group: usize, out: &mut Vec<Queries<'a>>) {
    let most = (TASK_ROWS / group).max(1);
    for sequence in sequences {
        for first in (0..sequence.len).step_by(most) {
            out.push(Queries {
                row: sequence.row + first,
                len: most.min(sequence.len - first),
                start: sequence.start + first,
                blocks: sequence.blocks,
            });
        }
    }
}

/// Attends for all tasks: reads queries from the rows of `q`, where head `h` begins at
/// `h * head_dim`, and writes the heads' outputs the same way to `out`.
pub fn attend(
    (pool, sections): (&mut Pool, Option<&Sections>),
    isa: Isa,
    (cache, layer): (&KvCache, usize),
    shape: Shape,
    tasks: &[Queries<'_>],
    q: &Rows,
    out: &mut Rows,
) {
    let layout = cache.layout;
    let stride = out.stride;
    let out = out.data.parts();
    // One after the other, the heads of a sequence find their keys on the way: those of the next are asked
    // for while the last blocks of one are computed.
    let together = match tasks.len() >= TASKS_PER_THREAD * pool.threads() {
        true => layout.heads,
        false => 1,
    };
    let row = |item: usize| tasks[item * together / layout.heads].row;
    let items = tasks.len() * layout.heads / together;
    by_rows(pool, sections, items, row, |item| {
        for task in item * together..(item + 1) * together {
            isa.run(Task {
                cache: &cache.layers[layer],
                layout,
                shape,
                queries: tasks[task / layout.heads],
                head: task % layout.heads,
                another: task + 1 < (item + 1) * together,
                q,
                out,
                stride,
            });
        }
    });
}

thread_local! {
    /// A task's queries, scores and outputs.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

struct Task<'a> {
    cache: &'a [u8],
    layout: Layout,
    shape: Shape,
    queries: Queries<'a>,
    head: usize,
    /// Does the next head of these queries follow?
    another: bool,
    q: &'a Rows,
    out: Parts<'a, f32>,
    stride: usize,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        SCRATCH.with_borrow_mut(|scratch| {
            with_element!(self.layout.dtype, E => s.call(TypedTask::<E> {
                task: &self,
                scratch,
                element: PhantomData,
            }));
        });
    }
}

/// A task whose element type is known: a function of its own for each.
struct TypedTask<'a, E> {
    task: &'a Task<'a>,
    scratch: &'a mut Vec<f32>,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for TypedTask<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        attend_task::<S, E>(s, self.task, self.scratch);
    }
}

/// First key and end of the keys that the query at `position` sees.
#[inline(always)]
fn visible(shape: &Shape, position: usize) -> (usize, usize) {
    let first = shape
        .window
        .map_or(0, |window| (position + 1).saturating_sub(window));
    (first, position + 1)
}

#[inline(always)]
fn attend_task<S: Simd, E: Element>(s: S, task: &Task<'_>, scratch: &mut Vec<f32>) {
    let (shape, layout, queries) = (&task.shape, &task.layout, task.queries);
    let (dim, padded) = (layout.head_dim, layout.padded());
    let rows = queries.len * shape.group;
    let first_block = visible(shape, queries.start).0 / BLOCK_SIZE;
    let end = queries.start + queries.len;
    let width = end.div_ceil(BLOCK_SIZE) * BLOCK_SIZE - first_block * BLOCK_SIZE;
    let blocks = &queries.blocks[first_block..end.div_ceil(BLOCK_SIZE)];

    scratch.resize((rows * (2 * padded + width)).max(scratch.len()), 0.0);
    let (q, rest) = scratch.split_at_mut(rows * padded);
    let (sums, rest) = rest.split_at_mut(rows * padded);
    let scores = &mut rest[..rows * width];

    // A head's keys or values; the scales of both stand behind the values.
    let of_head = |head: usize, block: u32, values: bool| {
        let skip = usize::from(values) * layout.part_bytes();
        let at = layout.keys_at(block, head) + skip;
        task.cache[at..][..layout.head_bytes() - skip].as_ptr()
    };
    let part = |block: u32, values: bool| of_head(task.head, block, values);

    // A head's keys and values lie together, but blocks lie anywhere, which no hardware foresees:
    // later ones are asked for while one is computed.
    for &block in blocks.iter().take(FETCH_AHEAD) {
        for line in (0..2 * layout.part_bytes()).step_by(64) {
            prefetch(part(block, false).wrapping_add(line));
        }
    }
    // Row `t * group + g` is head `g` of query `t`.
    for (row, q) in q.chunks_exact_mut(padded).enumerate() {
        let (t, g) = (row / shape.group, row % shape.group);
        let from = &task.q.row(queries.row + t)[(task.head * shape.group + g) * dim..][..dim];
        for (to, x) in q.iter_mut().zip(from) {
            *to = x * shape.scale;
        }
    }
    let mut b = 0;
    while b < blocks.len() {
        // Few rows leave time between dependent sums: two blocks fill it.
        let pair = rows <= 4 && S::SUMS > 4 && b + 1 < blocks.len();
        let last = b + usize::from(pair);
        let later = |b: usize| match blocks.get(b + FETCH_AHEAD) {
            Some(&block) => Some(part(block, false)),
            None if task.another => {
                let first = blocks.get(b + FETCH_AHEAD - blocks.len());
                first.map(|&block| of_head(task.head + 1, block, false))
            }
            None => None,
        };
        let keys = Keys {
            keys: [part(blocks[b], false), part(blocks[last], false)],
            later: [
                later(b).unwrap_or(part(blocks[b], false)),
                later(last).unwrap_or(part(blocks[b], false)),
            ],
            scales: [blocks[b], blocks[last]].map(|block| {
                part(block, false)
                    .wrapping_add(2 * layout.part_bytes())
                    .cast()
            }),
            dim,
        };
        let mut row = 0;
        while row < rows {
            // Even groups keep more sums in flight than full ones and a remainder.
            let groups = (rows - row).div_ceil(8.min(S::SUMS));
            let count = (rows - row).div_ceil(groups);
            let q = (q[row * padded..].as_ptr(), padded);
            let to = (scores[row * width + b * BLOCK_SIZE..].as_mut_ptr(), width);
            // SAFETY: `count` rows of `q` and of scores from here on, and a head's keys.
            unsafe {
                match (count, pair) {
                    (1, false) => score::<S, E, 1, 1>(s, &keys, q, to),
                    (2, false) => score::<S, E, 2, 1>(s, &keys, q, to),
                    (3, false) => score::<S, E, 3, 1>(s, &keys, q, to),
                    (4, false) => score::<S, E, 4, 1>(s, &keys, q, to),
                    (1, true) if const { S::SUMS > 4 } => score::<S, E, 1, 2>(s, &keys, q, to),
                    (2, true) if const { S::SUMS > 4 } => score::<S, E, 2, 2>(s, &keys, q, to),
                    (3, true) if const { S::SUMS > 4 } => score::<S, E, 3, 2>(s, &keys, q, to),
                    (4, true) if const { S::SUMS > 4 } => score::<S, E, 4, 2>(s, &keys, q, to),
                    (5, _) if const { S::SUMS > 4 } => score::<S, E, 5, 1>(s, &keys, q, to),
                    (6, _) if const { S::SUMS > 4 } => score::<S, E, 6, 1>(s, &keys, q, to),
                    (7, _) if const { S::SUMS > 4 } => score::<S, E, 7, 1>(s, &keys, q, to),
                    _ if const { S::SUMS > 4 } => score::<S, E, 8, 1>(s, &keys, q, to),
                    _ => unreachable!("at most 4 rows a group where a panel has 4"),
                }
            }
            row += count;
        }
        b = last + 1;
    }

    let mut inverse = [0.0f32; 64];
    for row in 0..rows {
        let (low, high) = visible(shape, queries.start + row / shape.group);
        let from = first_block * BLOCK_SIZE;
        let scores = &mut scores[row * width..][..width];
        let sum = softmax(s, scores, low - from, high - from, shape.softcap);
        inverse[row % 64] = sum.recip();
        // Groups beyond 64 heads keep their factor in the first score, which is scaled instead.
        if rows > 64 {
            for p in scores.iter_mut() {
                *p *= sum.recip();
            }
        }
    }

    sums.fill(0.0);
    let lanes = padded / 16;
    let wide = lanes.is_multiple_of(4);
    let mut row = 0;
    while row < rows {
        let count = (S::SUMS / 4).min(rows - row).max(1);
        for lane in (0..lanes).step_by(if wide { 4 } else { 1 }) {
            let p = scores[row * width..].as_ptr();
            let to = sums[row * padded + lane * 16..].as_mut_ptr();
            let chunk = Chunk {
                blocks,
                keys: end - first_block * BLOCK_SIZE,
                part: &part,
                offset: lane * 16 * E::BYTES,
                row_bytes: padded * E::BYTES,
                scales: layout.part_bytes() + BLOCK_SIZE * size_of::<f32>(),
            };
            // SAFETY: `count` rows of scores and sums from here on; `lane` is inside a head.
            unsafe {
                match (count, wide) {
                    (1, true) => weigh::<S, E, 1, 4>(s, &chunk, p, width, to, padded),
                    (2, true) if const { S::SUMS > 4 } => {
                        weigh::<S, E, 2, 4>(s, &chunk, p, width, to, padded)
                    }
                    (3, true) if const { S::SUMS > 4 } => {
                        weigh::<S, E, 3, 4>(s, &chunk, p, width, to, padded)
                    }
                    (4, true) if const { S::SUMS > 4 } => {
                        weigh::<S, E, 4, 4>(s, &chunk, p, width, to, padded)
                    }
                    (1, false) => weigh::<S, E, 1, 1>(s, &chunk, p, width, to, padded),
                    (2, false) if const { S::SUMS > 4 } => {
                        weigh::<S, E, 2, 1>(s, &chunk, p, width, to, padded)
                    }
                    (3, false) if const { S::SUMS > 4 } => {
                        weigh::<S, E, 3, 1>(s, &chunk, p, width, to, padded)
                    }
                    (4, false) if const { S::SUMS > 4 } => {
                        weigh::<S, E, 4, 1>(s, &chunk, p, width, to, padded)
                    }
                    _ => unreachable!("a quarter of a panel"),
                }
            }
        }
        row += count;
    }
    for (row, sums) in sums.chunks_exact(padded).enumerate() {
        let (t, g) = (row / shape.group, row % shape.group);
        let at = (queries.row + t) * task.stride + (task.head * shape.group + g) * dim;
        let factor = if rows > 64 { 1.0 } else { inverse[row] };
        // SAFETY: this head of this query is this task's alone.
        let out = unsafe { task.out.at(at, dim) };
        for (to, x) in out.iter_mut().zip(sums) {
            *to = x * factor;
        }
    }
}

/// Keys of one or two blocks.
struct Keys {
    keys: [*const u8; 2],
    /// Blocks to ask for meanwhile: keys and values.
    later: [*const u8; 2],
    /// Scales of the keys, of element types that have them.
    scales: [*const f32; 2],
    dim: usize,
}

/// Scores of `T` query rows with the 16 keys of each of `K` blocks.
///
/// # Safety
/// `T` rows of queries and of scores, each the given number of values apart; a head's keys in
/// each block.
#[inline(always)]
unsafe fn score<S: Simd, E: Element, const T: usize, const K: usize>(
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
            prefetch(keys.later[c].wrapping_add(i * 2 * BLOCK_SIZE * E::BYTES));
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
fn softmax<S: Simd>(
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
struct Chunk<'a, P> {
    blocks: &'a [u32],
    /// Keys in these blocks that exist.
    keys: usize,
    /// A head's values in a block.
    part: &'a P,
    /// First byte in a position's values.
    offset: usize,
    /// Bytes from one position to the next.
    row_bytes: usize,
    /// Bytes from a block's values to their scales, of element types that have them.
    scales: usize,
}

/// Adds to `T` rows of `to` the values weighted by `T` rows of `p`, `C` vectors wide. Keys beyond
/// the last are not read: what a block held before may not be a number.
///
/// # Safety
/// `T` rows of `p` (`width` apart) and of `to` (`stride` apart, `C` vectors wide).
#[inline(always)]
unsafe fn weigh<S: Simd, E: Element, const T: usize, const C: usize>(
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
