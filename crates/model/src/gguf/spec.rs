//! From a GGUF file's metadata to a [`ModelSpec`].

use std::cell::RefCell;
use std::collections::HashSet;

use super::{Gguf, Value};
use crate::spec::{Activation, ModelSpec, Rope, RopeScaling, RopeStyle};
use crate::tokenizer::adds_bos;
use crate::{ModelError, Weights};

/// The architectures that are read.
const ARCHITECTURES: [&str; 7] = [
    "llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3",
];

/// Keys below `ARCH.` that do not change the computation.
const HARMLESS: [&str; 5] = [
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "vocab_size",
    "interleaved_mrope",
];

/// Texts of control tokens that end an answer, whatever the metadata calls the end token.
const END_TOKENS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
    "<eos>",
    "</s>",
];

impl Gguf {
    /// The architecture of the model in this file, checked for plausibility.
    /// `weights` are the file's own: some facts stand only there.
    ///
    /// # Errors
    /// An unknown architecture, a missing or implausible number, or a setting that would
    /// change the results and is not built.
    pub fn spec(&self, weights: &Weights) -> Result<ModelSpec, ModelError> {
        let architecture = self
            .string("general.architecture")?
            .ok_or_else(|| self.error("general.architecture is missing"))?;
        if !ARCHITECTURES.contains(&architecture) {
            return Err(ModelError::Unsupported(format!(
                "{}: architecture {architecture}; this build reads {}",
                self.path().display(),
                ARCHITECTURES.join(", ")
            )));
        }
        let keys = Keys {
            gguf: self,
            architecture,
            used: RefCell::default(),
        };
        let spec = keys.spec(weights)?;
        keys.refuse_unused()?;
        spec.check().map_err(|reason| self.error(reason))?;
        Ok(spec)
    }
}

