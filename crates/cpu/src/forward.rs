//! One step through the model.

use powerband_engine::EngineError;

use crate::activations::{Activations, Writer};
use crate::attention::{self, Queries, Shape, attend};
use crate::buffer::{Parts, Rows};
use crate::kv::{BLOCK_SIZE, KvCache, Layout, with_element};
use crate::linear::{Input, Linear, Store};
use crate::model::{Columns, Layer, Model};
use crate::ops;
use crate::profile::{Phase, Profile};
use crate::rope::RopeTable;
use crate::simd::{Isa, Kernel, Simd};
use crate::threads::Pool;

/// Rows that one task of a row-wise phase takes.
const ROWS_PER_TASK: usize = 4;

/// Some consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// The tokens to compute.
    pub tokens: &'a [u32],
    /// Position of the first.
    pub start: usize,
    /// The sequence's KV blocks, covering `start + tokens.len()` positions.
    pub blocks: &'a [u32],
    /// Compute the logits after the last token.
    pub logits: bool,
}

/// What a step writes while it goes through the layers.
#[derive(Debug)]
pub(crate) struct Workspace {
    hidden: Rows,
    normed: Rows,
    qkv: Rows,
    attended: Rows,
    gated: Rows,
    /// Results that are normed before they join the residual stream.
    branch: Rows,
    quantised: Activations,
    pub logits: Rows,
}

impl Workspace {
    /// Room for steps of `tokens` tokens and logits of `sequences` sequences.
    pub fn new(model: &Model, tokens: usize, sequences: usize) -> Result<Self, EngineError> {
        let spec = &model.spec;
        let widest = spec
            .hidden_size
            .max(spec.q_dim())
            .max(spec.intermediate_size);
        let branch = if spec.sandwich_norms { tokens } else { 0 };
        Ok(Self {
            hidden: Rows::zeroed(tokens, spec.hidden_size)?,
            normed: Rows::zeroed(tokens.max(sequences), spec.hidden_size)?,
            // Whole vectors are read from the last head, whatever its width.
            qkv: Rows::zeroed(tokens, model.columns.end + 16)?,
            attended: Rows::zeroed(tokens, spec.q_dim())?,
            gated: Rows::zeroed(tokens, spec.intermediate_size)?,
            branch: Rows::zeroed(branch, spec.hidden_size)?,
            quantised: Activations::new(tokens.max(sequences), widest.next_multiple_of(32))?,
            logits: Rows::zeroed(sequences, spec.vocab_size)?,
        })
    }

    /// Bytes of such a workspace if it is used to the full.
    pub fn bytes(spec: &powerband_model::ModelSpec, tokens: usize, sequences: usize) -> usize {
        let widest = spec
            .hidden_size
            .max(spec.q_dim())
            .max(spec.intermediate_size);
        let branch = usize::from(spec.sandwich_norms) * spec.hidden_size;
        let row = 2 * spec.hidden_size
            + Columns::of(spec).end
            + spec.q_dim()
            + spec.intermediate_size
            + branch;
        tokens * (4 * row + widest + widest / 32 * 12) + 4 * sequences * spec.vocab_size
    }
}

/// Threads, instruction set and clock of a step.
#[derive(Debug)]
pub(crate) struct Machine {
    pub pool: Pool,
    pub isa: Isa,
    pub profile: Profile,
}

/// A token's place in the batch.
#[derive(Debug, Clone, Copy)]
struct Place {
    position: usize,
    block: u32,
}

