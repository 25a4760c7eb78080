//! The weights of a model as the kernels want them.

use std::collections::BTreeSet;

use powerband_engine::EngineError;
use powerband_model::spec::ModelSpec;
use powerband_model::{Tensor, Weights};

use crate::linear::Linear;
use crate::rope::{RopeTable, stored_place};
use crate::threads::Pool;

/// One transformer block.
#[derive(Debug)]
pub(crate) struct Layer {
    pub attention_norm: Vec<f32>,
    pub qkv: Linear,
    /// In the order of the outputs of `qkv`, gaps included.
    pub qkv_bias: Option<Vec<f32>>,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub output: Linear,
    /// Norm of the attention's result, in models that have one.
    pub after_attention: Option<Vec<f32>>,
    pub mlp_norm: Vec<f32>,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    /// Norm of the feed-forward block's result, in models that have one.
    pub after_mlp: Option<Vec<f32>>,
    /// Which of the model's rotary tables; `None`: queries and keys are not rotated.
    pub rope: Option<usize>,
}

/// All of a model.
#[derive(Debug)]
pub(crate) struct Model {
    pub spec: ModelSpec,
    /// As stored: rows are expanded one by one.
    pub embedding: Tensor,
    /// Rows of it that were expanded since its pages were given back.
    pub expanded: usize,
    pub layers: Vec<Layer>,
    pub final_norm: Vec<f32>,
    pub head: Linear,
    /// That of layers that see everything, then that of sliding ones.
    pub ropes: [RopeTable; 2],
    pub columns: Columns,
}

/// Where query, key and value begin in a row of `qkv`'s output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns {
    pub key: usize,
    pub value: usize,
    pub end: usize,
}

impl Columns {
    pub fn of(spec: &ModelSpec) -> Self {
        let (q, kv) = (
            spec.q_dim().next_multiple_of(16),
            spec.kv_dim().next_multiple_of(16),
        );
        Self {
            key: q,
            value: q + kv,
            end: q + 2 * kv,
        }
    }
}

impl Model {
    /// Packs the weights, for sequences of up to `max_model_len` tokens.
    ///
    /// # Errors
    /// A tensor is missing or of the wrong shape, or there is no memory.
    pub fn load(
        pool: &mut Pool,
        spec: &ModelSpec,
        weights: &Weights,
        max_model_len: usize,
    ) -> Result<Self, EngineError> {
        spec.check().map_err(EngineError::Config)?;
        let mut loader = Loader {
            pool,
            spec,
            weights,
        };
        let (vocab, d) = (spec.vocab_size, spec.hidden_size);
        let embedding = loader.tensor("model.embed_tokens.weight", &[vocab, d])?;
        let head = match spec.tie_embeddings {
            true => embedding.clone(),
            false => loader.tensor("lm_head.weight", &[vocab, d])?,
        };
        Ok(Self {
            layers: (0..spec.num_layers)
                .map(|layer| loader.layer(layer))
                .collect::<Result<_, _>>()?,
            final_norm: loader.norm("model.norm.weight", d)?,
            head: loader.pack(&[&head], |_, row| row)?,
            ropes: [false, true].map(|sliding| RopeTable::new(spec, sliding, max_model_len)),
            columns: Columns::of(spec),
            spec: spec.clone(),
            embedding,
            expanded: 0,
        })
    }

    /// All packed matrices.
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let layers = self.layers.iter().flat_map(|layer| {
            [
                &layer.qkv,
                &layer.output,
                &layer.gate,
                &layer.up,
                &layer.down,
            ]
        });
        layers.chain([&self.head])
    }

    /// Bytes of the packed weights.
    pub fn memory(&self) -> usize {
        self.linears().map(Linear::memory).sum()
    }

    /// The formats that the matrices are computed in, in alphabetical order.
    pub fn formats(&self) -> Vec<&'static str> {
        let names: BTreeSet<_> = self.linears().flat_map(Linear::formats).collect();
        names.into_iter().collect()
    }
}

struct Loader<'a> {
    pool: &'a mut Pool,
    spec: &'a ModelSpec,
    weights: &'a Weights,
}