/// The keys of one architecture, and which of them were read.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
    used: RefCell<HashSet<String>>,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        self.used.borrow_mut().insert(name.to_owned());
        format!("{}.{name}", self.architecture)
    }

    fn unsigned(&self, name: &str) -> Result<Option<usize>, ModelError> {
        self.gguf.unsigned(&self.key(name))
    }

    fn float(&self, name: &str) -> Result<Option<f32>, ModelError> {
        self.gguf.float(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<usize, ModelError> {
        self.unsigned(name)?.ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> ModelError {
        self.gguf
            .error(format!("{}.{name} is missing", self.architecture))
    }

    /// A number that may be given a layer at a time; it must be the same everywhere.
    fn uniform(&self, name: &str) -> Result<Option<usize>, ModelError> {
        let key = self.key(name);
        if !matches!(self.gguf.header().metadata.get(&key), Some(Value::Array(_))) {
            return self.gguf.unsigned(&key);
        }
        let numbers = self.gguf.numbers(&key)?.unwrap_or_default();
        match numbers.split_first() {
            Some((first, rest)) if rest.iter().all(|n| n == first) => Ok(Some(*first as usize)),
            _ => Err(ModelError::Unsupported(format!(
                "{}: {key} differs from layer to layer",
                self.gguf.path().display()
            ))),
        }
    }

    fn spec(&self, weights: &Weights) -> Result<ModelSpec, ModelError> {
        let hidden_size = self.required("embedding_length")?;
        let num_layers = self.required("block_count")?;
        let num_heads = self
            .uniform("attention.head_count")?
            .ok_or_else(|| self.missing("attention.head_count"))?;
        let num_kv_heads = self
            .uniform("attention.head_count_kv")?
            .unwrap_or(num_heads);
        let head_dim = match self.unsigned("attention.key_length")? {
            Some(n) => n,
            None => hidden_size.checked_div(num_heads).unwrap_or(0),
        };
        if self
            .unsigned("attention.value_length")?
            .is_some_and(|n| n != head_dim)
        {
            return Err(self.unsupported("value heads of another size than key heads"));
        }
        let (gemma2, gemma3) = (self.architecture == "gemma2", self.architecture == "gemma3");
        let gemma = gemma2 || gemma3;
        let theta = self
            .float("rope.freq_base")?
            .unwrap_or(if gemma3 { 1e6 } else { 1e4 });
        let sliding_window = self
            .unsigned("attention.sliding_window")?
            .or(gemma2.then_some(4096))
            .filter(|n| *n > 0);
        let (bos_token, eos_tokens) = self.end_tokens()?;
        // The 27B models alone scale by their width over their heads.
        let scaled_width = if (gemma2 && num_layers == 46) || (gemma3 && num_layers == 62) {
            hidden_size.checked_div(num_heads).unwrap_or(0)
        } else {
            head_dim
        };
        Ok(ModelSpec {
            architecture: self.architecture.to_owned(),
            vocab_size: weights.get("model.embed_tokens.weight")?.rows(),
            hidden_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size: self
                .uniform("feed_forward_length")?
                .ok_or_else(|| self.missing("feed_forward_length"))?,
            max_position_embeddings: self.required("context_length")?,
            norm_eps: self
                .float("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| self.missing("attention.layer_norm_rms_epsilon"))?,
            rope: Rope {
                theta,
                style: match self.architecture {
                    "llama" | "smollm3" => RopeStyle::Interleaved,
                    _ => RopeStyle::Half,
                },
                scaling: self.scaling(weights)?,
                rotary_dim: self.unsigned("rope.dimension_count")?.unwrap_or(head_dim),
            },
            local_rope_theta: match (self.float("rope.freq_base_swa")?, gemma3) {
                (Some(theta), _) => Some(theta),
                (None, true) => Some(1e4),
                (None, false) => None,
            },
            // The converter takes no other model than the one that there is.
            unrotated_pattern: if self.architecture == "smollm3" { 4 } else { 0 },
            tie_embeddings: !weights.contains("lm_head.weight"),
            qkv_bias: weights.contains("model.layers.0.self_attn.q_proj.bias"),
            qk_norm: weights.contains("model.layers.0.self_attn.q_norm.weight"),
            sandwich_norms: gemma,
            // The converter has added the one already.
            norm_plus_one: false,
            activation: if gemma {
                Activation::GeluTanh
            } else {
                Activation::Silu
            },
            sliding_window,
            sliding_pattern: self.sliding_pattern(num_layers)?,
            attention_scale: (scaled_width as f32).sqrt().recip(),
            attention_softcap: self
                .float("attn_logit_softcapping")?
                .or(gemma2.then_some(50.0)),
            logit_softcap: self
                .float("final_logit_softcapping")?
                .or(gemma2.then_some(30.0)),
            embedding_scale: if gemma {
                (hidden_size as f32).sqrt()
            } else {
                1.0
            },
            bos_token,
            eos_tokens,
        })
    }

    fn scaling(&self, weights: &Weights) -> Result<RopeScaling, ModelError> {
        let kind = self.gguf.string(&self.key("rope.scaling.type"))?;
        let factor = self.float("rope.scaling.factor")?;
        let old_factor = self.float("rope.scale_linear")?;
        let uniform = match (kind, factor.or(old_factor)) {
            (Some("none" | "longrope"), _) | (_, None) => RopeScaling::None,
            (Some("linear") | None, Some(factor)) => RopeScaling::Linear { factor },
            (Some(other), Some(_)) => {
                return Err(self.unsupported(&format!("rotary scaling of the type {other}")));
            }
        };
        let factors = |name: &str| weights.get(name).ok().map(|tensor| tensor.to_f32());
        match (
            factors("rope_freqs.weight"),
            factors("rope_factors_short.weight"),
            factors("rope_factors_long.weight"),
            uniform,
        ) {
            (None, None, None, uniform) if kind != Some("longrope") => Ok(uniform),
            (Some(factors), None, None, RopeScaling::None) => Ok(RopeScaling::Factors(factors)),
            (None, Some(short), Some(long), RopeScaling::None) => Ok(RopeScaling::Long {
                short,
                long,
                original_context: match self.unsigned("rope.scaling.original_context_length")? {
                    Some(length) => length,
                    None => self.required("context_length")?,
                },
                amplitude: self.float("rope.scaling.attn_factor")?.unwrap_or(1.0),
            }),
            _ => Err(self.unsupported("rotary factors that do not go with the rotary scaling")),
        }
    }

    /// Every n-th layer sees everything; some files list each layer instead.
    fn sliding_pattern(&self, num_layers: usize) -> Result<usize, ModelError> {
        let key = self.key("attention.sliding_window_pattern");
        let default = match self.architecture {
            "gemma2" => 2,
            "gemma3" => 6,
            _ => 0,
        };
        if !matches!(self.gguf.header().metadata.get(&key), Some(Value::Array(_))) {
            return Ok(self.gguf.unsigned(&key)?.unwrap_or(default));
        }
        let sliding = self.gguf.numbers(&key)?.unwrap_or_default();
        let pattern = sliding
            .iter()
            .position(|s| *s == 0.0)
            .map_or(0, |first| first + 1);
        let regular = sliding
            .iter()
            .enumerate()
            .take(num_layers)
            .all(|(i, s)| (*s != 0.0) == (pattern == 0 || !(i + 1).is_multiple_of(pattern)));
        if regular {
            Ok(pattern)
        } else {
            Err(self.unsupported("an irregular pattern of sliding layers"))
        }
    }

    /// The token that begins a sequence, if one is added, and those that end it.
    fn end_tokens(&self) -> Result<(Option<u32>, Vec<u32>), ModelError> {
        let id = |key: &str| {
            Ok::<_, ModelError>(self.gguf.unsigned(key)?.and_then(|n| u32::try_from(n).ok()))
        };
        let bos = id("tokenizer.ggml.bos_token_id")?;
        let mut ends = Vec::new();
        for key in ["eos", "eot", "eom"] {
            ends.extend(id(&format!("tokenizer.ggml.{key}_token_id"))?);
        }
        let texts = self
            .gguf
            .strings("tokenizer.ggml.tokens")?
            .unwrap_or_default();
        let kinds = self
            .gguf
            .numbers("tokenizer.ggml.token_type")?
            .unwrap_or_default();
        let control = |i: usize| kinds.get(i).is_some_and(|k| *k == 3.0);
        let named = texts
            .iter()
            .enumerate()
            .filter(|(i, text)| control(*i) && END_TOKENS.contains(text));
        ends.extend(named.map(|(i, _)| i as u32));
        ends.sort_unstable();
        ends.dedup();
        let adds = match self.gguf.flag("tokenizer.ggml.add_bos_token")? {
            Some(adds) => adds,
            None => adds_bos(
                self.gguf
                    .string("tokenizer.ggml.model")?
                    .unwrap_or_default(),
                self.gguf.string("tokenizer.ggml.pre")?.unwrap_or_default(),
            ),
        };
        Ok((bos.filter(|_| adds), ends))
    }

    fn unsupported(&self, what: &str) -> ModelError {
        ModelError::Unsupported(format!("{}: {what}", self.gguf.path().display()))
    }

    /// An architecture's key that nobody read would change the results: say so.
    fn refuse_unused(&self) -> Result<(), ModelError> {
        let prefix = format!("{}.", self.architecture);
        let used = self.used.borrow();
        let inert = |value: &Value| {
            matches!(
                value,
                Value::Unsigned(0) | Value::Signed(0) | Value::Bool(false)
            ) || matches!(value, Value::Float(x) if *x == 0.0)
        };
        let mut unused: Vec<&str> = self
            .gguf
            .header()
            .metadata
            .iter()
            .filter(|(_, value)| !inert(value))
            .filter_map(|(key, _)| key.strip_prefix(&prefix))
            .filter(|name| !used.contains(*name) && !HARMLESS.contains(name))
            .collect();
        unused.sort_unstable();
        match unused.first() {
            None => Ok(()),
            Some(name) => Err(self.unsupported(&format!(
                "the setting {prefix}{name}, which this build does not know"
            ))),
        }
    }
}
