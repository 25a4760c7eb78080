//! What the server takes beside weights and KV cache, on the real default model.

#![cfg(target_os = "linux")]

use crate::support::{Running, Sandbox, http, model};

/// Activations, tokenizer, threads, connections, the program itself; pages of the mapped model file
/// count as well while this process has them.
const BESIDE: usize = 150_000_000;

/// The bytes that a start-up line gives after `what`.
fn told(server: &Running, what: &str) -> usize {
    let (_, after) = server.seen.split_once(what).unwrap();
    let mut words = after.split_whitespace();
    let number: f64 = words.next().unwrap().parse().unwrap();
    match words.next().unwrap().trim_end_matches(',') {
        "MiB" => (number * f64::from(1 << 20)) as usize,
        unit => panic!("{unit}"),
    }
}

/// The most memory that the process ever had in RAM, pages of files included.
fn peak(server: &Running) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let (_, after) = status.split_once("VmHWM:").unwrap();
    let kib: usize = after.split_whitespace().next().unwrap().parse().unwrap();
    kib * 1024
}

#[test]
fn peak_memory_is_weights_and_cache_and_little_else() {
    let Some(model) = model() else { return };
    let sandbox = Sandbox::new();
    let args = [
        "serve",
        model.to_str().unwrap(),
        "--port",
        "0",
        "--device",
        "cpu",
        "--max-num-seqs",
        "50",
        "--max-model-len",
        "256",
        // Less than 50 requests fill, so that all of it is used.
        "--kv-cache-memory-bytes",
        "128MiB",
    ];
    let server = sandbox.start(&args, " ready: ");
    let weights = told(&server, "memory  weights ");
    let cache = told(&server, "KV cache up to ");
    let prompt = |client: usize| {
        let ids: Vec<String> = (0..128)
            .map(|i| ((client * 131 + i * 7) % 40_000 + 100).to_string())
            .collect();
        ids.join(",")
    };
    std::thread::scope(|scope| {
        for client in 0..50 {
            let address = server.address();
            scope.spawn(move || {
                let body = format!(
                    r#"{{"prompt": [{}], "max_tokens": 16, "ignore_eos": true, "stream": true}}"#,
                    prompt(client)
                );
                let (status, answer) = http(&address, "POST", "/v1/completions", &body);
                assert!(status == 200 && answer.contains("[DONE]"), "{answer}");
            });
        }
    });
    let beside = peak(&server).saturating_sub(weights + cache);
    println!("beside weights and KV cache: {:.1} MB", beside as f64 / 1e6);
    assert!(beside <= BESIDE, "{beside} bytes");
    // The measurement itself: an idle process would have less than its cache.
    assert!(peak(&server) > weights + cache / 2);
}
