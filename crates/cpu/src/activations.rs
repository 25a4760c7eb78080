//! Activations as signed bytes, in the order in which the kernels read them.
//!
//! A row is cut into blocks of 32 values, each with a scale. Rows are dealt into panels of
//! nearly equal size; within a panel the same block of all rows lies together. What a row
//! becomes does not depend on the panel it lies in, so results do not depend on the batch.

use powerband_engine::EngineError;

use crate::buffer::{Buffer, Parts, Rows};
use crate::simd::{BEGIN, Entries, Isa, Kernel, Simd, exact, less};

/// What formats store their weights with, above what they stand for; see [`PanelData::begins`].
pub const OFFSETS: [i32; 3] = [8, 16, 128];

/// Which of [`OFFSETS`] one is.
pub const fn place_of(offset: i32) -> usize {
    match offset {
        8 => 0,
        16 => 1,
        _ => 2,
    }
}

/// Values in a block.
pub const BLOCK: usize = 32;

/// Rows that pass through a weight tile together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Panel {
    /// First row.
    pub start: usize,
    /// Rows, at most [`Simd::PANEL`].
    pub len: usize,
}

/// Deals `rows` rows into panels of at most `most`.
pub fn panels(rows: usize, most: usize) -> impl Iterator<Item = Panel> {
    let count = rows.div_ceil(most).max(1);
    let (size, larger) = (rows / count, rows % count);
    (0..count)
        .map(move |i| Panel {
            start: i * size + i.min(larger),
            len: size + usize::from(i < larger),
        })
        .filter(|panel| panel.len > 0)
}

/// Bytes of a quantised row.
pub fn bytes(cols: usize) -> usize {
    // Codes, pairs; scale, what goes off, sum, beginnings.
    cols.div_ceil(BLOCK) * (3 * BLOCK + 4 * (3 + OFFSETS.len() + 2))
}

/// Which forms of its input a product reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forms {
    /// Signed bytes with scales.
    pub bytes: Bytes,
    /// Pairs of bfloat16.
    pub pairs: bool,
    /// The rows as they are.
    pub float: bool,
}

/// What is read with signed bytes and their scales, each of which has an array of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// [`PanelData::begins`] of each offset.
    pub begins: [bool; OFFSETS.len()],
    /// [`PanelData::halves`].
    pub halves: bool,
    /// [`PanelData::sums`].
    pub sums: bool,
}

impl Bytes {
    /// Are bytes read at all? Each format reads one of the arrays beside them.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

impl Forms {
    /// All that there is.
    pub const ALL: Self = Self {
        bytes: Bytes {
            begins: [true; OFFSETS.len()],
            halves: true,
            sums: true,
        },
        pairs: true,
        float: true,
    };

    /// Is there one that is not `f32`?
    pub fn other(self) -> bool {
        self.pairs || self.bytes.any()
    }

    /// Those of both.
    pub fn and(self, other: Self) -> Self {
        let (a, b) = (self.bytes, other.bytes);
        Self {
            bytes: Bytes {
                begins: std::array::from_fn(|i| a.begins[i] || b.begins[i]),
                halves: a.halves || b.halves,
                sums: a.sums || b.sums,
            },
            pairs: self.pairs || other.pairs,
            float: self.float || other.float,
        }
    }
}

/// Rows in the forms that kernels read.
#[derive(Debug)]
pub struct Activations {
    codes: Buffer<i8>,
    pairs: Buffer<u16>,
    scales: Buffer<f32>,
    less: Buffer<f32>,
    begins: [Buffer<i32>; OFFSETS.len()],
    halves: Buffer<i32>,
    sums: Buffer<f32>,
    panels: Vec<Panel>,
    blocks: usize,
    forms: Forms,
}

/// What a kernel reads for one panel of `len` rows: entry `b * len + r` is block `b` of row `r`.
#[derive(Debug, Clone, Copy)]
pub struct PanelData<'a> {
    /// 32 bytes an entry.
    pub codes: &'a [i8],
    /// 32 values an entry, as bfloat16.
    pub pairs: &'a [u16],
    /// Scale of the bytes.
    pub scales: &'a [f32],
    /// [`less`] of the scale.
    pub less: &'a [f32],
    /// For each of [`OFFSETS`]: [`BEGIN`] less so many times the sum of the bytes.
    pub begins: [&'a [i32]; OFFSETS.len()],
    /// Two an entry: [`BEGIN`] less 32 times the sum of the first 16 bytes, and of the last 16.
    pub halves: &'a [i32],
    /// Scale times the sum of the bytes.
    pub sums: &'a [f32],
}

impl PanelData<'_> {
    /// Entries from `e` on.
    ///
    /// # Safety
    /// There is an entry `e`.
    #[inline(always)]
    pub unsafe fn at(&self, e: usize) -> Entries {
        // SAFETY: the caller's promise.
        unsafe {
            Entries {
                codes: self.codes.as_ptr().add(32 * e),
                scales: self.scales.as_ptr().add(e),
                less: self.less.as_ptr().add(e),
                sums: self.sums.as_ptr().add(e),
            }
        }
    }

