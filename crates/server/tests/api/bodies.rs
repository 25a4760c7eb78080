//! Whole answers: their exact bytes, and what stands in them.

use insta::assert_snapshot;
use serde_json::json;

use crate::support::client::{get, post};
use crate::support::{BOS, EOS, Options, TestServer};

#[tokio::test]
async fn completions() {
    let server = TestServer::plain().await;
    let reply = post(
        server.address,
        "/v1/completions",
        &json!({"model": "echo", "prompt": "abc", "max_tokens": 5, "temperature": 0}),
    )
    .await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_snapshot!("completion", reply.stable());

    let reply = post(
        server.address,
        "/v1/completions",
        &json!({"prompt": "ab", "max_tokens": 2, "logprobs": 2, "unknown_field": {"x": [1]}}),
    )
    .await;
    assert_snapshot!("completion_logprobs", reply.stable());
}

#[tokio::test]
async fn chats() {
    let server = TestServer::plain().await;
    let body = json!({"model": "org/echo", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "max_completion_tokens": 12});
    let reply = post(server.address, "/v1/chat/completions", &body).await;
    assert_snapshot!("chat", reply.stable());

    let body = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "logprobs": true, "top_logprobs": 1,
        "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"});
    let reply = post(server.address, "/v1/chat/completions", &body).await;
    assert_snapshot!("chat_logprobs", reply.stable());
}

/// The prompt's four shapes, `n`, and `usage` over all of them.
#[tokio::test]
async fn prompts_come_in_four_shapes() {
    let server = TestServer::plain().await;
    let ids = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    for (prompt, expected, prompt_tokens) in [
        (json!("ab"), vec!["aba"], 2),
        (json!(["ab", "c"]), vec!["aba", "ccc"], 3),
        (json!(ids("ab")), vec!["aba"], 2),
        (json!([ids("ab"), ids("xyz")]), vec!["aba", "xyz"], 5),
    ] {
        for n in [1, 2] {
            let body = json!({"prompt": prompt, "max_tokens": 3, "n": n});
            let reply = post(server.address, "/v1/completions", &body).await.json();
            let texts: Vec<_> = reply["choices"]
                .as_array()
                .unwrap()
                .iter()
                .map(|choice| choice["text"].as_str().unwrap())
                .collect();
            let wanted: Vec<_> = expected
                .iter()
                .flat_map(|text| std::iter::repeat_n(*text, n))
                .collect();
            assert_eq!(texts, wanted, "{prompt}");
            assert_eq!(reply["usage"]["prompt_tokens"], prompt_tokens);
            assert_eq!(reply["usage"]["completion_tokens"], 3 * n * expected.len());
        }
    }
    server.idle().await;
}

#[tokio::test]
async fn the_end_token_ends_unless_ignored_or_too_early() {
    let server = TestServer::plain().await;
    let prompt = [u32::from(b'a'), u32::from(b'b'), EOS];
    for (more, text, reason, tokens) in [
        (json!({}), "ab", "stop", 3),
        (json!({"ignore_eos": true}), "abab", "length", 6),
        (
            json!({"ignore_eos": true, "skip_special_tokens": false}),
            "ab</s>ab</s>",
            "length",
            6,
        ),
        (
            json!({"include_stop_str_in_output": true, "skip_special_tokens": false}),
            "ab</s>",
            "stop",
            3,
        ),
        (json!({"min_tokens": 4}), "ab~ab", "stop", 6),
    ] {
        let mut body = json!({"prompt": prompt, "max_tokens": 6});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let reply = post(server.address, "/v1/completions", &body).await.json();
        let choice = &reply["choices"][0];
        assert_eq!(choice["text"], text, "{more}");
        assert_eq!(choice["finish_reason"], reason, "{more}");
        assert_eq!(choice["stop_reason"], json!(null), "{more}");
        assert_eq!(reply["usage"]["completion_tokens"], tokens, "{more}");
    }
}

#[tokio::test]
async fn stop_strings_and_stop_tokens() {
    let server = TestServer::plain().await;
    for (more, text, stop_reason) in [
        (json!({"stop": "cd"}), "ab", json!("cd")),
        (
            json!({"stop": ["xx", "d"], "include_stop_str_in_output": true}),
            "abcd",
            json!("d"),
        ),
        (json!({"stop": ["fa"]}), "abcde", json!("fa")),
        (
            json!({"stop": ["cd"], "min_tokens": 4}),
            "abcdefab",
            json!("cd"),
        ),
        (json!({"stop_token_ids": [99]}), "ab", json!(99)),
        (
            json!({"stop_token_ids": [99], "include_stop_str_in_output": true}),
            "abc",
            json!(99),
        ),
    ] {
        let mut body = json!({"prompt": "abcdef", "max_tokens": 30});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let reply = post(server.address, "/v1/completions", &body).await.json();
        let choice = &reply["choices"][0];
        assert_eq!(choice["text"], text, "{more}");
        assert_eq!(choice["finish_reason"], "stop", "{more}");
        assert_eq!(choice["stop_reason"], stop_reason, "{more}");
    }
    // A stop string ends the sequence in the engine too.
    server.idle().await;
}

#[tokio::test]
async fn echo_gives_the_prompt_back() {
    let server = TestServer::plain().await;
    for prompt in [json!("héé"), json!([104, 195, 169, 195, 169])] {
        let body = json!({"prompt": prompt, "max_tokens": 3, "echo": true});
        let reply = post(server.address, "/v1/completions", &body).await.json();
        assert_eq!(reply["choices"][0]["text"], "hééhé", "{prompt}");
    }
}

