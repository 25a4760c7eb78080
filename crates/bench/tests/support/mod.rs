//! A server of known timing on a plain socket, with faults on request.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;

use server::Server;

pub mod http2;
mod server;
mod stream;
pub mod tls;

/// What the server does with a generation request.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    None,
    /// A status with this message.
    Status(u16, &'static str),
    /// 429 with Retry-After.
    RetryAfter,
    /// These very bytes, and the connection is closed.
    Raw(&'static str),
    /// The first bytes, and the second ones again and again.
    Endless(&'static str, &'static str),
    /// Close the connection and take no other: the server is gone.
    Die,
    /// Close the socket after some chunks.
    CutAfter(usize),
    /// RST after some chunks.
    ResetAfter(usize),
    /// A chunk that is no JSON.
    BadJson,
    /// A chunk that ends within a character, the rest of which never comes.
    HalfCharacter,
    /// An error object in place of a chunk.
    ErrorInStream,
    /// No usage event.
    NoUsage,
    /// A usage that counts so many prompt tokens more, and so many output tokens.
    Usage(u64, u64),
    /// No [DONE].
    NoDone,
    /// Neither a finish reason, nor usage, nor [DONE].
    NoEnd,
    /// Say nothing, ever.
    Hang,
    /// Hang after the first chunk.
    HangAfterFirst,
    /// Answer with a whole JSON object although a stream was asked for.
    NoStream,
    /// All chunks with empty text (a server without a tokenizer).
    Blank,
    /// Close the connection after each answer without saying so.
    CloseQuietly,
    /// Send the answer byte by byte.
    ByteByByte,
}

/// What the server's /metrics answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Metrics {
    /// 404.
    Absent,
    /// vLLM's names: what it does, a preemption for each generation request, and half of all prompts cached.
    Live,
    /// As `Live` for the first request, and then nothing, ever.
    LiveThenHang,
    /// 200 with a page.
    Page,
    /// 200 with the metrics of some other program.
    Foreign,
    /// Say nothing, ever.
    Hang,
}

/// How the mock's server is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    pub ttft: Duration,
    pub itl: Duration,
    pub fault: Fault,
    /// Only requests whose number (from 0) is a multiple of this have the fault.
    pub every: usize,
    /// Fields that are refused with 400.
    pub refuses: Vec<&'static str>,
    /// /tokenize: None = 404, Some(false) = an unusable 200, Some(true) = right.
    pub tokenize: Option<bool>,
    pub metrics: Metrics,
    /// Tokens around the text of a prompt.
    pub overhead: u64,
    /// Words that cost two tokens.
    pub long_words: Vec<&'static str>,
    /// Requests served at once; others wait.
    pub slots: usize,
    pub key: Option<&'static str>,
    /// Tokens are characters rather than words.
    pub characters: bool,
    /// What `usage` says of every prompt, whatever was sent.
    pub prompt_usage: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            ttft: Duration::ZERO,
            itl: Duration::ZERO,
            fault: Fault::None,
            every: 1,
            refuses: vec![],
            tokenize: None,
            metrics: Metrics::Absent,
            overhead: 1,
            long_words: vec![],
            slots: usize::MAX >> 4,
            key: None,
            characters: false,
            prompt_usage: None,
        }
    }
}

/// What the server has seen.
#[derive(Default)]
pub struct Seen {
    pub bodies: Mutex<Vec<Value>>,
    pub connections: AtomicUsize,
    pub tokenize_calls: AtomicUsize,
    pub metrics_calls: AtomicUsize,
    /// Head of the newest request for metrics.
    pub metrics_head: Mutex<String>,
    pub in_flight: AtomicUsize,
    pub most_in_flight: AtomicUsize,
    /// Generation requests of more than one token.
    pub requests: AtomicUsize,
    /// Take no other connection.
    pub gone: tokio::sync::Notify,
}

pub struct Mock {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
}

impl Mock {
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Prompts of the requests for more than one token.
    pub fn prompts(&self) -> Vec<Value> {
        let bodies = self.seen.bodies.lock().unwrap();
        bodies
            .iter()
            .filter(|b| b["max_tokens"] != 1)
            .map(|b| b["prompt"].clone())
            .collect()
    }
}

pub async fn mock(settings: Settings) -> Mock {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let server = Arc::new(Server {
        slots: tokio::sync::Semaphore::new(settings.slots),
        settings,
        seen: seen.clone(),
    });
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = server.seen.gone.notified() => return,
            };
            let Ok((socket, _)) = accepted else { return };
            server.seen.connections.fetch_add(1, SeqCst);
            let server = server.clone();
            tokio::spawn(async move {
                let _ = server.serve(socket).await;
            });
        }
    });
    Mock { address, seen }
}

/// A level's warnings but for those of a busy machine.
pub fn warnings(level: &powerband_bench::LevelResult) -> Vec<&String> {
    let busy = |w: &&String| !w.contains("of the reads");
    level.warnings.iter().filter(busy).collect()
}
