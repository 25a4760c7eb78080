//! Every number and list in a body has a bound; what is not built is refused by name.

use serde_json::{Value, json};

use crate::support::client::{post, post_bytes, raw};
use crate::support::{CONTEXT, Options, TestServer, VOCAB};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Literals as they stand in a body: some of them no JSON library would write.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "2147483648",
    "-2147483649",
    "9223372036854775808",
    "18446744073709551616",
    "1e309",
    "-1e309",
    "NaN",
    "0.5",
    "1e30",
];

fn body(path: &str, field: &str, value: &str) -> String {
    if path == CHAT {
        format!(
            r#"{{"messages":[{{"role":"user","content":"x"}}],"max_completion_tokens":2,"{field}":{value}}}"#
        )
    } else if field == "max_tokens" {
        format!(r#"{{"prompt":"ab","max_tokens":{value}}}"#)
    } else {
        format!(r#"{{"prompt":"ab","max_tokens":2,"{field}":{value}}}"#)
    }
}

/// Which of [`NUMBERS`] a field takes; all others must be a 400 that names the field (or says that the
/// JSON is broken).
#[tokio::test]
async fn every_number_has_a_bound() {
    let server = TestServer::plain().await;
    for (path, field, good) in [
        (COMPLETIONS, "n", vec!["1"]),
        (COMPLETIONS, "best_of", vec!["1"]),
        (COMPLETIONS, "max_tokens", vec!["1"]),
        (COMPLETIONS, "min_tokens", vec!["0", "1"]),
        (COMPLETIONS, "logprobs", vec!["0", "1"]),
        (COMPLETIONS, "top_k", vec!["0", "-1", "1"]),
        (COMPLETIONS, "top_p", vec!["1", "0.5"]),
        (COMPLETIONS, "min_p", vec!["0", "1", "0.5"]),
        (COMPLETIONS, "temperature", vec!["0", "1", "0.5"]),
        (COMPLETIONS, "repetition_penalty", vec!["1", "0.5"]),
        (COMPLETIONS, "presence_penalty", vec!["0", "-1", "1", "0.5"]),
        (
            COMPLETIONS,
            "frequency_penalty",
            vec!["0", "-1", "1", "0.5"],
        ),
        (
            COMPLETIONS,
            "seed",
            vec!["0", "-1", "1", "2147483648", "-2147483649"],
        ),
        (COMPLETIONS, "priority", vec!["0", "-1", "1"]),
        (COMPLETIONS, "stop", vec![]),
        (COMPLETIONS, "stop_token_ids", vec![]),
        (COMPLETIONS, "logit_bias", vec![]),
        (COMPLETIONS, "stream", vec![]),
        (COMPLETIONS, "echo", vec![]),
        (COMPLETIONS, "ignore_eos", vec![]),
        (COMPLETIONS, "cache_salt", vec![]),
        (COMPLETIONS, "user", vec![]),
        (COMPLETIONS, "model", vec![]),
        (COMPLETIONS, "prompt", vec![]),
        (CHAT, "n", vec!["1"]),
        (CHAT, "top_logprobs", vec!["0"]),
        (CHAT, "logprobs", vec![]),
        (CHAT, "messages", vec![]),
        (CHAT, "tools", vec![]),
    ] {
        for number in NUMBERS {
            let reply = raw(
                server.address,
                post_bytes(path, &body(path, field, number), ""),
            )
            .await;
            if good.contains(&number) {
                assert_eq!(reply.status, 200, "{field}: {number}: {}", reply.body);
                continue;
            }
            let message = reply.error(400);
            let broken = message.contains("not usable JSON");
            let named = reply.json()["error"]["param"] == field;
            assert!(broken || named, "{field}: {number}: {}", reply.body);
        }
    }
    server.idle().await;
}

#[tokio::test]
async fn lists_and_their_elements_are_bounded() {
    let server = TestServer::plain().await;
    let bias = |entries: usize| {
        (0..entries)
            .map(|id| (id.to_string(), json!(1)))
            .collect::<serde_json::Map<_, _>>()
    };
    for (field, value, good) in [
        ("stop", json!(vec!["q"; 16]), true),
        ("stop", json!(vec!["q"; 17]), false),
        ("stop", json!([""]), false),
        ("stop", json!([1]), false),
        ("stop", json!(["q".repeat(1024)]), true),
        ("stop", json!("q".repeat(1025)), false),
        ("stop_token_ids", json!(vec![1; 256]), true),
        ("stop_token_ids", json!(vec![1; 257]), false),
        ("stop_token_ids", json!([VOCAB]), false),
        ("stop_token_ids", json!([-1]), false),
        ("stop_token_ids", json!(["1"]), false),
        ("logit_bias", json!(bias(VOCAB)), true),
        ("logit_bias", json!(bias(VOCAB + 1)), false),
        ("logit_bias", json!(bias(2000)), false),
        ("logit_bias", json!({"1": 101}), false),
        ("logit_bias", json!({"1": "1"}), false),
        ("logit_bias", json!({"-1": 1}), false),
        ("logit_bias", json!({"x": 1}), false),
        ("prompt", json!([]), false),
        ("prompt", json!(""), false),
        ("prompt", json!([[]]), false),
        ("prompt", json!([[1], []]), false),
        ("prompt", json!([VOCAB]), false),
        ("prompt", json!(vec!["a"; 128]), false),
        ("prompt", json!(vec!["a"; 64]), true),
        ("cache_salt", json!(""), false),
        ("cache_salt", json!("x".repeat(257)), false),
        ("stream_options", json!({"include_usage": true}), false),
    ] {
        let mut body = json!({"prompt": "ab", "max_tokens": 1});
        body[field] = value;
        let shown = body.to_string().chars().take(100).collect::<String>();
        let reply = post(server.address, COMPLETIONS, &body).await;
        if good {
            assert_eq!(reply.status, 200, "{shown}: {}", reply.body);
        } else if reply.status == 429 {
            // More sequences than there are places.
            assert_eq!(field, "prompt");
        } else {
            reply.error(400);
            assert_eq!(reply.json()["error"]["param"], field, "{shown}");
        }
    }
    let body = json!({"prompt": ["a", "b"], "n": 65, "max_tokens": 1});
    let reply = post(server.address, COMPLETIONS, &body).await;
    assert!([400, 429].contains(&reply.status), "{}", reply.body);
    server.idle().await;
}

/// Known fields that would change the answer are never silently ignored.
#[tokio::test]
async fn what_is_not_built_is_refused_by_name() {
    let server = TestServer::plain().await;
    let schema = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}});
    let chat = |field: &str, value: Value| (CHAT, field.to_owned(), value);
    let completion = |field: &str, value: Value| (COMPLETIONS, field.to_owned(), value);
    for (path, field, value) in [
        chat("response_format", schema.clone()),
        chat("response_format", json!({"type": "json_object"})),
        chat("response_format", json!("text")),
        chat("tool_choice", json!("auto")),
        chat("tool_choice", json!("required")),
        chat(
            "tool_choice",
            json!({"type": "function", "function": {"name": "f"}}),
        ),
        chat("functions", json!([])),
        chat("function_call", json!("auto")),
        chat("continue_final_message", json!(true)),
        chat("chat_template_kwargs", json!({"x": 1})),
        chat("modalities", json!(["text", "audio"])),
        chat("audio", json!({})),
        chat("documents", json!([{"text": "x"}])),
        chat("guided_json", json!("{}")),
        chat("structured_outputs", json!({"regex": "a"})),
        completion("response_format", schema),
        completion("suffix", json!("end")),
        completion("best_of", json!(2)),
        completion("guided_regex", json!("a+")),
        completion("guided_choice", json!(["a"])),
        completion("guided_grammar", json!("root ::= x")),
        completion("use_beam_search", json!(true)),
        completion("prompt_logprobs", json!(1)),
        completion("bad_words", json!(["x"])),
        completion("allowed_token_ids", json!([1])),
        completion("prompt_embeds", json!("x")),
        completion("truncate_prompt_tokens", json!(3)),
    ] {
        let reply = raw(
            server.address,
            post_bytes(path, &body(path, &field, &value.to_string()), ""),
        )
        .await;
        let message = reply.error(400);
        assert!(
            message.contains("not supported yet") && message.contains(&field),
            "{field}: {message}"
        );
        assert_eq!(reply.json()["error"]["param"], field);
        assert_eq!(reply.json()["error"]["code"], "unsupported_parameter");
    }
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]});
    let message = post(server.address, CHAT, &image).await.error(400);
    assert!(
        message.contains("image_url") && message.contains("not supported yet"),
        "{message}"
    );
    // Values without effect are no reason to refuse.
    for (field, value) in [
        ("response_format", json!({"type": "text"})),
        ("tool_choice", json!("none")),
        ("tool_choice", json!(null)),
        ("continue_final_message", json!(false)),
        ("chat_template_kwargs", json!({})),
        ("modalities", json!(["text"])),
        ("store", json!(true)),
        ("metadata", json!({"a": "b"})),
    ] {
        let reply = raw(
            server.address,
            post_bytes(CHAT, &body(CHAT, field, &value.to_string()), ""),
        )
        .await;
        assert_eq!(reply.status, 200, "{field}: {}", reply.body);
    }
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_told_the_numbers() {
    let server = TestServer::plain().await;
    let reply = post(
        server.address,
        COMPLETIONS,
        &json!({"prompt": "a".repeat(CONTEXT)}),
    )
    .await;
    insta::assert_snapshot!("prompt_too_long", reply.body);
    assert_eq!(reply.status, 400);
    let reply = post(
        server.address,
        COMPLETIONS,
        &json!({"prompt": "a".repeat(CONTEXT - 10), "max_tokens": 11}),
    )
    .await;
    insta::assert_snapshot!("output_too_long", reply.body);
    assert_eq!(reply.status, 400);
    // To the last token of the context.
    let body = json!({"prompt": "a".repeat(CONTEXT - 10), "max_tokens": 10, "ignore_eos": true});
    let reply = post(server.address, COMPLETIONS, &body).await.json();
    assert_eq!(reply["usage"]["total_tokens"], CONTEXT);
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn defaults_for_the_number_of_tokens() {
    let mut options = Options::default();
    options.engine.max_model_len = 64;
    let server = TestServer::start(options).await;
    let reply = post(server.address, COMPLETIONS, &json!({"prompt": "ab"}))
        .await
        .json();
    assert_eq!(reply["usage"]["completion_tokens"], 16);
    // Where less room is left, there is less.
    let reply = post(
        server.address,
        COMPLETIONS,
        &json!({"prompt": "a".repeat(60)}),
    )
    .await
    .json();
    assert_eq!(reply["usage"]["completion_tokens"], 4);
    // Chats have the rest of the context.
    let body = json!({"messages": [{"role": "user", "content": "x"}], "ignore_eos": true});
    let reply = post(server.address, CHAT, &body).await.json();
    assert_eq!(reply["usage"]["total_tokens"], 64);
}