#[tokio::test]
async fn a_prefix_is_found_again_only_under_the_same_salt() {
    let server = TestServer::plain().await;
    let cached = async |salt: Option<&str>| {
        let body = json!({"prompt": "a prefix of more than two blocks of tokens", "max_tokens": 2, "cache_salt": salt});
        let reply = post(server.address, "/v1/completions", &body).await.json();
        reply["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(cached(None).await, 0);
    assert_eq!(cached(None).await, 32);
    assert_eq!(cached(Some("x")).await, 0);
    assert_eq!(cached(Some("x")).await, 32);
    assert_eq!(cached(Some("y")).await, 0);
}

#[tokio::test]
async fn models_version_and_health() {
    let server = TestServer::plain().await;
    assert_snapshot!("models", get(server.address, "/v1/models").await.stable());
    for path in ["/v1/models/org/echo", "/v1/models/org%2Fecho"] {
        let model = get(server.address, path).await.json();
        assert_eq!(model["id"], "org/echo");
        assert_eq!(model["max_model_len"], 4096);
    }
    let error = get(server.address, "/v1/models/other").await;
    assert_snapshot!("unknown_model", error.body);
    assert_eq!(error.status, 404);
    let version = get(server.address, "/version").await.json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_snapshot!("health", get(server.address, "/health").await.body);
}

#[tokio::test]
async fn text_to_tokens_and_back() {
    let server = TestServer::plain().await;
    let reply = post(
        server.address,
        "/tokenize",
        &json!({"prompt": "hé", "return_token_strs": true}),
    )
    .await;
    assert_snapshot!("tokenize", reply.body);
    let reply = post(
        server.address,
        "/tokenize",
        &json!({"messages": [{"role": "user", "content": "x"}]}),
    )
    .await
    .json();
    let rendered = "<s>[user]x\n[assistant]";
    // The begin token is one token.
    assert_eq!(reply["count"], rendered.len() - 2);
    assert_eq!(reply["tokens"][0], BOS);
    let back = post(
        server.address,
        "/detokenize",
        &json!({"tokens": reply["tokens"]}),
    )
    .await
    .json();
    assert_eq!(back["prompt"], rendered);
}

/// A built-in configuration has no tokenizer: token ids in, one chunk a token out.
#[tokio::test]
async fn without_a_tokenizer_prompts_are_token_ids() {
    let server = TestServer::start(Options {
        tokenizer: false,
        ..Options::default()
    })
    .await;
    let body = json!({"prompt": [1, 2, 3], "max_tokens": 4, "stream": true});
    let events = post(server.address, "/v1/completions", &body)
        .await
        .events();
    assert_eq!(events.len(), 4);
    assert!(events.iter().all(|event| event["choices"][0]["text"] == ""));
    let body = json!({"prompt": [1, 2, 3], "max_tokens": 2, "logprobs": 0});
    let reply = post(server.address, "/v1/completions", &body).await.json();
    assert_eq!(
        reply["choices"][0]["logprobs"]["tokens"],
        json!(["token_id:1", "token_id:2"])
    );

    for (path, body) in [
        ("/v1/completions", json!({"prompt": "text"})),
        ("/v1/completions", json!({"prompt": [1], "stop": "x"})),
        ("/v1/completions", json!({"prompt": [1], "echo": true})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x"}]}),
        ),
        ("/tokenize", json!({"prompt": "x"})),
        ("/detokenize", json!({"tokens": [1]})),
    ] {
        let error = post(server.address, path, &body).await.error(400);
        assert!(error.contains("without a tokenizer"), "{path}: {error}");
    }
}

#[tokio::test]
async fn metrics_count_what_was_served() {
    let server = TestServer::plain().await;
    for body in [
        json!({"prompt": "abc", "max_tokens": 4}),
        json!({"prompt": "abc", "max_tokens": 9, "stop": "c"}),
    ] {
        post(server.address, "/v1/completions", &body).await;
    }
    server.idle().await;
    let reply = get(server.address, "/metrics").await;
    assert_eq!(
        reply.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let value = |name: &str, label: &str| {
        let line = reply
            .body
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
        let line = line.unwrap_or_else(|| panic!("{name} {label}: {}", reply.body));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    for (name, label, expected) in [
        ("vllm:num_requests_running", "model_name=\"echo\"", 0.0),
        ("vllm:num_requests_waiting", "", 0.0),
        ("vllm:kv_cache_usage_perc", "", 0.0),
        ("vllm:num_preemptions_total", "", 0.0),
        ("vllm:prompt_tokens_total", "", 6.0),
        ("vllm:prefix_cache_hits_total", "", 0.0),
        (
            "vllm:request_success_total",
            "finished_reason=\"length\"",
            1.0,
        ),
        (
            "vllm:request_success_total",
            "finished_reason=\"stop\"",
            1.0,
        ),
        (
            "vllm:request_success_total",
            "finished_reason=\"abort\"",
            0.0,
        ),
        ("vllm:time_to_first_token_seconds_count", "", 2.0),
        ("vllm:inter_token_latency_seconds_count", "", 5.0),
        (
            "vllm:e2e_request_latency_seconds_bucket",
            "le=\"+Inf\"",
            2.0,
        ),
        ("vllm:request_generation_tokens_sum", "", 7.0),
        ("powerband:http_responses_total", "status=\"2xx\"", 2.0),
    ] {
        assert_eq!(value(name, label), expected, "{name} {label}");
    }
    assert!(reply.body.contains(
        "vllm:inter_token_latency_seconds_bucket{engine=\"0\",model_name=\"echo\",le=\"0.00025\"}"
    ));
    let names = reply
        .body
        .lines()
        .filter(|line| line.starts_with("# TYPE "));
    let names: Vec<_> = names.map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_snapshot!("metric_names", names.join("\n"));
}
