//! The forward pass in f64, as the papers have it: one sequence, all positions.

use powerband_model::spec::{Activation, ModelSpec, RopeStyle};
use powerband_model::{ModelError, Weights};

use crate::rope;

struct Matrix {
    rows: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn get(weights: &Weights, name: &str) -> Result<Self, ModelError> {
        let tensor = weights.get(name)?;
        Ok(Self {
            rows: tensor.rows(),
            values: tensor.to_f32().into_iter().map(f64::from).collect(),
        })
    }

    fn times(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.values.chunks(x.len()).take(self.rows);
        rows.map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum())
            .collect()
    }
}

fn vector(weights: &Weights, name: &str) -> Result<Vec<f64>, ModelError> {
    let values = weights.get(name)?.to_f32();
    Ok(values.into_iter().map(f64::from).collect())
}

fn norm(spec: &ModelSpec, x: &[f64], weight: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(spec.norm_eps)).sqrt();
    let one = if spec.norm_plus_one { 1.0 } else { 0.0 };
    x.iter()
        .zip(weight)
        .map(|(v, w)| v * scale * (w + one))
        .collect()
}

fn rotate(spec: &ModelSpec, head: &mut [f64], angles: &[[f32; 2]]) {
    let half = spec.rope.rotary_dim / 2;
    for (i, [cos, sin]) in angles.iter().enumerate() {
        let (a, b) = match spec.rope.style {
            RopeStyle::Half => (i, i + half),
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
        };
        let (x, y) = (head[a], head[b]);
        head[a] = x * f64::from(*cos) - y * f64::from(*sin);
        head[b] = y * f64::from(*cos) + x * f64::from(*sin);
    }
}

/// Logits after each position from `from` on.
pub(crate) fn logits(
    spec: &ModelSpec,
    weights: &Weights,
    tokens: &[u32],
    from: usize,
) -> Result<Vec<Vec<f64>>, ModelError> {
    let embedding = Matrix::get(weights, "model.embed_tokens.weight")?;
    let d = spec.hidden_size;
    let table = rope::table(&spec.rope, tokens.len());
    let pairs = spec.rope.rotary_dim / 2;
    let mut hidden: Vec<Vec<f64>> = tokens
        .iter()
        .map(|&token| {
            let row = &embedding.values[token as usize * d..][..d];
            row.iter()
                .map(|v| v * f64::from(spec.embedding_scale))
                .collect()
        })
        .collect();
    for number in 0..spec.num_layers {
        let name = |rest: &str| format!("model.layers.{number}.{rest}");
        let before = vector(weights, &name("input_layernorm.weight"))?;
        let project = |which: &str, x: &[Vec<f64>]| -> Result<Vec<Vec<f64>>, ModelError> {
            let matrix = Matrix::get(weights, &name(&format!("self_attn.{which}_proj.weight")))?;
            let bias = match spec.qkv_bias && which != "o" {
                true => vector(weights, &name(&format!("self_attn.{which}_proj.bias")))?,
                false => vec![0.0; matrix.rows],
            };
            let add = |y: Vec<f64>| y.iter().zip(&bias).map(|(a, b)| a + b).collect();
            Ok(x.iter().map(|x| add(matrix.times(x))).collect())
        };
        let normed: Vec<_> = hidden.iter().map(|x| norm(spec, x, &before)).collect();
        let mut queries = project("q", &normed)?;
        let mut keys = project("k", &normed)?;
        let values = project("v", &normed)?;
        for (rows, which) in [(&mut queries, "q"), (&mut keys, "k")] {
            let weight = match spec.qk_norm {
                true => Some(vector(
                    weights,
                    &name(&format!("self_attn.{which}_norm.weight")),
                )?),
                false => None,
            };
            for (position, row) in rows.iter_mut().enumerate() {
                for head in row.chunks_mut(spec.head_dim) {
                    if let Some(weight) = &weight {
                        let normed = norm(spec, head, weight);
                        head.copy_from_slice(&normed);
                    }
                    rotate(spec, head, &table[position * pairs..][..pairs]);
                }
            }
        }
        let window = spec.sliding_window.filter(|_| spec.is_sliding(number));
        let attended: Vec<_> = (0..tokens.len())
            .map(|position| {
                let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
                attend(spec, &queries[position], &keys, &values, first, position)
            })
            .collect();
        for (h, o) in hidden.iter_mut().zip(project("o", &attended)?) {
            h.iter_mut().zip(o).for_each(|(a, b)| *a += b);
        }
        let before = vector(weights, &name("post_attention_layernorm.weight"))?;
        let gate = Matrix::get(weights, &name("mlp.gate_proj.weight"))?;
        let up = Matrix::get(weights, &name("mlp.up_proj.weight"))?;
        let down = Matrix::get(weights, &name("mlp.down_proj.weight"))?;
        for h in &mut hidden {
            let x = norm(spec, h, &before);
            let gated: Vec<_> = gate
                .times(&x)
                .iter()
                .zip(up.times(&x))
                .map(|(g, u)| activate(spec.activation, *g) * u)
                .collect();
            h.iter_mut()
                .zip(down.times(&gated))
                .for_each(|(a, b)| *a += b);
        }
    }
    let last = vector(weights, "model.norm.weight")?;
    let head = match spec.tie_embeddings {
        true => embedding,
        false => Matrix::get(weights, "lm_head.weight")?,
    };
    let cap = spec.logit_softcap.map(f64::from);
    let capped = |v: f64| cap.map_or(v, |cap| cap * (v / cap).tanh());
    let each = hidden[from..].iter();
    Ok(each
        .map(|h| {
            head.times(&norm(spec, h, &last))
                .into_iter()
                .map(capped)
                .collect()
        })
        .collect())
}

fn activate(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh())
        }
    }
}

fn attend(
    spec: &ModelSpec,
    query: &[f64],
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
    first: usize,
    last: usize,
) -> Vec<f64> {
    let group = spec.num_heads / spec.num_kv_heads;
    let hd = spec.head_dim;
    let mut out = Vec::with_capacity(query.len());
    for (head, q) in query.chunks(hd).enumerate() {
        let at = head / group * hd;
        let scores: Vec<f64> = (first..=last)
            .map(|p| {
                let key = &keys[p][at..at + hd];
                let dot: f64 = q.iter().zip(key).map(|(a, b)| a * b).sum();
                dot * f64::from(spec.attention_scale)
            })
            .collect();
        let top = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut mixed = vec![0.0; hd];
        for (p, w) in (first..=last).zip(&weights) {
            let value = &values[p][at..at + hd];
            mixed
                .iter_mut()
                .zip(value)
                .for_each(|(m, v)| *m += w / sum * v);
        }
        out.extend(mixed);
    }
    out
}

/// Logarithms of the softmax.
pub(crate) fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
    let sum: f64 = logits.iter().map(|s| (s - top).exp()).sum();
    logits.iter().map(|s| s - top - sum.ln()).collect()
}
