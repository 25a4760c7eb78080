//! Matrix times activations: one pass over the weights serves the whole batch.

mod codes;
mod kblocks;
mod kernels;
mod pack;

#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;

use powerband_engine::EngineError;
use powerband_model::Tensor;
use powerband_model::spec::Activation;

#[cfg(target_arch = "x86_64")]
pub(crate) use kernels::AHEAD;
use kernels::{MOST, TileData, multiply};
pub(crate) use kernels::{Sums, each};
use pack::{Packed, TILE};

use crate::activations::{Activations, Forms, Panel, PanelData, panels};
use crate::buffer::{Parts, Rows};
use crate::ops;
use crate::sections::Sections;
use crate::simd::{Isa, Kernel, Simd, prefetch};
use crate::threads::Pool;

/// Tasks a thread should find in a parallel loop: enough to even out, few enough to be cheap.
const TASKS_PER_THREAD: usize = 6;

/// Tiles of a task where each thread has rows of its own.
const TILES_PER_TASK: usize = 8;

/// One or more matrices of the same input width, computed together. Their outputs stand side by
/// side in a row, each beginning at a multiple of 16.
#[derive(Debug)]
pub struct Linear {
    parts: Vec<Packed>,
}

/// The input of a linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Number of rows.
    pub rows: usize,
    /// The rows in f32.
    pub float: &'a Rows,
    /// The same rows in the other forms that [`Linear::reads`].
    pub quantised: &'a Activations,
}

/// What happens to the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// They replace what was there.
    Set,
    /// They are added to it (the residual stream).
    Add,
}

impl Linear {
    /// Packs matrices `[rows, cols]`; row `i` of matrix `m` is row `order(m, i)` of its tensor.
    ///
    /// # Errors
    /// No memory, or input widths that differ.
    pub fn pack(
        pool: &mut Pool,
        tensors: &[&Tensor],
        order: impl Fn(usize, usize) -> usize + Sync,
    ) -> Result<Self, EngineError> {
        if let Some(odd) = tensors.iter().find(|t| t.cols() != tensors[0].cols()) {
            let reason = format!("{} has {} columns, not as its like", odd.name, odd.cols());
            return Err(EngineError::Config(reason));
        }
        let parts = tensors
            .iter()
            .enumerate()
            .map(|(m, tensor)| Packed::new(pool, tensor, |row| order(m, row)))
            .collect::<Result<_, _>>()?;
        Ok(Self { parts })
    }

    /// Input width.
    pub fn cols(&self) -> usize {
        self.parts.first().map_or(0, |part| part.cols)
    }

    /// The forms of its input that it reads.
    pub fn reads(&self, isa: Isa) -> Forms {
        let forms = |part: &Packed| part.format.reads(isa.multiplies_pairs());
        self.parts
            .iter()
            .map(forms)
            .fold(Forms::default(), Forms::and)
    }

    /// The names of its formats.
    pub fn formats(&self) -> impl Iterator<Item = &'static str> {
        self.parts.iter().map(|part| part.format.name())
    }

    /// Bytes in memory.
    pub fn memory(&self) -> usize {
        self.parts.iter().map(Packed::memory).sum()
    }

    /// Computes all matrices into the rows of `out`.
    pub fn forward(
        &self,
        pool: &mut Pool,
        isa: Isa,
        input: Input<'_>,
        out: &mut Rows,
        store: Store,
    ) {
        let tiles: usize = self.parts.iter().map(Packed::tiles).sum();
        let stride = out.stride;
        let out = out.data.parts();
        let read = (input, self.reads(isa).other());
        in_chunks(pool, isa, read, tiles, |panels, tiles| {
            isa.run(Tiles {
                linear: self,
                input,
                panels,
                tiles,
                out,
                stride,
                store,
            });
        });
    }

    /// Computes `activation(gate x) * (up x)` into the rows of `out`.
    pub fn forward_gated(
        pool: &mut Pool,
        isa: Isa,
        (gate, up): (&Linear, &Linear),
        activation: Activation,
        input: Input<'_>,
        out: &mut Rows,
    ) {
        let read = (input, gate.reads(isa).and(up.reads(isa)).other());
        let (gate, up) = (&gate.parts[0], &up.parts[0]);
        let stride = out.stride;
        let out = out.data.parts();
        let tiles = gate.tiles().min(up.tiles());
        in_chunks(pool, isa, read, tiles, |panels, tiles| {
            isa.run(GatedTiles {
                gate,
                up,
                activation,
                input,
                panels,
                tiles,
                out,
                stride,
            });
        });
    }
}

/// A panel of the input.
#[derive(Debug, Clone, Copy)]
struct Rowful<'a> {
    panel: Panel,
    quantised: Option<PanelData<'a>>,
}

