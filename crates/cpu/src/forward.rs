//! One step through the model.

use std::ops::Range;

use powerband_engine::EngineError;

use crate::activations::{self, Activations};
use crate::attention::{self, Queries, Shape, attend};
use crate::buffer::Rows;
use crate::kv::{BLOCK_SIZE, KvCache};
use crate::linear::{Input, Linear, Store};
use crate::model::{Columns, Layer, Model};
use crate::profile::{Phase, Profile};
use crate::rowwise::{Cap, Norm, NormAndAdd, RotateAndStore, in_rows, pieces, prepare};
use crate::sections::{Sections, by_rows};
use crate::simd::Isa;
use crate::threads::Pool;

/// Some consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// The tokens to compute.
    pub tokens: &'a [u32],
    /// Position of the first.
    pub start: usize,
    /// The sequence's KV blocks, covering `start + tokens.len()` positions.
    pub blocks: &'a [u32],
    /// After how many of the last tokens the logits are computed.
    pub logits: usize,
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
    /// Room for steps of `tokens` tokens and logits after `sampled` of them.
    pub fn new(model: &Model, tokens: usize, sampled: usize) -> Result<Self, EngineError> {
        let spec = &model.spec;
        let widest = spec
            .hidden_size
            .max(spec.q_dim())
            .max(spec.intermediate_size);
        let branch = if spec.sandwich_norms { tokens } else { 0 };
        Ok(Self {
            hidden: Rows::zeroed(tokens, spec.hidden_size)?,
            normed: Rows::zeroed(tokens.max(sampled), spec.hidden_size)?,
            // Whole vectors are read from the last head, whatever its width.
            qkv: Rows::zeroed(tokens, model.columns.end + 16)?,
            attended: Rows::zeroed(tokens, spec.q_dim())?,
            gated: Rows::zeroed(tokens, spec.intermediate_size)?,
            branch: Rows::zeroed(branch, spec.hidden_size)?,
            quantised: Activations::new(tokens.max(sampled), widest.next_multiple_of(32))?,
            logits: Rows::zeroed(sampled, spec.vocab_size)?,
        })
    }

    /// Bytes of such a workspace if it is used to the full.
    pub fn bytes(spec: &powerband_model::ModelSpec, tokens: usize, sampled: usize) -> usize {
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
        tokens * (4 * row + activations::bytes(widest)) + 4 * sampled * spec.vocab_size
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
pub(crate) struct Place {
    pub position: usize,
    pub block: u32,
}

/// Computes the chunks; the logits that they ask for are the rows of `work.logits`, in order. The caller has checked tokens, blocks and sizes.
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
    let mut sampled = Vec::new();
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
        sampled.extend(places.len() - chunk.logits..places.len());
    }
    let reach = places.iter().map(|p| p.position + 1).max().unwrap_or(0);
    model.ropes.iter_mut().for_each(|rope| rope.reach(reach));
    let group = model.spec.num_heads / model.spec.num_kv_heads;
    let mut tasks = Vec::new();
    attention::tasks(&queries, group, &mut tasks);
    let pieces = pieces(&places);
    let sections = Sections::of(&machine.pool, places.len(), machine.isa.panel());
    machine.profile.lap(Phase::Embed);

    for (number, layer) in model.layers.iter().enumerate() {
        let step = LayerStep {
            model,
            layer,
            number,
            places: &places,
            pieces: &pieces,
            sections: sections.as_ref(),
        };
        step.attention(cache, work, machine, &tasks);
        step.feed_forward(work, machine);
    }
    head(model, work, machine, &sampled);
    Ok(())
}

/// Rows of the embedding after which its pages are given back. With a row of a mapped file come its
/// neighbours, 64 KiB on Linux: in time a whole vocabulary would be in memory beside the packed one.
const EXPANDED: usize = 64;

/// A token's row of the residual stream.
fn embed(model: &mut Model, token: u32, row: &mut [f32]) -> Result<(), EngineError> {
    model.expanded += 1;
    if model.expanded > EXPANDED {
        model.embedding.let_go();
        model.expanded = 1;
    }
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
    let input = (model.head.cols(), model.head.reads(machine.isa));
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

/// One layer of one step.
pub(crate) struct LayerStep<'a> {
    pub model: &'a Model,
    pub layer: &'a Layer,
    number: usize,
    pub places: &'a [Place],
    /// The same rows in pieces that no two threads should share.
    pieces: &'a [Range<usize>],
    sections: Option<&'a Sections>,
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
        let input = (layer.qkv.cols(), layer.qkv.reads(machine.isa));
        prepare(machine, rows, input, norm, normed, quantised);
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
        let (pieces, sections) = (self.pieces, self.sections);
        let row = |piece: usize| pieces[piece].start;
        by_rows(&mut machine.pool, sections, pieces.len(), row, |piece| {
            isa.run(RotateAndStore {
                step: self,
                rope: layer.rope.map(|rope| &self.model.ropes[rope]),
                layout: cache.layout,
                first: pieces[piece].start,
                last: pieces[piece].end,
                qkv,
                stride,
                kv,
            });
        });
        machine.profile.lap(Phase::Rotate);
        let shape = Shape::of(spec, self.number);
        let cache = (&*cache, self.number);
        let out = &mut work.attended;
        attend(
            (&mut machine.pool, sections),
            isa,
            cache,
            shape,
            tasks,
            &work.qkv,
            out,
        );
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
        let (normed, quantised) = (&mut work.normed, &mut work.quantised);
        // Both read the same input.
        let isa = machine.isa;
        let reads = layer.gate.reads(isa).and(layer.up.reads(isa));
        let input = (layer.gate.cols(), reads);
        prepare(machine, rows, input, norm, normed, quantised);
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
        let reads = (linear.cols(), linear.reads(machine.isa));
        prepare(machine, rows, reads, None, input, quantised);
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
