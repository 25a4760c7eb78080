//! The architecture of a model as data. A model family is a [`ModelSpec`], not code
//! in each backend.

pub use crate::builtin::{builtin, plain_llama};

/// Which halves of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Pairs are `(i, i + rotary_dim / 2)`: Hugging Face checkpoints ("NeoX").
    Half,
    /// Pairs are `(2 i, 2 i + 1)`: GGUF files of the `llama` architecture.
    Interleaved,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every frequency is divided by `factor`.
    Linear {
        /// Divisor of every frequency.
        factor: f32,
    },
    /// The scheme of Llama 3.1 and later (`rope_type: llama3`).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Wavelengths above `original / low_freq_factor` are divided by `factor`.
        low_freq_factor: f32,
        /// Wavelengths below `original / high_freq_factor` stay.
        high_freq_factor: f32,
        /// The context the model was trained with first, in tokens.
        original_context: usize,
    },
    /// One divisor a rotated pair, as GGUF's `rope_freqs.weight` gives it; length `rotary_dim / 2`.
    Factors(Vec<f32>),
    /// LongRoPE (Phi-3): two lists of divisors, each of length `rotary_dim / 2`.
    Long {
        /// The divisors of a context that is not longer than the original.
        short: Vec<f32>,
        /// The divisors of a longer one.
        long: Vec<f32>,
        /// The context the model was trained with first, in tokens.
        original_context: usize,
        /// Factor on rotated queries and keys, at any length.
        amplitude: f32,
    },
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of frequencies.
    pub theta: f32,
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// Stretching.
    pub scaling: RopeScaling,
    /// Leading elements of a head that are rotated (`head_dim` for most families).
    pub rotary_dim: usize,
}

impl Rope {
    /// Radians a position of each rotated pair, `rotary_dim / 2` of them, where sequences may
    /// become `context` tokens long.
    ///
    /// LongRoPE's divisors follow from `context`, not from the length so far: keys that are cached
    /// must keep their angles while a sequence grows beyond the original context.
    ///
    /// Llama 3's scheme: frequencies that turn at least `high_freq_factor` times in the trained
    /// context stay, those that turn less than `low_freq_factor` times are divided, in between the
    /// two are mixed. A pair without a factor of its own stays as trained.
    pub fn frequencies(&self, context: usize) -> Vec<f32> {
        let trained = (0..self.rotary_dim / 2).map(|i| {
            let exponent = 2.0 * i as f64 / self.rotary_dim as f64;
            f64::from(self.theta).powf(-exponent)
        });
        let divided = |f: f64, factors: &[f32], i: usize| {
            f / factors.get(i).map_or(1.0, |factor| f64::from(*factor))
        };
        let scaled = trained.enumerate().map(|(i, f)| match &self.scaling {
            RopeScaling::None => f,
            RopeScaling::Linear { factor } => f / f64::from(*factor),
            RopeScaling::Factors(factors) => divided(f, factors, i),
            RopeScaling::Long {
                short,
                long,
                original_context,
                ..
            } => match context > *original_context {
                true => divided(f, long, i),
                false => divided(f, short, i),
            },
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
                let turns = *original_context as f64 * f / std::f64::consts::TAU;
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                f * keep + f / f64::from(*factor) * (1.0 - keep)
            }
        });
        scaled.map(|f| f as f32).collect()
    }

    /// Factor on the cosines and sines.
    pub fn amplitude(&self) -> f32 {
        match self.scaling {
            RopeScaling::Long { amplitude, .. } => amplitude,
            _ => 1.0,
        }
    }
}

/// The gate's activation in the feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// GELU with the tanh approximation.
    GeluTanh,
}

/// A decoder-only transformer: everything a backend needs beside the weights.
///
/// Shapes: `hidden_size` d, `num_heads * head_dim` query width, `num_kv_heads * head_dim`
/// key and value width. Linear weights are `[out, in]`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The family, as the checkpoint names it (`llama`, `qwen2`, ...).
    pub architecture: String,
    /// Tokens the embedding knows.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Transformer blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Positions the model knows.
    pub max_position_embeddings: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Rotary base of the sliding-window layers where it differs (Gemma 3). Those layers rotate
    /// as trained: `rope.scaling` is for the other layers.
    pub local_rope_theta: Option<f32>,
    /// Every n-th layer (1-based) does not rotate its queries and keys (SmolLM3); 0: all rotate.
    pub unrotated_pattern: usize,
    /// The output matrix is the embedding.
    pub tie_embeddings: bool,
    /// Query, key and value projections carry a bias (Qwen2).
    pub qkv_bias: bool,
    /// RMS norm of each query and key head before rotation (Qwen3, Gemma 3).
    pub qk_norm: bool,
    /// A second norm after attention and after the feed-forward block (Gemma 2, 3).
    pub sandwich_norms: bool,
    /// Norm weights are stored as `w` but applied as `1 + w` (Gemma from safetensors).
    pub norm_plus_one: bool,
    /// The gate's activation.
    pub activation: Activation,
    /// Keys further back than this are not seen, in layers where `is_sliding` says so.
    pub sliding_window: Option<usize>,
    /// Every n-th layer (1-based) sees everything, the others slide; 0: all slide.
    pub sliding_pattern: usize,
    /// Scale of attention scores; `1 / sqrt(head_dim)` for most.
    pub attention_scale: f32,
    /// `cap * tanh(score / cap)` on attention scores (Gemma 2).
    pub attention_softcap: Option<f32>,
    /// The same on the final logits (Gemma 2).
    pub logit_softcap: Option<f32>,
    /// Factor on the embedding (Gemma: sqrt(hidden_size)).
    pub embedding_scale: f32,
    /// First token of a sequence, where the tokenizer adds one.
    pub bos_token: Option<u32>,
    /// Tokens that end a sequence.
    pub eos_tokens: Vec<u32>,
}

impl ModelSpec {
    /// Width of all query heads together.
    pub fn q_dim(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_dim(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Does layer `layer` (0-based) see only `sliding_window` keys?
    pub fn is_sliding(&self, layer: usize) -> bool {
        self.sliding_window.is_some()
            && (self.sliding_pattern == 0 || !(layer + 1).is_multiple_of(self.sliding_pattern))
    }

    /// Are the queries and keys of layer `layer` (0-based) rotated?
    pub fn rotates(&self, layer: usize) -> bool {
        self.unrotated_pattern == 0 || !(layer + 1).is_multiple_of(self.unrotated_pattern)
    }

    /// Key and value bytes of one token over all layers.
    pub fn kv_bytes_per_token(&self, bytes_per_element: usize) -> usize {
        2 * self.num_layers * self.kv_dim() * bytes_per_element
    }
}