    /// A sum of products with the bytes of entry `e`, begun with [`BEGIN`], times their scale.
    ///
    /// # Safety
    /// There is an entry `e`.
    #[inline(always)]
    pub unsafe fn scaled<S: Simd>(&self, s: S, sum: S::I, e: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe {
            let (scale, less) = (self.scales.as_ptr().add(e), self.less.as_ptr().add(e));
            s.scaled(sum, *scale, *less)
        }
    }
}

impl Activations {
    /// Room for `rows` rows of `cols` values.
    ///
    /// # Errors
    /// No memory.
    pub fn new(rows: usize, cols: usize) -> Result<Self, EngineError> {
        let entries = rows * cols.div_ceil(BLOCK);
        Ok(Self {
            codes: Buffer::zeroed(entries * BLOCK)?,
            pairs: Buffer::zeroed(entries * BLOCK)?,
            scales: Buffer::zeroed(entries)?,
            less: Buffer::zeroed(entries)?,
            begins: [
                Buffer::zeroed(entries)?,
                Buffer::zeroed(entries)?,
                Buffer::zeroed(entries)?,
            ],
            halves: Buffer::zeroed(2 * entries)?,
            sums: Buffer::zeroed(entries)?,
            panels: Vec::new(),
            blocks: 0,
            forms: Forms::default(),
        })
    }

    /// Lays out `rows` rows of `cols` values (padding included) in panels of at most `most`, to be
    /// filled through the writer in these forms.
    pub fn begin(&mut self, rows: usize, cols: usize, most: usize, forms: Forms) -> Writer<'_> {
        self.panels.clear();
        self.panels.extend(panels(rows, most));
        self.blocks = cols.div_ceil(BLOCK);
        self.forms = forms;
        Writer {
            forms,
            codes: self.codes.parts(),
            pairs: self.pairs.parts(),
            scales: self.scales.parts(),
            less: self.less.parts(),
            begins: self.begins.each_mut().map(Buffer::parts),
            halves: self.halves.parts(),
            sums: self.sums.parts(),
            panels: &self.panels,
            blocks: self.blocks,
        }
    }

    /// Lays out and fills the first `count` of `rows` in all forms, on this thread: what a model's step does
    /// beside its norms.
    pub fn quantise(&mut self, isa: Isa, rows: &Rows, count: usize) {
        isa.run(Quantise {
            writer: self.begin(count, rows.stride, isa.panel(), Forms::ALL),
            rows,
            count,
        });
    }

    /// The panels of the rows that were laid out last.
    pub fn panels(&self) -> &[Panel] {
        &self.panels
    }

    /// Blocks of a row.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// A panel's data.
    pub fn panel(&self, panel: Panel) -> PanelData<'_> {
        let (start, len) = (panel.start * self.blocks, panel.len * self.blocks);
        PanelData {
            codes: &self.codes[start * BLOCK..][..len * BLOCK],
            pairs: &self.pairs[start * BLOCK..][..len * BLOCK],
            scales: &self.scales[start..][..len],
            less: &self.less[start..][..len],
            begins: [0, 1, 2].map(|i: usize| &self.begins[i][start..][..len]),
            halves: &self.halves[2 * start..][..2 * len],
            sums: &self.sums[start..][..len],
        }
    }
}

struct Quantise<'a> {
    writer: Writer<'a>,
    rows: &'a Rows,
    count: usize,
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in 0..self.count {
            // SAFETY: one thread.
            unsafe { self.writer.row(s, row, self.rows.row(row)) }
        }
    }
}

/// Fills rows, from any thread.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    forms: Forms,
    codes: Parts<'a, i8>,
    pairs: Parts<'a, u16>,
    scales: Parts<'a, f32>,
    less: Parts<'a, f32>,
    begins: [Parts<'a, i32>; OFFSETS.len()],
    halves: Parts<'a, i32>,
    sums: Parts<'a, f32>,
    panels: &'a [Panel],
    blocks: usize,
}

