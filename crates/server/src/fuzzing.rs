//! For the fuzz targets: the handlers of POST requests without a socket.

use std::sync::Arc;
use std::time::Instant;

use http::Method;
use http_body_util::BodyExt;
use powerband_engine::Engine;

use crate::config::{ModelContext, ServerConfig};
use crate::error::ServerError;
use crate::generation::Caller;
use crate::state::State;
use crate::{routes, service};

/// The handlers in front of an engine.
pub struct Handlers(Arc<State>);

impl Handlers {
    /// With the default limits and no keys.
    ///
    /// # Errors
    /// The model has no name.
    pub fn new(engine: Engine, model: ModelContext) -> Result<Self, ServerError> {
        let state = State::new(engine, model, ServerConfig::default())?;
        Ok(Self(Arc::new(state)))
    }

    /// The status and the whole body of the answer to a POST. A panic is not caught.
    pub async fn post(&self, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let caller = Caller {
            arrived: Instant::now(),
            key: None,
        };
        let response = match routes::resolve(&Method::POST, path) {
            Ok((handler, _)) => service::post(&self.0, handler, body.to_vec().into(), caller).await,
            Err(error) => Err(error),
        };
        let response = response.unwrap_or_else(|error| error.into_response());
        let status = response.status().as_u16();
        let collected = response.into_body().collect().await;
        let bytes = collected.map_or_else(|never| match never {}, |all| all.to_bytes());
        (status, bytes.to_vec())
    }
}
