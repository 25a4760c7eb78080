//! What a file of the cache looks like: a safetensors file whose header follows from what it is for.
//!
//! The metadata names the source, the wish and each tensor's type and shape; the tensors are stored as
//! bytes, behind the checksums of their pieces. Since the whole header is known before a file is read,
//! reading one is comparing: no number in it is trusted.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::tensor::byte_len;
use crate::{DType, ModelSpec, Tensor, Weights, files};

/// To be raised whenever a conversion (`quantize.rs`, `hf/quantized/`) or this layout changes: files of
/// another number are written anew.
pub(super) const FORMAT: u32 = 2;
/// Bytes that have a checksum of their own, so that all cores can check.
const PIECE: usize = 1 << 20;
/// The tensor of the checksums.
const CHECKSUMS: &str = "checksums";

/// A tensor that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub bytes: usize,
}

/// The tensors of a model that become blocks when they are asked for, in the order of a file. Codes
/// of fp8 that stay are none of them: laying them out takes no longer than reading them here.
pub(super) fn items(weights: &Weights, spec: &ModelSpec) -> Vec<Item> {
    let mut items = Vec::new();
    for (name, shape) in spec.tensors() {
        let Ok(dtype) = weights.dtype(&name) else {
            continue;
        };
        if dtype.block().0 > 1
            && dtype != DType::F8_E4M3
            && weights.converts(&name)
            && let Ok(bytes) = byte_len(&name, dtype, &shape)
        {
            items.push(Item {
                name,
                dtype,
                shape,
                bytes,
            });
        }
    }
    items.sort_by(|a, b| a.name.cmp(&b.name));
    items
}

/// Why a file is not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// There is none.
    Absent,
    /// For this reason.
    Because(String),
}

/// A file of the cache, down to the byte.
#[derive(Debug)]
pub(super) struct Layout {
    /// All that stands before the checksums.
    pub header: Vec<u8>,
    pub items: Vec<Item>,
}

impl Layout {
    /// That of these tensors.
    pub fn new(identity: &Value, wish: &str, items: Vec<Item>) -> Self {
        let types: Vec<Value> = items
            .iter()
            .map(|item| json!([item.name, item.dtype.name(), item.shape]))
            .collect();
        let mut fields = Map::new();
        // The values of a safetensors file's metadata are texts.
        let metadata = json!({
            "powerband": env!("CARGO_PKG_VERSION"),
            "format": FORMAT.to_string(),
            "quantization": wish,
            "source": identity.to_string(),
            "types": Value::Array(types).to_string(),
        });
        fields.insert("__metadata__".to_owned(), metadata);
        let pieces: usize = items.iter().map(Item::pieces).sum();
        let mut end = 0;
        let mut add = |name: &str, dtype: &str, count: usize, bytes: usize| {
            let offsets = [end, end + bytes];
            let field = json!({"dtype": dtype, "shape": [count], "data_offsets": offsets});
            fields.insert(name.to_owned(), field);
            end += bytes;
        };
        add(CHECKSUMS, "U32", pieces, 4 * pieces);
        for item in &items {
            add(&item.name, "U8", item.bytes, item.bytes);
        }
        let mut text = Value::Object(fields).to_string();
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.extend(text.as_bytes());
        Self { header, items }
    }

    /// Pieces with a checksum.
    pub fn pieces(&self) -> usize {
        self.items.iter().map(Item::pieces).sum()
    }

    /// Where the first tensor begins.
    pub fn data_start(&self) -> usize {
        self.header.len() + 4 * self.pieces()
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        let data: usize = self.items.iter().map(|item| item.bytes).sum();
        (self.data_start() + data) as u64
    }

    /// The tensors of the file, mapped.
    pub fn read(&self, path: &Path) -> Result<HashMap<String, Tensor>, Unfit> {
        let because = |reason: &str| Unfit::Because(reason.to_owned());
        let map = match files::map(path) {
            Ok(map) => map,
            Err(_) if !path.exists() => return Err(Unfit::Absent),
            Err(error) => return Err(Unfit::Because(error.to_string())),
        };
        if !map.starts_with(&self.header) {
            return Err(because("it is of other model files or of another version"));
        }
        if map.len() as u64 != self.file_bytes() {
            return Err(because("it is not whole"));
        }
        let (sums, data) = map[self.header.len()..].split_at(4 * self.pieces());
        if checksums(&self.items, data) != sums {
            return Err(because("its checksums do not fit: it is damaged"));
        }
        let mut start = self.data_start();
        let mut tensors = HashMap::with_capacity(self.items.len());
        for item in &self.items {
            let (name, shape) = (item.name.clone(), item.shape.clone());
            let tensor = Tensor::mapped(name, item.dtype, shape, map.clone(), start);
            let tensor = tensor.map_err(|error| Unfit::Because(error.to_string()))?;
            tensors.insert(item.name.clone(), tensor);
            start += item.bytes;
        }
        Ok(tensors)
    }
}

impl Item {
    /// Its pieces with a checksum.
    pub fn pieces(&self) -> usize {
        self.bytes.div_ceil(PIECE)
    }
}

/// The checksums of a tensor's pieces, four bytes each.
pub(super) fn checksums_of(bytes: &[u8]) -> Vec<u8> {
    let pieces = bytes.chunks(PIECE);
    pieces
        .flat_map(|p| crc32fast::hash(p).to_le_bytes())
        .collect()
}

/// Those of all tensors that stand in `data`, computed on all cores.
fn checksums(items: &[Item], data: &[u8]) -> Vec<u8> {
    let mut rest = data;
    let mut pieces = Vec::new();
    for item in items {
        let (bytes, after) = rest.split_at(item.bytes);
        pieces.extend(bytes.chunks(PIECE));
        rest = after;
    }
    crate::parallel::map(&pieces, |piece| crc32fast::hash(piece))
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of before a change of a conversion would hold what is no longer made.
    #[test]
    fn a_conversion_that_changes_needs_a_new_format_number() {
        let values = (0..4096u32).flat_map(|i| {
            let x = (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6 - 8.0;
            x.to_le_bytes()
        });
        let tensor = Tensor::owned("w", DType::F32, vec![16, 256], values.collect::<Vec<_>>());
        let tensor = tensor.unwrap();
        let sum = |dtype| crc32fast::hash(tensor.quantize(dtype).unwrap().bytes());
        let sums = [DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::NF4].map(sum);
        let known = [940_249_284, 4_013_341_025, 4_069_180_027, 2_422_016_730];
        assert_eq!((FORMAT, sums), (2, known));
    }
}
