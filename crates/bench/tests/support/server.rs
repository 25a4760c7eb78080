//! The routes of the mock.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::stream::Wire;
use super::{Fault, Metrics, Seen, Settings};

pub struct Server {
    pub settings: Settings,
    pub seen: Arc<Seen>,
    pub slots: tokio::sync::Semaphore,
}

/// The end of a connection, wanted or not.
pub struct Closed;

impl From<std::io::Error> for Closed {
    fn from(_: std::io::Error) -> Self {
        Closed
    }
}

impl Server {
    pub async fn serve(&self, mut socket: TcpStream) -> Result<(), Closed> {
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

    pub async fn json(
        &self,
        socket: &mut TcpStream,
        status: u16,
        value: &Value,
    ) -> Result<(), Closed> {
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

    pub fn count(&self, prompt: &Value) -> u64 {
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
}

async fn read_more(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<(), Closed> {
    match socket.read_buf(buffer).await? {
        0 => Err(Closed),
        _ => Ok(()),
    }
}
