//! Checkpoints that were quantised before they were saved: bitsandbytes, GPTQ, AWQ, fp8.
//!
//! What a file holds for one matrix (codes, scales, zeros, ...) becomes a [`Recipe`] under the
//! matrix's own name: it is turned into a format that the kernels have, losing as little as that
//! allows, when a backend asks for it. All shapes are checked before.

mod bitsandbytes;
mod fp8;
mod groups;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;

use super::safetensors::Raw;
use crate::ModelError;
use crate::weights::{Entry, Recipe, missing};

/// How a checkpoint says that it was quantised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// bitsandbytes, 4 bits (nf4 or fp4) or 8 bits (`LLM.int8()`); the tensors say which.
    BitsAndBytes,
    /// GPTQ: 4 or 8 bits a weight, packed along the input.
    Gptq {
        /// Bits of a weight.
        bits: usize,
        /// Zeros are stored as they are, not less one (`checkpoint_format` `gptq_v2`).
        plain_zeros: bool,
    },
    /// AWQ: 4 bits a weight, packed along the output.
    Awq,
    /// fp8 (e4m3) with scales for a tensor, a row or blocks of this many rows and columns.
    Fp8 {
        /// Rows and columns of a block with a scale of its own, where the scales are in blocks.
        block: Option<[usize; 2]>,
    },
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::BitsAndBytes => f.write_str("bitsandbytes"),
            Method::Gptq { bits, .. } => write!(f, "GPTQ, {bits} bits"),
            Method::Awq => f.write_str("AWQ, 4 bits"),
            Method::Fp8 { .. } => f.write_str("fp8"),
        }
    }
}

impl Method {
    /// What `config.json` says in `quantization_config`; `None` if there is none.
    ///
    /// # Errors
    /// A method, a number of bits or a variant that is not read.
    pub fn from_config(config: &Value, path: &Path) -> Result<Option<Self>, ModelError> {
        let settings = &config["quantization_config"];
        if settings.is_null() {
            return Ok(None);
        }
        let unsupported = |what: String| {
            ModelError::Unsupported(format!(
                "{}: quantization_config: {what}; use the unquantised model or a GGUF file",
                path.display()
            ))
        };
        let text = |name: &str| settings[name].as_str().unwrap_or_default();
        let bits = settings["bits"].as_u64();
        Ok(Some(match text("quant_method") {
            "bitsandbytes" => Method::BitsAndBytes,
            "gptq" => match (bits, text("checkpoint_format")) {
                (Some(bits @ (4 | 8)), format @ ("" | "gptq" | "gptq_v2")) => Method::Gptq {
                    bits: bits as usize,
                    plain_zeros: format == "gptq_v2",
                },
                (_, format) => {
                    return Err(unsupported(format!(
                        "GPTQ with bits = {} and checkpoint_format = {format:?}; 4 and 8 bits and gptq or gptq_v2 are read",
                        settings["bits"]
                    )));
                }
            },
            "awq" => match (bits, text("version").to_ascii_lowercase().as_str()) {
                (Some(4), "" | "gemm") => Method::Awq,
                (_, version) => {
                    return Err(unsupported(format!(
                        "AWQ with bits = {} and version = {version:?}; 4 bits and gemm are read",
                        settings["bits"]
                    )));
                }
            },
            "fp8" | "fbgemm_fp8" => {
                let side = |i: usize| {
                    let n = settings["weight_block_size"][i].as_u64()?;
                    usize::try_from(n).ok().filter(|n| *n > 0)
                };
                Method::Fp8 {
                    block: side(0).zip(side(1)).map(|(rows, cols)| [rows, cols]),
                }
            }
            "compressed-tensors" if text("format") == "float-quantized" => {
                Method::Fp8 { block: None }
            }
            other => {
                return Err(unsupported(format!(
                    "the method {other:?}{}; bitsandbytes, gptq, awq and fp8 are read",
                    match text("format") {
                        "" => String::new(),
                        format => format!(" in the format {format:?}"),
                    }
                )));
            }
        }))
    }
}

/// All tensors of a checkpoint by name, to be taken out one by one.
pub(super) struct Parts(HashMap<String, Raw>);

impl Parts {
    /// Takes the tensor `name`.
    fn take(&mut self, name: &str) -> Option<Raw> {
        self.0.remove(name)
    }

    /// Takes the tensor `name`, which must be there and a matrix that is not empty.
    fn need_matrix(&mut self, name: &str) -> Result<Raw, ModelError> {
        let raw = self.take(name).ok_or_else(|| missing(name))?;
        if raw.shape.len() != 2 || raw.shape.contains(&0) {
            return Err(raw.wrong(format!("its shape is {:?}; a matrix is needed", raw.shape)));
        }
        Ok(raw)
    }

    /// Takes the tensor `name`, which must be there, of one of these types, with `elements`.
    fn need(&mut self, name: &str, types: &[Dtype], elements: usize) -> Result<Raw, ModelError> {
        let raw = self.take(name).ok_or_else(|| missing(name))?;
        if !types.contains(&raw.dtype) || raw.elements() != elements {
            return Err(raw.wrong(format!(
                "it is {:?} of shape {:?}; {elements} elements of {types:?} are needed",
                raw.dtype, raw.shape
            )));
        }
        Ok(raw)
    }
}

/// A matrix by its canonical name.
type Named = (String, Box<dyn Recipe>);

/// The numbers that scales are stored as.
const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

/// Turns the tensors of a checkpoint quantised by `method` into weights.
///
/// # Errors
/// A part is missing or does not fit the others; the error names tensor and file.
pub(super) fn entries(method: &Method, raw: Vec<Raw>) -> Result<Vec<(String, Entry)>, ModelError> {
    let mut names: Vec<String> = raw.iter().map(|raw| raw.name.clone()).collect();
    names.sort_unstable();
    let mut parts = Parts(HashMap::with_capacity(raw.len()));
    for raw in raw {
        if let Some(twice) = parts.0.insert(raw.name.clone(), raw) {
            return Err(twice.wrong("stands in the checkpoint twice".to_owned()));
        }
    }
    let mut made = Vec::new();
    for name in &names {
        let recipe: Option<Named> = match method {
            Method::BitsAndBytes => bitsandbytes::recipe(name, &mut parts)?,
            Method::Gptq { bits, plain_zeros } => {
                let offset = usize::from(!plain_zeros);
                groups::recipe(
                    name,
                    &mut parts,
                    groups::Packing::Gptq {
                        bits: *bits,
                        offset,
                    },
                )?
            }
            Method::Awq => groups::recipe(name, &mut parts, groups::Packing::Awq)?,
            Method::Fp8 { block } => fp8::recipe(name, &mut parts, *block)?,
        };
        made.extend(recipe.map(|(name, recipe)| (name, Entry::Made(recipe))));
    }
    // What is left is stored as it is.
    for name in names {
        if let Some(raw) = parts.take(&name) {
            made.push((name, Entry::Ready(raw.tensor()?)));
        }
    }
    Ok(made)
}
