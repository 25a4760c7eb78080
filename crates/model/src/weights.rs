//! All the weights of a model by canonical name.
//!
//! Canonical names are Hugging Face's for the Llama family:
//! `model.embed_tokens.weight`, `model.norm.weight`, `lm_head.weight` and, with the prefix
//! `model.layers.N.`, `input_layernorm.weight`, `self_attn.{q,k,v,o}_proj.{weight,bias}`,
//! `self_attn.{q,k}_norm.weight`, `post_attention_layernorm.weight`,
//! `pre_feedforward_layernorm.weight`, `post_feedforward_layernorm.weight`,
//! `mlp.{gate,up,down}_proj.weight`. A GGUF file's names are mapped to these when it is read.

use std::collections::HashMap;

use crate::{ModelError, Tensor};

/// All the weights of a model by canonical name.
#[derive(Debug, Default)]
pub struct Weights {
    tensors: HashMap<String, Tensor>,
}

impl Weights {
    /// From tensors that carry their canonical names.
    pub fn new(tensors: impl IntoIterator<Item = Tensor>) -> Self {
        Self {
            tensors: tensors.into_iter().map(|t| (t.name.clone(), t)).collect(),
        }
    }

    /// The tensor of that name, or an error that names it.
    pub fn get(&self, name: &str) -> Result<Tensor, ModelError> {
        self.find(name).ok_or_else(|| ModelError::Tensor {
            name: name.to_owned(),
            reason: "missing from the checkpoint".to_owned(),
        })
    }

    /// The tensor of that name, if there is one.
    pub fn find(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name).cloned()
    }
}
