//! The OpenAI-compatible HTTP API over the engine handle.
//!
//! Reading order: [`config`] (settings and limits), `server` (listening, shutting down), `service`
//! (from a request to its handler), `routes` (what there is), `completions` and `chat` (from a body
//! to a prompt), `params` (the fields they share), `generation` (the sequences while they run),
//! `text` (tokens to text, stop strings), `answer` (the bytes that go out).
//!
//! ```no_run
//! # use powerband_server::{bind, ModelContext, ServerConfig};
//! # async fn example(engine: powerband_engine::Engine, model: ModelContext) -> Result<(), powerband_server::ServerError> {
//! let server = bind(&ServerConfig::default()).await?;
//! println!("listening on {}", server.local_addr());
//! let ctrl_c = async { let _ = tokio::signal::ctrl_c().await; };
//! server.serve(engine, model, ctrl_c, std::time::Duration::from_secs(30)).await
//! # }
//! ```

mod answer;
mod auth;
mod body;
mod chat;
mod completions;
pub mod config;
mod error;
mod fields;
#[doc(hidden)]
pub mod fuzzing;
mod generation;
mod gpus;
mod id;
mod info;
mod json;
mod logprobs;
mod metrics;
mod params;
mod prometheus;
mod prompt;
mod routes;
mod server;
mod service;
mod stall;
mod state;
mod text;
mod write;

pub use config::{Limits, ModelContext, ServerConfig};
pub use error::ServerError;
pub use gpus::{GpuReader, GpuReading};
pub use routes::{ROUTES, Route};
pub use server::{BoundServer, bind};
