//! The cache of quantised weights across starts of the server.

use std::path::PathBuf;

use crate::support::{Running, Sandbox, http};

fn model() -> PathBuf {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    fixtures.join("families/llama-3.2")
}

fn serve(sandbox: &Sandbox, flags: &[&str]) -> Running {
    let model = model();
    let mut args = vec!["serve", model.to_str().unwrap(), "--port", "0"];
    args.extend(["--device", "cpu", "--quantization", "q8_0"]);
    args.extend(["--served-model-name", "m"]);
    args.extend(flags);
    sandbox.start(&args, " ready: ")
}

/// The line about the cache.
fn told(server: &Running) -> String {
    let line = server.seen.lines().find(|line| line.contains(" cache  "));
    line.unwrap_or_default().to_owned()
}

fn answer(server: &Running) -> String {
    let body = r#"{"model": "m", "prompt": [3, 1, 4, 1, 5], "max_tokens": 12, "temperature": 0,
        "ignore_eos": true, "logprobs": 3, "return_tokens_as_token_ids": true}"#;
    let (status, body) = http(&server.address(), "POST", "/v1/completions", body);
    assert_eq!(status, 200, "{body}");
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    answer["choices"].to_string()
}

#[test]
fn starts_at_once_and_later_ones_answer_alike() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path(".cache/powerband/weights");
    let server = serve(&sandbox, &["--weight-cache-bytes", "0"]);
    assert_eq!(told(&server), "");
    assert!(!folder.exists());
    let wanted = answer(&server);

    std::thread::scope(|scope| {
        let start = || {
            let server = serve(&sandbox, &[]);
            (told(&server), answer(&server))
        };
        let both = [scope.spawn(start), scope.spawn(start)];
        for one in both {
            let (line, answer) = one.join().unwrap();
            // One may come late enough to find what the other wrote.
            let kept = line.contains("weights kept in") || line.contains("weights read from");
            assert!(kept && line.contains("llama-3.2-q8_0-"), "{line}");
            assert_eq!(answer, wanted);
        }
    });
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let path = files[0].as_ref().unwrap().path();

    let server = serve(&sandbox, &[]);
    let line = told(&server);
    assert!(
        line.contains("weights read from") && line.contains(path.to_str().unwrap()),
        "{line}"
    );
    assert_eq!(answer(&server), wanted);

    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let server = serve(&sandbox, &[]);
    let line = told(&server);
    assert!(
        line.contains("weights kept in") && line.contains("not used: its checksums"),
        "{line}"
    );
    assert_eq!(answer(&server), wanted);
    let line = told(&serve(&sandbox, &[]));
    assert!(line.contains("weights read from"), "{line}");
}

#[test]
fn a_cache_that_cannot_be_written_does_not_stop_the_start() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path(".cache"), "no folder").unwrap();
    let server = serve(&sandbox, &[]);
    let line = told(&server);
    assert!(line.contains("are not kept in"), "{line}");
    answer(&server);
}
