//! A whole model: architecture, weights, tokenizer, chat template.

use std::path::Path;
use std::sync::Arc;

use crate::gguf::Gguf;
use crate::{ChatTemplate, DType, ModelError, ModelSpec, Tokenizer, Weights, hf};

/// Everything a checkpoint holds.
#[derive(Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub spec: ModelSpec,
    /// The weights.
    pub weights: Weights,
    /// The tokenizer; without one only token ids are understood.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// How a quantised Hugging Face checkpoint's weights are stored and which types they become,
    /// for people; `None` if they are read as they are.
    pub converted: Option<String>,
    /// The chat template, if the model has one.
    pub chat_template: Option<Arc<ChatTemplate>>,
}

impl Checkpoint {
    /// Opens a GGUF file, or a Hugging Face folder with `config.json` and safetensors files.
    ///
    /// # Errors
    /// The path is neither, or what is there is broken or of a kind that is not built.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::open_with(path, None)
    }

    /// The same with random weights (`--load-format dummy`), of which a folder needs no file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]'s.
    pub fn open_invented(path: &Path, dtype: DType, seed: u64) -> Result<Self, ModelError> {
        Self::open_with(path, Some((dtype, seed)))
    }

    /// `invented`: the type and seed of random weights, in place of those that are stored.
    fn open_with(path: &Path, invented: Option<(DType, u64)>) -> Result<Self, ModelError> {
        let opened = if path.is_dir() {
            Self::open_folder(path, invented)
        } else {
            Self::open_gguf(path).map(|mut opened| {
                if let Some((dtype, seed)) = invented {
                    opened.weights = Weights::dummy(&opened.spec, dtype, seed);
                }
                opened
            })
        };
        opened.map_err(|error| error.in_file(path))
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let file = Gguf::open(path)?;
        let mut weights = file.weights()?;
        let spec = file.spec(&weights)?;
        spec.split_fused(&mut weights)?;
        spec.check_weights(&weights)?;
        let tokenizer = Tokenizer::from_gguf(&file)?.map(Arc::new);
        check_vocabulary(&spec, tokenizer.as_deref())?;
        let chat_template = match file.string("tokenizer.chat_template")? {
            Some(source) => {
                let tokens = file.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
                let text = |key: &str| {
                    let id = file.unsigned(&format!("tokenizer.ggml.{key}_token_id"))?;
                    let text = id.and_then(|id| tokens.get(id).copied());
                    Ok::<_, ModelError>(text.unwrap_or_default())
                };
                Some(Arc::new(ChatTemplate::new(
                    source,
                    text("bos")?,
                    text("eos")?,
                )?))
            }
            None => None,
        };
        file.let_go();
        Ok(Self {
            spec,
            weights,
            tokenizer,
            converted: None,
            chat_template,
        })
    }

    fn open_folder(folder: &Path, invented: Option<(DType, u64)>) -> Result<Self, ModelError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|e| ModelError::io(&path, e))
        };
        let optional = |name: &str| folder.join(name).exists().then(|| read(name)).transpose();
        let config = folder.join("config.json");
        if !config.exists() {
            return Err(ModelError::format(
                folder,
                "no config.json in this folder; give a GGUF file or a Hugging Face model folder",
            ));
        }
        let generation = optional("generation_config.json")?;
        let text = read("config.json")?;
        let spec = hf::spec_from_config(&text, generation.as_deref(), &config)?;
        let fields = serde_json::from_str(&text)
            .map_err(|error| ModelError::format(&config, error.to_string()))?;
        let method = hf::Method::from_config(&fields, &config)?;
        let (weights, converted) = match invented {
            Some((dtype, seed)) => {
                let weights = Weights::dummy(&spec, dtype, seed);
                (weights, method.map(|method| method.to_string()))
            }
            None => {
                let mut weights = hf::load_weights(folder, method.as_ref())?;
                spec.split_fused(&mut weights)?;
                spec.check_weights(&weights)?;
                let converted = method.map(|method| {
                    let types: Vec<_> = weights.made_types().iter().map(|t| t.name()).collect();
                    format!("{method}, as {}", types.join(" and "))
                });
                (weights, converted)
            }
        };
        let tokenizer = match optional("tokenizer.json")? {
            Some(json) => Some(Arc::new(Tokenizer::from_json(json.as_bytes())?)),
            None => None,
        };
        check_vocabulary(&spec, tokenizer.as_deref())?;
        let settings: serde_json::Value = match optional("tokenizer_config.json")? {
            Some(text) => serde_json::from_str(&text).map_err(|e| {
                ModelError::format(&folder.join("tokenizer_config.json"), e.to_string())
            })?,
            None => serde_json::Value::Null,
        };
        let source = match optional("chat_template.jinja")? {
            Some(source) => Some(source),
            None => template_of(&settings["chat_template"]),
        };
        let text = |key: &str| {
            let token = &settings[key];
            let text = token.as_str().or_else(|| token["content"].as_str());
            text.unwrap_or_default().to_owned()
        };
        let chat_template = source
            .map(|source| ChatTemplate::new(&source, &text("bos_token"), &text("eos_token")))
            .transpose()?
            .map(Arc::new);
        Ok(Self {
            spec,
            weights,
            tokenizer,
            converted,
            chat_template,
        })
    }

    /// Random weights for an architecture (`--load-format dummy`); no tokenizer.
    pub fn dummy(spec: ModelSpec, dtype: DType, seed: u64) -> Self {
        Self {
            weights: Weights::dummy(&spec, dtype, seed),
            spec,
            tokenizer: None,
            converted: None,
            chat_template: None,
        }
    }
}

/// Has the model an embedding for every token of the vocabulary?
fn check_vocabulary(spec: &ModelSpec, tokenizer: Option<&Tokenizer>) -> Result<(), ModelError> {
    let tokens = tokenizer.map_or(0, Tokenizer::plain_vocab_size);
    if tokens <= spec.vocab_size {
        return Ok(());
    }
    Err(ModelError::Tensor {
        name: "model.embed_tokens.weight".to_owned(),
        reason: format!(
            "it has {} rows, but the tokenizer's vocabulary has {tokens} tokens: they belong to different models",
            spec.vocab_size
        ),
    })
}

/// One template, or the one called `default` of several.
fn template_of(value: &serde_json::Value) -> Option<String> {
    let one = value.as_str().map(str::to_owned);
    one.or_else(|| {
        let named = value.as_array()?.iter().find(|t| t["name"] == "default")?;
        named["template"].as_str().map(str::to_owned)
    })
}
