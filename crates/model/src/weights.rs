//! All the weights of a model by canonical name.
//!
//! Canonical names are Hugging Face's for the Llama family:
//! `model.embed_tokens.weight`, `model.norm.weight`, `lm_head.weight` and, with the prefix
//! `model.layers.N.`, `input_layernorm.weight`, `self_attn.{q,k,v,o}_proj.{weight,bias}`,
//! `self_attn.{q,k}_norm.weight`, `post_attention_layernorm.weight`,
//! `pre_feedforward_layernorm.weight`, `post_feedforward_layernorm.weight`,
//! `mlp.{gate,up,down}_proj.weight`. A GGUF file's names are mapped to these when it is read.

use std::collections::HashMap;

use crate::dummy::DummyWeights;
use crate::{DType, ModelError, ModelSpec, Tensor};

/// All the weights of a model by canonical name.
#[derive(Debug)]
pub struct Weights {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// In files or in memory.
    Tensors(HashMap<String, Tensor>),
    /// Made when asked for (`--load-format dummy`).
    Dummy(DummyWeights),
    /// Converted when asked for (`--quantization`, `--dtype`).
    Stored(Box<Weights>, DType),
}

impl Default for Weights {
    fn default() -> Self {
        Self::new([])
    }
}

impl Weights {
    /// From tensors that carry their canonical names.
    pub fn new(tensors: impl IntoIterator<Item = Tensor>) -> Self {
        let tensors = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
        Self {
            source: Source::Tensors(tensors),
        }
    }

    /// As [`Weights::new`], from a file that might name a tensor twice.
    ///
    /// # Errors
    /// It does.
    pub fn distinct(tensors: impl IntoIterator<Item = Tensor>) -> Result<Self, ModelError> {
        let mut by_name = HashMap::new();
        for tensor in tensors {
            if let Some(earlier) = by_name.insert(tensor.name.clone(), tensor) {
                return Err(ModelError::Tensor {
                    name: earlier.name,
                    reason: "stands in the checkpoint twice".to_owned(),
                });
            }
        }
        Ok(Self {
            source: Source::Tensors(by_name),
        })
    }

    /// Random weights for `spec`, each made anew (the same every time) when it is asked for, so
    /// that only what a backend keeps takes memory. Matrices are stored as `dtype` (F32, F16,
    /// BF16, Q8_0, Q4_0 or Q4_1) with a standard deviation of 0.02, norms are 1, biases 0.
    pub fn dummy(spec: &ModelSpec, dtype: DType, seed: u64) -> Self {
        Self {
            source: Source::Dummy(DummyWeights::new(spec, dtype, seed)),
        }
    }

    /// The same weights with their matrices stored as `dtype` (F32, F16, BF16, Q8_0, Q4_0 or
    /// Q4_1), each converted when it is asked for. What is in blocks already keeps its type when
    /// `dtype` has none. The embedding and the output matrix take no fewer than 8 bits: they are
    /// what 4 bits hurt most, and other quantised formats spare them too.
    pub fn stored_as(self, dtype: DType) -> Self {
        Self {
            source: Source::Stored(Box::new(self), dtype),
        }
    }

    /// The tensor of that name, or an error that names it.
    ///
    /// # Errors
    /// There is none, or it cannot be converted.
    pub fn get(&self, name: &str) -> Result<Tensor, ModelError> {
        let missing = || ModelError::Tensor {
            name: name.to_owned(),
            reason: "missing from the checkpoint".to_owned(),
        };
        match &self.source {
            Source::Tensors(tensors) => tensors.get(name).cloned().ok_or_else(missing),
            Source::Dummy(dummy) => dummy.make(name).ok_or_else(missing),
            Source::Stored(inner, dtype) => {
                let tensor = inner.get(name)?;
                match stored_type(&tensor, *dtype) {
                    dtype if dtype == tensor.dtype => Ok(tensor),
                    dtype => tensor.quantize(dtype),
                }
            }
        }
    }

    /// Is there a tensor of that name?
    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Tensors(tensors) => tensors.contains_key(name),
            Source::Dummy(dummy) => dummy.names().any(|known| known == name),
            Source::Stored(inner, _) => inner.contains(name),
        }
    }

    /// The names of all tensors, in no order.
    pub fn names(&self) -> Vec<&str> {
        match &self.source {
            Source::Tensors(tensors) => tensors.keys().map(String::as_str).collect(),
            Source::Dummy(dummy) => dummy.names().collect(),
            Source::Stored(inner, _) => inner.names(),
        }
    }

    /// Bytes of all tensors as they are in the checkpoint.
    pub fn total_bytes(&self) -> usize {
        match &self.source {
            Source::Tensors(tensors) => tensors.values().map(|t| t.bytes().len()).sum(),
            Source::Dummy(dummy) => dummy.total_bytes(),
            Source::Stored(inner, _) => inner.total_bytes(),
        }
    }
}

/// The type that a tensor gets when `dtype` is asked for.
fn stored_type(tensor: &Tensor, dtype: DType) -> DType {
    let in_blocks = |dtype: DType| dtype.block().0 > 1;
    if tensor.shape.len() < 2 || (in_blocks(tensor.dtype) && !in_blocks(dtype)) {
        return tensor.dtype;
    }
    let spared = tensor.name == "model.embed_tokens.weight" || tensor.name == "lm_head.weight";
    let dtype = match spared && in_blocks(dtype) {
        true => DType::Q8_0,
        false => dtype,
    };
    match tensor.cols().is_multiple_of(dtype.block().0) {
        true => dtype,
        false => tensor.dtype,
    }
}
