//! What a checkpoint is: the architecture as data, the weights, the tokenizer and
//! the chat template, and where models come from.
//!
//! Reading order: [`spec`] (the architecture), [`tensor`] (what a weight is),
//! [`weights`] (where it comes from), [`weight_cache`] (what is kept of conversions), [`gguf`] and [`hf`] (the two kinds of files), [`fetch`] (where
//! the files come from).

mod builtin;
mod chat_template;
mod checkpoint;
pub mod dequant;
mod dummy;
pub mod error;
mod expected;
pub mod fetch;
mod files;
pub mod gguf;
pub mod hf;
pub mod kblock;
mod parallel;
pub mod quantize;
pub mod spec;
pub mod tensor;
mod tokenizer;
pub mod weight_cache;
pub mod weights;

pub use chat_template::ChatTemplate;
pub use checkpoint::Checkpoint;
pub use error::ModelError;
pub use spec::ModelSpec;
pub use tensor::{DType, Tensor};
pub use tokenizer::{IncrementalDecoder, Tokenizer};
pub use weights::Weights;
