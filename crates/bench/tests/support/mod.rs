//! A server of known timing on a plain socket, with faults on request.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

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
        while let Ok((socket, _)) = listener.accept().await {
            server.seen.connections.fetch_add(1, SeqCst);
            let server = server.clone();
            tokio::spawn(async move {
                let _ = server.serve(socket).await;
            });
        }
    });
    Mock { address, seen }
}

struct Server {
    settings: Settings,
    seen: Arc<Seen>,
    slots: tokio::sync::Semaphore,
}

/// The end of a connection, wanted or not.
struct Closed;

impl From<std::io::Error> for Closed {
    fn from(_: std::io::Error) -> Self {
        Closed
    }
}

impl Server {
    async fn serve(&self, mut socket: TcpStream) -> Result<(), Closed> {
        socket.set_nodelay(true)?;
        let mut buffer = Vec::new();
        loop {
            let head_end = loop {
                if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                    break at + 4;
                }
                read_more(&mut socket, &mut buffer).await?;
            };
            let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
            let length = head
                .lines()
                .find_map(|l| {
                    l.to_ascii_lowercase()
                        .strip_prefix("content-length:")
                        .map(|v| v.trim().parse::<usize>().unwrap())
                })
                .unwrap_or(0);
            while buffer.len() < head_end + length {
                read_more(&mut socket, &mut buffer).await?;
            }
            let body: Value =
                serde_json::from_slice(&buffer[head_end..head_end + length]).unwrap_or(Value::Null);
            buffer.drain(..head_end + length);
            let path = head.split(' ').nth(1).unwrap().to_owned();
            if self
                .settings
                .key
                .is_some_and(|key| !head.contains(&format!("Bearer {key}")))
            {
                self.json(
                    &mut socket,
                    401,
                    &json!({"error": {"message": "invalid key"}}),
                )
                .await?;
                continue;
            }
            match path.as_str() {
                "/v1/models" => {
                    self.json(
                        &mut socket,
                        200,
                        &json!({"object": "list", "data": [{"id": "mock"}]}),
                    )
                    .await?
                }
                "/tokenize" => self.tokenize(&mut socket, &body).await?,
                "/metrics" => {
                    *self.seen.metrics_head.lock().unwrap() = head.clone();
                    self.metrics(&mut socket).await?
                }
                "/v1/completions" | "/v1/chat/completions" => {
                    self.generate(&mut socket, &body).await?
                }
                "/v1/responses" => self.respond(&mut socket, &body).await?,
                "/v1/embeddings" => self.embed(&mut socket, &body).await?,
                _ => {
                    self.json(
                        &mut socket,
                        404,
                        &json!({"error": {"message": "no such route"}}),
                    )
                    .await?
                }
            }
        }
    }

    async fn metrics(&self, socket: &mut TcpStream) -> Result<(), Closed> {
        let calls = self.seen.metrics_calls.fetch_add(1, SeqCst);
        let in_flight = self.seen.in_flight.load(SeqCst);
        let running = in_flight.min(self.settings.slots);
        let requests = self.seen.requests.load(SeqCst);
        let text = match self.settings.metrics {
            Metrics::Absent => return self.json(socket, 404, &json!({})).await,
            Metrics::LiveThenHang if calls > 0 => return std::future::pending().await,
            Metrics::Hang => return std::future::pending().await,
            Metrics::Page => "<!doctype html><p>hello</p>".to_owned(),
            Metrics::Foreign => "# TYPE up gauge\nup 1\n".to_owned(),
            Metrics::Live | Metrics::LiveThenHang => format!(
                "vllm:num_requests_running{{engine=\"0\"}} {running}.0\n\
                 vllm:num_requests_waiting{{engine=\"0\"}} {}.0\n\
                 vllm:kv_cache_usage_perc{{engine=\"0\"}} 0.5\n\
                 vllm:num_preemptions_total{{engine=\"0\"}} {}.0\n\
                 vllm:prefix_cache_queries_total {}\nvllm:prefix_cache_hits_total {}\n",
                in_flight - running,
                100 + requests,
                1000 + 32 * requests,
                16 * requests,
            ),
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
        socket.write_all((head + &text).as_bytes()).await?;
        Ok(())
    }

    async fn json(&self, socket: &mut TcpStream, status: u16, value: &Value) -> Result<(), Closed> {
        let body = value.to_string();
        let extra = if status == 429 {
            "retry-after: 2\r\n"
        } else {
            ""
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}content-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all((head + &body).as_bytes()).await?;
        Ok(())
    }

    fn count(&self, prompt: &Value) -> u64 {
        let text = match prompt {
            Value::Array(ids) => return ids.len() as u64,
            other => other.as_str().unwrap_or_default(),
        };
        if self.settings.characters {
            return self.settings.overhead + text.chars().count() as u64;
        }
        let cost = |w: &str| 1 + u64::from(self.settings.long_words.contains(&w));
        self.settings.overhead + text.split(' ').map(cost).sum::<u64>()
    }

    async fn tokenize(&self, socket: &mut TcpStream, body: &Value) -> Result<(), Closed> {
        self.seen.tokenize_calls.fetch_add(1, SeqCst);
        match self.settings.tokenize {
            None => {
                self.json(socket, 404, &json!({"detail": "Not Found"}))
                    .await
            }
            Some(false) => self.json(socket, 200, &json!({"tokens": []})).await,
            Some(true) => {
                let count = self.count(&body["prompt"]);
                self.json(socket, 200, &json!({"count": count, "max_model_len": 4096, "tokens": vec![0; count as usize]})).await
            }
        }
    }

    /// `/v1/embeddings`: a vector after `ttft`.
    async fn embed(&self, socket: &mut TcpStream, body: &Value) -> Result<(), Closed> {
        self.seen.bodies.lock().unwrap().push(body.clone());
        tokio::time::sleep(self.settings.ttft).await;
        let tokens = self.count(&body["input"]);
        let data = match self.settings.fault {
            Fault::NoEnd => json!([]),
            _ => json!([{"object": "embedding", "index": 0, "embedding": vec![0.25; 64]}]),
        };
        self.json(
            socket,
            200,
            &json!({"object": "list", "data": data, "model": "mock",
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}),
        )
        .await
    }

    /// `/v1/responses`: the first two tokens are reasoning.
    async fn respond(&self, socket: &mut TcpStream, body: &Value) -> Result<(), Closed> {
        self.seen.bodies.lock().unwrap().push(body.clone());
        let (prompt, tokens) = (
            self.count(&body["input"]),
            body["max_output_tokens"].as_u64().unwrap(),
        );
        let mut wire = Wire {
            socket,
            slow: false,
        };
        wire.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await?;
        wire.event(&json!({"type": "response.created", "response": {"status": "in_progress", "error": null, "usage": null}})).await?;
        tokio::time::sleep(self.settings.ttft).await;
        for i in 0..tokens {
            let part = if i < 2 {
                "reasoning_text"
            } else {
                "output_text"
            };
            wire.event(&json!({"type": format!("response.{part}.delta"), "sequence_number": i, "delta": "x"})).await?;
            tokio::time::sleep(self.settings.itl).await;
        }
        let last = if self.settings.fault == Fault::ErrorInStream && tokens != 16 {
            json!({"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error", "message": "no luck"}}})
        } else {
            json!({"type": "response.incomplete", "response": {"status": "incomplete", "error": null,
                "incomplete_details": {"reason": "max_output_tokens"},
                "usage": {"input_tokens": prompt, "input_tokens_details": {"cached_tokens": 1}, "output_tokens": tokens,
                          "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": prompt + tokens}}})
        };
        wire.event(&last).await?;
        wire.send(b"0\r\n\r\n").await
    }

    async fn generate(&self, socket: &mut TcpStream, body: &Value) -> Result<(), Closed> {
        self.seen.bodies.lock().unwrap().push(body.clone());
        let max_tokens = body["max_tokens"].as_u64().unwrap();
        // Test requests (one token) are answered well, so that the faults hit the level.
        let fault = if max_tokens == 1 {
            Fault::None
        } else {
            let number = self.seen.requests.fetch_add(1, SeqCst);
            if number.is_multiple_of(self.settings.every) {
                self.settings.fault.clone()
            } else {
                Fault::None
            }
        };
        if let Some(field) = self
            .settings
            .refuses
            .iter()
            .find(|f| body.get(**f).is_some())
        {
            let message = format!("Unrecognized request argument supplied: {field}");
            return self
                .json(socket, 400, &json!({"error": {"message": message}}))
                .await;
        }
        if body["model"] != "mock" {
            return self
                .json(
                    socket,
                    404,
                    &json!({"error": {"message": "The model does not exist."}}),
                )
                .await;
        }
        let now = self.seen.in_flight.fetch_add(1, SeqCst) + 1;
        self.seen.most_in_flight.fetch_max(now, SeqCst);
        let result = self.stream(socket, body, max_tokens, fault).await;
        self.seen.in_flight.fetch_sub(1, SeqCst);
        result
    }

    async fn stream(
        &self,
        socket: &mut TcpStream,
        body: &Value,
        max_tokens: u64,
        fault: Fault,
    ) -> Result<(), Closed> {
        let chat = body.get("messages").is_some();
        let prompt_tokens = match body["messages"].as_array() {
            // What stands around a message counts each time.
            Some(messages) => messages.iter().map(|m| self.count(&m["content"])).sum(),
            None => self.count(&body["prompt"]),
        };
        let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": max_tokens, "total_tokens": prompt_tokens + max_tokens});
        match fault {
            Fault::Status(status, message) => {
                return self
                    .json(socket, status, &json!({"error": {"message": message}}))
                    .await;
            }
            Fault::RetryAfter => {
                return self
                    .json(socket, 429, &json!({"error": {"message": "slow down"}}))
                    .await;
            }
            Fault::Raw(answer) => {
                socket.write_all(answer.as_bytes()).await?;
                return Err(Closed);
            }
            Fault::Hang => std::future::pending::<()>().await,
            _ if fault == Fault::NoStream || body["stream"] == false => {
                let answer = json!({"choices": [{"text": "all at once", "finish_reason": "length"}], "usage": usage});
                return self.json(socket, 200, &answer).await;
            }
            _ => {}
        }
        let _slot = self.slots.acquire().await.unwrap();
        let mut wire = Wire {
            socket,
            slow: fault == Fault::ByteByByte,
        };
        wire.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await?;
        if chat {
            wire.event(
                &json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}),
            )
            .await?;
        }
        let start = tokio::time::Instant::now();
        for i in 0..max_tokens {
            let due = start + self.settings.ttft + self.settings.itl * i as u32;
            if due > tokio::time::Instant::now() {
                tokio::time::sleep_until(due).await;
            }
            match fault {
                Fault::CutAfter(n) if i as usize == n => return Err(Closed),
                Fault::ResetAfter(n) if i as usize == n => {
                    wire.socket.set_zero_linger()?;
                    return Err(Closed);
                }
                Fault::HangAfterFirst if i == 1 => std::future::pending::<()>().await,
                Fault::BadJson if i == 2 => wire.data(b"{\"choices\": [{\"te").await?,
                Fault::HalfCharacter if i == 2 => {
                    wire.data(b"{\"choices\":[{\"index\":0,\"text\":\"\xe4\xb8\"}]}")
                        .await?
                }
                Fault::ErrorInStream if i == 2 => {
                    wire.event(&json!({"error": {"message": "out of memory"}}))
                        .await?
                }
                _ => {
                    let last = i + 1 == max_tokens && fault != Fault::NoEnd;
                    let reason = if last { json!("length") } else { Value::Null };
                    let text = if fault == Fault::Blank { "" } else { " wörd" };
                    let choice = if chat {
                        json!({"index": 0, "delta": {"content": text}, "finish_reason": reason})
                    } else {
                        json!({"index": 0, "text": text, "finish_reason": reason, "logprobs": null})
                    };
                    wire.event(&json!({"id": "cmpl-1", "object": "text_completion", "model": "mock", "choices": [choice]})).await?;
                }
            }
        }
        if fault == Fault::NoEnd {
            return wire.send(b"0\r\n\r\n").await;
        }
        if fault != Fault::NoUsage && body["stream_options"]["include_usage"] == true {
            wire.event(&json!({"choices": [], "usage": usage})).await?;
        }
        if fault != Fault::NoDone {
            wire.data(b"[DONE]").await?;
        }
        wire.send(b"0\r\n\r\n").await?;
        if fault == Fault::CloseQuietly {
            Err(Closed)
        } else {
            Ok(())
        }
    }
}

async fn read_more(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<(), Closed> {
    match socket.read_buf(buffer).await? {
        0 => Err(Closed),
        _ => Ok(()),
    }
}

struct Wire<'a> {
    socket: &'a mut TcpStream,
    slow: bool,
}

impl Wire<'_> {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), Closed> {
        if self.slow {
            for byte in bytes {
                self.socket.write_all(&[*byte]).await?;
                tokio::task::yield_now().await;
            }
        } else {
            self.socket.write_all(bytes).await?;
        }
        Ok(())
    }

    async fn event(&mut self, value: &Value) -> Result<(), Closed> {
        self.data(value.to_string().as_bytes()).await
    }

    async fn data(&mut self, data: &[u8]) -> Result<(), Closed> {
        let event = [b"data: ", data, b"\n\n"].concat();
        let chunk = [format!("{:x}\r\n", event.len()).as_bytes(), &event, b"\r\n"].concat();
        self.send(&chunk).await
    }
}
