//! GPTQ and AWQ: whole numbers in 32-bit words, with a scale and a zero for each group of inputs
//! and each output. `w = scale (code - zero)`.
//!
//! Files hold the transposed matrix, `[in, out]`. Where the groups of an output row are whole
//! blocks of 32, codes and scales go over as they are, into Q4_0 if every zero is 8, else into
//! Q4_1, or into Q8_0; groups in another order (`desc_act`) are expanded and stored in 8 bits.

use half::f16;
use safetensors::Dtype;

use super::super::safetensors::Raw;
use super::bitsandbytes::store;
use super::{FLOATS, Named, Parts};
use crate::parallel::fill_rows;
use crate::weights::Recipe;
use crate::{DType, ModelError, Tensor};

/// How codes lie in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// Codes of consecutive inputs in a word, zeros of consecutive outputs.
    Gptq {
        /// 4 or 8.
        bits: usize,
        /// What is added to a stored zero.
        offset: usize,
    },
    /// Codes and zeros of eight consecutive outputs in a word, in [`AWQ_PLACES`].
    Awq,
}

/// Which nibble of its word holds each of eight consecutive outputs.
const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl Packing {
    fn bits(self) -> usize {
        match self {
            Packing::Gptq { bits, .. } => bits,
            Packing::Awq => 4,
        }
    }
}

/// The recipe of the matrix whose codes are the tensor `name`, if that is what it is.
pub(super) fn recipe(
    name: &str,
    parts: &mut Parts,
    packing: Packing,
) -> Result<Option<Named>, ModelError> {
    let Some(module) = name.strip_suffix(".qweight") else {
        return Ok(None);
    };
    let made = Grouped::new(module, parts, packing)?;
    Ok(Some((format!("{module}.weight"), Box::new(made))))
}

/// A matrix of codes in groups.
#[derive(Debug)]
struct Grouped {
    packing: Packing,
    words: Raw,
    zeros: Raw,
    scales: Raw,
    /// The group of each input.
    groups: Vec<u32>,
    /// `[out, in]`.
    shape: [usize; 2],
    dtype: DType,
}

impl Grouped {
    fn new(module: &str, parts: &mut Parts, packing: Packing) -> Result<Self, ModelError> {
        let words = parts.need_matrix(&format!("{module}.qweight"))?;
        let per_word = 32 / packing.bits();
        let wide = |n: usize| n.checked_mul(per_word);
        let sizes = match packing {
            Packing::Gptq { .. } => wide(words.shape[0]).map(|rows| (words.shape[1], rows)),
            Packing::Awq => wide(words.shape[1]).map(|cols| (cols, words.shape[0])),
        };
        let too_large = || words.wrong(format!("its shape is {:?}", words.shape));
        let (out, inputs) = sizes.ok_or_else(too_large)?;
        if words.dtype != Dtype::I32 {
            return Err(words.wrong(format!("it is {:?}; 32-bit words are needed", words.dtype)));
        }
        let scales = parts.need_matrix(&format!("{module}.scales"))?;
        let count = scales.shape[0];
        if scales.shape[1] != out || !FLOATS.contains(&scales.dtype) || count > inputs {
            return Err(scales.wrong(format!(
                "it is {:?} of shape {:?}; a row of {out} numbers for each group is needed",
                scales.dtype, scales.shape
            )));
        }
        let packed = count * out.div_ceil(per_word);
        let zeros = parts.need(&format!("{module}.qzeros"), &[Dtype::I32], packed)?;
        if !out.is_multiple_of(per_word) {
            return Err(words.wrong(format!("{out} outputs do not fill words")));
        }
        let order = parts.take(&format!("{module}.g_idx"));
        let groups = match order {
            Some(order) if order.dtype == Dtype::I32 && order.elements() == inputs => order.words(),
            Some(order) => {
                return Err(order.wrong(format!(
                    "it is {:?} of shape {:?}; {inputs} 32-bit integers are needed",
                    order.dtype, order.shape
                )));
            }
            None if inputs.is_multiple_of(count) => {
                let size = inputs / count;
                (0..inputs).map(|i| (i / size) as u32).collect()
            }
            None => return Err(scales.wrong(format!("{count} groups of {inputs} inputs"))),
        };
        if groups.iter().any(|group| *group as usize >= count) {
            return Err(words.wrong(format!("g_idx leads beyond the {count} groups")));
        }
        let mut made = Self {
            packing,
            words,
            zeros,
            scales,
            groups,
            shape: [out, inputs],
            dtype: DType::BF16,
        };
        made.dtype = made.choose();
        Ok(made)
    }

