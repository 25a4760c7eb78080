//! The mock's answers, token by token, with their faults.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::Fault;
use super::server::{Closed, Server};

impl Server {
    pub async fn stream(
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
        let prompt_tokens = self.settings.prompt_usage.unwrap_or(prompt_tokens);
        let (prompt_counted, counted) = match fault {
            Fault::Usage(more, tokens) => (prompt_tokens + more, tokens),
            _ => (prompt_tokens, max_tokens),
        };
        let usage = json!({"prompt_tokens": prompt_counted, "completion_tokens": counted, "total_tokens": prompt_counted + counted});
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
            Fault::Endless(start, again) => {
                socket.write_all(start.as_bytes()).await?;
                let piece = again.repeat(4096 / again.len());
                loop {
                    socket.write_all(piece.as_bytes()).await?;
                }
            }
            Fault::Die => {
                self.seen.gone.notify_one();
                // The socket that takes connections has to be closed first.
                tokio::task::yield_now().await;
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

pub struct Wire<'a> {
    pub socket: &'a mut TcpStream,
    pub slow: bool,
}

impl Wire<'_> {
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Closed> {
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

    pub async fn event(&mut self, value: &Value) -> Result<(), Closed> {
        self.data(value.to_string().as_bytes()).await
    }

    async fn data(&mut self, data: &[u8]) -> Result<(), Closed> {
        let event = [b"data: ", data, b"\n\n"].concat();
        let chunk = [format!("{:x}\r\n", event.len()).as_bytes(), &event, b"\r\n"].concat();
        self.send(&chunk).await
    }
}
