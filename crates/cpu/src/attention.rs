//! Attention over the paged cache, for decoding sequences and prompt chunks alike.
//!
//! A task is some consecutive queries of a sequence under one key/value head: the query heads
//! that share it are computed together, so keys and values are read once for all. Each query's
//! scores are added up element by element, its weights block by block and its output key by key,
//! always from the first visible block on: chunking and batching change no bit.

mod stages;

use std::cell::RefCell;
use std::marker::PhantomData;

use powerband_model::ModelSpec;

use crate::buffer::{Parts, Rows};
use crate::kv::{BLOCK_SIZE, Element, KvCache, Layout, with_element};
use crate::sections::{Sections, by_rows};
use crate::simd::{Isa, Kernel, Simd, prefetch_far};
use crate::threads::Pool;
use stages::{Chunk, Keys, score, softmax, weigh};

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
            prefetch_far(part(block, false).wrapping_add(line));
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