    /// The type that keeps most.
    fn choose(&self) -> DType {
        let [out, inputs] = self.shape;
        if !inputs.is_multiple_of(32) {
            return DType::BF16;
        }
        let aligned = self
            .groups
            .chunks(32)
            .all(|run| run.iter().all(|g| *g == run[0]));
        let count = self.scales.shape[0];
        let middle = 1 << (self.packing.bits() - 1);
        let all = |zero: usize| (0..count).all(|g| (0..out).all(|o| self.zero(g, o) == zero));
        match (aligned, self.packing.bits()) {
            (true, 4) if all(middle) => DType::Q4_0,
            (true, 4) => DType::Q4_1,
            _ => DType::Q8_0,
        }
    }

    fn word(raw: &Raw, at: usize) -> usize {
        let bytes = &raw.bytes()[at * 4..at * 4 + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
    }

    fn code(&self, out: usize, input: usize) -> usize {
        let bits = self.packing.bits();
        let per_word = 32 / bits;
        let (at, place) = match self.packing {
            Packing::Gptq { .. } => (input / per_word * self.shape[0] + out, input % per_word),
            Packing::Awq => (input * (self.shape[0] / 8) + out / 8, AWQ_PLACES[out % 8]),
        };
        Self::word(&self.words, at) >> (bits * place) & ((1 << bits) - 1)
    }

    fn zero(&self, group: usize, out: usize) -> usize {
        let bits = self.packing.bits();
        let per_word = 32 / bits;
        let at = group * (self.shape[0] / per_word) + out / per_word;
        let (place, offset) = match self.packing {
            Packing::Gptq { offset, .. } => (out % per_word, offset),
            Packing::Awq => (AWQ_PLACES[out % 8], 0),
        };
        (Self::word(&self.zeros, at) >> (bits * place) & ((1 << bits) - 1)) + offset
    }

    fn scale(&self, group: usize, out: usize) -> f32 {
        self.scales.float(group * self.shape[0] + out)
    }

    fn value(&self, out: usize, input: usize) -> f32 {
        let group = self.groups[input] as usize;
        let steps = self.code(out, input) as f32 - self.zero(group, out) as f32;
        self.scale(group, out) * steps
    }

    /// A row whose groups are whole blocks, with its codes as they are.
    fn keep_codes(&self, row: usize, out: &mut [u8]) {
        let (_, block_bytes) = self.dtype.block();
        for (b, block) in out.chunks_exact_mut(block_bytes).enumerate() {
            let group = self.groups[b * 32] as usize;
            let scale = self.scale(group, row);
            block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            let mut at = 2;
            if self.dtype == DType::Q4_1 {
                let least = -scale * self.zero(group, row) as f32;
                block[2..4].copy_from_slice(&f16::from_f32(least).to_le_bytes());
                at = 4;
            }
            for (i, byte) in block[at..].iter_mut().enumerate() {
                let code = |i: usize| self.code(row, b * 32 + i) as u8;
                *byte = code(i) | code(i + 16) << 4;
            }
        }
    }
}

impl Recipe for Grouped {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn bytes(&self) -> usize {
        [&self.words, &self.zeros, &self.scales]
            .map(|raw| raw.bytes().len())
            .iter()
            .sum()
    }

    fn make(&self, name: &str) -> Result<Tensor, ModelError> {
        let [rows, cols] = self.shape;
        let row_bytes = self.dtype.bytes_for(cols).unwrap_or(0);
        let bytes = fill_rows(rows, row_bytes, |row, out| {
            if matches!(self.dtype, DType::Q4_0 | DType::Q4_1) {
                return self.keep_codes(row, out);
            }
            let values: Vec<f32> = (0..cols).map(|i| self.value(row, i)).collect();
            store(self.dtype, &values, out);
        });
        Tensor::owned(name, self.dtype, self.shape.to_vec(), bytes)
    }
}
