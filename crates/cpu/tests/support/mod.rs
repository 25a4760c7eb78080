//! A plain forward pass that shares nothing with the kernels, and tiny random models.
#![allow(dead_code, clippy::unwrap_used)] // not every test file uses all of it

use std::collections::HashMap;
use std::path::PathBuf;

use powerband_model::quantize::quantize_row;
use powerband_model::spec::{Activation, ModelSpec, RopeScaling, RopeStyle, plain_llama};
use powerband_model::{DType, Tensor, Weights};

/// Numbers in -1..1 that look random, the same every time.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        ((self.next() * 0.5 + 0.5) * n as f32) as usize % n
    }
}

/// A small model of the plain Llama family; tests change what they are about.
pub fn tiny() -> ModelSpec {
    ModelSpec {
        vocab_size: 250,
        num_layers: 2,
        num_kv_heads: 2,
        intermediate_size: 96,
        max_position_embeddings: 256,
        ..plain_llama(64, 4, 16)
    }
}

/// Random weights for `spec`, matrices stored as `dtype`.
pub fn random_weights(spec: &ModelSpec, dtype: DType, seed: u64) -> Weights {
    let mut noise = Noise(seed);
    let tensors = spec.tensors().into_iter().map(|(name, shape)| {
        let matrix = shape.len() == 2;
        let count: usize = shape.iter().product();
        let cols = shape[shape.len() - 1];
        let values: Vec<f32> = (0..count)
            .map(|_| {
                let x = noise.next();
                if matrix {
                    x * (3.0 / cols as f32).sqrt()
                } else if name.ends_with("bias") || spec.norm_plus_one {
                    x * 0.3
                } else {
                    1.0 + x * 0.3
                }
            })
            .collect();
        let dtype = if matrix { dtype } else { DType::F32 };
        let mut bytes = Vec::new();
        for row in values.chunks_exact(if matrix { cols } else { 1 }) {
            quantize_row(dtype, row, &mut bytes).unwrap();
        }
        Tensor::owned(name, dtype, shape, bytes).unwrap()
    });
    Weights::new(tensors)
}

/// Computes whole sequences from the beginning, without a cache, in the plainest way.
pub struct Reference<'a> {
    spec: &'a ModelSpec,
    weights: HashMap<String, Vec<f32>>,
}

impl<'a> Reference<'a> {
    pub fn new(spec: &'a ModelSpec, weights: &Weights) -> Self {
        let weights = spec
            .tensors()
            .into_iter()
            .map(|(name, _)| {
                let values = weights.get(&name).unwrap().to_f32();
                (name, values)
            })
            .collect();
        Self { spec, weights }
    }

    fn vector(&self, name: &str) -> &[f32] {
        &self.weights[name]
    }

    fn apply(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let matrix = &self.weights[name];
        matrix
            .chunks_exact(x.len())
            .map(|row| {
                let sum: f64 = row
                    .iter()
                    .zip(x)
                    .map(|(w, x)| f64::from(*w) * f64::from(*x))
                    .sum();
                sum as f32
            })
            .collect()
    }

    fn norm(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let mean = x.iter().map(|v| f64::from(v * v)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(self.spec.norm_eps)).sqrt();
        let plus = if self.spec.norm_plus_one { 1.0 } else { 0.0 };
        x.iter()
            .zip(self.vector(name))
            .map(|(x, w)| (f64::from(*x) * scale) as f32 * (w + plus))
            .collect()
    }

