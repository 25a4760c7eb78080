//! The GGUF header: metadata and where each tensor lies. Works on any bytes: every length is
//! checked against what is left of the file before anything is allocated for it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use crate::{DType, ModelError};

/// Longest metadata key or tensor name, in bytes.
const MAX_NAME: usize = 4096;
/// Arrays in arrays: none of the known keys has any.
const MAX_DEPTH: usize = 4;
/// Entries of the metadata, and tensors: far more than any model has.
const MAX_ENTRIES: usize = 1 << 16;
/// Dimensions of a tensor.
const MAX_DIMENSIONS: usize = 4;
/// Smallest entry of the metadata: an empty key, a type, one byte.
const MIN_ENTRY: usize = 8 + 4 + 1;
/// Smallest description of a tensor: an empty name, no dimension, type, offset.
const MIN_TENSOR: usize = 8 + 4 + 4 + 8;

/// A metadata value. Integers and floats are widened.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// u8, u16, u32, u64.
    Unsigned(u64),
    /// i8, i16, i32, i64.
    Signed(i64),
    /// f32, f64.
    Float(f64),
    /// bool.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Stays in the file until somebody reads it.
    Array(Array),
}

/// An array of metadata, checked but left where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    kind: u32,
    len: usize,
    range: Range<usize>,
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// As the file calls it.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Row-major, outermost first (the file stores the reverse).
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub start: usize,
    /// Bytes.
    pub len: usize,
}

/// All that stands before the tensors' data.
#[derive(Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The metadata by key.
    pub metadata: HashMap<String, Value>,
    /// In the order of their data; ranges neither overlap nor leave the file.
    pub tensors: Vec<TensorInfo>,
}

/// Reads the header of a GGUF file's `bytes`. `path` is for the errors only.
///
/// # Errors
/// Anything that the format does not allow, or a tensor type this build does not know.
pub fn parse(bytes: &[u8], path: &Path) -> Result<Header, ModelError> {
    let mut reader = Reader { bytes, at: 0, path };
    if bytes.get(..4) != Some(b"GGUF") {
        return Err(reader.error("not a GGUF file (it does not begin with 'GGUF')"));
    }
    reader.at = 4;
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        let hint = if version.swap_bytes() < 16 {
            " (a big-endian file)"
        } else {
            ""
        };
        return Err(reader.error(format!(
            "GGUF version {version}{hint}; versions 2 and 3 are read"
        )));
    }
    let tensor_count = reader.count("tensors", MIN_TENSOR)?;
    let entry_count = reader.count("metadata entries", MIN_ENTRY)?;
    if tensor_count > MAX_ENTRIES || entry_count > MAX_ENTRIES {
        return Err(reader.error(format!(
            "{tensor_count} tensors and {entry_count} metadata entries; at most {MAX_ENTRIES} are read"
        )));
    }

    let mut metadata = HashMap::new();
    for _ in 0..entry_count {
        let key = reader.name("metadata key")?;
        let kind = reader.u32()?;
        let value = reader.value(kind, &key)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(reader.error(format!("the metadata key {key} stands there twice")));
        }
    }

    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Unsigned(n)) if n.is_power_of_two() && (8..=1 << 16).contains(n) => *n as usize,
        Some(other) => {
            return Err(reader.error(format!(
                "general.alignment is {other:?}; a power of two from 8 to 65536 is needed"
            )));
        }
    };
    let tensors = reader.tensors(tensor_count, alignment)?;
    Ok(Header {
        version,
        metadata,
        tensors,
    })
}

