//! Which tokens are computed next. No HTTP, no kernels.
//!
//! Reading order: [`request`] (what is asked), [`executor`] (what a backend does with a
//! step), [`handle`] (how the outside talks to the engine's thread).

pub mod config;
pub mod error;
pub mod executor;
pub mod handle;
pub mod request;
pub mod stats;

pub use config::{EngineConfig, KvCacheDtype, SchedulingPolicy};
pub use error::{EngineError, SubmitError};
pub use executor::Executor;
pub use handle::{Engine, TokenStream};
pub use request::{FinishReason, GenerationRequest, SamplingParams, TokenOutput};
pub use stats::EngineStats;
