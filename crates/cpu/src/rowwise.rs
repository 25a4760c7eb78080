//! The phases of a step that work on rows: norms, quantising, rotation, filling the cache.

use std::ops::Range;

use crate::activations::{Activations, Forms, Writer};
use crate::buffer::{Parts, Rows};
use crate::forward::{LayerStep, Machine, Place};
use crate::kv::{BLOCK_SIZE, Layout, with_element};
use crate::ops;
use crate::rope::RopeTable;
use crate::sections::{Sections, by_rows};
use crate::simd::{Kernel, Simd, prefetch};
use crate::threads::Pool;

/// Rows that one task takes.
const ROWS_PER_TASK: usize = 4;

/// Calls `body(first, last)` for pieces of `0..rows`, in parallel if there are many.
pub(crate) fn in_rows(pool: &mut Pool, rows: usize, body: impl Fn(usize, usize) + Sync) {
    pool.run(rows.div_ceil(ROWS_PER_TASK), |task| {
        body(task * ROWS_PER_TASK, ((task + 1) * ROWS_PER_TASK).min(rows));
    });
}

/// Cuts a batch into pieces of at least [`ROWS_PER_TASK`] rows, but never within a KV block: its keys
/// stand side by side, so that two threads that write it would take each other's cache lines.
pub(crate) fn pieces(places: &[Place]) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for end in 1..=places.len() {
        let whole = places
            .get(end)
            .is_none_or(|next| next.block != places[end - 1].block);
        if whole && (end - start >= ROWS_PER_TASK || end == places.len()) {
            pieces.push(start..end);
            start = end;
        }
    }
    pieces
}

/// A norm on the way into a linear layer.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub weight: &'a [f32],
    pub eps: f32,
    pub from: &'a Rows,
    /// Which rows of `from`; all of them in order if `None`.
    pub rows: Option<&'a [usize]>,
}

impl<'a> Norm<'a> {
    /// Row `row` of the input.
    #[inline(always)]
    fn row(&self, row: usize) -> &'a [f32] {
        self.from.row(self.rows.map_or(row, |rows| rows[row]))
    }
}

/// Asks for a row, half of which another core has written.
#[inline(always)]
fn fetch(row: &[f32]) {
    for line in row.chunks(16) {
        prefetch(line.as_ptr().cast());
    }
}

/// Norms rows of `len` values into `rows`, or takes what is there, and writes them in the other forms that
/// are read. If no `f32` is, what is left in `rows` means nothing.
pub(crate) fn prepare(
    machine: &mut Machine,
    count: usize,
    (len, forms): (usize, Forms),
    norm: Option<Norm<'_>>,
    rows: &mut Rows,
    quantised: &mut Activations,
) {
    let isa = machine.isa;
    let stride = rows.stride;
    let writer = forms
        .other()
        .then(|| quantised.begin(count, len.next_multiple_of(32), isa.panel(), forms));
    if norm.is_none() && writer.is_none() {
        return;
    }
    let rows = rows.data.parts();
    let body = |first, last| {
        isa.run(Prepare {
            norm,
            len,
            first,
            last,
            rows,
            stride,
            writer,
            float: forms.float,
        });
    };
    match writer {
        // Rows of a panel share cache lines in the quantised layout: two threads that write them
        // would wait for each other.
        Some(writer) => {
            let panels = writer.panels();
            let sections = Sections::of(&machine.pool, count, isa.panel());
            let (sections, row) = (sections.as_ref(), |panel: usize| panels[panel].start);
            by_rows(&mut machine.pool, sections, panels.len(), row, |panel| {
                body(panels[panel].start, panels[panel].start + panels[panel].len);
            });
        }
        None => in_rows(&mut machine.pool, count, body),
    }
}

pub(crate) struct Prepare<'a> {
    pub norm: Option<Norm<'a>>,
    pub len: usize,
    pub first: usize,
    pub last: usize,
    pub rows: Parts<'a, f32>,
    pub stride: usize,
    pub writer: Option<Writer<'a>>,
    /// Are the rows themselves read?
    pub float: bool,
}

impl Kernel for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.first..self.last {
            // SAFETY: each row is one task's; rows are padded to whole vectors.
            unsafe {
                // If only other forms of it are read, a row is normed where it stays in the first cache.
                let place = if self.float || self.norm.is_none() {
                    row
                } else {
                    self.first
                };
                let to = self.rows.at(place * self.stride, self.stride);
                if row + 1 < self.last {
                    match self.norm {
                        Some(norm) => fetch(norm.row(row + 1)),
                        None => fetch(self.rows.at((row + 1) * self.stride, self.stride)),
                    }
                }
                if let Some(norm) = self.norm {
                    let from = norm.row(row).as_ptr();
                    ops::rms_norm(s, from, self.len, norm.eps, norm.weight, to.as_mut_ptr());
                }
                if let Some(writer) = &self.writer {
                    writer.row(s, row, to);
                }
            }
        }
    }
}