/// A cursor over the file that cannot leave it.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    fn error(&self, reason: impl Into<String>) -> ModelError {
        ModelError::format(self.path, reason)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ModelError> {
        let bytes = self
            .at
            .checked_add(len)
            .and_then(|end| self.bytes.get(self.at..end));
        let Some(bytes) = bytes else {
            return Err(self.error(format!(
                "cut off: {len} bytes are needed at offset {} but the file has {}; fetch it again",
                self.at,
                self.bytes.len()
            )));
        };
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ModelError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of things that take at least `min_bytes` each.
    fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize, ModelError> {
        let n = self.u64()?;
        let room = (self.bytes.len() - self.at) / min_bytes;
        usize::try_from(n)
            .ok()
            .filter(|n| *n <= room)
            .ok_or_else(|| self.error(format!("{n} {what} do not fit into the file")))
    }

    fn text(&mut self, what: &str) -> Result<&'a str, ModelError> {
        let len = self.count("bytes of text", 1)?;
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).map_err(|_| self.error(format!("{what} is no valid UTF-8")))
    }

    fn name(&mut self, what: &str) -> Result<String, ModelError> {
        let text = self.text(what)?;
        if text.is_empty() || text.len() > MAX_NAME {
            return Err(self.error(format!(
                "a {what} has {} bytes; 1 to {MAX_NAME} are allowed",
                text.len()
            )));
        }
        Ok(text.to_owned())
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, ModelError> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.array()?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Bool(self.take(1)? != [0]),
            8 => Value::String(self.text(key)?.to_owned()),
            9 => Value::Array(self.skip_array(key, 0)?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.error(format!("{key} has the unknown value type {kind}"))),
        })
    }

    /// Walks over an array and remembers where it is.
    fn skip_array(&mut self, key: &str, depth: usize) -> Result<Array, ModelError> {
        if depth == MAX_DEPTH {
            return Err(self.error(format!("{key} nests arrays deeper than {MAX_DEPTH}")));
        }
        let kind = self.u32()?;
        let min_bytes = match (scalar_bytes(kind), kind) {
            (Some(bytes), _) => bytes,
            (None, 8) => 8,
            (None, 9) => 12,
            _ => return Err(self.error(format!("{key} has the unknown element type {kind}"))),
        };
        let len = self.count("array elements", min_bytes)?;
        let start = self.at;
        match kind {
            8 => {
                for _ in 0..len {
                    self.text(key)?;
                }
            }
            9 => {
                for _ in 0..len {
                    self.skip_array(key, depth + 1)?;
                }
            }
            _ => {
                self.take(len * min_bytes)?;
            }
        }
        Ok(Array {
            kind,
            len,
            range: start..self.at,
        })
    }

    fn tensors(&mut self, count: usize, alignment: usize) -> Result<Vec<TensorInfo>, ModelError> {
        let mut names = HashSet::new();
        let mut tensors = Vec::with_capacity(count);
        for _ in 0..count {
            let tensor = self.tensor()?;
            if !names.insert(tensor.name.clone()) {
                return Err(self.error(format!("tensor {} stands there twice", tensor.name)));
            }
            tensors.push(tensor);
        }
        let data = self.at.next_multiple_of(alignment);
        for t in &mut tensors {
            if !t.start.is_multiple_of(alignment) {
                return Err(self.error(format!(
                    "tensor {}: offset {} is no multiple of the alignment {alignment}",
                    t.name, t.start
                )));
            }
            let start = data.checked_add(t.start);
            let end = start.and_then(|s| s.checked_add(t.len));
            let (Some(start), Some(end)) = (start, end) else {
                return Err(self.error(format!("tensor {}: offset {} overflows", t.name, t.start)));
            };
            if end > self.bytes.len() {
                return Err(self.error(format!(
                    "cut off: tensor {} ends at byte {end} but the file has {}; fetch it again",
                    t.name,
                    self.bytes.len()
                )));
            }
            t.start = start;
        }
        tensors.sort_by_key(|t| t.start);
        for pair in tensors.windows(2) {
            if pair[0].start + pair[0].len > pair[1].start {
                let (a, b) = (&pair[0].name, &pair[1].name);
                return Err(self.error(format!("the tensors {a} and {b} overlap")));
            }
        }
        Ok(tensors)
    }

    /// One tensor's description; `start` is still relative to the data.
    fn tensor(&mut self) -> Result<TensorInfo, ModelError> {
        let name = self.name("tensor name")?;
        let dimensions = self.u32()? as usize;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(self.error(format!(
                "tensor {name} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed"
            )));
        }
        let mut shape = Vec::with_capacity(dimensions);
        for _ in 0..dimensions {
            let n = self.u64()?;
            let n = usize::try_from(n)
                .ok()
                .filter(|n| (1..=1 << 48).contains(n))
                .ok_or_else(|| {
                    self.error(format!("tensor {name} has the implausible dimension {n}"))
                })?;
            shape.push(n);
        }
        shape.reverse();
        let kind = self.u32()?;
        let dtype = dtype(kind).ok_or_else(|| {
            ModelError::Unsupported(format!(
                "{}: tensor {name} has the type {}; files in Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, the K formats, F16, BF16 and F32 are read",
                self.path.display(),
                type_name(kind)
            ))
        })?;
        let start = self.u64()?;
        let start = usize::try_from(start)
            .map_err(|_| self.error(format!("tensor {name}: offset {start} overflows")))?;
        let len =
            crate::tensor::byte_len(&name, dtype, &shape).map_err(|e| self.error(e.to_string()))?;
        Ok(TensorInfo {
            name,
            dtype,
            shape,
            start,
            len,
        })
    }
}

