//! All the weights of a model by canonical name.
//!
//! Canonical names are Hugging Face's for the Llama family:
//! `model.embed_tokens.weight`, `model.norm.weight`, `lm_head.weight` and, with the prefix
//! `model.layers.N.`, `input_layernorm.weight`, `self_attn.{q,k,v,o}_proj.{weight,bias}`,
//! `self_attn.{q,k}_norm.weight`, `post_attention_layernorm.weight`,
//! `pre_feedforward_layernorm.weight`, `post_feedforward_layernorm.weight`,
//! `mlp.{gate,up,down}_proj.weight`. A GGUF file's names are mapped to these when it is read.

use std::collections::HashMap;
use std::sync::Arc;

use crate::dummy::DummyWeights;
use crate::weight_cache::Kept;
use crate::{DType, ModelError, ModelSpec, Tensor};

/// All the weights of a model by canonical name.
#[derive(Debug)]
pub struct Weights {
    source: Source,
    watch: Option<Watch>,
}

/// Told of the elements of each tensor that was taken.
struct Watch(Arc<dyn Fn(usize) + Send + Sync>);

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl From<Source> for Weights {
    fn from(source: Source) -> Self {
        Self {
            source,
            watch: None,
        }
    }
}

#[derive(Debug)]
enum Source {
    /// In files or in memory.
    Tensors(HashMap<String, Entry>),
    /// Made when asked for (`--load-format dummy`).
    Dummy(DummyWeights),
    /// Converted when asked for (`--quantization`, `--dtype`).
    Stored(Box<Weights>, DType),
    /// Read from the cache of converted weights, or written to it when asked for.
    Cached(Box<Weights>, Arc<Kept>),
}

/// A tensor, or how to make it.
#[derive(Debug)]
pub(crate) enum Entry {
    /// As it is in the file.
    Ready(Tensor),
    /// Made of several tensors of the file when it is asked for.
    Made(Box<dyn Recipe>),
}

/// How to make a tensor of what a checkpoint holds. All sizes were checked before.
pub(crate) trait Recipe: std::fmt::Debug + Send + Sync {
    /// Its shape.
    fn shape(&self) -> &[usize];
    /// The type it will have.
    fn dtype(&self) -> DType;
    /// Bytes in the checkpoint.
    fn bytes(&self) -> usize;
    /// Makes it.
    fn make(&self, name: &str) -> Result<Tensor, ModelError>;
}

/// Some rows of what another recipe makes.
#[derive(Debug)]
struct RowsOf {
    whole: Arc<dyn Recipe>,
    first: usize,
    shape: [usize; 2],
}

impl Recipe for RowsOf {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn dtype(&self) -> DType {
        self.whole.dtype()
    }

    fn bytes(&self) -> usize {
        let all = self.whole.shape().first().copied().unwrap_or(1).max(1);
        self.whole.bytes() / all * self.shape[0]
    }

    fn make(&self, name: &str) -> Result<Tensor, ModelError> {
        self.whole
            .make(name)?
            .rows_named(name, self.first, self.shape[0])
    }
}

impl Default for Weights {
    fn default() -> Self {
        Self::new([])
    }
}

impl Weights {
    /// From tensors that carry their canonical names.
    pub fn new(tensors: impl IntoIterator<Item = Tensor>) -> Self {
        let named = |t: Tensor| (t.name.clone(), Entry::Ready(t));
        let tensors = tensors.into_iter().map(named).collect();
        Source::Tensors(tensors).into()
    }

    /// As [`Weights::new`], from a file that might name a tensor twice.
    ///
    /// # Errors
    /// It does.
    pub fn distinct(tensors: impl IntoIterator<Item = Tensor>) -> Result<Self, ModelError> {
        Self::from_entries(
            tensors
                .into_iter()
                .map(|t| (t.name.clone(), Entry::Ready(t))),
        )
    }

