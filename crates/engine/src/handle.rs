//! How the outside talks to the engine's thread: a cheap handle and a stream a request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as commands};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::executor::ExecutorLimits;
use crate::request::TokenEvent;
use crate::sequence::SequenceId;
use crate::worker::{Board, Command, Worker};
use crate::{EngineConfig, EngineError, EngineStats, Executor, GenerationRequest, SubmitError};

/// A cheap, cloneable handle to the engine's thread. When the last handle and the last stream are
/// gone the thread ends.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: EngineConfig,
    vocab_size: usize,
    commands: commands::Sender<Command>,
    board: Arc<Board>,
    next_id: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the engine's thread over `executor`.
    ///
    /// # Errors
    /// A setting is out of range or beyond what the executor was made for, or the system starts no
    /// more threads.
    pub fn start(executor: Box<dyn Executor>, config: EngineConfig) -> Result<Self, EngineError> {
        check(&config, executor.limits())?;
        check_speculation(&config, &*executor)?;
        let vocab_size = executor.limits().vocab_size;
        let (sender, receiver) = commands::channel();
        let board = Arc::new(Board::default());
        let worker = Worker::new(executor, &config, receiver, board.clone());
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker.run())
            .map_err(|error| {
                EngineError::Config(format!("cannot start the engine's thread: {error}"))
            })?;
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                vocab_size,
                commands: sender,
                board,
                next_id: AtomicU64::new(0),
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    /// The settings it runs with.
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Takes a request into the queue, or says at once why not. Never blocks.
    ///
    /// # Errors
    /// The request can never be computed, the queue is full, or the engine has stopped.
    pub fn submit(&self, request: GenerationRequest) -> Result<TokenStream, SubmitError> {
        let Shared { config, board, .. } = &*self.shared;
        self.check_request(&request).map_err(SubmitError::Invalid)?;
        board.enter(config.max_num_seqs + config.max_queue)?;
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (events, receiver) = mpsc::unbounded_channel();
        let command = Command::Submit {
            id,
            request,
            events,
        };
        if let Err(commands::SendError(Command::Submit { events, .. })) =
            self.shared.commands.send(command)
        {
            // The thread ended between the two lines above.
            crate::worker::refuse(&events);
        }
        Ok(TokenStream {
            id,
            events: receiver,
            commands: self.shared.commands.clone(),
            ended: false,
        })
    }

    fn check_request(&self, request: &GenerationRequest) -> Result<(), String> {
        let longest = self.shared.config.max_model_len;
        let vocab = self.shared.vocab_size;
        let length = request.prompt.len();
        if length == 0 {
            return Err("the prompt is empty".to_owned());
        }
        if length >= longest {
            return Err(format!(
                "the prompt has {length} tokens, which leaves no room for an answer in the \
                 context of {longest} (--max-model-len)"
            ));
        }
        if let Some(token) = request.prompt.iter().find(|t| **t as usize >= vocab) {
            return Err(format!(
                "token {token} is outside the vocabulary of {vocab} tokens"
            ));
        }
        if request.stop.max_tokens == 0 {
            return Err("max_tokens must be at least 1".to_owned());
        }
        Ok(())
    }

    /// A snapshot that never waits for a step.
    pub fn stats(&self) -> EngineStats {
        self.shared.board.stats()
    }

    /// `Ok` while requests are accepted; else why not. Never waits for a step.
    ///
    /// # Errors
    /// Why the engine accepts no requests.
    pub fn health(&self) -> Result<(), String> {
        self.shared.board.health()
    }

    /// Stops accepting; running requests may finish within `drain`, then are aborted. Blocks until the
    /// thread has ended.
    pub fn shutdown(&self, drain: Duration) {
        // A thread that has ended already needs no command.
        let _ = self.shared.commands.send(Command::Shutdown { drain });
        let mut thread = self
            .shared
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread panicked");
        }
    }
}

/// Does the configuration fit what the executor was made for?
fn check(config: &EngineConfig, limits: &ExecutorLimits) -> Result<(), EngineError> {
    let settings = [
        ("--max-num-seqs", config.max_num_seqs, limits.max_num_seqs),
        (
            "--max-num-batched-tokens",
            config.max_num_batched_tokens,
            limits.max_num_batched_tokens,
        ),
        (
            "--max-model-len",
            config.max_model_len,
            limits.max_model_len,
        ),
    ];
    for (flag, value, most) in settings {
        if value == 0 || value > most {
            return Err(EngineError::Config(format!(
                "{flag} is {value}; the executor takes 1 to {most}"
            )));
        }
    }
    let tokens = limits.num_blocks * limits.block_size;
    if tokens < config.max_model_len {
        return Err(EngineError::Memory(format!(
            "the KV cache holds {tokens} tokens, fewer than --max-model-len {}; give \
             --max-model-len {tokens} or less, or more --kv-cache-memory-bytes",
            config.max_model_len
        )));
    }
    Ok(())
}

fn check_speculation(config: &EngineConfig, executor: &dyn Executor) -> Result<(), EngineError> {
    let Some(speculation) = &config.speculation else {
        return Ok(());
    };
    if !executor.verifies_drafts() {
        return Err(EngineError::Unsupported(
            "--speculative-config on this device; leave it out, or use --device cpu".to_owned(),
        ));
    }
    speculation
        .check()
        .map_err(|error| EngineError::Config(format!("--speculative-config: {error}")))
}

/// The tokens of one request. Dropping it cancels the request within one step.
#[derive(Debug)]
pub struct TokenStream {
    id: SequenceId,
    events: mpsc::UnboundedReceiver<TokenEvent>,
    commands: commands::Sender<Command>,
    ended: bool,
}

impl TokenStream {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<TokenEvent> {
        let event = self.events.recv().await;
        self.note(event)
    }

    /// The next event if one is there already: lets a consumer join tokens into one write.
    pub fn try_next(&mut self) -> Option<TokenEvent> {
        match self.events.try_recv() {
            Ok(event) => self.note(Some(event)),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => self.note(None),
        }
    }

    /// The next event, waiting on this thread: for callers without an async runtime.
    pub fn blocking_next(&mut self) -> Option<TokenEvent> {
        let event = self.events.blocking_recv();
        self.note(event)
    }

    /// Remembers the end. A channel that closes without one means that the thread died.
    fn note(&mut self, event: Option<TokenEvent>) -> Option<TokenEvent> {
        match event {
            Some(TokenEvent::Token(_)) => event,
            None if !self.ended => {
                self.ended = true;
                let why = "the engine's thread ended in the middle of this request";
                Some(TokenEvent::Failed(why.to_owned()))
            }
            None => None,
            last => {
                self.ended = true;
                last
            }
        }
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if !self.ended {
            // A thread that has ended holds nothing that could be cancelled.
            let _ = self.commands.send(Command::Cancel(self.id));
        }
    }
}
