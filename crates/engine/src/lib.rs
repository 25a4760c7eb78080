//! Which tokens are computed next. No HTTP, no kernels.
//!
//! Reading order: [`request`] (what is asked), [`executor`] (what a backend does with a
//! step), [`scheduler`] (which tokens a step computes), [`block_pool`] (KV blocks and the prefix
//! cache), [`speculation`] (drafts), [`handle`] (how the outside talks to the engine's thread),
//! `worker` (that thread), [`sampler`] (from logits to a token), [`sim`] (an executor without a model).

pub mod block_pool;
mod bytes;
pub mod config;
pub mod error;
pub mod executor;
pub mod handle;
pub mod queue;
pub mod request;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod sim;
pub mod speculation;
pub mod stats;
mod worker;

pub use bytes::human_bytes;
pub use config::{EngineConfig, KvCacheDtype, SchedulingPolicy};
pub use error::{EngineError, SubmitError};
pub use executor::Executor;
pub use handle::{Engine, TokenStream};
pub use request::{FinishReason, GenerationRequest, SamplingParams, TokenOutput};
pub use sampler::Sampler;
pub use speculation::NgramSpeculation;
pub use stats::{EngineStats, SpeculationStats};
