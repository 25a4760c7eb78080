//! Oversized and slow HTTP.

use std::time::Duration;

use powerband_server::Limits;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::client::{call, get, post, post_bytes, raw, read_reply};
use crate::support::{Options, TestServer};

async fn small() -> TestServer {
    let mut options = Options::default();
    options.config.limits = Limits {
        body_bytes: 10_000,
        body_timeout: Duration::from_millis(200),
        header_timeout: Duration::from_millis(200),
        connections: 4,
        ..Limits::default()
    };
    TestServer::start(options).await
}

#[tokio::test]
async fn large_bodies_are_refused_however_they_come() {
    let server = small().await;
    let body = json!({"prompt": "a".repeat(20_000)});
    assert!(
        post(server.address, "/v1/completions", &body)
            .await
            .error(413)
            .contains("10000 bytes")
    );

    let mut chunked = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
        Transfer-Encoding: chunked\r\n\r\n".to_owned();
    for _ in 0..20 {
        chunked.push_str(&format!("3e8\r\n{}\r\n", "a".repeat(1000)));
    }
    chunked.push_str("0\r\n\r\n");
    raw(server.address, chunked).await.error(413);

    // A client that asks first is told before it sends.
    let ask = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n\
        Content-Length: 10001\r\n\r\n";
    raw(server.address, ask).await.error(413);

    let fits = json!({"prompt": "a".repeat(3_000), "max_tokens": 1});
    assert_eq!(
        post(server.address, "/v1/completions", &fits).await.status,
        200
    );
}

#[tokio::test]
async fn long_targets_and_headers_are_refused() {
    let server = TestServer::plain().await;
    let target = format!("/v1/models?{}", "a".repeat(9_000));
    call(server.address, "GET", &target, "").await.error(414);
    let header = format!("X-Long: {}\r\n", "a".repeat(40_000));
    call(server.address, "GET", "/health", &header)
        .await
        .error(431);
    // Beyond what is even read, the answer is bare.
    let header = format!("X-Long: {}\r\n", "a".repeat(400_000));
    assert_eq!(
        call(server.address, "GET", "/health", &header).await.status,
        431
    );
    assert_eq!(
        call(server.address, "GET", "/health", &"X: y\r\n".repeat(1000))
            .await
            .status,
        431
    );
    assert_eq!(
        call(server.address, "GET", "/health", &"X: y\r\n".repeat(100))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn deep_json_is_refused() {
    let server = TestServer::plain().await;
    for depth in [100, 100_000] {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let body = format!(
                "{{\"prompt\":\"x\",\"stop\":{}1{}}}",
                open.repeat(depth),
                close.repeat(depth)
            );
            let reply = raw(server.address, post_bytes("/v1/completions", &body, "")).await;
            assert!(reply.error(400).contains("nested too deeply"));
        }
    }
}

#[tokio::test]
async fn only_json_is_read() {
    let server = TestServer::plain().await;
    let body = "{\"prompt\":\"a\",\"max_tokens\":1}";
    for (kind, status) in [
        ("Content-Type: application/json; charset=utf-8\r\n", 200),
        ("Content-Type: text/plain\r\n", 415),
        ("Content-Type: application/x-www-form-urlencoded\r\n", 415),
        ("", 415),
    ] {
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{kind}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(raw(server.address, request).await.status, status, "{kind}");
    }
}

/// Clients that send slowly, or nothing, do not keep their connections.
#[tokio::test]
async fn slow_clients_are_let_go() {
    let server = small().await;
    let mut slow = Vec::new();
    for sent in [
        "",
        "GET /health HTT",
        "GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    ] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(sent.as_bytes()).await.unwrap();
        slow.push(socket);
    }
    for mut socket in slow {
        // Ends when the server closes.
        read_reply(&mut socket).await;
    }
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket
        .write_all(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        .await
        .unwrap();
    read_reply(&mut socket).await.error(408);
    assert_eq!(get(server.address, "/health").await.status, 200);
}

#[tokio::test]
async fn connections_are_bounded() {
    let mut options = Options::default();
    options.config.limits.connections = 3;
    let server = TestServer::start(options).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(TcpStream::connect(server.address).await.unwrap());
    }
    let mut fourth = TcpStream::connect(server.address).await.unwrap();
    let reply = read_reply(&mut fourth).await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.header("retry-after"), Some("1"));
    drop(open);
    for _ in 0..1000 {
        if get(server.address, "/health").await.status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("closed connections still count");
}
