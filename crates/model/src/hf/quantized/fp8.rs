//! fp8 (e4m3) with scales for the whole matrix, for each row, or for blocks of rows and columns.
//!
//! Codes stay as they are where every 64 columns of a row have one scale and GPUs can keep that one;
//! else they become bf16.

use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;
use safetensors::Dtype;

use super::super::safetensors::Raw;
use super::bitsandbytes::store;
use super::{FLOATS, Named, Parts};
use crate::dequant::e4m3;
use crate::parallel::fill_rows;
use crate::weights::Recipe;
use crate::{DType, ModelError, Tensor};

/// The recipe of the matrix whose codes are the tensor `name`, if that is what it is.
pub(super) fn recipe(
    name: &str,
    parts: &mut Parts,
    block: Option<[usize; 2]>,
) -> Result<Option<Named>, ModelError> {
    let fp8 = |raw: &Raw| raw.dtype == Dtype::F8_E4M3;
    if !name.ends_with(".weight") || !parts.0.get(name).is_some_and(fp8) {
        return Ok(None);
    }
    let made = Fp8::new(name, parts, block)?;
    Ok(Some((name.to_owned(), Box::new(made))))
}

/// `w = code * scale`.
#[derive(Debug)]
struct Fp8 {
    codes: Raw,
    scales: Vec<f32>,
    /// Rows and columns that share a scale.
    block: [usize; 2],
    shape: [usize; 2],
    /// What it becomes; whether the codes stay follows from the scales alone, so that no code is read
    /// before the matrix is needed.
    dtype: DType,
}

impl Fp8 {
    fn new(name: &str, parts: &mut Parts, block: Option<[usize; 2]>) -> Result<Self, ModelError> {
        let codes = parts.need_matrix(name)?;
        let shape = [codes.shape[0], codes.shape[1]];
        let stem = name.strip_suffix("weight").unwrap_or(name);
        // Scales of activations: they are not quantised here, so nothing is lost without them.
        for unused in ["input_scale", "input_scale_ub", "activation_scale"] {
            parts.take(&format!("{stem}{unused}"));
        }
        let scale = ["weight_scale_inv", "weight_scale"]
            .iter()
            .find_map(|part| parts.take(&format!("{stem}{part}")))
            .ok_or_else(|| codes.wrong("it has no weight_scale".to_owned()))?;
        let count = scale.shape.iter().product::<usize>();
        let in_blocks = block.map(|[rows, cols]| shape[0].div_ceil(rows) * shape[1].div_ceil(cols));
        let block = match block {
            Some(block) if in_blocks == Some(count) => block,
            _ if count == 1 => shape,
            _ if count == shape[0] => [1, shape[1]],
            _ => {
                return Err(scale.wrong(format!(
                    "its shape is {:?}; one scale, or {} for the rows of {:?} are needed",
                    scale.shape, shape[0], shape
                )));
            }
        };
        if !FLOATS.contains(&scale.dtype) {
            return Err(scale.wrong(format!("it is {:?}, no float", scale.dtype)));
        }
        let scales = scale.floats();
        let whole = shape[1].is_multiple_of(64) && block[1].min(shape[1]).is_multiple_of(64);
        let dtype = match whole && scales.iter().all(|scale| f16_holds(*scale)) {
            true => DType::F8_E4M3,
            false => DType::BF16,
        };
        Ok(Self {
            codes,
            scales,
            block,
            shape,
            dtype,
        })
    }

    /// A row in our own format: the same codes, and the scale of each 64.
    fn native_row(&self, scales: &[f32], codes: &[u8], out: &mut [u8]) {
        let blocks = out.chunks_exact_mut(68).zip(codes.chunks_exact(64));
        for (number, (out, codes)) in blocks.enumerate() {
            out[..4].copy_from_slice(&scales[number * 64 / self.block[1]].to_le_bytes());
            out[4..].copy_from_slice(codes);
        }
    }
}

/// Does f16, in which GPUs keep it, change a scale by no more than bf16 changes a weight, one part in
/// 512? That ends beside 65,504 and below 2^-16; scales of real weights are about 2^-10.
fn f16_holds(scale: f32) -> bool {
    (f16::from_f32(scale).to_f32() - scale).abs() <= scale.abs() / 512.0
}

impl Recipe for Fp8 {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn bytes(&self) -> usize {
        self.codes.bytes().len() + 4 * self.scales.len()
    }

    fn make(&self, name: &str) -> Result<Tensor, ModelError> {
        let [rows, cols] = self.shape;
        let across = cols.div_ceil(self.block[1]);
        let row_bytes = self.dtype.bytes_for(cols).unwrap_or(0);
        let odd = AtomicBool::new(false);
        let bytes = fill_rows(rows, row_bytes, |row, out| {
            let scales = &self.scales[row / self.block[0] * across..][..across];
            let codes = &self.codes.bytes()[row * cols..][..cols];
            if codes.iter().any(|code| code & 0x7f == 0x7f) {
                odd.store(true, Ordering::Relaxed);
            }
            if self.dtype == DType::F8_E4M3 {
                return self.native_row(scales, codes, out);
            }
            let values = codes
                .iter()
                .enumerate()
                .map(|(i, code)| e4m3(*code) * scales[i / self.block[1]]);
            store(DType::BF16, &values.collect::<Vec<_>>(), out);
        });
        // Kernels would take such a code for a large number, and every answer would be wrong anyway.
        if odd.into_inner() {
            return Err(self.codes.wrong("a code of it is NaN".to_owned()));
        }
        Tensor::owned(name, self.dtype, self.shape.to_vec(), bytes)
    }
}