impl<'a> Writer<'a> {
    /// The panels of the rows to fill.
    pub fn panels(&self) -> &'a [Panel] {
        self.panels
    }

    /// Writes `values` (whole blocks) as row `row`.
    ///
    /// # Safety
    /// No other thread writes a row of the same panel.
    #[inline(always)]
    pub unsafe fn row<S: Simd>(&self, s: S, row: usize, values: &[f32]) {
        let panel = self.panels[self.panels.partition_point(|p| p.start <= row) - 1];
        let blocks = self.blocks.min(values.len() / BLOCK);
        // Entries of a row lie `panel.len` apart.
        let first = panel.start * self.blocks + (row - panel.start);
        if self.forms.pairs {
            for (b, block) in values.chunks_exact(BLOCK).take(blocks).enumerate() {
                let entry = first + b * panel.len;
                // SAFETY: an entry belongs to one row, which the caller writes alone; a block is two vectors.
                unsafe {
                    let pairs = self.pairs.at(entry * BLOCK, BLOCK).as_mut_ptr();
                    s.store_bf16(pairs, s.load(block.as_ptr()));
                    s.store_bf16(pairs.add(16), s.load(block.as_ptr().add(16)));
                }
            }
        }
        if self.forms.bytes.any() {
            for (b, block) in values.chunks_exact(BLOCK).take(blocks).enumerate() {
                // SAFETY: as above.
                unsafe { self.block(s, first + b * panel.len, block) }
            }
        }
    }

    /// Quantises a block as entry `entry`.
    ///
    /// # Safety
    /// No other thread writes this entry.
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, s: S, entry: usize, block: &[f32]) {
        let bytes = self.forms.bytes;
        // SAFETY: the caller's promise; a block is two vectors.
        unsafe {
            let codes = self.codes.at(entry * BLOCK, BLOCK).as_mut_ptr();
            let (x, y) = (s.load(block.as_ptr()), s.load(block.as_ptr().add(16)));
            let largest = s.largest(s.max(s.abs(x), s.abs(y)));
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let inverse = s.splat(if inverse.is_finite() { inverse } else { 0.0 });
            let scale = exact(largest / 127.0);
            let (first, last) = s.store_two_i8(codes, s.mul(x, inverse), s.mul(y, inverse));
            let sum = first + last;
            self.scales.at(entry, 1)[0] = scale;
            self.less.at(entry, 1)[0] = less(scale);
            for (place, offset) in OFFSETS.into_iter().enumerate() {
                if bytes.begins[place] {
                    self.begins[place].at(entry, 1)[0] = BEGIN - offset * sum;
                }
            }
            if bytes.halves {
                self.halves
                    .at(2 * entry, 2)
                    .copy_from_slice(&[BEGIN - 32 * first, BEGIN - 32 * last]);
            }
            if bytes.sums {
                self.sums.at(entry, 1)[0] = scale * sum as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{BEGIN_VALUE, Isa, Kernel};

    struct Fill<'a>(Writer<'a>, &'a [f32], usize);

    impl Kernel for Fill<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (row, values) in self.1.chunks_exact(self.2).enumerate() {
                // SAFETY: one thread.
                unsafe { self.0.row(s, row, values) }
            }
        }
    }

    #[test]
    fn panels_cover_the_rows_evenly() {
        for rows in 1..100 {
            let dealt: Vec<_> = panels(rows, 16).collect();
            assert_eq!(dealt.len(), rows.div_ceil(16));
            assert_eq!(dealt.iter().map(|p| p.len).sum::<usize>(), rows);
            assert!(
                dealt
                    .windows(2)
                    .all(|w| w[0].start + w[0].len == w[1].start)
            );
            assert!(
                dealt
                    .iter()
                    .all(|p| p.len <= 16 && p.len >= rows / dealt.len())
            );
        }
        assert_eq!(panels(0, 16).count(), 0);
    }

    #[test]
    fn a_block_comes_back_within_half_a_step() {
        let (rows, cols) = (5, 64);
        let values: Vec<f32> = (0..rows * cols)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.1)
            .collect();
        for isa in Isa::all() {
            let mut acts = Activations::new(rows, cols).unwrap();
            isa.run(Fill(acts.begin(rows, cols, 3, Forms::ALL), &values, cols));
            for &panel in acts.panels() {
                let data = acts.panel(panel);
                for r in 0..panel.len {
                    for b in 0..2 {
                        let entry = b * panel.len + r;
                        let codes = &data.codes[entry * 32..][..32];
                        let sum: i32 = codes.iter().map(|c| i32::from(*c)).sum();
                        let scale = data.scales[entry];
                        for (begins, offset) in data.begins.iter().zip(OFFSETS) {
                            assert_eq!(begins[entry], BEGIN - offset * sum);
                        }
                        // Exactly so: one bit in the last place of this is a whole weight.
                        let product = f64::from(scale) * f64::from(BEGIN_VALUE);
                        assert_eq!(f64::from(data.less[entry]), -product);
                        let half = |codes: &[i8]| codes.iter().map(|c| i32::from(*c)).sum::<i32>();
                        let halves =
                            [&codes[..16], &codes[16..]].map(|codes| BEGIN - 32 * half(codes));
                        assert_eq!(data.halves[2 * entry..][..2], halves);
                        assert_eq!(data.sums[entry], scale * sum as f32);
                        let wanted = &values[(panel.start + r) * cols + b * 32..][..32];
                        let pairs = &data.pairs[entry * 32..][..32];
                        for (pair, x) in pairs.iter().zip(wanted) {
                            assert_eq!(*pair, half::bf16::from_f32(*x).to_bits());
                        }
                        for (c, x) in codes.iter().zip(wanted) {
                            assert!((f32::from(*c) * scale - x).abs() <= scale * 0.501);
                        }
                    }
                }
            }
        }
    }
}
