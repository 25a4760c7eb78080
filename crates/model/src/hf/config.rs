//! From a Hugging Face `config.json` to a [`ModelSpec`]. A field that would change the
//! computation and is not known is an error, never ignored.

mod rope;

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value};

use crate::ModelError;
use crate::builtin::plain_llama;
use crate::spec::{Activation, ModelSpec};

/// Fields that describe training, storage or generation, not the computation of a step.
const HARMLESS: [&str; 64] = [
    "architectures",
    "attention_dropout",
    "auto_map",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "max_window_layers",
    "min_length",
    "mlp_dropout",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "remove_invalid_values",
];

/// Reads the text of a `config.json`. `generation` is that of `generation_config.json`, which may
/// name more end tokens; `path` is for the errors only.
///
/// # Errors
/// No valid JSON, an unknown architecture, a missing or implausible number, or a setting that
/// would change the results and is not built.
pub fn spec_from_config(
    text: &str,
    generation: Option<&str>,
    path: &Path,
) -> Result<ModelSpec, ModelError> {
    let parse = |text: &str| -> Result<Map<String, Value>, ModelError> {
        serde_json::from_str(text).map_err(|e| ModelError::format(path, e.to_string()))
    };
    let fields = parse(text)?;
    let config = Config {
        fields: &fields,
        path,
        used: RefCell::default(),
    };
    let mut spec = config.spec()?;
    config.refuse_unused()?;
    if let Some(generation) = generation {
        spec.eos_tokens
            .extend(token_ids(parse(generation)?.get("eos_token_id")));
    }
    spec.eos_tokens.sort_unstable();
    spec.eos_tokens.dedup();
    spec.check()
        .map_err(|reason| ModelError::format(path, reason))?;
    Ok(spec)
}

/// The families that are read.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
    SmolLm3,
}

/// One id or a list of them.
fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The fields of a JSON object, and which of them were read.
struct Config<'a> {
    fields: &'a Map<String, Value>,
    path: &'a Path,
    used: RefCell<HashSet<String>>,
}

