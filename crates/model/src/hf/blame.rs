//! Which tensor makes a safetensors header invalid: the library's errors do not always say.

use safetensors::Dtype;
use serde_json::{Map, Value};

/// Longest header that is looked at; the library reads none that is longer.
const MAX_HEADER: usize = 100_000_000;

/// What is wrong with the first bad tensor of a file's `bytes`, if it is a tensor.
pub(super) fn first_bad_tensor(bytes: &[u8]) -> Option<String> {
    let (len, rest) = bytes.split_first_chunk::<8>()?;
    let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
    let header = rest.get(..len).filter(|_| len <= MAX_HEADER)?;
    let data = (rest.len() - len) as u64;
    let tensors: Map<String, Value> = serde_json::from_slice(header).ok()?;
    let mut ranges = Vec::new();
    for (name, info) in tensors.iter().filter(|(name, _)| *name != "__metadata__") {
        let Some(range) = range(info) else {
            return Some(format!(
                "tensor {name}: no plausible type, shape and data_offsets"
            ));
        };
        let (start, end) = (range.start, range.end);
        match size(info) {
            None => {
                return Some(format!(
                    "tensor {name}: its shape {} is too large",
                    info["shape"]
                ));
            }
            Some(size) if end.checked_sub(start) != Some(size) => {
                return Some(format!(
                    "tensor {name}: its shape {} needs {size} bytes, but it has those from {start} to {end}",
                    info["shape"]
                ));
            }
            Some(_) => {}
        }
        if end > data {
            return Some(format!(
                "cut off: tensor {name} ends at byte {end} of {data}; fetch the file again"
            ));
        }
        ranges.push((start, end, name));
    }
    ranges.sort_unstable();
    let mut last = (0, "the header");
    for (start, end, name) in ranges {
        if start != last.0 {
            let what = if start < last.0 {
                "overlaps"
            } else {
                "leaves a gap to"
            };
            return Some(format!(
                "tensor {name} {what} what comes before it ({})",
                last.1
            ));
        }
        last = (end, name);
    }
    None
}

fn range(info: &Value) -> Option<std::ops::Range<u64>> {
    let offsets = &info["data_offsets"];
    serde_json::from_value::<Dtype>(info["dtype"].clone()).ok()?;
    info["shape"]
        .as_array()?
        .iter()
        .all(Value::is_u64)
        .then_some(())?;
    Some(offsets[0].as_u64()?..offsets[1].as_u64()?)
}

/// Bytes that type and shape need.
fn size(info: &Value) -> Option<u64> {
    let dtype: Dtype = serde_json::from_value(info["dtype"].clone()).ok()?;
    let mut dimensions = info["shape"].as_array()?.iter().filter_map(Value::as_u64);
    let elements = dimensions.try_fold(1u64, u64::checked_mul)?;
    Some(elements.checked_mul(dtype.bitsize() as u64)? / 8)
}
