//! The Executor on an NVIDIA GPU.
//!
//! The kernels (`kernels/*.cuh`) are compiled ahead of time; at run time only the driver is needed,
//! and without one [`probe`] says so. Reading order: [`options`], `formats`, `model` and `buffers` (what lies
//! where), `step` (a step as the GPU reads it), `forward` (its kernels), [`executor`].

mod buffers;
pub mod check;
mod driver;
pub mod executor;
mod fatbin;
mod flow;
mod formats;
mod forward;
mod gemm;
mod layers;
mod load;
pub mod memory;
mod model;
pub mod options;
mod params;
mod probe;
mod rope;
mod slots;
mod step;
mod wide;

pub use driver::DriverError;
pub use executor::CudaExecutor;
pub use memory::MemoryBudget;
pub use options::{CudaOptions, WeightQuantization};
pub use probe::{GpuInfo, probe, probe_device};
