//! Rotary settings of a `config.json`.

use std::cell::RefCell;

use super::Config;
use crate::ModelError;
use crate::spec::{ModelSpec, RopeScaling};

impl Config<'_> {
    /// Rotary settings: `rope_theta` and `rope_scaling`, or the newer `rope_parameters`.
    pub(super) fn rope(&self, spec: &mut ModelSpec) -> Result<(), ModelError> {
        let default = if spec.architecture == "gemma3" {
            1e6
        } else {
            1e4
        };
        spec.rope.theta = self.float("rope_theta")?.unwrap_or(default);
        spec.local_rope_theta = self.float("rope_local_base_freq")?;
        self.rotary_part(spec)?;
        let mut parameters = self.get("rope_scaling");
        if let Some(newer) = self.get("rope_parameters") {
            parameters = Some(
                match (newer.get("full_attention"), newer.get("sliding_attention")) {
                    (Some(full), sliding) => {
                        let theta = sliding.and_then(|s| s["rope_theta"].as_f64());
                        spec.local_rope_theta = theta.map(|x| x as f32);
                        full
                    }
                    (None, _) => newer,
                },
            );
        }
        let Some(parameters) = parameters else {
            return Ok(());
        };
        let fields = parameters
            .as_object()
            .ok_or_else(|| self.wrong("rope_scaling", "an object"))?;
        let inner = Config {
            fields,
            path: self.path,
            used: RefCell::default(),
        };
        inner.rotary_part(spec)?;
        if let Some(theta) = inner.float("rope_theta")? {
            spec.rope.theta = theta;
        }
        let kind = inner
            .text("rope_type")
            .or(inner.text("type"))
            .unwrap_or("default");
        inner.text("type");
        let need = |name: &str| {
            inner
                .float(name)?
                .ok_or_else(|| inner.wrong(name, "a number"))
        };
        spec.rope.scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear {
                factor: need("factor")?,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_context: inner.required("original_max_position_embeddings")?,
            },
            "longrope" | "su" => {
                let original = self.unsigned("original_max_position_embeddings")?;
                inner.long_rope(spec.max_position_embeddings, original)?
            }
            other => return Err(self.unsupported(format!("rotary scaling of the type {other}"))),
        };
        if kind == "default" {
            inner.get("factor");
        }
        inner.refuse_unused()
    }

    /// LongRoPE's settings, of a model that knows `context` positions, `original` of them from its
    /// first training if that stands beside these settings. By how much queries and keys grow follows,
    /// where it is not given, from the contexts' ratio.
    fn long_rope(
        &self,
        context: usize,
        original: Option<usize>,
    ) -> Result<RopeScaling, ModelError> {
        let here = self.unsigned("original_max_position_embeddings")?;
        let original_context = original.or(here).unwrap_or(context);
        let length = original_context as f64;
        let factor = match self.float("factor")? {
            Some(factor) => f64::from(factor),
            None => context as f64 / length,
        };
        let amplitude = match self.float("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / length.ln()).sqrt() as f32,
        };
        Ok(RopeScaling::Long {
            short: self.floats("short_factor")?,
            long: self.floats("long_factor")?,
            original_context,
            amplitude,
        })
    }

    /// How much of a head is rotated: all of it, but for Phi-3.
    fn rotary_part(&self, spec: &mut ModelSpec) -> Result<(), ModelError> {
        match self.float("partial_rotary_factor")? {
            None | Some(1.0) => Ok(()),
            Some(part) if spec.architecture == "phi3" => {
                spec.rope.rotary_dim = (spec.head_dim as f32 * part) as usize;
                Ok(())
            }
            Some(part) => Err(self.unsupported(format!("partial_rotary_factor {part}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::hf::config::spec_from_config;

    /// Phi-4-mini's published settings but for its factors, whose numbers are made up.
    fn phi_4_mini() -> Value {
        json!({
            "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": false,
            "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": false, "mlp_bias": false,
            "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
            "num_attention_heads": 24, "num_key_value_heads": 8, "num_hidden_layers": 32,
            "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.75, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
            "rope_scaling": {"long_factor": vec![8.0; 48], "short_factor": vec![1.0; 48], "type": "su"},
            "sliding_window": 262144, "tie_word_embeddings": true, "vocab_size": 200064,
        })
    }

    fn read(config: &Value) -> Result<ModelSpec, String> {
        let path = Path::new("config.json");
        spec_from_config(&config.to_string(), None, path).map_err(|e| e.to_string())
    }

    #[test]
    fn long_contexts_stretch_by_the_ratio_of_the_lengths() {
        let rope = read(&phi_4_mini()).unwrap().rope;
        assert_eq!(rope.rotary_dim, 96);
        // sqrt(1 + ln(32) / ln(4096)) = sqrt(17 / 12)
        assert!((rope.amplitude() - 1.190_238).abs() < 1e-6, "{rope:?}");
        let (short, long) = (rope.frequencies(4096), rope.frequencies(4097));
        assert_eq!((short.len(), short[0], long[0]), (48, 1.0, 0.125));
        let mut given = phi_4_mini();
        given["rope_scaling"]["attention_factor"] = json!(1.5);
        assert_eq!(read(&given).unwrap().rope.amplitude(), 1.5);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |change: fn(&mut Value)| {
            let mut config = phi_4_mini();
            change(&mut config);
            read(&config).unwrap_err()
        };
        let short = refused(|c| c["rope_scaling"]["long_factor"] = json!([1.0]));
        assert!(short.contains("implausible rotary scaling"), "{short}");
        let missing = refused(|c| c["rope_scaling"]["short_factor"] = Value::Null);
        assert!(missing.contains("short_factor is null"), "{missing}");
        let text = refused(|c| c["rope_scaling"]["short_factor"] = json!(["1"]));
        assert!(text.contains("a list of numbers"), "{text}");
        let nothing = refused(|c| c["original_max_position_embeddings"] = json!(0));
        assert!(nothing.contains("implausible rotary scaling"), "{nothing}");
        let part = refused(|c| c["partial_rotary_factor"] = json!(1.25));
        assert!(part.contains("the rotated part of a head is 160"), "{part}");
        assert!(refused(|c| c["full_attn_mod"] = json!(2)).contains("full_attn_mod = 2"));
    }
}