/// Bias, head norms and rotation in place, then keys and values into the cache.
pub(crate) struct RotateAndStore<'a> {
    pub step: &'a LayerStep<'a>,
    pub rope: Option<&'a RopeTable>,
    pub layout: Layout,
    pub first: usize,
    pub last: usize,
    pub qkv: Parts<'a, f32>,
    pub stride: usize,
    pub kv: Parts<'a, u8>,
}

impl Kernel for RotateAndStore<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (spec, layer) = (&self.step.model.spec, self.step.layer);
        let (dim, columns) = (spec.head_dim, self.step.model.columns);
        let mut scratch = vec![0.0; dim.next_multiple_of(16)];
        for row in self.first..self.last {
            let place = self.step.places[row];
            // SAFETY: each row, and so each position, is one task's.
            let qkv = unsafe { self.qkv.at(row * self.stride, self.stride) };
            if row + 1 < self.last {
                // SAFETY: as above.
                fetch(unsafe { self.qkv.at((row + 1) * self.stride, self.stride) });
            }
            if let Some(bias) = &layer.qkv_bias {
                for (x, b) in qkv.iter_mut().zip(bias) {
                    *x += b;
                }
            }
            let (q, rest) = qkv.split_at_mut(columns.key);
            let k = &mut rest[..columns.value - columns.key];
            for (heads, width, norm) in [
                (&mut *q, spec.q_dim(), &layer.q_norm),
                (&mut *k, spec.kv_dim(), &layer.k_norm),
            ] {
                for head in heads[..width].chunks_exact_mut(dim) {
                    if let Some(weight) = norm {
                        scratch[..dim].copy_from_slice(head);
                        scratch[dim..].fill(0.0);
                        let at = scratch.as_mut_ptr();
                        // SAFETY: the scratch row is padded to whole vectors.
                        unsafe { ops::rms_norm(s, at, dim, spec.norm_eps, weight, at) };
                        head.copy_from_slice(&scratch[..dim]);
                    }
                    if let Some(rope) = self.rope {
                        rope.rotate(place.position, head);
                    }
                }
            }
            let (k, v) = (&qkv[columns.key..], &qkv[columns.value..]);
            let slot = place.position % BLOCK_SIZE;
            // SAFETY: as above.
            with_element!(self.layout.dtype, E => unsafe {
                self.layout.write::<S, E>(s, self.kv, place.block, slot, (k, v));
            });
        }
    }
}

/// A soft cap on a row, in place.
pub(crate) struct Cap<'a>(pub &'a mut [f32], pub f32);

impl Kernel for Cap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for v in self.0.chunks_exact_mut(16) {
            // SAFETY: 16 values.
            unsafe { s.store(v.as_mut_ptr(), ops::softcap(s, s.load(v.as_ptr()), self.1)) }
        }
    }
}

/// Norms a branch and adds it to the residual stream.
pub(crate) struct NormAndAdd<'a> {
    pub branch: &'a mut [f32],
    pub hidden: &'a mut [f32],
    pub weight: &'a [f32],
    pub len: usize,
    pub eps: f32,
}

impl Kernel for NormAndAdd<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let branch = self.branch.as_mut_ptr();
        // SAFETY: rows are padded to whole vectors.
        unsafe { ops::rms_norm(s, branch, self.len, self.eps, self.weight, branch) };
        for (h, b) in self.hidden.iter_mut().zip(self.branch.iter()) {
            *h += b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places of sequences of so many tokens, each from a position on, with blocks of their own.
    fn places(sequences: &[(usize, usize)]) -> Vec<Place> {
        let mut places = Vec::new();
        for (number, &(start, len)) in sequences.iter().enumerate() {
            places.extend((start..start + len).map(|position| Place {
                position,
                block: (100 * number + position / BLOCK_SIZE) as u32,
            }));
        }
        places
    }

    #[test]
    fn pieces_cover_the_rows_and_leave_blocks_whole() {
        for sequences in [
            vec![],
            vec![(0, 1)],
            vec![(0, 64)],
            vec![(7, 100), (0, 3)],
            vec![(31, 1); 50],
            vec![(5, 1), (16, 40), (9, 1), (2, 6)],
        ] {
            let places = places(&sequences);
            let pieces = pieces(&places);
            let mut next = 0;
            for piece in &pieces {
                assert_eq!(piece.start, next);
                next = piece.end;
                assert!(piece.len() >= ROWS_PER_TASK || next == places.len());
                assert!(piece.len() < ROWS_PER_TASK + BLOCK_SIZE);
                if next < places.len() {
                    assert_ne!(places[next].block, places[next - 1].block, "{sequences:?}");
                }
            }
            assert_eq!(next, places.len(), "{sequences:?}");
        }
    }
}
