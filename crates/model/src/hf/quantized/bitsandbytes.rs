//! bitsandbytes: 4-bit codes with a magnitude for each block of the flat tensor (itself in 8 bits
//! with double quantisation), or bytes with a magnitude for each row.

use half::f16;
use safetensors::Dtype;
use serde_json::Value;

use super::super::safetensors::Raw;
use super::{FLOATS, Named, Parts};
use crate::dequant::NF4;
use crate::parallel::fill_rows;
use crate::quantize::quantize_row;
use crate::weights::Recipe;
use crate::{DType, ModelError, Tensor};

/// Largest block: the ones in use have 64 to 4096 weights.
const LARGEST_BLOCK: usize = 1 << 16;
/// The state is a short JSON text.
const LONGEST_STATE: usize = 1 << 16;

/// The recipe of the matrix whose codes are the tensor `name`, if that is what it is.
pub(super) fn recipe(name: &str, parts: &mut Parts) -> Result<Option<Named>, ModelError> {
    for kind in ["nf4", "fp4"] {
        let state = format!("{name}.quant_state.bitsandbytes__{kind}");
        if let Some(state) = parts.take(&state) {
            let made = FourBits::new(name, &state, parts)?;
            return Ok(Some((name.to_owned(), Box::new(made))));
        }
    }
    if let Some(module) = name.strip_suffix(".weight")
        && let Some(codes) = parts.0.get(name)
        && codes.dtype == Dtype::I8
    {
        let made = EightBits::new(name, module, parts)?;
        return Ok(Some((name.to_owned(), Box::new(made))));
    }
    Ok(None)
}

/// Two codes a byte, the first in the high nibble; each is a place in `levels`.
#[derive(Debug)]
struct FourBits {
    codes: Raw,
    magnitudes: Vec<f32>,
    levels: Vec<f32>,
    block: usize,
    shape: [usize; 2],
}

impl FourBits {
    fn new(name: &str, state: &Raw, parts: &mut Parts) -> Result<Self, ModelError> {
        let wrong = |what: &str| state.wrong(format!("{what} is missing or implausible"));
        let text = state.bytes();
        let json: Value = (state.dtype == Dtype::U8 && text.len() <= LONGEST_STATE)
            .then(|| serde_json::from_slice(text).ok())
            .flatten()
            .ok_or_else(|| state.wrong("no JSON text".to_owned()))?;
        let number = |name: &str, most: usize| {
            let n = json[name].as_u64().and_then(|n| usize::try_from(n).ok());
            n.filter(|n| (1..=most).contains(n))
                .ok_or_else(|| wrong(name))
        };
        let side = |i: usize| {
            let n = json["shape"][i]
                .as_u64()
                .and_then(|n| usize::try_from(n).ok());
            n.filter(|n| *n > 0).ok_or_else(|| wrong("shape"))
        };
        let shape = [side(0)?, side(1)?];
        let block = number("blocksize", LARGEST_BLOCK)?;
        let elements = shape[0]
            .checked_mul(shape[1])
            .ok_or_else(|| wrong("shape"))?;
        let blocks = elements.div_ceil(block);
        let codes = parts.need(name, &[Dtype::U8], elements.div_ceil(2))?;
        let levels = parts
            .need(&format!("{name}.quant_map"), &FLOATS, 16)?
            .floats();
        let magnitudes = format!("{name}.absmax");
        let nested = parts.take(&format!("{name}.nested_absmax"));
        let magnitudes = match nested {
            None => parts.need(&magnitudes, &FLOATS, blocks)?.floats(),
            Some(nested) => {
                let stored = parts.need(&magnitudes, &[Dtype::U8], blocks)?;
                let map = format!("{name}.nested_quant_map");
                let map = parts.need(&map, &FLOATS, 256)?.floats();
                let group = number("nested_blocksize", LARGEST_BLOCK)?;
                let offset = json["nested_offset"].as_f64().unwrap_or(0.0) as f32;
                if nested.shape.iter().product::<usize>() != blocks.div_ceil(group)
                    || !FLOATS.contains(&nested.dtype)
                {
                    return Err(nested.wrong(format!(
                        "it is {:?} of shape {:?}; {} numbers are needed",
                        nested.dtype,
                        nested.shape,
                        blocks.div_ceil(group)
                    )));
                }
                let outer = nested.floats();
                let expand =
                    |(i, code): (usize, &u8)| map[usize::from(*code)] * outer[i / group] + offset;
                stored.bytes().iter().enumerate().map(expand).collect()
            }
        };
        Ok(Self {
            codes,
            magnitudes,
            levels,
            block,
            shape,
        })
    }

