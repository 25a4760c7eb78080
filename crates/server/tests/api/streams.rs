//! Server-sent events.

use insta::assert_snapshot;
use serde_json::json;

use crate::support::TestServer;
use crate::support::client::post;

#[tokio::test]
async fn a_stream_of_completions() {
    let server = TestServer::plain().await;
    let body = json!({"prompt": "abc", "max_tokens": 3, "stream": true, "stream_options": {"include_usage": true}});
    let reply = post(server.address, "/v1/completions", &body).await;
    assert_snapshot!("completion_stream", reply.stable());
    assert_eq!(reply.events().len(), 4);
}

#[tokio::test]
async fn a_stream_of_chat() {
    let server = TestServer::plain().await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let reply = post(server.address, "/v1/chat/completions", &body).await;
    assert_snapshot!("chat_stream", reply.stable());
}

/// One event a token, whatever its text: clients time and count them.
#[tokio::test]
async fn characters_in_parts_come_whole_and_no_token_is_left_out() {
    let server = TestServer::plain().await;
    let text = "a€é😀";
    let body = json!({"prompt": text, "max_tokens": 2 * text.len(), "stream": true});
    let reply = post(server.address, "/v1/completions", &body).await;
    assert_eq!(reply.events().len(), 2 * text.len());
    assert_eq!(reply.streamed_text(), format!("{text}{text}"));
    // Cut inside a character: what is there is shown as broken.
    let body = json!({"prompt": text, "max_tokens": 2, "stream": true});
    let reply = post(server.address, "/v1/completions", &body).await;
    assert_eq!(reply.streamed_text(), "a\u{fffd}");
}

#[tokio::test]
async fn streamed_and_whole_answers_are_the_same() {
    let server = TestServer::plain().await;
    for more in [
        json!({}),
        json!({"stop": ["db", "de"]}),
        json!({"stop": ["cde"], "include_stop_str_in_output": true}),
        json!({"stop": ["never there", "f"]}),
        json!({"echo": true}),
        json!({"stop_token_ids": [101]}),
        json!({"logprobs": 3}),
        json!({"n": 3}),
    ] {
        let mut body = json!({"prompt": "abcdef", "max_tokens": 20});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let whole = post(server.address, "/v1/completions", &body).await.json();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let events = post(server.address, "/v1/completions", &body)
            .await
            .events();
        for choice in whole["choices"].as_array().unwrap() {
            let parts: Vec<_> = events
                .iter()
                .filter_map(|event| event["choices"].get(0))
                .filter(|part| part["index"] == choice["index"])
                .collect();
            let text: String = parts
                .iter()
                .map(|part| part["text"].as_str().unwrap())
                .collect();
            assert_eq!(choice["text"], text, "{more}");
            let last = parts.last().unwrap();
            assert_eq!(last["finish_reason"], choice["finish_reason"], "{more}");
            assert_eq!(last["stop_reason"], choice["stop_reason"], "{more}");
            for key in ["tokens", "token_logprobs", "text_offset", "top_logprobs"] {
                let streamed: Vec<_> = parts
                    .iter()
                    .filter_map(|part| part["logprobs"][key].as_array())
                    .flatten()
                    .cloned()
                    .collect();
                let whole = choice["logprobs"][key]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                assert_eq!(streamed, whole, "{more} {key}");
            }
        }
        let usage = &events.last().unwrap()["usage"];
        for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(usage[key], whole["usage"][key], "{more}");
        }
    }
    server.idle().await;
}

/// Text is sent as soon as it can no longer become a stop string.
#[tokio::test]
async fn stop_strings_hold_back_no_more_than_they_must() {
    let server = TestServer::plain().await;
    let body = json!({"prompt": "xENxEND", "max_tokens": 20, "stream": true, "stop": "END"});
    let reply = post(server.address, "/v1/completions", &body).await;
    let texts: Vec<String> = reply
        .events()
        .iter()
        .map(|event| event["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(texts, ["x", "", "", "ENx", "", "", ""]);
}

#[tokio::test]
async fn many_streams_at_once_do_not_mix() {
    let server = TestServer::plain().await;
    let address = server.address;
    let streams = (0..32).map(|at| async move {
        let prompt = format!("<{at}>");
        let body = json!({"prompt": prompt, "max_tokens": 60, "stream": true});
        let reply = post(address, "/v1/completions", &body).await;
        let expected: String = prompt.chars().cycle().take(60).collect();
        assert_eq!(reply.streamed_text(), expected);
    });
    // Futures of one task: the sockets are all open at once.
    futures::future::join_all(streams).await;
    server.idle().await;
}
