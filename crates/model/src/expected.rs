//! What a specification demands: plausible numbers, and which tensors of which shape.

use crate::{ModelError, ModelSpec, Weights, spec::RopeScaling};

impl ModelSpec {
    /// Are all numbers plausible and do they fit each other? After this no backend divides by
    /// zero or overflows.
    ///
    /// # Errors
    /// A sentence that names the number.
    pub fn check(&self) -> Result<(), String> {
        let whole = [
            ("the vocabulary size", self.vocab_size, 1 << 24),
            ("the hidden size", self.hidden_size, 1 << 20),
            ("the number of layers", self.num_layers, 1 << 12),
            ("the number of heads", self.num_heads, 1 << 12),
            ("the number of key/value heads", self.num_kv_heads, 1 << 12),
            ("the head size", self.head_dim, 1 << 12),
            ("the feed-forward size", self.intermediate_size, 1 << 22),
            ("the context length", self.max_position_embeddings, 1 << 31),
            (
                "the rotated part of a head",
                self.rope.rotary_dim,
                self.head_dim,
            ),
            (
                "the sliding window",
                self.sliding_window.unwrap_or(1),
                1 << 31,
            ),
        ];
        for (what, value, most) in whole {
            if value == 0 || value > most {
                return Err(format!("{what} is {value}; 1 to {most} are plausible"));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(format!(
                "{} heads cannot share {} key/value heads evenly",
                self.num_heads, self.num_kv_heads
            ));
        }
        if !self.rope.rotary_dim.is_multiple_of(2) {
            return Err(format!(
                "{} rotated elements do not form pairs",
                self.rope.rotary_dim
            ));
        }
        let positive = [
            ("the norm's epsilon", Some(self.norm_eps)),
            ("the rotary base", Some(self.rope.theta)),
            (
                "the rotary base of the sliding layers",
                self.local_rope_theta,
            ),
            ("the attention scale", Some(self.attention_scale)),
            ("the soft cap on attention", self.attention_softcap),
            ("the soft cap on logits", self.logit_softcap),
            ("the embedding's scale", Some(self.embedding_scale)),
        ];
        for (what, value) in positive {
            if value.is_some_and(|x| !x.is_finite() || x <= 0.0) {
                return Err(format!("{what} must be positive and finite, not {value:?}"));
            }
        }
        self.check_scaling()?;
        let mut tokens = self.bos_token.iter().chain(&self.eos_tokens);
        if let Some(id) = tokens.find(|id| **id as usize >= self.vocab_size) {
            return Err(format!(
                "token {id} is outside the vocabulary of {}",
                self.vocab_size
            ));
        }
        Ok(())
    }

    fn check_scaling(&self) -> Result<(), String> {
        let good = |x: f32| x.is_finite() && x > 0.0;
        let divisors = |all: &[f32]| {
            all.len() == self.rope.rotary_dim / 2 && all.iter().all(|factor| good(*factor))
        };
        let fine = match &self.rope.scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => good(*factor),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                good(*factor)
                    && good(*low_freq_factor)
                    && good(*high_freq_factor)
                    && high_freq_factor > low_freq_factor
                    && *original_context > 0
            }
            RopeScaling::Factors(factors) => divisors(factors),
            RopeScaling::Long {
                short,
                long,
                original_context,
                amplitude,
            } => divisors(short) && divisors(long) && *original_context > 0 && good(*amplitude),
        };
        if fine {
            Ok(())
        } else {
            Err(format!(
                "implausible rotary scaling {:?}",
                self.rope.scaling
            ))
        }
    }

    /// Every tensor that the computation needs: canonical name and row-major shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, q, kv, ff) = (
            self.hidden_size,
            self.q_dim(),
            self.kv_dim(),
            self.intermediate_size,
        );
        let mut tensors = vec![
            (
                "model.embed_tokens.weight".to_owned(),
                vec![self.vocab_size, d],
            ),
            ("model.norm.weight".to_owned(), vec![d]),
        ];
        if !self.tie_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab_size, d]));
        }
        for layer in 0..self.num_layers {
            let mut add = |part: &str, shape: &[usize]| {
                tensors.push((format!("model.layers.{layer}.{part}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[d]);
            add("self_attn.q_proj.weight", &[q, d]);
            add("self_attn.k_proj.weight", &[kv, d]);
            add("self_attn.v_proj.weight", &[kv, d]);
            add("self_attn.o_proj.weight", &[d, q]);
            if self.qkv_bias {
                add("self_attn.q_proj.bias", &[q]);
                add("self_attn.k_proj.bias", &[kv]);
                add("self_attn.v_proj.bias", &[kv]);
            }
            if self.qk_norm {
                add("self_attn.q_norm.weight", &[self.head_dim]);
                add("self_attn.k_norm.weight", &[self.head_dim]);
            }
            add("post_attention_layernorm.weight", &[d]);
            if self.sandwich_norms {
                add("pre_feedforward_layernorm.weight", &[d]);
                add("post_feedforward_layernorm.weight", &[d]);
            }
            add("mlp.gate_proj.weight", &[ff, d]);
            add("mlp.up_proj.weight", &[ff, d]);
            add("mlp.down_proj.weight", &[d, ff]);
        }
        tensors
    }

    /// Takes apart what a checkpoint fused (Phi-3: query, key and value; gate and up).
    ///
    /// # Errors
    /// A fused tensor does not have as many rows as its parts.
    pub(crate) fn split_fused(&self, weights: &mut Weights) -> Result<(), ModelError> {
        for layer in 0..self.num_layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let parts = [
                (name("self_attn.q_proj"), self.q_dim()),
                (name("self_attn.k_proj"), self.kv_dim()),
                (name("self_attn.v_proj"), self.kv_dim()),
            ];
            weights.split_rows(&name("self_attn.qkv_proj"), &parts)?;
            let parts = ["mlp.gate_proj", "mlp.up_proj"];
            let parts = parts.map(|part| (name(part), self.intermediate_size));
            weights.split_rows(&name("mlp.gate_up_proj"), &parts)?;
        }
        Ok(())
    }

    /// Does `weights` hold every tensor of [`ModelSpec::tensors`] in its shape, and nothing
    /// else that would take part in the computation?
    ///
    /// # Errors
    /// The first tensor that is missing, misshapen or unknown.
    pub fn check_weights(&self, weights: &Weights) -> Result<(), ModelError> {
        let mut expected = self.tensors();
        for (name, shape) in &expected {
            let found = weights.shape(name)?;
            if &found != shape {
                return Err(ModelError::Tensor {
                    name: name.clone(),
                    reason: format!(
                        "its shape is {:?} but the configuration needs {shape:?}",
                        found
                    ),
                });
            }
        }
        expected.sort();
        let harmless = |name: &str| {
            matches!(
                name,
                "rope_freqs.weight" | "rope_factors_short.weight" | "rope_factors_long.weight"
            ) || name.ends_with("rotary_emb.inv_freq")
                || (self.tie_embeddings && name == "lm_head.weight")
        };
        let mut unknown: Vec<_> = weights
            .names()
            .into_iter()
            .filter(|n| {
                !harmless(n)
                    && expected
                        .binary_search_by(|(e, _)| e.as_str().cmp(n))
                        .is_err()
            })
            .collect();
        unknown.sort_unstable();
        match unknown.first() {
            None => Ok(()),
            Some(name) => Err(ModelError::Unsupported(format!(
                "tensor {name}: the architecture {} of this build has none, and ignoring it would change the results",
                self.architecture
            ))),
        }
    }
}