    /// The code of element `i` of the flat tensor.
    fn code(&self, i: usize) -> u8 {
        let pair = self.codes.bytes()[i / 2];
        if i.is_multiple_of(2) {
            pair >> 4
        } else {
            pair & 15
        }
    }

    /// Are these the blocks and levels of our own format?
    fn is_native(&self) -> bool {
        let same = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
        self.block == 64
            && self.shape[1].is_multiple_of(64)
            && self.levels.iter().zip(&NF4).all(same)
    }

    /// A row in our own format: the same codes and magnitudes.
    fn native_row(&self, row: usize, out: &mut [u8]) {
        let first = row * self.shape[1];
        for (b, out) in out.chunks_exact_mut(36).enumerate() {
            let at = first + b * 64;
            out[..4].copy_from_slice(&self.magnitudes[at / 64].to_le_bytes());
            for (half, codes) in out[4..].chunks_exact_mut(16).enumerate() {
                for (i, code) in codes.iter_mut().enumerate() {
                    let at = at + half * 32 + i;
                    *code = self.code(at) | self.code(at + 16) << 4;
                }
            }
        }
    }
}

impl Recipe for FourBits {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn dtype(&self) -> DType {
        match self.is_native() {
            true => DType::NF4,
            false => DType::BF16,
        }
    }

    fn bytes(&self) -> usize {
        self.codes.bytes().len() + 4 * self.magnitudes.len()
    }

    fn make(&self, name: &str) -> Result<Tensor, ModelError> {
        let [rows, cols] = self.shape;
        let dtype = self.dtype();
        let row_bytes = dtype.bytes_for(cols).unwrap_or(0);
        let bytes = fill_rows(rows, row_bytes, |row, out| {
            if dtype == DType::NF4 {
                return self.native_row(row, out);
            }
            let values = (row * cols..(row + 1) * cols)
                .map(|i| self.levels[usize::from(self.code(i))] * self.magnitudes[i / self.block]);
            store(dtype, &values.collect::<Vec<_>>(), out);
        });
        Tensor::owned(name, dtype, self.shape.to_vec(), bytes)
    }
}

/// Stores a row; `out` is as long as it needs.
pub(super) fn store(dtype: DType, values: &[f32], out: &mut [u8]) {
    let mut stored = Vec::with_capacity(out.len());
    // Cannot fail: the callers ask for types that can be stored, of whole blocks.
    if quantize_row(dtype, values, &mut stored).is_ok() {
        out.copy_from_slice(&stored);
    }
}

/// Signed bytes, 127 of which are the row's magnitude.
#[derive(Debug)]
struct EightBits {
    codes: Raw,
    magnitudes: Vec<f32>,
    shape: [usize; 2],
}

impl EightBits {
    fn new(name: &str, module: &str, parts: &mut Parts) -> Result<Self, ModelError> {
        let codes = parts.need_matrix(name)?;
        let shape = [codes.shape[0], codes.shape[1]];
        let magnitudes = parts.need(&format!("{module}.SCB"), &FLOATS, shape[0])?;
        if let Some(format) = parts.take(&format!("{name}_format"))
            && format.bytes().iter().any(|b| *b != 0)
        {
            return Err(format.wrong("only rows in their own order are read".to_owned()));
        }
        Ok(Self {
            codes,
            magnitudes: magnitudes.floats(),
            shape,
        })
    }
}

impl Recipe for EightBits {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn dtype(&self) -> DType {
        match self.shape[1].is_multiple_of(32) {
            true => DType::Q8_0,
            false => DType::BF16,
        }
    }

    fn bytes(&self) -> usize {
        self.codes.bytes().len() + 4 * self.magnitudes.len()
    }

    fn make(&self, name: &str) -> Result<Tensor, ModelError> {
        let [rows, cols] = self.shape;
        let dtype = self.dtype();
        let row_bytes = dtype.bytes_for(cols).unwrap_or(0);
        let bytes = fill_rows(rows, row_bytes, |row, out| {
            let scale = self.magnitudes[row] / 127.0;
            let codes = &self.codes.bytes()[row * cols..][..cols];
            if dtype == DType::Q8_0 {
                // The same bytes; every block has its row's scale.
                for (out, codes) in out.chunks_exact_mut(34).zip(codes.chunks_exact(32)) {
                    out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                    out[2..].copy_from_slice(codes);
                }
                return;
            }
            let values = codes.iter().map(|code| f32::from(*code as i8) * scale);
            store(dtype, &values.collect::<Vec<_>>(), out);
        });
        Tensor::owned(name, dtype, self.shape.to_vec(), bytes)
    }
}
