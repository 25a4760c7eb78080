//! Drafts change how fast an answer comes and nothing in it. The echo repeats its prompt, so that nearly
//! every draft is right.

use powerband_engine::NgramSpeculation;
use serde_json::{Value, json};

use crate::support::client::{get, post};
use crate::support::{Options, TestServer};

async fn drafting() -> TestServer {
    let mut options = Options::default();
    options.engine.speculation = Some(NgramSpeculation {
        num_speculative_tokens: 5,
        prompt_lookup_max: 3,
        prompt_lookup_min: 1,
        disable_by_batch_size: None,
    });
    TestServer::start(options).await
}

/// Ends of every kind in the middle of a run of accepted drafts.
fn bodies() -> Vec<Value> {
    let prompt = "abcdefgh ";
    let mut bodies: Vec<_> = (1..15)
        .map(|n| json!({"prompt": prompt, "max_tokens": n}))
        .collect();
    for stop in ["h a", "cd", "f", "gh ab"] {
        for include in [false, true] {
            bodies.push(json!({"prompt": prompt, "max_tokens": 40, "stop": stop,
                "include_stop_str_in_output": include}));
        }
    }
    for id in prompt.bytes() {
        for min_tokens in [0, 4, 12] {
            bodies.push(
                json!({"prompt": prompt, "max_tokens": 40, "stop_token_ids": [id],
                "min_tokens": min_tokens}),
            );
        }
    }
    bodies.push(json!({"prompt": [prompt, "xyxyz"], "n": 2, "max_tokens": 17}));
    // The end token itself, taken and ignored.
    for ignore_eos in [false, true] {
        bodies.push(json!({"prompt": [97, 98, 99, 256, 100], "max_tokens": 20,
            "ignore_eos": ignore_eos}));
    }
    bodies.push(json!({"prompt": prompt, "max_tokens": 20, "logprobs": 1}));
    bodies.push(json!({"prompt": prompt, "max_tokens": 20, "temperature": 1, "seed": 3}));
    for body in &mut bodies {
        body.as_object_mut()
            .unwrap()
            .entry("temperature")
            .or_insert(json!(0));
    }
    bodies
}

#[tokio::test]
async fn answers_are_the_same_with_drafts() {
    let (plain, drafting) = (TestServer::plain().await, drafting().await);
    for mut body in bodies() {
        let path = "/v1/completions";
        let wanted = post(plain.address, path, &body).await;
        let got = post(drafting.address, path, &body).await;
        assert_eq!(got.status, 200, "{body}: {}", got.body);
        assert_eq!(got.stable(), wanted.stable(), "{body}");
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let streamed = post(drafting.address, path, &body).await;
        let usage = streamed.events().last().unwrap()["usage"].clone();
        let whole = wanted.json();
        assert_eq!(
            usage["completion_tokens"], whole["usage"]["completion_tokens"],
            "{body}"
        );
        if whole["choices"].as_array().unwrap().len() == 1 {
            assert_eq!(streamed.streamed_text(), whole["choices"][0]["text"]);
        }
    }
    drafting.idle().await;
}

#[tokio::test]
async fn metrics_count_drafts() {
    let server = drafting().await;
    // "ab" is sampled, then: a, b | b, c, d, a, b, c | d: five drafts right, and one of one.
    let body = json!({"prompt": "abcd", "max_tokens": 9, "temperature": 0});
    post(server.address, "/v1/completions", &body).await;
    server.idle().await;
    let page = get(server.address, "/metrics").await.body;
    let labels = "engine=\"0\",model_name=\"echo\"";
    let stats = server.engine.stats();
    assert_eq!(stats.generation_tokens, 9);
    let drafts = stats.speculation;
    assert!(drafts.accepted_tokens > 0 && drafts.accepted_tokens == drafts.draft_tokens);
    assert_eq!(
        drafts.accepted_tokens + drafts.drafts + 1,
        9,
        "one token of the prompt, and one of each step beside its drafts: {drafts:?}"
    );
    for (name, value) in [
        ("drafts", drafts.drafts),
        ("draft_tokens", drafts.draft_tokens),
        ("accepted_tokens", drafts.accepted_tokens),
    ] {
        let line = format!("vllm:spec_decode_num_{name}_total{{{labels}}} {value}\n");
        assert!(page.contains(&line), "{line}{page}");
    }
    let first = format!(
        "vllm:spec_decode_num_accepted_tokens_per_pos_total{{{labels},position=\"0\"}} {}\n",
        drafts.drafts
    );
    assert!(page.contains(&first), "{page}");
}
