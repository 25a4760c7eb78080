//! A weight: its type, its shape and its bytes, memory-mapped or owned.

use std::sync::Arc;

use crate::ModelError;

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, missing_docs)]
pub enum DType {
    F32,
    F16,
    BF16,
    /// 32 weights: f16 scale, 16 bytes of nibbles, `w = d (q - 8)`.
    Q4_0,
    /// 32 weights: f16 scale, f16 minimum, 16 bytes of nibbles, `w = d q + m`.
    Q4_1,
    /// 32 weights: f16 scale, 32 signed bytes.
    Q8_0,
    /// 64 weights: f32 largest magnitude, then for each half 16 bytes of nibbles, which are places
    /// in [`crate::dequant::NF4`] (bitsandbytes' 4-bit normal floats).
    NF4,
    /// 64 weights: f32 scale, 64 codes ([`crate::dequant::e4m3`]), none of them NaN. A checkpoint's
    /// matrix has this type only if f16 holds its scales well enough, since GPUs keep them so.
    F8_E4M3,
    Q5_0,
    Q5_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl DType {
    /// `(weights, bytes)` of the smallest unit; rows are whole numbers of units.
    pub fn block(self) -> (usize, usize) {
        match self {
            DType::F32 => (1, 4),
            DType::F16 | DType::BF16 => (1, 2),
            DType::Q4_0 => (32, 18),
            DType::Q4_1 => (32, 20),
            DType::Q5_0 => (32, 22),
            DType::Q5_1 => (32, 24),
            DType::Q8_0 => (32, 34),
            DType::NF4 => (64, 36),
            DType::F8_E4M3 => (64, 68),
            DType::Q2_K => (256, 84),
            DType::Q3_K => (256, 110),
            DType::Q4_K => (256, 144),
            DType::Q5_K => (256, 176),
            DType::Q6_K => (256, 210),
        }
    }

    /// The name as GGUF tools write it.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::Q4_0 => "Q4_0",
            DType::Q4_1 => "Q4_1",
            DType::Q8_0 => "Q8_0",
            DType::NF4 => "NF4",
            DType::F8_E4M3 => "F8_E4M3",
            DType::Q5_0 => "Q5_0",
            DType::Q5_1 => "Q5_1",
            DType::Q2_K => "Q2_K",
            DType::Q3_K => "Q3_K",
            DType::Q4_K => "Q4_K",
            DType::Q5_K => "Q5_K",
            DType::Q6_K => "Q6_K",
        }
    }

    /// Bytes of `elements` elements; `None` if they are no whole number of units or overflow.
    pub fn bytes_for(self, elements: usize) -> Option<usize> {
        let (weights, bytes) = self.block();
        elements
            .is_multiple_of(weights)
            .then(|| (elements / weights).checked_mul(bytes))
            .flatten()
    }
}

/// Where a tensor's bytes live. Cloning is cheap.
#[derive(Debug, Clone)]
pub enum TensorData {
    /// A range of a memory-mapped file.
    Mapped {
        /// The whole file.
        map: Arc<memmap2::Mmap>,
        /// First byte.
        start: usize,
        /// Bytes.
        len: usize,
    },
    /// Bytes of our own (generated or converted).
    Owned(Arc<[u8]>),
}

/// A weight. `shape` is row-major, outermost first: a linear layer is `[out, in]`.
/// The constructors check that the bytes fit shape and type; 16- and 32-bit elements are aligned.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Canonical name: Hugging Face's, whatever the file calls it.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// The bytes.
    pub data: TensorData,
}

