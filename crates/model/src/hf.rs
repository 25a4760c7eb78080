//! Hugging Face folders: `config.json` and safetensors files.

mod blame;
pub mod config;
pub mod quantized;
pub mod safetensors;

pub use config::spec_from_config;
pub use quantized::Method;
pub use safetensors::load_weights;
