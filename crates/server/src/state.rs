//! What all connections share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use powerband_engine::Engine;
use powerband_model::Tokenizer;
use tokio::sync::{Notify, Semaphore};

use crate::auth::Keys;
use crate::config::{ModelContext, ServerConfig};
use crate::error::{ApiError, ServerError};
use crate::metrics::Metrics;

/// What all connections share.
pub(crate) struct State {
    pub engine: Engine,
    pub model: ModelContext,
    /// The engine's, prompt and output together.
    pub max_model_len: usize,
    pub config: ServerConfig,
    pub keys: Keys,
    pub metrics: Metrics,
    pub places: Arc<Places>,
    /// Unix seconds of the start, the `created` of the models.
    pub created: u64,
    draining: AtomicBool,
    /// Bounds how many cores tokenization and templates may keep busy.
    blocking: Arc<Semaphore>,
}

impl State {
    pub fn new(
        engine: Engine,
        model: ModelContext,
        config: ServerConfig,
    ) -> Result<Self, ServerError> {
        if model.served_names.is_empty() {
            return Err(ServerError::Config(
                "the model has no name; give one with --served-model-name".to_owned(),
            ));
        }
        let engine_config = engine.config();
        let max_model_len = engine_config.max_model_len;
        let places = Places::new(engine_config.max_num_seqs + engine_config.max_queue);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            keys: Keys::new(&config.api_keys)?,
            metrics: Metrics::new(),
            places: Arc::new(places),
            created: crate::id::unix_seconds(),
            draining: AtomicBool::new(false),
            blocking: Arc::new(Semaphore::new(cores)),
            max_model_len,
            engine,
            model,
            config,
        })
    }

    /// From now on `/health` says 503 and nothing new is taken.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// `Err` says why the server takes no requests.
    pub fn health(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Acquire) {
            return Err("the server is shutting down".to_owned());
        }
        self.engine.health()
    }

    /// Takes places for the sequences of a request before any work is put into it.
    pub fn reserve(&self, sequences: usize) -> Result<Place, ApiError> {
        self.health().map_err(ApiError::unavailable)?;
        self.places.take(sequences).ok_or_else(|| {
            self.metrics.rejected.add(1);
            ApiError::overloaded(format!(
                "the server is full ({} of {} places are taken); try again later",
                self.places.taken(),
                self.places.capacity
            ))
        })
    }

    /// The tokenizer, or a 400 on `param` that says why there must be token ids.
    pub fn tokenizer(&self, param: &'static str) -> Result<&Arc<Tokenizer>, ApiError> {
        self.model.tokenizer.as_ref().ok_or_else(|| {
            ApiError::invalid(
                param,
                format!(
                    "this model is served without a tokenizer, so `{param}` cannot be text: send token ids \
                     in `prompt` to /v1/completions"
                ),
            )
        })
    }

    /// Runs long or untrusted work off the async threads; a panic in it is one failed request.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let closed = |_| ApiError::unavailable("the server is shutting down");
        let permit = self
            .blocking
            .clone()
            .acquire_owned()
            .await
            .map_err(closed)?;
        let task = tokio::task::spawn_blocking(move || {
            // Held by the work, not by the request: a client that leaves frees no core.
            let _permit = permit;
            work()
        });
        task.await.map_err(|error| {
            tracing::error!("request work failed: {error}");
            ApiError::internal("the server failed on this request; its log says why")
        })
    }

    /// The name to answer with, or 404 for a model that is not served.
    pub fn model_name(&self, asked: Option<&str>) -> Result<String, ApiError> {
        let names = &self.model.served_names;
        match asked {
            None => Ok(names.first().cloned().unwrap_or_default()),
            Some(name) if names.iter().any(|served| served == name) => Ok(name.to_owned()),
            Some(name) => Err(ApiError::new(
                http::StatusCode::NOT_FOUND,
                format!(
                    "the model `{}` is not served here; served: {}",
                    shortened(name),
                    names.join(", ")
                ),
            )
            .at("model")
            .with_code("model_not_found")),
        }
    }
}

/// A client's text for an error message.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// As many sequences as the engine can run and queue.
pub(crate) struct Places {
    capacity: usize,
    taken: AtomicUsize,
    freed: Notify,
}

impl Places {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            taken: AtomicUsize::new(0),
            freed: Notify::new(),
        }
    }

    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    fn take(self: &Arc<Self>, count: usize) -> Option<Place> {
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                let after = taken.checked_add(count)?;
                (after <= self.capacity).then_some(after)
            })
            .ok()?;
        Some(Place {
            places: self.clone(),
            count,
        })
    }

    /// Waits until none is taken.
    pub async fn empty(&self) {
        loop {
            let freed = self.freed.notified();
            if self.taken() == 0 {
                return;
            }
            freed.await;
        }
    }
}

/// Places that are given back on drop.
pub(crate) struct Place {
    places: Arc<Places>,
    count: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.places.taken.fetch_sub(self.count, Ordering::AcqRel) == self.count {
            self.places.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_are_bounded_and_come_back_on_drop() {
        let places = Arc::new(Places::new(3));
        let two = places.take(2).unwrap();
        assert!(places.take(2).is_none());
        assert!(places.take(usize::MAX).is_none());
        let one = places.take(1).unwrap();
        assert_eq!(places.taken(), 3);
        drop(two);
        let mut waiting = std::pin::pin!(places.empty());
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(one);
        waiting.await;
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(shortened("abc"), "abc");
        assert_eq!(shortened(&"é".repeat(81)), format!("{}...", "é".repeat(80)));
    }
}
