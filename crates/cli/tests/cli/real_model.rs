//! The real default model through the binary.

use crate::support::{Sandbox, http, model};

/// Golden ids of an independent float forward pass: "The capital of France is Paris."
const ANSWER: &str = "The capital of France is Paris.";
const DRAFTS: &str = r#"{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1,
    "prompt_lookup_max": 4}"#;
const QUESTION: &str =
    r#"[{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]"#;

#[test]
fn a_real_model_answers_over_http_alone_and_among_others() {
    let Some(model) = model() else { return };
    let sandbox = Sandbox::new();
    let path = model.to_str().unwrap();
    // Few blocks and small steps: some requests are chunked, some preempted, and some find their
    // prefix in the cache. None may change an answer.
    for flags in [
        &[][..],
        &[
            "--max-num-batched-tokens",
            "16",
            "--max-num-seqs",
            "6",
            "--max-model-len",
            "128",
            "--kv-cache-memory-bytes",
            "6M",
        ],
        &["--no-enable-prefix-caching"],
        &["--speculative-config", DRAFTS],
    ] {
        let mut args = vec!["serve", path, "--port", "0", "--served-model-name", "m"];
        args.extend(flags);
        let server = sandbox.start(&args, " ready: ");
        let address = server.address();
        let ask = |stream: bool| {
            let body = format!(
                r#"{{"model": "m", "messages": {QUESTION}, "temperature": 0, "max_tokens": 20, "stream": {stream}}}"#
            );
            http(&address, "POST", "/v1/chat/completions", &body)
        };
        let (status, answer) = ask(false);
        assert!(status == 200 && answer.contains(ANSWER), "{answer}");
        assert!(
            answer.contains("\"prompt_tokens\":42") && answer.contains("\"completion_tokens\":8"),
            "{answer}"
        );
        std::thread::scope(|scope| {
            let others: Vec<_> = (0..12)
                .map(|i| {
                    let address = &address;
                    scope.spawn(move || {
                        let body = format!(
                            r#"{{"prompt": "Gravity is number {}", "max_tokens": 40, "temperature": 0, "ignore_eos": true}}"#,
                            i % 3
                        );
                        http(address, "POST", "/v1/completions", &body)
                    })
                })
                .collect();
            let (status, answer) = ask(true);
            let text: String = answer
                .lines()
                .filter_map(|line| line.strip_prefix("data: {"))
                .filter_map(|rest| {
                    let event: serde_json::Value =
                        serde_json::from_str(&format!("{{{rest}")).ok()?;
                    Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned())
                })
                .collect();
            assert!(status == 200 && text == ANSWER, "{answer}");
            let texts: Vec<String> = others
                .into_iter()
                .map(|other| {
                    let (status, body) = other.join().unwrap();
                    assert_eq!(status, 200, "{body}");
                    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
                    body["choices"][0]["text"].as_str().unwrap().to_owned()
                })
                .collect();
            for i in 3..12 {
                assert_eq!(
                    texts[i],
                    texts[i % 3],
                    "the same prompt gave another answer"
                );
            }
        });
        let (_, metrics) = http(&address, "GET", "/metrics", "");
        assert!(
            metrics.contains("vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 0"),
            "{metrics}"
        );
    }
}

#[test]
fn the_main_job_runs_on_a_real_model() {
    let Some(model) = model() else { return };
    let sandbox = Sandbox::new();
    let ended = sandbox
        .run(&[
            "run",
            model.to_str().unwrap(),
            "--concurrency",
            "1,3",
            "--max-requests",
            "3",
        ])
        .ok();
    for word in ["memory", "opened", "throughput-3"] {
        assert!(ended.stderr.contains(word), "{word}: {}", ended.stderr);
    }
    let level =
        std::fs::read_to_string(sandbox.path("benchmark-results/throughput-3.json")).unwrap();
    let level: serde_json::Value = serde_json::from_str(&level).unwrap();
    for request in level["benchmarks"][0]["requests"]["successful"]
        .as_array()
        .unwrap()
    {
        assert_eq!(request["prompt_tokens"], 128);
        assert_eq!(request["output_tokens"], 64);
    }
}

#[test]
fn prompts_and_conversations_of_files_are_sent() {
    let Some(model) = model() else { return };
    let sandbox = Sandbox::new();
    let rows = "question,n\nWho are you?,3\nWhat is a file?,5\n";
    std::fs::write(sandbox.path("rows.csv"), rows).unwrap();
    let talk = r#"{"conversations": [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Hi."}, {"from": "human", "value": "And now?"}]}"#;
    std::fs::write(sandbox.path("talk.jsonl"), talk).unwrap();
    for (flags, expected) in [
        (
            "--data rows.csv --data-column prompt=question --data-column output_tokens=n",
            [3, 3, 5, 5],
        ),
        (
            "--data talk.jsonl --data-column messages=conversations --endpoint chat --output-tokens 4 --think-time 0.01 --tokenizer MODEL --data-history file",
            [2, 2, 4, 4],
        ),
    ] {
        let path = model.to_str().unwrap();
        let mut args = vec!["run", path, "--concurrency", "1", "--max-requests", "4"];
        args.extend(
            flags
                .split_whitespace()
                .map(|word| if word == "MODEL" { path } else { word }),
        );
        sandbox.run(&args).ok();
        let level = sandbox.path("benchmark-results/throughput-1.json");
        assert_eq!(crate::shapes::output_tokens(&level), expected, "{flags}");
    }
}

#[test]
fn a_method_that_the_checkpoint_was_not_quantised_by_is_refused() {
    let Some(model) = model() else { return };
    let sandbox = Sandbox::new();
    let path = model.to_str().unwrap();
    for method in ["gptq", "awq", "fp8"] {
        let args = [
            "serve",
            path,
            "--port",
            "0",
            "--device",
            "cpu",
            "--quantization",
            method,
        ];
        sandbox
            .run(&args)
            .fails(1, &["--quantization", method, "hint: "]);
    }
}
