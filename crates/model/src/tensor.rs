//! A weight: its type, its shape and its bytes, memory-mapped or owned.

use std::sync::Arc;

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
            DType::Q2_K => (256, 84),
            DType::Q3_K => (256, 110),
            DType::Q4_K => (256, 144),
            DType::Q5_K => (256, 176),
            DType::Q6_K => (256, 210),
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
/// The constructor of each source checks that `bytes().len()` fits shape and type.
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
    /// The raw bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            TensorData::Mapped { map, start, len } => &map[*start..*start + *len],
            TensorData::Owned(bytes) => bytes,
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
