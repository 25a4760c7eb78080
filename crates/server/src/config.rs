//! Settings of the server and the facts about the model that it tells its clients.

use std::sync::Arc;
use std::time::Duration;

use powerband_model::{ChatTemplate, Tokenizer};

use crate::gpus::GpuReader;

/// Settings that are known before a model is loaded.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Address or name to listen on.
    pub host: String,
    /// Port; 0 takes any free one.
    pub port: u16,
    /// Keys that clients may send as `Authorization: Bearer KEY`; empty: no key is asked for.
    pub api_keys: Vec<String>,
    /// Origins that browsers may call from (`https://example.org`, or `*`); empty: no CORS headers at all.
    pub allowed_origins: Vec<String>,
    /// Log one line a request (never prompts, outputs or keys).
    pub log_requests: bool,
    /// What a client may use up.
    pub limits: Limits,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8000,
            api_keys: Vec::new(),
            allowed_origins: Vec::new(),
            log_requests: false,
            limits: Limits::default(),
        }
    }
}

/// Bounds on what one client or one request may use up.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections; further ones are answered 503 and closed.
    pub connections: usize,
    /// Bytes of a request's path and query (414).
    pub uri_bytes: usize,
    /// Bytes of a request's headers together (431).
    pub header_bytes: usize,
    /// Time for the head of a request to arrive; also how long a connection may idle.
    pub header_timeout: Duration,
    /// Bytes of a body (413).
    pub body_bytes: usize,
    /// Time for a body to arrive (408).
    pub body_timeout: Duration,
    /// Time without any progress after which a client that does not read its answer is let go.
    pub write_timeout: Duration,
    /// Nesting of arrays and objects in a body (400).
    pub json_depth: usize,
    /// Values in a body, the token ids of a prompt not counted (400).
    pub json_values: usize,
    /// Sequences of one request: prompts times `n` (400).
    pub sequences: usize,
    /// Most `logprobs` / `top_logprobs`.
    pub logprobs: u32,
    /// Stop strings of one request.
    pub stop_strings: usize,
    /// Bytes of one stop string.
    pub stop_string_bytes: usize,
    /// Ids in `stop_token_ids`.
    pub stop_token_ids: usize,
    /// Entries of `logit_bias`.
    pub logit_bias: usize,
    /// Messages of one chat.
    pub messages: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            uri_bytes: 8 << 10,
            header_bytes: 32 << 10,
            header_timeout: Duration::from_secs(30),
            body_bytes: 8 << 20,
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            json_depth: 64,
            json_values: 100_000,
            sequences: 128,
            logprobs: 20,
            stop_strings: 16,
            stop_string_bytes: 1024,
            stop_token_ids: 256,
            logit_bias: 1024,
            messages: 4096,
        }
    }
}

/// What the API must know about the model it fronts. The context length is the engine's.
#[derive(Clone)]
pub struct ModelContext {
    /// Names that requests may use; answers carry the first unless a request named another.
    pub served_names: Vec<String>,
    /// Where the model came from, for `/v1/models`.
    pub root: String,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Tokens that end a sequence unless `ignore_eos`.
    pub eos_tokens: Vec<u32>,
    /// Without one, prompts must be token ids and texts are empty.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Without one, there is no chat endpoint.
    pub chat_template: Option<Arc<ChatTemplate>>,
    /// The GPUs that compute, for `/metrics`.
    pub gpus: Option<GpuReader>,
}