impl Loader<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, EngineError> {
        let config = |reason: String| EngineError::Config(reason);
        let tensor = self.weights.get(name).map_err(|e| config(e.to_string()))?;
        if tensor.shape != shape {
            return Err(config(format!(
                "tensor {name} has shape {:?}; the model's configuration asks for {shape:?}",
                tensor.shape
            )));
        }
        Ok(tensor)
    }

    /// A vector, padded to whole vectors of the kernels.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, EngineError> {
        let mut values = self.tensor(name, &[len])?.to_f32();
        values.resize(len.next_multiple_of(32), 0.0);
        Ok(values)
    }

    fn norm(&self, name: &str, len: usize) -> Result<Vec<f32>, EngineError> {
        let mut values = self.vector(name, len)?;
        if self.spec.norm_plus_one {
            values[..len].iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(values)
    }

    /// The norm of query or key heads, in our order of a head's elements.
    fn head_norm(&self, name: &str) -> Result<Option<Vec<f32>>, EngineError> {
        if !self.spec.qk_norm {
            return Ok(None);
        }
        let stored = self.norm(name, self.spec.head_dim)?;
        Ok(Some(
            (0..stored.len())
                .map(|i| stored[stored_place(&self.spec.rope, i)])
                .collect(),
        ))
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize) -> Result<Linear, EngineError> {
        let tensor = self.tensor(name, &[rows, cols])?;
        self.pack(&[&tensor], |_, row| row)
    }

    fn pack(
        &mut self,
        tensors: &[&Tensor],
        order: impl Fn(usize, usize) -> usize + Sync,
    ) -> Result<Linear, EngineError> {
        Linear::pack(self.pool, tensors, order)
    }

    /// The row of a query or key projection that computes output `i` of ours.
    fn head_row(spec: &ModelSpec, i: usize) -> usize {
        let within = i % spec.head_dim;
        i - within + stored_place(&spec.rope, within)
    }

    fn qkv_bias(&self, prefix: &str) -> Result<Option<Vec<f32>>, EngineError> {
        let spec = self.spec;
        if !spec.qkv_bias {
            return Ok(None);
        }
        let columns = Columns::of(spec);
        let mut bias = vec![0.0; columns.end.next_multiple_of(32)];
        for (part, at, len) in [
            ("q", 0, spec.q_dim()),
            ("k", columns.key, spec.kv_dim()),
            ("v", columns.value, spec.kv_dim()),
        ] {
            let stored = self.vector(&format!("{prefix}self_attn.{part}_proj.bias"), len)?;
            for (i, to) in bias[at..at + len].iter_mut().enumerate() {
                *to = stored[if part == "v" {
                    i
                } else {
                    Self::head_row(spec, i)
                }];
            }
        }
        Ok(Some(bias))
    }

    fn layer(&mut self, number: usize) -> Result<Layer, EngineError> {
        let spec = self.spec;
        let (d, ff) = (spec.hidden_size, spec.intermediate_size);
        let (q_dim, kv_dim) = (spec.q_dim(), spec.kv_dim());
        let prefix = format!("model.layers.{number}.");
        let name = |part: &str| format!("{prefix}{part}.weight");
        let q = self.tensor(&name("self_attn.q_proj"), &[q_dim, d])?;
        let k = self.tensor(&name("self_attn.k_proj"), &[kv_dim, d])?;
        let v = self.tensor(&name("self_attn.v_proj"), &[kv_dim, d])?;
        let qkv = self.pack(&[&q, &k, &v], |part, row| match part {
            2 => row,
            _ => Self::head_row(spec, row),
        })?;
        let after = self.norm(&name("post_attention_layernorm"), d)?;
        // With sandwich norms that name is the norm of the attention's result; without them it
        // is the norm before the feed-forward block.
        let (after_attention, mlp_norm, after_mlp) = if spec.sandwich_norms {
            (
                Some(after),
                self.norm(&name("pre_feedforward_layernorm"), d)?,
                Some(self.norm(&name("post_feedforward_layernorm"), d)?),
            )
        } else {
            (None, after, None)
        };
        Ok(Layer {
            attention_norm: self.norm(&name("input_layernorm"), d)?,
            qkv,
            qkv_bias: self.qkv_bias(&prefix)?,
            q_norm: self.head_norm(&name("self_attn.q_norm"))?,
            k_norm: self.head_norm(&name("self_attn.k_norm"))?,
            output: self.linear(&name("self_attn.o_proj"), d, q_dim)?,
            after_attention,
            mlp_norm,
            gate: self.linear(&name("mlp.gate_proj"), ff, d)?,
            up: self.linear(&name("mlp.up_proj"), ff, d)?,
            down: self.linear(&name("mlp.down_proj"), d, ff)?,
            after_mlp,
            rope: spec
                .rotates(number)
                .then(|| usize::from(spec.is_sliding(number))),
        })
    }
}