    fn frequency(&self, pair: usize, sliding: bool) -> f64 {
        let rope = &self.spec.rope;
        let local = self.spec.local_rope_theta.filter(|_| sliding);
        let theta = f64::from(local.unwrap_or(rope.theta));
        let f = theta.powf(-2.0 * pair as f64 / rope.rotary_dim as f64);
        if local.is_some() {
            return f;
        }
        match &rope.scaling {
            RopeScaling::None => f,
            RopeScaling::Linear { factor } => f / f64::from(*factor),
            RopeScaling::Factors(factors) => f / f64::from(factors[pair]),
            // No test of this pass has a context as short as the original.
            RopeScaling::Long { long, .. } => f / f64::from(long[pair]),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let wavelength = 2.0 * std::f64::consts::PI / f;
                let context = *original_context as f64;
                let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
                if wavelength < context / high {
                    f
                } else if wavelength > context / low {
                    f / f64::from(*factor)
                } else {
                    let smooth = (context / wavelength - low) / (high - low);
                    (1.0 - smooth) * f / f64::from(*factor) + smooth * f
                }
            }
        }
    }

    fn rotate(&self, head: &mut [f32], position: usize, layer: usize) {
        if !self.spec.rotates(layer) {
            return;
        }
        let sliding = self.spec.is_sliding(layer);
        let rope = &self.spec.rope;
        for pair in 0..rope.rotary_dim / 2 {
            let (i, j) = match rope.style {
                RopeStyle::Half => (pair, pair + rope.rotary_dim / 2),
                RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
            };
            let angle = position as f64 * self.frequency(pair, sliding);
            let (a, b) = (f64::from(head[i]), f64::from(head[j]));
            let amplitude = match rope.scaling {
                RopeScaling::Long { amplitude, .. } => f64::from(amplitude),
                _ => 1.0,
            };
            head[i] = (amplitude * (a * angle.cos() - b * angle.sin())) as f32;
            head[j] = (amplitude * (b * angle.cos() + a * angle.sin())) as f32;
        }
    }

    /// Query, key and value of a normed row.
    fn projections(&self, layer: usize, x: &[f32], position: usize) -> [Vec<f32>; 3] {
        let spec = self.spec;
        let prefix = format!("model.layers.{layer}.self_attn.");
        ["q", "k", "v"].map(|part| {
            let mut y = self.apply(&format!("{prefix}{part}_proj.weight"), x);
            if spec.qkv_bias {
                let bias = self.vector(&format!("{prefix}{part}_proj.bias"));
                y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
            if part != "v" {
                for head in y.chunks_exact_mut(spec.head_dim) {
                    if spec.qk_norm {
                        let normed = self.norm(&format!("{prefix}{part}_norm.weight"), head);
                        head.copy_from_slice(&normed);
                    }
                    self.rotate(head, position, layer);
                }
            }
            y
        })
    }

    fn attend(&self, layer: usize, q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f32> {
        let spec = self.spec;
        let dim = spec.head_dim;
        let first = match spec.sliding_window.filter(|_| spec.is_sliding(layer)) {
            Some(window) => keys.len().saturating_sub(window),
            None => 0,
        };
        let mut out = Vec::new();
        for head in 0..spec.num_heads {
            let at = head / (spec.num_heads / spec.num_kv_heads) * dim;
            let q = &q[head * dim..][..dim];
            let scores: Vec<f64> = keys[first..]
                .iter()
                .map(|k| {
                    let dot: f64 = q.iter().zip(&k[at..]).map(|(q, k)| f64::from(q * k)).sum();
                    let score = dot * f64::from(spec.attention_scale);
                    cap(score, spec.attention_softcap)
                })
                .collect();
            let largest = scores.iter().fold(f64::NEG_INFINITY, |m, x| m.max(*x));
            let weights: Vec<f64> = scores.iter().map(|x| (x - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for i in 0..dim {
                let weighted = weights
                    .iter()
                    .zip(&values[first..])
                    .map(|(w, v)| w * f64::from(v[at + i]));
                out.push((weighted.sum::<f64>() / sum) as f32);
            }
        }
        out
    }

    fn feed_forward(&self, layer: usize, x: &[f32]) -> Vec<f32> {
        let prefix = format!("model.layers.{layer}.mlp.");
        let gate = self.apply(&format!("{prefix}gate_proj.weight"), x);
        let up = self.apply(&format!("{prefix}up_proj.weight"), x);
        let gated: Vec<f32> = gate
            .iter()
            .zip(up)
            .map(|(&g, up)| {
                let g = f64::from(g);
                let activated = match self.spec.activation {
                    Activation::Silu => g / (1.0 + (-g).exp()),
                    Activation::GeluTanh => {
                        let inner =
                            (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
                        0.5 * g * (1.0 + inner.tanh())
                    }
                };
                activated as f32 * up
            })
            .collect();
        self.apply(&format!("{prefix}down_proj.weight"), &gated)
    }

    /// Logits after each token.
    pub fn logits(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let spec = self.spec;
        let embedding = self.vector("model.embed_tokens.weight");
        let mut hidden: Vec<Vec<f32>> = tokens
            .iter()
            .map(|&t| {
                let row = &embedding[t as usize * spec.hidden_size..][..spec.hidden_size];
                row.iter().map(|x| x * spec.embedding_scale).collect()
            })
            .collect();
        for layer in 0..spec.num_layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (position, x) in hidden.iter_mut().enumerate() {
                let normed = self.norm(&name("input_layernorm"), x);
                let [q, k, v] = self.projections(layer, &normed, position);
                keys.push(k);
                values.push(v);
                let attended = self.attend(layer, &q, &keys, &values);
                let mut y = self.apply(&name("self_attn.o_proj"), &attended);
                if spec.sandwich_norms {
                    y = self.norm(&name("post_attention_layernorm"), &y);
                }
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
                let before = match spec.sandwich_norms {
                    true => "pre_feedforward_layernorm",
                    false => "post_attention_layernorm",
                };
                let normed = self.norm(&name(before), x);
                let mut y = self.feed_forward(layer, &normed);
                if spec.sandwich_norms {
                    y = self.norm(&name("post_feedforward_layernorm"), &y);
                }
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            }
        }
        let head = match spec.tie_embeddings {
            true => "model.embed_tokens.weight",
            false => "lm_head.weight",
        };
        hidden
            .iter()
            .map(|x| {
                let logits = self.apply(head, &self.norm("model.norm.weight", x));
                logits
                    .into_iter()
                    .map(|x| cap(f64::from(x), spec.logit_softcap) as f32)
                    .collect()
            })
            .collect()
    }
}

fn cap(x: f64, cap: Option<f32>) -> f64 {
    cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
}

/// The real model, if this machine has it: `POWERBAND_TEST_MODEL` or the user's cache.
pub fn real_model() -> Option<PathBuf> {
    match std::env::var_os("POWERBAND_TEST_MODEL") {
        Some(path) => existing(PathBuf::from(path)),
        None => cached_model("smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"),
    }
}

/// A model that `powerband pull` has fetched.
pub fn cached_model(file: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    existing(cache.join("powerband/models").join(file))
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: no model at {}", path.display());
    None
}

/// The largest difference, as a share of the wanted values' standard deviation.
pub fn distance(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    let n = wanted.len() as f32;
    let mean = wanted.iter().sum::<f32>() / n;
    let spread = (wanted.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
    let worst = got
        .iter()
        .zip(wanted)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(got.iter().all(|x| x.is_finite()));
    worst / spread
}
