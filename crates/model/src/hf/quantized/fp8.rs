//! fp8 (e4m3) with scales for the whole matrix, for each row, or for blocks of rows and columns.

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
        Ok(Self {
            codes,
            scales: scale.floats(),
            block,
            shape,
        })
    }
}

impl Recipe for Fp8 {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn dtype(&self) -> DType {
        DType::BF16
    }

    fn bytes(&self) -> usize {
        self.codes.bytes().len() + 4 * self.scales.len()
    }

    fn make(&self, name: &str) -> Result<Tensor, ModelError> {
        let [rows, cols] = self.shape;
        let across = cols.div_ceil(self.block[1]);
        let bytes = fill_rows(rows, 2 * cols, |row, out| {
            let scales = &self.scales[row / self.block[0] * across..][..across];
            let codes = &self.codes.bytes()[row * cols..][..cols];
            let values = codes
                .iter()
                .enumerate()
                .map(|(i, code)| e4m3(*code) * scales[i / self.block[1]]);
            store(DType::BF16, &values.collect::<Vec<_>>(), out);
        });
        Tensor::owned(name, DType::BF16, self.shape.to_vec(), bytes)
    }
}
