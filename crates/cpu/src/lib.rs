//! The Executor on a CPU: kernels, threads.
//!
//! Reading order: [`runner`] (a model ready to compute), `model` (its weights), `forward` (a step
//! through the layers), [`linear`] and [`attention`] (where the time goes), [`kv`] (the paged
//! cache), [`simd`] (how a kernel is written once for all CPUs), [`threads`].

pub mod activations;
pub mod attention;
pub mod buffer;
pub mod executor;
mod forward;
pub mod kv;
pub mod linear;
pub mod memory;
mod model;
pub mod ops;
pub mod profile;
pub mod rope;
mod rowwise;
pub mod runner;
pub mod sections;
pub mod simd;
pub mod threads;

pub use executor::CpuExecutor;
pub use forward::Chunk;
pub use memory::MemoryBudget;
pub use runner::{CpuOptions, Runner};