    /// As [`Weights::distinct`], of tensors and recipes by name.
    pub(crate) fn from_entries(
        entries: impl IntoIterator<Item = (String, Entry)>,
    ) -> Result<Self, ModelError> {
        let mut by_name = HashMap::new();
        for (name, entry) in entries {
            if by_name.insert(name.clone(), entry).is_some() {
                return Err(ModelError::Tensor {
                    name,
                    reason: "stands in the checkpoint twice".to_owned(),
                });
            }
        }
        Ok(Source::Tensors(by_name).into())
    }

    /// Random weights for `spec`, each made anew (the same every time) when it is asked for, so
    /// that only what a backend keeps takes memory. Matrices are stored as `dtype` (F32, F16,
    /// BF16, Q8_0, Q4_0 or Q4_1) with a standard deviation of 0.02, norms are 1, biases 0.
    pub fn dummy(spec: &ModelSpec, dtype: DType, seed: u64) -> Self {
        Source::Dummy(DummyWeights::new(spec, dtype, seed)).into()
    }

    /// The same weights with their matrices stored as `dtype` (F32, F16, BF16, Q8_0, Q4_0, Q4_1
    /// or NF4), each converted when it is asked for. What is in blocks already keeps its type when
    /// `dtype` has none, but for fp8, which no CPU multiplies as it is. The embedding and the output
    /// matrix take no fewer than 8 bits: they are what 4 bits hurt most, and other quantised formats
    /// spare them too.
    pub fn stored_as(self, dtype: DType) -> Self {
        Source::Stored(Box::new(self), dtype).into()
    }

    /// The same weights, converted ones from and to the cache.
    pub(crate) fn cached(self, kept: Arc<Kept>) -> Self {
        Source::Cached(Box::new(self), kept).into()
    }

    /// The type that [`Weights::stored_as`] was given.
    pub(crate) fn wish(&self) -> Option<DType> {
        match &self.source {
            Source::Tensors(_) | Source::Dummy(_) => None,
            Source::Stored(_, dtype) => Some(*dtype),
            Source::Cached(inner, _) => inner.wish(),
        }
    }

    /// Is the tensor of that name another one than stands in a file?
    pub(crate) fn converts(&self, name: &str) -> bool {
        match &self.source {
            Source::Tensors(tensors) => matches!(tensors.get(name), Some(Entry::Made(_))),
            Source::Dummy(_) => false,
            Source::Stored(inner, _) => {
                inner.converts(name) || self.dtype(name).ok() != inner.dtype(name).ok()
            }
            Source::Cached(inner, _) => inner.converts(name),
        }
    }

    /// Replaces the matrix `name`, if there is one, by several of its rows each: what a checkpoint
    /// fused is taken apart.
    ///
    /// # Errors
    /// It does not have exactly so many rows.
    pub(crate) fn split_rows(
        &mut self,
        name: &str,
        parts: &[(String, usize)],
    ) -> Result<(), ModelError> {
        let Source::Tensors(tensors) = &mut self.source else {
            return Ok(());
        };
        let Some(fused) = tensors.remove(name) else {
            return Ok(());
        };
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        let shape = match &fused {
            Entry::Ready(tensor) => &tensor.shape[..],
            Entry::Made(recipe) => recipe.shape(),
        };
        let &[found, cols] = shape else {
            return Err(misshapen(name, shape, rows));
        };
        if found != rows {
            return Err(misshapen(name, shape, rows));
        }
        let (ready, recipe): (_, Option<Arc<dyn Recipe>>) = match fused {
            Entry::Ready(tensor) => (Some(tensor), None),
            Entry::Made(recipe) => (None, Some(Arc::from(recipe))),
        };
        let mut first = 0;
        for (part, rows) in parts {
            if let Some(whole) = &ready {
                let tensor = whole.rows_named(part, first, *rows)?;
                tensors.insert(part.clone(), Entry::Ready(tensor));
            } else if let Some(whole) = &recipe {
                let rows = RowsOf {
                    whole: whole.clone(),
                    first,
                    shape: [*rows, cols],
                };
                tensors.insert(part.clone(), Entry::Made(Box::new(rows)));
            }
            first += rows;
        }
        Ok(())
    }

