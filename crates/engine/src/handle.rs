//! How the outside talks to the engine's thread: a cheap handle and a stream a request.
//!
//! This file fixes the signatures that the server relies on.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::request::TokenEvent;
use crate::{EngineConfig, EngineError, EngineStats, Executor, GenerationRequest, SubmitError};

/// A cheap, cloneable handle to the engine's thread.
#[derive(Clone)]
pub struct Engine {}

impl Engine {
    /// Starts the engine's thread over `executor`.
    pub fn start(executor: Box<dyn Executor>, config: EngineConfig) -> Result<Self, EngineError> {
        let _ = (executor, config);
        Err(EngineError::Config("under construction".to_owned()))
    }

    /// The settings it runs with.
    pub fn config(&self) -> &EngineConfig {
        unreachable!()
    }

    /// Takes a request into the queue, or says at once why not. Never blocks.
    pub fn submit(&self, request: GenerationRequest) -> Result<TokenStream, SubmitError> {
        let _ = request;
        Err(SubmitError::Closed("under construction".to_owned()))
    }

    /// A snapshot that never waits for a step.
    pub fn stats(&self) -> EngineStats {
        EngineStats::default()
    }

    /// `Ok` while requests are accepted; else why not. Never waits for a step.
    pub fn health(&self) -> Result<(), String> {
        Ok(())
    }

    /// Stops accepting; running requests may finish within `drain`, then are aborted. Blocks until the
    /// thread has ended.
    pub fn shutdown(&self, drain: Duration) {
        let _ = drain;
    }
}

/// The tokens of one request. Dropping it cancels the request within one step.
pub struct TokenStream {
    events: mpsc::UnboundedReceiver<TokenEvent>,
}

impl TokenStream {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<TokenEvent> {
        self.events.recv().await
    }

    /// The next event if one is there already: lets a consumer join tokens into one write.
    pub fn try_next(&mut self) -> Option<TokenEvent> {
        self.events.try_recv().ok()
    }
}