/// Calls `body(panels, tiles)` so that each panel of the input meets each of so many tiles once, in
/// parallel.
///
/// What a panel's data are is found out once: looked up for each tile, that waited for the results of
/// the tile before it to reach the cache, which was a sixth of a server's time.
fn in_chunks<'a>(
    pool: &mut Pool,
    isa: Isa,
    (input, quantised): (Input<'a>, bool),
    tiles: usize,
    body: impl Fn(&[Rowful<'a>], Range<usize>) + Sync,
) {
    let inputs: Vec<Rowful<'a>> = panels(input.rows, isa.panel())
        .map(|panel| Rowful {
            panel,
            quantised: quantised.then(|| input.quantised.panel(panel)),
        })
        .collect();
    if let Some(sections) = Sections::of(pool, input.rows, isa.panel()) {
        let tasks = tiles.div_ceil(TILES_PER_TASK);
        sections.run(pool, tasks, |places, task| {
            let first = task * TILES_PER_TASK;
            let last = (first + TILES_PER_TASK).min(tiles);
            // A panel stays in the first cache while the tiles pass, which are smaller and in the second.
            for input in inputs[places].chunks(1) {
                body(input, first..last);
            }
        });
        return;
    }
    let grain = tiles.div_ceil(pool.threads() * TASKS_PER_THREAD).max(1);
    pool.run(tiles.div_ceil(grain), |task| {
        body(&inputs, task * grain..((task + 1) * grain).min(tiles));
    });
}

/// One tile times one panel.
#[inline(always)]
fn tile<S: Simd>(s: S, part: &Packed, tile: usize, rows: &Rowful, input: &Input, sums: &mut Sums) {
    let data = TileData {
        bytes: part.tile(tile),
        format: part.format,
        length: part.length,
    };
    let stride = input.float.stride;
    let Rowful { panel, quantised } = *rows;
    let float = &input.float.data[panel.start * stride..];
    multiply(s, data, panel.len, quantised, (float, stride), sums);
}

/// Asks for the lines that the results of a tile and a panel go to: on their way while these are computed.
#[inline(always)]
fn ask(out: Parts<'_, f32>, panel: Panel, stride: usize, tile: usize) {
    for t in 0..panel.len {
        prefetch(out.address((panel.start + t) * stride + tile * TILE).cast());
    }
}

struct Tiles<'a> {
    linear: &'a Linear,
    input: Input<'a>,
    panels: &'a [Rowful<'a>],
    tiles: Range<usize>,
    out: Parts<'a, f32>,
    stride: usize,
    store: Store,
}

impl Kernel for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut sums = [[0.0; TILE]; MOST];
        for number in self.tiles {
            let (mut local, mut part) = (number, 0);
            while local >= self.linear.parts[part].tiles() {
                local -= self.linear.parts[part].tiles();
                part += 1;
            }
            let part = &self.linear.parts[part];
            for rows in self.panels {
                let panel = rows.panel;
                ask(self.out, panel, self.stride, number);
                tile(s, part, local, rows, &self.input, &mut sums);
                for (t, sums) in sums.iter().take(panel.len).enumerate() {
                    let at = (panel.start + t) * self.stride + number * TILE;
                    // SAFETY: these 16 columns are this task's alone; a row of sums is 16 values.
                    unsafe {
                        let to = self.out.at(at, TILE).as_mut_ptr();
                        let mut v = s.load(sums.as_ptr());
                        if self.store == Store::Add {
                            v = s.add(s.load(to), v);
                        }
                        s.store(to, v);
                    }
                }
            }
        }
    }
}

struct GatedTiles<'a> {
    gate: &'a Packed,
    up: &'a Packed,
    activation: Activation,
    input: Input<'a>,
    panels: &'a [Rowful<'a>],
    tiles: Range<usize>,
    out: Parts<'a, f32>,
    stride: usize,
}

impl Kernel for GatedTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut gates = [[0.0; TILE]; MOST];
        let mut ups = [[0.0; TILE]; MOST];
        for number in self.tiles {
            for rows in self.panels {
                let panel = rows.panel;
                ask(self.out, panel, self.stride, number);
                tile(s, self.gate, number, rows, &self.input, &mut gates);
                tile(s, self.up, number, rows, &self.input, &mut ups);
                for t in 0..panel.len {
                    let at = (panel.start + t) * self.stride + number * TILE;
                    // SAFETY: as in `Tiles`.
                    unsafe {
                        let to = self.out.at(at, TILE).as_mut_ptr();
                        let gate = s.load(gates[t].as_ptr());
                        let gate = match self.activation {
                            Activation::Silu => ops::silu(s, gate),
                            Activation::GeluTanh => ops::gelu(s, gate),
                        };
                        s.store(to, s.mul(gate, s.load(ups[t].as_ptr())));
                    }
                }
            }
        }
    }
}
