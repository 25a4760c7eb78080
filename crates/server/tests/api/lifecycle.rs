//! Start, overload, failure and the way down.

use std::time::Duration;

use powerband_server::{ServerConfig, ServerError, bind};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::support::client::{Reply, get, post};
use crate::support::{Options, TestServer};

fn spawn(server: &TestServer, body: serde_json::Value) -> JoinHandle<Reply> {
    let address = server.address;
    tokio::spawn(async move { post(address, "/v1/completions", &body).await })
}

#[tokio::test]
async fn a_port_in_use_is_told_with_a_way_out() {
    assert_eq!(ServerConfig::default().host, "127.0.0.1");
    let first = bind(&ServerConfig {
        port: 0,
        ..ServerConfig::default()
    })
    .await
    .unwrap();
    assert!(first.local_addr().ip().is_loopback());
    let port = first.local_addr().port();
    assert_ne!(port, 0);
    let error = bind(&ServerConfig {
        port,
        ..ServerConfig::default()
    })
    .await
    .unwrap_err();
    assert!(matches!(error, ServerError::PortInUse { .. }));
    let text = error.to_string();
    assert!(
        text.contains("--port") && text.contains(&port.to_string()),
        "{text}"
    );

    let elsewhere = ServerConfig {
        host: "192.0.2.1".to_owned(),
        port: 0,
        ..ServerConfig::default()
    };
    let text = bind(&elsewhere).await.unwrap_err().to_string();
    assert!(
        text.contains("--host") && text.contains("192.0.2.1"),
        "{text}"
    );
}

/// Requests beyond what can run and wait are refused at once, and a place comes back when its request
/// ends.
#[tokio::test]
async fn a_full_server_refuses_at_arrival() {
    let mut options = Options::default();
    options.engine.max_num_seqs = 1;
    options.engine.max_queue = 2;
    let server = TestServer::start(options).await;
    server.lever.hold();
    let body = json!({"prompt": "abc", "max_tokens": 3});
    let mut taken = vec![spawn(&server, body.clone())];
    server
        .until("taken", |stats| stats.running + stats.waiting == 1)
        .await;
    for taken_so_far in 2..=3 {
        taken.push(spawn(&server, body.clone()));
        server
            .until("taken", |stats| {
                stats.running + stats.waiting == taken_so_far
            })
            .await;
    }
    for _ in 0..5 {
        let reply = post(server.address, "/v1/completions", &body).await;
        reply.error(429);
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert_eq!(reply.json()["error"]["code"], "queue_full");
    }
    // Neither health nor metrics wait behind the queue.
    assert_eq!(get(server.address, "/health").await.status, 200);
    let page = get(server.address, "/metrics").await.body;
    assert!(
        page.contains("powerband:requests_rejected_total{engine=\"0\",model_name=\"echo\"} 5\n"),
        "{page}"
    );

    server.lever.release();
    for task in taken {
        assert_eq!(task.await.unwrap().status, 200);
    }
    server.idle().await;
    assert_eq!(
        post(server.address, "/v1/completions", &body).await.status,
        200
    );
}

#[tokio::test]
async fn a_failed_engine_is_an_error_and_not_healthy() {
    let server = TestServer::plain().await;
    server.lever.hold();
    let whole = spawn(&server, json!({"prompt": "abc", "max_tokens": 30}));
    server
        .until("taken", |stats| stats.running + stats.waiting == 1)
        .await;
    server.lever.break_down();
    server.lever.release();
    let message = whole.await.unwrap().error(500);
    assert!(message.contains("broken on purpose"), "{message}");
    get(server.address, "/health").await.error(503);
    let reply = post(server.address, "/v1/completions", &json!({"prompt": "abc"})).await;
    reply.error(503);
    assert_eq!(reply.header("retry-after"), Some("1"));
}

#[tokio::test]
async fn a_stream_that_breaks_says_so() {
    let server = TestServer::plain().await;
    server.lever.pace(Duration::from_millis(1));
    let stream = spawn(
        &server,
        json!({"prompt": "abc", "max_tokens": 3000, "stream": true}),
    );
    server
        .until("streaming", |stats| stats.generation_tokens > 3)
        .await;
    server.lever.break_down();
    let events = stream.await.unwrap().events();
    let message = events.last().unwrap()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(message.contains("broken on purpose"), "{message}");
}

#[tokio::test]
async fn running_requests_finish_before_the_server_ends() {
    let mut server = TestServer::plain().await;
    server.lever.hold();
    let streams: Vec<_> = [true, false]
        .map(|stream| {
            spawn(
                &server,
                json!({"prompt": "abc", "max_tokens": 6, "stream": stream}),
            )
        })
        .into();
    server
        .until("taken", |stats| stats.running + stats.waiting == 2)
        .await;
    server.stop();
    // Told at once, while work is still running.
    for _ in 0..1000 {
        if get(server.address, "/health").await.status == 503 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    get(server.address, "/health").await.error(503);
    post(server.address, "/v1/completions", &json!({"prompt": "abc"}))
        .await
        .error(503);

    server.lever.release();
    let mut texts = Vec::new();
    for stream in streams {
        let reply = stream.await.unwrap();
        texts.push(match reply.header("content-type") {
            Some("application/json") => reply.json()["choices"][0]["text"]
                .as_str()
                .unwrap()
                .to_owned(),
            _ => reply.streamed_text(),
        });
    }
    assert_eq!(texts, ["abcabc", "abcabc"]);
    let address = server.address;
    assert!(server.ended().await.is_ok());
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn what_does_not_finish_in_time_is_aborted_and_told() {
    let mut server = TestServer::start(Options {
        drain: Duration::from_millis(50),
        ..Options::default()
    })
    .await;
    server.lever.pace(Duration::from_millis(5));
    let whole = spawn(&server, json!({"prompt": "abc", "max_tokens": 4000}));
    let stream = spawn(
        &server,
        json!({"prompt": "abc", "max_tokens": 4000, "stream": true}),
    );
    server
        .until("taken", |stats| stats.running + stats.waiting == 2)
        .await;
    server.stop();
    let whole = whole.await.unwrap().json();
    assert_eq!(whole["choices"][0]["finish_reason"], "abort");
    let events = stream.await.unwrap().events();
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "abort"
    );
    assert!(server.ended().await.is_ok());
}