impl Array {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No elements?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The strings of the array, out of the file's `bytes`; `None` if it holds something else.
    pub fn strings<'a>(&self, bytes: &'a [u8]) -> Option<Vec<&'a str>> {
        let mut rest = (self.kind == 8).then(|| bytes.get(self.range.clone()))??;
        let mut strings = Vec::with_capacity(self.len);
        for _ in 0..self.len {
            let (len, tail) = rest.split_first_chunk::<8>()?;
            let (text, tail) =
                tail.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
            strings.push(std::str::from_utf8(text).ok()?);
            rest = tail;
        }
        Some(strings)
    }

    /// The numbers of the array; `None` if it holds something else.
    pub fn numbers(&self, bytes: &[u8]) -> Option<Vec<f64>> {
        let bytes = bytes.get(self.range.clone())?;
        let decode: fn(&[u8]) -> f64 = match self.kind {
            0 | 7 => |b| f64::from(b[0]),
            1 => |b| f64::from(b[0] as i8),
            2 => |b| f64::from(u16::from_le_bytes([b[0], b[1]])),
            3 => |b| f64::from(i16::from_le_bytes([b[0], b[1]])),
            4 => |b| f64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            5 => |b| f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            6 => |b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            _ => return None,
        };
        Some(
            bytes
                .chunks_exact(scalar_bytes(self.kind)?)
                .map(decode)
                .collect(),
        )
    }
}

/// Bytes of a metadata scalar of that type.
fn scalar_bytes(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// The file's number of each type we read; [`type_number`] is the inverse.
const TYPES: [(u32, DType); 13] = [
    (0, DType::F32),
    (1, DType::F16),
    (2, DType::Q4_0),
    (3, DType::Q4_1),
    (6, DType::Q5_0),
    (7, DType::Q5_1),
    (8, DType::Q8_0),
    (10, DType::Q2_K),
    (11, DType::Q3_K),
    (12, DType::Q4_K),
    (13, DType::Q5_K),
    (14, DType::Q6_K),
    (30, DType::BF16),
];

fn dtype(kind: u32) -> Option<DType> {
    TYPES.iter().find(|(n, _)| *n == kind).map(|(_, t)| *t)
}

/// A name for the types that other tools write and we do not read.
fn type_name(kind: u32) -> String {
    let name = match kind {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=28 => "an integer or F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {kind}, which is unknown"),
    };
    name.to_owned()
}
