//! A client on a bare socket: it can send what no proper client would.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Far above what any step of a test takes: a hang fails instead of lasting.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The message of an error in OpenAI's shape, checked for that shape.
    #[track_caller]
    pub fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        let body = self.json();
        let error = body["error"].as_object().expect("an error object");
        for key in ["message", "type", "param", "code"] {
            assert!(error.contains_key(key), "{key} is missing: {}", self.body);
        }
        error["message"].as_str().expect("a message").to_owned()
    }

    /// The events of a stream, `[DONE]` checked and left out.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.body);
        assert_eq!(
            self.header("content-type"),
            Some("text/event-stream; charset=utf-8")
        );
        let events: Vec<&str> = self
            .body
            .split_terminator("\n\n")
            .map(|event| event.strip_prefix("data: ").expect("an event"))
            .collect();
        let (done, events) = events.split_last().expect("events");
        assert_eq!(*done, "[DONE]");
        events
            .iter()
            .map(|event| serde_json::from_str(event).expect("JSON"))
            .collect()
    }

    /// The text of a stream.
    pub fn streamed_text(&self) -> String {
        self.events()
            .iter()
            .filter_map(|event| {
                let choice = &event["choices"][0];
                choice["text"]
                    .as_str()
                    .or(choice["delta"]["content"].as_str())
                    .map(str::to_owned)
            })
            .collect()
    }

    /// The body with the id and the time replaced.
    pub fn stable(&self) -> String {
        let mut body = self.body.clone();
        for (before, until, name) in [
            ("\"id\":\"cmpl-", "\"", "ID"),
            ("\"id\":\"chatcmpl-", "\"", "ID"),
            ("\"created\":", ",", "TIME"),
        ] {
            let mut out = String::new();
            let mut rest = body.as_str();
            while let Some(at) = rest.find(before) {
                let (head, tail) = rest.split_at(at + before.len());
                let end = tail.find(until).expect("an end");
                out.push_str(head);
                out.push_str(name);
                rest = &tail[end..];
            }
            out.push_str(rest);
            body = out;
        }
        body
    }
}

/// Sends bytes and reads until the server closes.
pub async fn raw(address: SocketAddr, request: impl AsRef<[u8]>) -> Reply {
    let mut socket = TcpStream::connect(address).await.expect("connects");
    // A server that refuses early may close before all is sent.
    let _ = socket.write_all(request.as_ref()).await;
    read_reply(&mut socket).await
}

/// Reads until the server closes; a connection that ends without an answer has status 0.
pub async fn read_reply(socket: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut bytes))
        .await
        .expect("the server closes");
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Reply {
    let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        assert!(bytes.is_empty(), "half a head");
        return Reply {
            status: 0,
            headers: Vec::new(),
            body: String::new(),
        };
    };
    let head = String::from_utf8(bytes[..at].to_vec()).expect("a head");
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .expect("a status");
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").expect("a header"))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut body = bytes[at + 4..].to_vec();
    if headers
        .iter()
        .any(|(name, value)| name == "transfer-encoding" && value == "chunked")
    {
        body = dechunk(&body);
    }
    Reply {
        status: status.parse().expect("a number"),
        headers,
        body: String::from_utf8(body).expect("UTF-8"),
    }
}

fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let end = bytes
            .windows(2)
            .position(|window| window == b"\r\n")
            .expect("a whole body");
        let size = std::str::from_utf8(&bytes[..end]).expect("a size");
        let size = usize::from_str_radix(size, 16).expect("hexadecimal");
        if size == 0 {
            return out;
        }
        out.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
}

/// The bytes of a POST.
pub fn post_bytes(path: &str, body: &str, headers: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub async fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    raw(address, post_bytes(path, &body.to_string(), "")).await
}

/// Any method without a body; `headers` end in CRLF.
pub async fn call(address: SocketAddr, method: &str, target: &str, headers: &str) -> Reply {
    let request =
        format!("{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n");
    raw(address, request).await
}

pub async fn get(address: SocketAddr, path: &str) -> Reply {
    call(address, "GET", path, "").await
}
