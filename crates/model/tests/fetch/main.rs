//! Fetching models from a mock hub over real sockets, and through a pip that is a script.
#![allow(clippy::unwrap_used, clippy::panic)] // also in helpers

mod gated;
mod hub;
mod interrupted;
mod mock_hub;
mod registry;
mod token;