/// Computes the chunks; the logits of the `i`-th chunk that asks for them are row `i` of
/// `work.logits`. The caller has checked tokens, blocks and sizes.
pub(crate) fn forward(
    model: &mut Model,
    cache: &mut KvCache,
    work: &mut Workspace,
    machine: &mut Machine,
    chunks: &[Chunk<'_>],
) -> Result<(), EngineError> {
    machine.profile.start();
    let mut places = Vec::new();
    let mut queries = Vec::new();
    let mut last_rows = Vec::new();
    for chunk in chunks {
        queries.push(Queries {
            row: places.len(),
            len: chunk.tokens.len(),
            start: chunk.start,
            blocks: chunk.blocks,
        });
        for (i, &token) in chunk.tokens.iter().enumerate() {
            embed(model, token, work.hidden.row_mut(places.len()))?;
            let position = chunk.start + i;
            places.push(Place {
                position,
                block: chunk.blocks[position / BLOCK_SIZE],
            });
        }
        if chunk.logits {
            last_rows.push(places.len() - 1);
        }
    }
    let reach = places.iter().map(|p| p.position + 1).max().unwrap_or(0);
    model.ropes.iter_mut().for_each(|rope| rope.reach(reach));
    let group = model.spec.num_heads / model.spec.num_kv_heads;
    let mut tasks = Vec::new();
    attention::tasks(&queries, group, &mut tasks);
    machine.profile.lap(Phase::Embed);

    for (number, layer) in model.layers.iter().enumerate() {
        let step = LayerStep {
            model,
            layer,
            number,
            places: &places,
        };
        step.attention(cache, work, machine, &tasks);
        step.feed_forward(work, machine);
    }
    head(model, work, machine, &last_rows);
    Ok(())
}

/// A token's row of the residual stream.
fn embed(model: &Model, token: u32, row: &mut [f32]) -> Result<(), EngineError> {
    let row = &mut row[..model.spec.hidden_size];
    model
        .embedding
        .dequantize_row(token as usize, row)
        .map_err(|error| EngineError::Executor(error.to_string()))?;
    if model.spec.embedding_scale != 1.0 {
        row.iter_mut()
            .for_each(|x| *x *= model.spec.embedding_scale);
    }
    Ok(())
}

/// Logits of the given rows.
fn head(model: &Model, work: &mut Workspace, machine: &mut Machine, rows: &[usize]) {
    if rows.is_empty() {
        return;
    }
    let spec = &model.spec;
    let norm = Some(Norm {
        weight: &model.final_norm,
        eps: spec.norm_eps,
        from: &work.hidden,
        rows: Some(rows),
    });
    let input = &model.head;
    prepare(
        machine,
        rows.len(),
        input,
        norm,
        &mut work.normed,
        &mut work.quantised,
    );
    machine.profile.lap(Phase::Norm);
    let input = Input {
        rows: rows.len(),
        float: &work.normed,
        quantised: &work.quantised,
    };
    let (pool, isa) = (&mut machine.pool, machine.isa);
    model
        .head
        .forward(pool, isa, input, &mut work.logits, Store::Set);
    if let Some(cap) = spec.logit_softcap {
        let stride = work.logits.stride;
        let logits = work.logits.data.parts();
        pool.run(rows.len(), |row| {
            // SAFETY: each row is one task's.
            isa.run(Cap(unsafe { logits.at(row * stride, stride) }, cap));
        });
    }
    machine.profile.lap(Phase::Head);
}

struct Cap<'a>(&'a mut [f32], f32);

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

/// One layer of one step.
struct LayerStep<'a> {
    model: &'a Model,
    layer: &'a Layer,
    number: usize,
    places: &'a [Place],
}

impl LayerStep<'_> {
    fn attention(
        &self,
        cache: &mut KvCache,
        work: &mut Workspace,
        machine: &mut Machine,
        tasks: &[Queries<'_>],
    ) {
        let (spec, layer, rows) = (&self.model.spec, self.layer, self.places.len());
        let norm = Some(Norm {
            weight: &layer.attention_norm,
            eps: spec.norm_eps,
            from: &work.hidden,
            rows: None,
        });
        let (normed, quantised) = (&mut work.normed, &mut work.quantised);
        prepare(machine, rows, &layer.qkv, norm, normed, quantised);
        machine.profile.lap(Phase::Norm);
        let input = Input {
            rows,
            float: &work.normed,
            quantised: &work.quantised,
        };
        let isa = machine.isa;
        let qkv = &mut work.qkv;
        layer
            .qkv
            .forward(&mut machine.pool, isa, input, qkv, Store::Set);
        machine.profile.lap(Phase::Qkv);

        let stride = work.qkv.stride;
        let qkv = work.qkv.data.parts();
        let kv = cache.layers[self.number].parts();
        in_rows(&mut machine.pool, rows, |first, last| {
            isa.run(RotateAndStore {
                step: self,
                rope: &self.model.ropes[layer.rope],
                layout: cache.layout,
                first,
                last,
                qkv,
                stride,
                kv,
            });
        });
        machine.profile.lap(Phase::Rotate);
        let shape = Shape::of(spec, self.number);
        let cache = (&*cache, self.number);
        let out = &mut work.attended;
        attend(&mut machine.pool, isa, cache, shape, tasks, &work.qkv, out);
        machine.profile.lap(Phase::Attention);
        self.join(
            machine,
            (&layer.output, Phase::Output),
            layer.after_attention.as_deref(),
            (&mut work.attended, &mut work.quantised),
            (&mut work.branch, &mut work.hidden),
        );
    }

    fn feed_forward(&self, work: &mut Workspace, machine: &mut Machine) {
        let (spec, layer, rows) = (&self.model.spec, self.layer, self.places.len());
        let norm = Some(Norm {
            weight: &layer.mlp_norm,
            eps: spec.norm_eps,
            from: &work.hidden,
            rows: None,
        });
        // Both read the same input, so it is quantised if either needs it.
        let reader = if layer.gate.needs_quantised() {
            &layer.gate
        } else {
            &layer.up
        };
        let (normed, quantised) = (&mut work.normed, &mut work.quantised);
        prepare(machine, rows, reader, norm, normed, quantised);
        machine.profile.lap(Phase::Norm);
        let input = Input {
            rows,
            float: &work.normed,
            quantised: &work.quantised,
        };
        Linear::forward_gated(
            &mut machine.pool,
            machine.isa,
            (&layer.gate, &layer.up),
            spec.activation,
            input,
            &mut work.gated,
        );
        machine.profile.lap(Phase::GateUp);
        self.join(
            machine,
            (&layer.down, Phase::Down),
            layer.after_mlp.as_deref(),
            (&mut work.gated, &mut work.quantised),
            (&mut work.branch, &mut work.hidden),
        );
    }

    /// Adds `linear` of `input` to the residual stream, through `norm` if there is one.
    fn join(
        &self,
        machine: &mut Machine,
        (linear, phase): (&Linear, Phase),
        norm: Option<&[f32]>,
        (input, quantised): (&mut Rows, &mut Activations),
        (branch, hidden): (&mut Rows, &mut Rows),
    ) {
        let rows = self.places.len();
        prepare(machine, rows, linear, None, input, quantised);
        machine.profile.lap(Phase::Norm);
        let input = Input {
            rows,
            float: input,
            quantised,
        };
        let (pool, isa) = (&mut machine.pool, machine.isa);
        let Some(weight) = norm else {
            linear.forward(pool, isa, input, hidden, Store::Add);
            machine.profile.lap(phase);
            return;
        };
        linear.forward(pool, isa, input, branch, Store::Set);
        machine.profile.lap(phase);
        let spec = &self.model.spec;
        let stride = hidden.stride;
        let (branch, hidden) = (branch.data.parts(), hidden.data.parts());
        in_rows(pool, rows, |first, last| {
            for row in first..last {
                // SAFETY: each row is one task's.
                let (branch, hidden) = unsafe {
                    (
                        branch.at(row * stride, stride),
                        hidden.at(row * stride, stride),
                    )
                };
                isa.run(NormAndAdd {
                    branch,
                    hidden,
                    weight,
                    len: spec.hidden_size,
                    eps: spec.norm_eps,
                });
            }
        });
        machine.profile.lap(Phase::Norm);
    }
}

