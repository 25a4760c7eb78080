//! Weights in safetensors files: one file, or shards with an index.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use crate::{DType, ModelError, Tensor, Weights};

/// Names of the single file and of the index of shards, as the hub has them.
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// An index lists a few hundred tensors.
const MAX_INDEX: u64 = 64 << 20;

/// The weights of a folder, memory-mapped.
///
/// # Errors
/// No safetensors file, one that breaks the format, or a type other than f32, f16 and bf16.
pub fn load_weights(folder: &Path) -> Result<Weights, ModelError> {
    let mut tensors = Vec::new();
    for file in files(folder)? {
        read_file(&file, &mut tensors)?;
    }
    Weights::distinct(tensors)
}

/// The safetensors files of a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index = folder.join(INDEX);
    let single = folder.join(SINGLE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    if !index.is_file() {
        return Err(ModelError::format(
            folder,
            format!("holds neither {SINGLE} nor {INDEX}; other weight formats are not read"),
        ));
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

fn read_file(path: &Path, tensors: &mut Vec<Tensor>) -> Result<(), ModelError> {
    let map = crate::files::map(path)?;
    let (header, metadata) = SafeTensors::read_metadata(&map)
        .map_err(|e| ModelError::format(path, format!("no valid safetensors header: {e}")))?;
    for (name, info) in metadata.tensors() {
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(ModelError::Unsupported(format!(
                    "{}: tensor {name} is stored as {other:?}; f32, f16 and bf16 are read",
                    path.display()
                )));
            }
        };
        // The offsets count from the end of the header: 8 bytes of length, then the header.
        let start = info
            .data_offsets
            .0
            .checked_add(header)
            .and_then(|n| n.checked_add(8))
            .ok_or_else(|| {
                ModelError::format(path, format!("tensor {name}: its offset overflows"))
            })?;
        let tensor = Tensor::mapped(name.clone(), dtype, info.shape.clone(), map.clone(), start)
            .map_err(|e| ModelError::format(path, e.to_string()))?;
        if Some(tensor.bytes().len()) != info.data_offsets.1.checked_sub(info.data_offsets.0) {
            return Err(ModelError::format(
                path,
                format!("tensor {name}: shape and size disagree"),
            ));
        }
        tensors.push(tensor);
    }
    Ok(())
}
