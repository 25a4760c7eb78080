//! Weights in safetensors files: one file, or shards with an index.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::quantized::{self, Method};
use crate::weights::Entry;
use crate::{DType, ModelError, Tensor, Weights};

/// Names of the single file and of the index of shards, as the hub has them.
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// An index lists a few hundred tensors.
const MAX_INDEX: u64 = 64 << 20;

/// A tensor as it stands in a file, of any type.
#[derive(Debug)]
pub(super) struct Raw {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    path: Arc<Path>,
    map: Arc<Mmap>,
    /// Inside the map, and as long as type and shape say.
    range: Range<usize>,
}

impl Raw {
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }

    /// Elements; the size was checked, so this does not overflow.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Element `i` of a tensor of f32, f16 or bf16.
    pub fn float(&self, i: usize) -> f32 {
        let bytes = self.bytes();
        match self.dtype {
            Dtype::F16 => f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
            Dtype::BF16 => bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
            _ => {
                let b = &bytes[4 * i..4 * i + 4];
                f32::from_le_bytes([b[0], b[1], b[2], b[3]])
            }
        }
    }

    /// All elements of a tensor of f32, f16 or bf16.
    pub fn floats(&self) -> Vec<f32> {
        (0..self.elements()).map(|i| self.float(i)).collect()
    }

    /// All elements of a tensor of 32-bit integers.
    pub fn words(&self) -> Vec<u32> {
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        self.bytes().chunks_exact(4).map(word).collect()
    }

    /// An error that names this tensor and its file.
    pub fn wrong(&self, reason: String) -> ModelError {
        ModelError::format(&self.path, format!("tensor {}: {reason}", self.name))
    }

    /// As a weight.
    pub fn tensor(self) -> Result<Tensor, ModelError> {
        let dtype = match self.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(ModelError::Unsupported(format!(
                    "{}: tensor {} is stored as {other:?}, which belongs to no weight; f32, f16 and bf16 are read, and what config.json's quantization_config declares",
                    self.path.display(),
                    self.name
                )));
            }
        };
        Tensor::mapped(self.name, dtype, self.shape, self.map, self.range.start)
            .map_err(|e| ModelError::format(&self.path, e.to_string()))
    }
}

/// The weights of a folder, memory-mapped; those of a quantised checkpoint are converted when they
/// are asked for.
///
/// # Errors
/// No safetensors file, one that breaks the format, or tensors that do not fit the method.
pub fn load_weights(folder: &Path, method: Option<&Method>) -> Result<Weights, ModelError> {
    let mut raw = Vec::new();
    for file in files(folder)? {
        read_file(&file, &mut raw)?;
    }
    match method {
        Some(method) => quantized::entries(method, raw)
            .and_then(Weights::from_entries)
            .map_err(|error| error.in_file(folder)),
        None => {
            let ready = |raw: Raw| Ok((raw.name.clone(), Entry::Ready(raw.tensor()?)));
            let entries: Result<Vec<_>, ModelError> = raw.into_iter().map(ready).collect();
            Weights::from_entries(entries?)
        }
    }
}

/// The safetensors files of a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index = folder.join(INDEX);
    let single = folder.join(SINGLE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    if !index.is_file() {
        return Err(ModelError::NoWeights {
            folder: folder.to_owned(),
            reason: format!(
                "holds neither {SINGLE} nor {INDEX}; other weight formats are not read"
            ),
        });
    }
    let text = crate::files::read_text(&index, MAX_INDEX)?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| ModelError::format(&index, e.to_string()))?;
    let map = json["weight_map"]
        .as_object()
        .ok_or_else(|| ModelError::format(&index, "weight_map is missing"))?;
    let mut names = BTreeSet::new();
    for file in map.values() {
        let name = file.as_str().unwrap_or_default();
        // A name from a downloaded file must not lead out of the folder.
        if name.is_empty() || Path::new(name).file_name().is_none_or(|n| n != name) {
            return Err(ModelError::format(
                &index,
                format!("{file} is no plain file name"),
            ));
        }
        names.insert(name);
    }
    Ok(names.into_iter().map(|n| folder.join(n)).collect())
}

fn read_file(path: &Path, tensors: &mut Vec<Raw>) -> Result<(), ModelError> {
    let map = crate::files::map(path)?;
    let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
        let tensor = super::blame::first_bad_tensor(&map);
        let reason = tensor.unwrap_or_else(|| format!("no valid safetensors header: {error}"));
        ModelError::format(path, reason)
    })?;
    for (name, info) in metadata.tensors() {
        // The offsets count from the end of the header: 8 bytes of length, then the header.
        let start = info
            .data_offsets
            .0
            .checked_add(header)
            .and_then(|n| n.checked_add(8))
            .ok_or_else(|| {
                ModelError::format(path, format!("tensor {name}: its offset overflows"))
            })?;
        let bytes = info
            .data_offsets
            .1
            .checked_sub(info.data_offsets.0)
            .filter(|bytes| byte_len(info.dtype, &info.shape) == Some(*bytes))
            .ok_or_else(|| {
                ModelError::format(path, format!("tensor {name}: shape and size disagree"))
            })?;
        let end = start.checked_add(bytes).filter(|end| *end <= map.len());
        let end = end.ok_or_else(|| {
            ModelError::format(
                path,
                format!("cut off: tensor {name} reaches beyond the end"),
            )
        })?;
        tensors.push(Raw {
            name: name.clone(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            path: path.into(),
            map: map.clone(),
            range: start..end,
        });
    }
    Ok(())
}

/// Bytes of a tensor; `None` if that overflows or is no whole number.
fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}