struct NormAndAdd<'a> {
    branch: &'a mut [f32],
    hidden: &'a mut [f32],
    weight: &'a [f32],
    len: usize,
    eps: f32,
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

/// Calls `body(first, last)` for pieces of `0..rows`, in parallel if there are many.
fn in_rows(pool: &mut Pool, rows: usize, body: impl Fn(usize, usize) + Sync) {
    pool.run(rows.div_ceil(ROWS_PER_TASK), |task| {
        body(task * ROWS_PER_TASK, ((task + 1) * ROWS_PER_TASK).min(rows));
    });
}

/// A norm on the way into a linear layer.
#[derive(Clone, Copy)]
struct Norm<'a> {
    weight: &'a [f32],
    eps: f32,
    from: &'a Rows,
    /// Which rows of `from`; all of them in order if `None`.
    rows: Option<&'a [usize]>,
}

/// Norms rows into `rows`, or takes what is there, and quantises them if `reader` wants that.
fn prepare(
    machine: &mut Machine,
    count: usize,
    reader: &Linear,
    norm: Option<Norm<'_>>,
    rows: &mut Rows,
    quantised: &mut Activations,
) {
    let isa = machine.isa;
    let stride = rows.stride;
    let len = reader.cols();
    let writer = reader
        .needs_quantised()
        .then(|| quantised.begin(count, stride, isa.panel()));
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
        });
    };
    match writer {
        // Rows of a panel share cache lines in the quantised layout: two threads that write them
        // would wait for each other.
        Some(writer) => {
            let panels = writer.panels();
            machine.pool.run(panels.len(), |panel| {
                body(panels[panel].start, panels[panel].start + panels[panel].len);
            });
        }
        None => in_rows(&mut machine.pool, count, body),
    }
}

struct Prepare<'a> {
    norm: Option<Norm<'a>>,
    len: usize,
    first: usize,
    last: usize,
    rows: Parts<'a, f32>,
    stride: usize,
    writer: Option<Writer<'a>>,
}

impl Kernel for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.first..self.last {
            // SAFETY: each row is one task's; rows are padded to whole vectors.
            unsafe {
                let to = self.rows.at(row * self.stride, self.stride);
                if let Some(norm) = self.norm {
                    let from = norm.rows.map_or(row, |rows| rows[row]);
                    let from = norm.from.row(from).as_ptr();
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
struct RotateAndStore<'a> {
    step: &'a LayerStep<'a>,
    rope: &'a RopeTable,
    layout: Layout,
    first: usize,
    last: usize,
    qkv: Parts<'a, f32>,
    stride: usize,
    kv: Parts<'a, u8>,
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
            if let Some(bias) = &layer.qkv_bias {
                for (x, b) in qkv.iter_mut().zip(bias) {
                    *x += b;
                }
            }
            let (q, rest) = qkv.split_at_mut(columns.key);
            let (k, v) = rest.split_at_mut(columns.value - columns.key);
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
                    self.rope.rotate(place.position, head);
                }
            }
            let slot = place.position % BLOCK_SIZE;
            // SAFETY: as above.
            with_element!(self.layout.dtype, E => unsafe {
                self.layout.write::<S, E>(s, self.kv, place.block, slot, (k, v));
            });
        }
    }
}