impl<'a> Config<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.used.borrow_mut().insert(name.to_owned());
        self.fields.get(name).filter(|v| !v.is_null())
    }

    fn wrong(&self, name: &str, expected: &str) -> ModelError {
        let found = self
            .fields
            .get(name)
            .map_or("missing".to_owned(), Value::to_string);
        ModelError::format(
            self.path,
            format!("{name} is {found}; {expected} is expected"),
        )
    }

    fn unsupported(&self, what: impl std::fmt::Display) -> ModelError {
        ModelError::Unsupported(format!("{}: {what}", self.path.display()))
    }

    fn unsigned(&self, name: &str) -> Result<Option<usize>, ModelError> {
        let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        match self.get(name) {
            None => Ok(None),
            Some(v) => number(v)
                .map(Some)
                .ok_or_else(|| self.wrong(name, "a whole number")),
        }
    }

    fn required(&self, name: &str) -> Result<usize, ModelError> {
        self.unsigned(name)?
            .ok_or_else(|| self.wrong(name, "a whole number"))
    }

    fn float(&self, name: &str) -> Result<Option<f32>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => v
                .as_f64()
                .map(|x| Some(x as f32))
                .ok_or_else(|| self.wrong(name, "a number")),
        }
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let listed = self.get(name).and_then(Value::as_array);
        let number = |v: &Value| v.as_f64().map(|x| x as f32);
        listed
            .and_then(|all| all.iter().map(number).collect())
            .ok_or_else(|| self.wrong(name, "a list of numbers"))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => v
                .as_bool()
                .map(Some)
                .ok_or_else(|| self.wrong(name, "true or false")),
        }
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        self.get(name).and_then(Value::as_str)
    }

    fn family(&self) -> Result<Family, ModelError> {
        let architecture = self.get("architectures").and_then(|a| a[0].as_str());
        Ok(match (architecture, self.text("model_type")) {
            (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => Family::Llama,
            (Some("MistralForCausalLM"), _) | (None, Some("mistral")) => Family::Mistral,
            (Some("Qwen2ForCausalLM"), _) | (None, Some("qwen2")) => Family::Qwen2,
            (Some("Qwen3ForCausalLM"), _) | (None, Some("qwen3")) => Family::Qwen3,
            (Some("Gemma2ForCausalLM"), _) | (None, Some("gemma2")) => Family::Gemma2,
            (Some("Phi3ForCausalLM"), _) | (None, Some("phi3")) => Family::Phi3,
            (Some("SmolLM3ForCausalLM"), _) | (None, Some("smollm3")) => Family::SmolLm3,
            (Some("Gemma3ForCausalLM"), _) | (None, Some("gemma3_text")) => Family::Gemma3,
            (Some(other), _) | (None, Some(other)) => {
                return Err(self.unsupported(format!(
                    "architecture {other}; this build reads the Llama, Mistral, Qwen2, Qwen3, Gemma 2, Gemma 3, Phi-3 and SmolLM3 families"
                )));
            }
            (None, None) => return Err(self.wrong("architectures", "the name of an architecture")),
        })
    }

    fn spec(&self) -> Result<ModelSpec, ModelError> {
        let family = self.family()?;
        let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
        // How the weights are stored is read by `quantized::Method`.
        self.get("quantization_config");
        let hidden_size = self.required("hidden_size")?;
        let num_heads = self.required("num_attention_heads")?;
        let default_head = if gemma {
            Some(256)
        } else {
            hidden_size.checked_div(num_heads)
        };
        let head_dim = self.unsigned("head_dim")?.or(default_head).unwrap_or(0);
        let mut spec = ModelSpec {
            architecture: match family {
                Family::Llama => "llama",
                Family::Mistral => "mistral",
                Family::Qwen2 => "qwen2",
                Family::Qwen3 => "qwen3",
                Family::Gemma2 => "gemma2",
                Family::Gemma3 => "gemma3",
                Family::Phi3 => "phi3",
                Family::SmolLm3 => "smollm3",
            }
            .to_owned(),
            vocab_size: self.required("vocab_size")?,
            num_layers: self.required("num_hidden_layers")?,
            num_kv_heads: self.unsigned("num_key_value_heads")?.unwrap_or(num_heads),
            intermediate_size: self.required("intermediate_size")?,
            max_position_embeddings: self.required("max_position_embeddings")?,
            norm_eps: self.float("rms_norm_eps")?.unwrap_or(1e-6),
            tie_embeddings: self.flag("tie_word_embeddings")?.unwrap_or(gemma),
            qkv_bias: family == Family::Qwen2,
            qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
            sandwich_norms: gemma,
            norm_plus_one: gemma,
            attention_softcap: self.float("attn_logit_softcapping")?,
            logit_softcap: self.float("final_logit_softcapping")?,
            bos_token: token_ids(self.get("bos_token_id")).first().copied(),
            eos_tokens: token_ids(self.get("eos_token_id")),
            ..plain_llama(hidden_size, num_heads, head_dim)
        };
        spec.activation = self.activation()?;
        self.rope(&mut spec)?;
        if gemma {
            spec.embedding_scale = (hidden_size as f32).sqrt();
            let scalar = self.float("query_pre_attn_scalar")?.unwrap_or(256.0);
            spec.attention_scale = scalar.sqrt().recip();
        }
        match family {
            Family::Gemma3 => spec.local_rope_theta = spec.local_rope_theta.or(Some(1e4)),
            Family::SmolLm3 => spec.unrotated_pattern = self.unrotated(spec.num_layers)?,
            Family::Phi3 => {
                // Models without LongRoPE say this too.
                self.get("original_max_position_embeddings");
                // Phi-4-mini's switches of what no published model uses.
                for name in ["full_attn_mod", "interpolate_factor"] {
                    if let Some(x) = self.float(name)?.filter(|x| *x != 1.0) {
                        return Err(self.unsupported(format!("{name} = {x}")));
                    }
                }
            }
            _ => {}
        }
        self.sliding(family, &mut spec)?;
        self.refuse_switches()?;
        Ok(spec)
    }

    /// Every how many layers one does not rotate; 0: all do.
    fn unrotated(&self, layers: usize) -> Result<usize, ModelError> {
        let interval = self.unsigned("no_rope_layer_interval")?.unwrap_or(4);
        let Some(listed) = self.get("no_rope_layers").and_then(Value::as_array) else {
            return Ok(interval);
        };
        let rotates: Vec<bool> = listed.iter().map(|v| v.as_u64() != Some(0)).collect();
        let regular = |n: usize| {
            let expected = |i: usize| n == 0 || !(i + 1).is_multiple_of(n);
            rotates
                .iter()
                .enumerate()
                .take(layers)
                .all(|(i, rotates)| *rotates == expected(i))
        };
        let first = rotates.iter().position(|rotates| !rotates);
        let pattern = first.map_or(0, |first| first + 1);
        if rotates.len() < layers || !regular(pattern) {
            return Err(self.unsupported("an irregular list of no_rope_layers"));
        }
        Ok(pattern)
    }

    fn activation(&self) -> Result<Activation, ModelError> {
        let name = self
            .text("hidden_activation")
            .or(self.text("hidden_act"))
            .unwrap_or("silu");
        // Gemma's files carry both fields; the first is the one that counts.
        self.text("hidden_act");
        match name {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            other => Err(self.unsupported(format!("the activation {other}"))),
        }
    }

    /// Which layers see only a window.
    fn sliding(&self, family: Family, spec: &mut ModelSpec) -> Result<(), ModelError> {
        let window = self.unsigned("sliding_window")?;
        let used = match family {
            Family::Mistral | Family::Phi3 => true,
            Family::Gemma2 => {
                spec.sliding_pattern = 2;
                true
            }
            Family::Gemma3 => {
                spec.sliding_pattern = self.unsigned("sliding_window_pattern")?.unwrap_or(6);
                self.unsigned("_sliding_window_pattern")?;
                true
            }
            Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 => {
                self.flag("use_sliding_window")?.unwrap_or(false)
            }
            Family::Llama => false,
        };
        spec.sliding_window = window.filter(|_| used);
        if matches!(family, Family::Qwen2 | Family::Qwen3) && spec.sliding_window.is_some() {
            // The first `max_window_layers` layers see everything.
            match self.unsigned("max_window_layers")?.unwrap_or(28) {
                0 => {}
                n if n >= spec.num_layers => spec.sliding_window = None,
                n => return Err(self.unsupported(format!("sliding windows from layer {n} on"))),
            }
        }
        let Some(Value::Array(kinds)) = self.get("layer_types") else {
            return Ok(());
        };
        // The list is what counts; it must repeat after its first layer that sees everything.
        let full: Vec<bool> = kinds.iter().map(|kind| kind == "full_attention").collect();
        let known = |kind: &Value| kind == "full_attention" || kind == "sliding_attention";
        if spec.sliding_window.is_some() {
            spec.sliding_pattern = full.iter().position(|full| *full).map_or(0, |i| i + 1);
        }
        let regular = (0..spec.num_layers).all(|i| full.get(i) == Some(&!spec.is_sliding(i)));
        if !regular || !kinds.iter().all(known) {
            return Err(self.unsupported(format!(
                "layer_types: {} with a sliding window of {:?} is no pattern that is built",
                Value::Array(kinds.clone()),
                spec.sliding_window
            )));
        }
        Ok(())
    }

    /// Switches that are built in one position only.
    fn refuse_switches(&self) -> Result<(), ModelError> {
        for name in [
            "attention_bias",
            "mlp_bias",
            "rope_interleaved",
            "use_bidirectional_attention",
            "add_cross_attention",
        ] {
            if self.flag(name)?.unwrap_or(false) {
                return Err(self.unsupported(format!("{name} = true")));
            }
        }
        Ok(())
    }

    /// A field that nobody read and that is neither empty nor known to be harmless.
    fn refuse_unused(&self) -> Result<(), ModelError> {
        let used = self.used.borrow();
        let inert = |v: &Value| match v {
            Value::Null | Value::Bool(false) => true,
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            Value::Bool(true) => false,
        };
        let unknown = self.fields.iter().find(|(name, value)| {
            !used.contains(*name)
                && !name.starts_with('_')
                && !HARMLESS.contains(&name.as_str())
                && !inert(value)
        });
        match unknown {
            None => Ok(()),
            Some((name, value)) => Err(self.unsupported(format!(
                "the field {name} = {value} is not known to this build, and ignoring it might change the results"
            ))),
        }
    }
}
