//! One bad request harms nobody else.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::{get, post, post_bytes, raw};
use crate::support::{Options, TestServer};

/// Bodies that were trouble for servers like this one, and their relatives.
fn corpus() -> Vec<(&'static str, String)> {
    let mut bodies: Vec<(&'static str, String)> = Vec::new();
    for body in [
        "",
        "{",
        "null",
        "[]",
        "\"x\"",
        "{}",
        "{\"prompt\":}",
        "{\"prompt\":\"\\ud800\"}",
        "\u{0}",
        "{\"prompt\":null}",
        r#"{"prompt":""}"#,
        r#"{"prompt":[]}"#,
        r#"{"prompt":[[]]}"#,
        r#"{"prompt":[-1]}"#,
        r#"{"prompt":[260]}"#,
        r#"{"prompt":[4294967295]}"#,
        r#"{"prompt":[1.5]}"#,
        r#"{"prompt":{"a":1}}"#,
        r#"{"prompt":["a",1]}"#,
        r#"{"prompt":"a","n":0}"#,
        r#"{"prompt":"a","n":1000000000}"#,
        r#"{"prompt":"a","best_of":1000000}"#,
        r#"{"prompt":"a","max_tokens":-1}"#,
        r#"{"prompt":"a","max_tokens":1e99}"#,
        r#"{"prompt":"a","logprobs":-2}"#,
        r#"{"prompt":"a","logprobs":1000000}"#,
        r#"{"prompt":"a","temperature":-1}"#,
        r#"{"prompt":"a","temperature":NaN}"#,
        r#"{"prompt":"a","top_p":0}"#,
        r#"{"prompt":"a","top_p":2}"#,
        r#"{"prompt":"a","top_k":-2}"#,
        r#"{"prompt":"a","stop":""}"#,
        r#"{"prompt":"a","stop":[[]]}"#,
        r#"{"prompt":"a","stop":{"a":1}}"#,
        r#"{"prompt":"a","stop_token_ids":[-5]}"#,
        r#"{"prompt":"a","logit_bias":{"99999999":1}}"#,
        r#"{"prompt":"a","logit_bias":[1]}"#,
        r#"{"prompt":"a","stream":"yes"}"#,
        r#"{"prompt":"a","seed":"x"}"#,
        r#"{"prompt":"a","model":5}"#,
        r#"{"prompt":"a","min_tokens":5,"max_tokens":2}"#,
        r#"{"prompt":"a","response_format":{"type":"json_schema"}}"#,
        r#"{"prompt":"a","repetition_penalty":0}"#,
    ] {
        bodies.push(("/v1/completions", body.to_owned()));
    }
    bodies.push((
        "/v1/completions",
        json!({"prompt": "a".repeat(100_000)}).to_string(),
    ));
    bodies.push((
        "/v1/completions",
        json!({"prompt": vec![1; 100_000]}).to_string(),
    ));
    bodies.push((
        "/v1/completions",
        json!({"prompt": vec!["a"; 100_000]}).to_string(),
    ));
    bodies.push((
        "/v1/completions",
        format!("{{\"prompt\":{}", "[".repeat(50_000)),
    ));
    bodies.push((
        "/v1/completions",
        format!("{{\"stop\":{}", "[".repeat(50_000)),
    ));
    for messages in [
        "null",
        "[]",
        "{}",
        "[1]",
        "[{}]",
        r#"[{"role":"user"}]"#,
        r#"[{"role":1,"content":"x"}]"#,
        r#"[{"role":"user","content":{}}]"#,
        r#"[{"role":"user","content":[{"type":"image_url"}]}]"#,
        r#"[{"role":"user","content":[1]}]"#,
        r#"[{"role":"assistant","tool_calls":"x"}]"#,
        r#"[{"role":"assistant","tool_calls":[{"function":{"arguments":"{{{"}}]}]"#,
    ] {
        bodies.push((
            "/v1/chat/completions",
            format!("{{\"messages\":{messages}}}"),
        ));
    }
    let user = r#""messages":[{"role":"user","content":"x"}]"#;
    for field in [
        r#""tools":"x""#,
        r#""tools":[1]"#,
        r#""tools":{"a":1}"#,
        r#""tool_choice":"auto""#,
        r#""top_logprobs":5"#,
        r#""logprobs":5"#,
        r#""chat_template":"{{ x }}""#,
        r#""chat_template_kwargs":{"a":1}"#,
        r#""response_format":{"type":"json_object"}"#,
        r#""max_completion_tokens":0"#,
    ] {
        bodies.push(("/v1/chat/completions", format!("{{{user},{field}}}")));
    }
    bodies.push(("/tokenize", "{\"prompt\":[1]}".to_owned()));
    bodies.push(("/detokenize", "{\"tokens\":\"x\"}".to_owned()));
    bodies.push(("/detokenize", "{\"tokens\":[260]}".to_owned()));
    bodies
}

#[tokio::test]
async fn a_thousand_bad_bodies_while_good_requests_stream() {
    let server = TestServer::plain().await;
    let good = json!({"prompt": "the good one ", "max_tokens": 300, "stream": true, "temperature": 0,
        "stream_options": {"include_usage": false}});
    let reference = post(server.address, "/v1/completions", &good)
        .await
        .stable();

    let address = server.address;
    let streams: Vec<_> = (0..4)
        .map(|_| {
            let (good, reference) = (good.clone(), reference.clone());
            tokio::spawn(async move {
                for _ in 0..3 {
                    assert_eq!(
                        post(address, "/v1/completions", &good).await.stable(),
                        reference
                    );
                }
            })
        })
        .collect();
    server.lever.pace(std::time::Duration::from_micros(500));
    let corpus = corpus();
    for at in 0..1000 {
        let (path, body) = &corpus[at % corpus.len()];
        let shown: String = body.chars().take(100).collect();
        let reply = raw(address, post_bytes(path, body, "")).await;
        assert!(
            [400, 429].contains(&reply.status),
            "{path} {shown}: {} {}",
            reply.status,
            reply.body
        );
        reply.error(reply.status);
    }
    for stream in streams {
        stream.await.unwrap();
    }
    assert_eq!(get(address, "/health").await.status, 200);
    server.idle().await;
}

/// Bodies that are good on one connection after bad ones on the same.
#[tokio::test]
async fn a_connection_survives_a_bad_request() {
    let server = TestServer::plain().await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..3 {
        for (body, status) in [("{", "400"), (r#"{"prompt":"a","max_tokens":1}"#, "200")] {
            let request =
                post_bytes("/v1/completions", body, "").replace("Connection: close\r\n", "");
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = vec![0; 4096];
            let length = socket.read(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{answer}"
            );
        }
    }
}

#[tokio::test]
async fn templates_cannot_run_for_ever_or_come_with_a_request() {
    let server = TestServer::start(Options {
        template: Some("{% for a in range(100000) %}{% for b in range(100000) %}{% set x = a %}{% endfor %}{% endfor %}"),
        ..Options::default()
    })
    .await;
    let user = json!([{"role": "user", "content": "x"}]);
    post(
        server.address,
        "/v1/chat/completions",
        &json!({"messages": user}),
    )
    .await
    .error(400);
    let own = json!({"messages": user, "chat_template": "{{ messages }}"});
    let message = post(server.address, "/v1/chat/completions", &own)
        .await
        .error(400);
    assert!(message.contains("--chat-template"), "{message}");

    let server = TestServer::start(Options {
        template: None,
        ..Options::default()
    })
    .await;
    let message = post(
        server.address,
        "/v1/chat/completions",
        &json!({"messages": user}),
    )
    .await
    .error(400);
    assert!(
        message.contains("--chat-template") && message.contains("/v1/completions"),
        "{message}"
    );
}

#[tokio::test]
async fn unknown_paths_and_methods() {
    let server = TestServer::plain().await;
    let reply = get(server.address, "/v1/nothing").await;
    insta::assert_snapshot!("not_found", reply.body);
    assert_eq!(reply.status, 404);
    let reply = get(server.address, "/v1/completions").await;
    insta::assert_snapshot!("method_not_allowed", reply.body);
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    let reply = post(
        server.address,
        "/v1/completions",
        &json!({"model": "gpt", "prompt": "x"}),
    )
    .await;
    assert_eq!(reply.status, 404);
    assert_eq!(reply.json()["error"]["code"], "model_not_found");
}
