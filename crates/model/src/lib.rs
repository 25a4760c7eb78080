//! What a checkpoint is: the architecture as data, the weights, the tokenizer and
//! the chat template, and where models come from.
//!
//! Reading order: [`spec`] (the architecture), [`tensor`] (what a weight is),
//! [`weights`] (where it comes from), [`gguf`] and [`hf`] (the two kinds of files).

mod builtin;
pub mod dequant;
mod dummy;
pub mod error;
mod expected;
mod files;
pub mod gguf;
pub mod hf;
pub mod quantize;
pub mod spec;
pub mod tensor;
pub mod weights;

pub use error::ModelError;
pub use spec::ModelSpec;
pub use tensor::{DType, Tensor};
pub use weights::Weights;
