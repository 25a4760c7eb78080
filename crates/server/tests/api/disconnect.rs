//! A client that leaves takes its work with it.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::TestServer;
use crate::support::client::{get, post, post_bytes};

/// More than any test waits for.
const ENDLESS: usize = 4000;

async fn open(server: &TestServer, body: &serde_json::Value) -> TcpStream {
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let request = post_bytes("/v1/completions", &body.to_string(), "");
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

async fn aborted(server: &TestServer) -> f64 {
    let page = get(server.address, "/metrics").await.body;
    let line = page
        .lines()
        .find(|line| line.contains("finished_reason=\"abort\""))
        .unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn leaving_at_any_token_of_a_stream_cancels_it() {
    let server = TestServer::plain().await;
    server.lever.pace(std::time::Duration::from_micros(300));
    let body = json!({"prompt": "abcdefg", "max_tokens": ENDLESS, "stream": true});
    for tokens in 0..25 {
        let mut socket = open(&server, &body).await;
        let mut seen = Vec::new();
        while seen.windows(6).filter(|window| window == b"data: ").count() < tokens {
            let mut bytes = [0; 512];
            let length = socket.read(&mut bytes).await.unwrap();
            assert_ne!(length, 0, "the server closed after {tokens} tokens");
            seen.extend_from_slice(&bytes[..length]);
        }
        if tokens == 0 {
            server.until("started", |stats| stats.running == 1).await;
        }
        let before = server.engine.stats().generation_tokens;
        drop(socket);
        server.idle().await;
        let after = server.engine.stats().generation_tokens;
        assert!(
            after < before + ENDLESS as u64 / 2,
            "it went on for {} tokens",
            after - before
        );
        assert_eq!(aborted(&server).await, tokens as f64 + 1.0);
    }
    server.lever.pace(std::time::Duration::ZERO);
    let reply = post(
        server.address,
        "/v1/completions",
        &json!({"prompt": "abc", "max_tokens": 6}),
    )
    .await
    .json();
    assert_eq!(reply["choices"][0]["text"], "abcabc");
}

#[tokio::test]
async fn leaving_before_a_whole_answer_cancels_it_too() {
    let server = TestServer::plain().await;
    server.lever.pace(std::time::Duration::from_micros(300));
    for (n, stream) in [(1, false), (3, false), (3, true)] {
        let body = json!({"prompt": "abc", "max_tokens": ENDLESS, "n": n, "stream": stream});
        let socket = open(&server, &body).await;
        server.until("running", |stats| stats.running == n).await;
        drop(socket);
        server.idle().await;
    }
    assert_eq!(aborted(&server).await, 7.0);
    assert!(server.engine.stats().generation_tokens < ENDLESS as u64);
}

/// A client that leaves while its request waits frees its place.
#[tokio::test]
async fn leaving_the_queue() {
    let server = TestServer::plain().await;
    server.lever.hold();
    let body = json!({"prompt": "abc", "max_tokens": ENDLESS});
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(open(&server, &body).await);
    }
    server
        .until("full", |stats| stats.running + stats.waiting >= 8)
        .await;
    drop(sockets);
    server.lever.release();
    server.idle().await;
    let reply = post(
        server.address,
        "/v1/completions",
        &json!({"prompt": "abc", "max_tokens": 3}),
    )
    .await
    .json();
    assert_eq!(reply["choices"][0]["text"], "abc");
}
