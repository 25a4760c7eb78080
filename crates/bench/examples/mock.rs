//! A server of known timing, to measure the load generator with: each answer's first token after a set
//! time, then a token at a set interval, each chunk prepared in advance. Usage:
//! `mock [--port 8099] [--ttft-ms 100] [--itl-ms 10] [--threads 1]`; zero for both times sends the whole
//! answer at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

struct Settings {
    ttft: Duration,
    itl: Duration,
}

fn flag(name: &str, default: f64) -> f64 {
    let mut args = std::env::args().skip_while(|a| a != name);
    args.nth(1).and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn main() -> std::io::Result<()> {
    let settings = Arc::new(Settings {
        ttft: Duration::from_secs_f64(flag("--ttft-ms", 100.0) / 1e3),
        itl: Duration::from_secs_f64(flag("--itl-ms", 10.0) / 1e3),
    });
    let port = flag("--port", 8099.0) as u16;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(flag("--threads", 1.0).max(1.0) as usize)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        loop {
            let (socket, _) = listener.accept().await?;
            tokio::spawn(serve(socket, settings.clone()));
        }
    })
}

/// The number behind `name` in a JSON body that we know the shape of.
fn number(body: &str, name: &str) -> Option<u64> {
    let (_, rest) = body.split_once(&format!("\"{name}\":"))?;
    let digits = rest.trim_start();
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}

async fn serve(mut socket: TcpStream, settings: Arc<Settings>) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(8192);
    loop {
        let (head_end, length) = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&buffer[..at]).to_ascii_lowercase();
                let length = head
                    .split_once("content-length:")
                    .map_or("0", |(_, rest)| rest.lines().next().unwrap_or("0"));
                break (at + 4, length.trim().parse::<usize>().unwrap_or(0));
            }
            if socket.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        while buffer.len() < head_end + length {
            if socket.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let arrived = Instant::now();
        let generates = buffer.starts_with(b"POST") && !buffer.starts_with(b"POST /tok");
        let chat = buffer.starts_with(b"POST /v1/chat");
        let lists = buffer.starts_with(b"GET /v1/models");
        let body = String::from_utf8_lossy(&buffer[head_end..head_end + length]).into_owned();
        buffer.drain(..head_end + length);
        if generates {
            answer(&mut socket, &settings, &body, chat, arrived).await?;
        } else {
            let (status, body) = match lists {
                true => (
                    "200 OK",
                    r#"{"object":"list","data":[{"id":"mock","object":"model"}]}"#,
                ),
                false => ("404 Not Found", "{}"),
            };
            let response = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            socket.write_all(response.as_bytes()).await?;
        }
    }
}

fn chunk(event: &str) -> String {
    let event = format!("data: {event}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len())
}

async fn answer(
    socket: &mut TcpStream,
    settings: &Settings,
    body: &str,
    chat: bool,
    arrived: Instant,
) -> std::io::Result<()> {
    let tokens = number(body, "max_tokens")
        .or(number(body, "max_completion_tokens"))
        .unwrap_or(16);
    // A word a token, and one in front: what a client can calibrate by.
    let prompt = body
        .split_once(if chat {
            "\"content\":\""
        } else {
            "\"prompt\":\""
        })
        .map_or("", |(_, rest)| rest.split('"').next().unwrap_or(""));
    let prompt_tokens = 1 + prompt.split(' ').count();
    let token = |reason: &str| {
        let content = if chat {
            r#""delta":{"content":" hello"}"#
        } else {
            r#""text":" hello""#
        };
        chunk(&format!(
            r#"{{"id":"cmpl-1","object":"text_completion","created":1,"model":"mock","choices":[{{"index":0,{content},"logprobs":null,"finish_reason":{reason}}}]}}"#
        ))
    };
    let (middle, last) = (token("null"), token("\"length\""));
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let end = chunk(&format!(
        r#"{{"id":"cmpl-1","object":"text_completion","created":1,"model":"mock","choices":[],"usage":{{"prompt_tokens":{prompt_tokens},"completion_tokens":{tokens},"total_tokens":{}}}}}"#,
        prompt_tokens as u64 + tokens
    )) + &chunk("[DONE]")
        + "0\r\n\r\n";
    if settings.ttft.is_zero() && settings.itl.is_zero() {
        let whole = [head, &middle.repeat(tokens as usize - 1), &last, &end].concat();
        return socket.write_all(whole.as_bytes()).await;
    }
    for i in 0..tokens {
        sleep_until(arrived + settings.ttft + settings.itl * i as u32).await;
        let piece = if i + 1 == tokens { &last } else { &middle };
        if i == 0 {
            socket.write_all([head, piece].concat().as_bytes()).await?;
        } else {
            socket.write_all(piece.as_bytes()).await?;
        }
    }
    socket.write_all(end.as_bytes()).await
}