impl Tensor {
    /// A tensor over `len` bytes at `start` of a mapped file. Bytes that do not lie at a multiple
    /// of the element's size (safetensors allows it) are copied, so that kernels need not care.
    ///
    /// # Errors
    /// The range is outside the file, or its length does not fit shape and type.
    pub fn mapped(
        name: impl Into<String>,
        dtype: DType,
        shape: Vec<usize>,
        map: Arc<memmap2::Mmap>,
        start: usize,
    ) -> Result<Self, ModelError> {
        let name = name.into();
        let len = byte_len(&name, dtype, &shape)?;
        let Some(bytes) = start.checked_add(len).and_then(|end| map.get(start..end)) else {
            return Err(ModelError::Tensor {
                name,
                reason: format!("{len} bytes at offset {start} reach beyond the end of the file"),
            });
        };
        let aligned = match dtype {
            DType::F32 => start.is_multiple_of(4),
            DType::F16 | DType::BF16 => start.is_multiple_of(2),
            _ => true,
        };
        let data = if aligned {
            TensorData::Mapped { map, start, len }
        } else {
            TensorData::Owned(bytes.into())
        };
        Ok(Self {
            name,
            dtype,
            shape,
            data,
        })
    }

    /// A tensor with bytes of its own.
    ///
    /// # Errors
    /// The number of bytes does not fit shape and type.
    pub fn owned(
        name: impl Into<String>,
        dtype: DType,
        shape: Vec<usize>,
        bytes: impl Into<Arc<[u8]>>,
    ) -> Result<Self, ModelError> {
        let (name, bytes) = (name.into(), bytes.into());
        let len = byte_len(&name, dtype, &shape)?;
        if bytes.len() != len {
            let reason = format!("{} bytes where shape and type need {len}", bytes.len());
            return Err(ModelError::Tensor { name, reason });
        }
        let data = TensorData::Owned(bytes);
        Ok(Self {
            name,
            dtype,
            shape,
            data,
        })
    }

    /// Rows `first..first + count` of a matrix as a tensor of their own, named `name`; no bytes are
    /// copied where they lie in a file.
    ///
    /// # Errors
    /// There are not so many rows.
    pub(crate) fn rows_named(
        &self,
        name: &str,
        first: usize,
        count: usize,
    ) -> Result<Self, ModelError> {
        let row_bytes = self.dtype.bytes_for(self.cols()).unwrap_or(0);
        let shape = vec![count, self.cols()];
        let inside = first
            .checked_add(count)
            .is_some_and(|end| end <= self.rows());
        if self.shape.len() != 2 || !inside {
            return Err(ModelError::Tensor {
                name: self.name.clone(),
                reason: format!(
                    "its shape is {:?}; rows {first} to {first} + {count} of a matrix are needed",
                    self.shape
                ),
            });
        }
        let from = first * row_bytes;
        match &self.data {
            TensorData::Mapped { map, start, .. } => {
                Self::mapped(name, self.dtype, shape, map.clone(), start + from)
            }
            TensorData::Owned(bytes) => {
                let bytes = &bytes[from..from + count * row_bytes];
                Self::owned(name, self.dtype, shape, bytes)
            }
        }
    }

    /// The raw bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            TensorData::Mapped { map, start, len } => &map[*start..*start + *len],
            TensorData::Owned(bytes) => bytes,
        }
    }

    /// Says that the bytes were read and that few of them will be again: pages of a mapped file no
    /// longer count as this process's memory. They can still be read.
    pub fn let_go(&self) {
        if let TensorData::Mapped { map, start, len } = &self.data {
            crate::files::let_go(map, *start, *len);
        }
    }

    /// Elements of the innermost dimension (1 for a scalar).
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all dimensions but the innermost.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }
}

/// Bytes of a tensor whose rows are whole numbers of blocks.
pub(crate) fn byte_len(name: &str, dtype: DType, shape: &[usize]) -> Result<usize, ModelError> {
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let (block, _) = dtype.block();
    let row = shape.last().copied().unwrap_or(1);
    elements
        .filter(|_| row.is_multiple_of(block))
        .and_then(|n| dtype.bytes_for(n))
        .ok_or_else(|| ModelError::Tensor {
            name: name.to_owned(),
            reason: format!(
                "shape {shape:?} is too large or its rows are no multiple of the {block} weights of a {} block",
                dtype.name()
            ),
        })
}