    /// The types of the tensors that are made of a quantised checkpoint's.
    pub(crate) fn made_types(&self) -> Vec<DType> {
        let mut types = Vec::new();
        if let Source::Tensors(tensors) = &self.source {
            for entry in tensors.values() {
                if let Entry::Made(recipe) = entry
                    && !types.contains(&recipe.dtype())
                {
                    types.push(recipe.dtype());
                }
            }
        }
        types.sort_by_key(|dtype| dtype.name());
        types
    }

    /// The shape of the tensor of that name; nothing is converted for it.
    ///
    /// # Errors
    /// There is none.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>, ModelError> {
        match &self.source {
            Source::Tensors(tensors) => match tensors.get(name) {
                Some(Entry::Ready(tensor)) => Ok(tensor.shape.clone()),
                Some(Entry::Made(recipe)) => Ok(recipe.shape().to_vec()),
                None => Err(missing(name)),
            },
            Source::Dummy(dummy) => dummy.shape(name).ok_or_else(|| missing(name)),
            Source::Stored(inner, _) | Source::Cached(inner, _) => inner.shape(name),
        }
    }

    /// The type of the tensor of that name; nothing is converted for it.
    ///
    /// # Errors
    /// There is none.
    pub fn dtype(&self, name: &str) -> Result<DType, ModelError> {
        match &self.source {
            Source::Tensors(tensors) => match tensors.get(name) {
                Some(Entry::Ready(tensor)) => Ok(tensor.dtype),
                Some(Entry::Made(recipe)) => Ok(recipe.dtype()),
                None => Err(missing(name)),
            },
            Source::Dummy(dummy) => dummy.dtype(name).ok_or_else(|| missing(name)),
            Source::Stored(inner, dtype) => {
                let from = inner.dtype(name)?;
                Ok(stored_type(name, from, &inner.shape(name)?, *dtype))
            }
            Source::Cached(inner, _) => inner.dtype(name),
        }
    }

    /// The tensor of that name, or an error that names it.
    ///
    /// # Errors
    /// There is none, or it cannot be converted.
    pub fn get(&self, name: &str) -> Result<Tensor, ModelError> {
        let tensor = self.find(name)?;
        if let Some(watch) = &self.watch {
            watch.0(tensor.shape.iter().product());
        }
        Ok(tensor)
    }

    /// From now on `watch` is told, whenever [`Weights::get`] has given a tensor, how many elements that has.
    pub fn watch(&mut self, watch: Arc<dyn Fn(usize) + Send + Sync>) {
        self.watch = Some(Watch(watch));
    }

    /// Elements of all tensors.
    pub fn elements(&self) -> usize {
        let of = |name| Some(self.shape(name).ok()?.iter().product::<usize>());
        self.names().into_iter().filter_map(of).sum()
    }

    fn find(&self, name: &str) -> Result<Tensor, ModelError> {
        match &self.source {
            Source::Tensors(tensors) => match tensors.get(name) {
                Some(Entry::Ready(tensor)) => Ok(tensor.clone()),
                Some(Entry::Made(recipe)) => recipe.make(name),
                None => Err(missing(name)),
            },
            Source::Dummy(dummy) => dummy.make(name).ok_or_else(|| missing(name)),
            Source::Stored(inner, dtype) => {
                let tensor = inner.get(name)?;
                match stored_type(name, tensor.dtype, &tensor.shape, *dtype) {
                    dtype if dtype == tensor.dtype => Ok(tensor),
                    dtype => {
                        let made = tensor.quantize(dtype);
                        tensor.let_go();
                        made
                    }
                }
            }
            Source::Cached(inner, kept) => match kept.find(name) {
                Some(tensor) => Ok(tensor),
                None => {
                    let tensor = inner.get(name)?;
                    kept.add(&tensor);
                    Ok(tensor)
                }
            },
        }
    }

    /// Is there a tensor of that name?
    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Tensors(tensors) => tensors.contains_key(name),
            Source::Dummy(dummy) => dummy.names().any(|known| known == name),
            Source::Stored(inner, _) | Source::Cached(inner, _) => inner.contains(name),
        }
    }

    /// The names of all tensors, in no order.
    pub fn names(&self) -> Vec<&str> {
        match &self.source {
            Source::Tensors(tensors) => tensors.keys().map(String::as_str).collect(),
            Source::Dummy(dummy) => dummy.names().collect(),
            Source::Stored(inner, _) | Source::Cached(inner, _) => inner.names(),
        }
    }

    /// Bytes of all tensors as they are in the checkpoint.
    pub fn total_bytes(&self) -> usize {
        match &self.source {
            Source::Tensors(tensors) => {
                let bytes = |entry: &Entry| match entry {
                    Entry::Ready(tensor) => tensor.bytes().len(),
                    Entry::Made(recipe) => recipe.bytes(),
                };
                tensors.values().map(bytes).sum()
            }
            Source::Dummy(dummy) => dummy.total_bytes(),
            Source::Stored(inner, _) | Source::Cached(inner, _) => inner.total_bytes(),
        }
    }
}

/// The error of a tensor that is not there.
pub(crate) fn missing(name: &str) -> ModelError {
    ModelError::Tensor {
        name: name.to_owned(),
        reason: "missing from the checkpoint".to_owned(),
    }
}

fn misshapen(name: &str, shape: &[usize], rows: usize) -> ModelError {
    ModelError::Tensor {
        name: name.to_owned(),
        reason: format!("its shape is {shape:?} but the configuration needs {rows} rows"),
    }
}

/// The type that a tensor of this name, type and shape gets when `dtype` is asked for.
fn stored_type(name: &str, from: DType, shape: &[usize], dtype: DType) -> DType {
    let in_blocks = |dtype: DType| dtype.block().0 > 1;
    let stays = in_blocks(from) && from != DType::F8_E4M3;
    if shape.len() < 2 || (stays && !in_blocks(dtype)) {
        return from;
    }
    let spared = name == "model.embed_tokens.weight" || name == "lm_head.weight";
    let dtype = match spared && in_blocks(dtype) {
        true => DType::Q8_0,
        false => dtype,
    };
    let cols = shape.last().copied().unwrap_or(1);
    match cols.is_multiple_of(dtype.block().0) {
        true => dtype,
        false => from,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_watch_is_told_of_all_elements_converted_or_not() {
        let matrix = |name: &str| {
            let bytes: Vec<u8> = (0..64).flat_map(|i| (i as f32).to_le_bytes()).collect();
            Tensor::owned(name, DType::F32, vec![2, 32], bytes).unwrap()
        };
        let norm = Tensor::owned("n", DType::F32, vec![3], vec![0; 12]).unwrap();
        let weights = Weights::new([matrix("a"), matrix("b"), norm]);
        let mut weights = weights.stored_as(DType::Q4_0);
        assert_eq!(weights.elements(), 131);
        let told = Arc::new(AtomicUsize::new(0));
        let to = told.clone();
        weights.watch(Arc::new(move |elements| {
            to.fetch_add(elements, Ordering::Relaxed);
        }));
        assert_eq!(weights.get("a").unwrap().dtype, DType::Q4_0);
        assert_eq!(told.load(Ordering::Relaxed), 64);
        weights.get("b").unwrap();
        weights.get("n").unwrap();
        assert_eq!(told.load(Ordering::Relaxed), 131);
        assert!(weights.get("c").is_err());
        assert_eq!(told.load(Ordering::Relaxed), 131);
    }
}
