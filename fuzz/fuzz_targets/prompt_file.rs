//! A byte for the format, then a file of prompts or conversations as `powerband bench --data` reads it. What is
//! read must be JSON when it is sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use powerband_bench::fuzzing::data_file;

fuzz_target!(|bytes: &[u8]| {
    let Some((format, content)) = bytes.split_first() else {
        return;
    };
    let endings = ["jsonl", "json", "csv", "tsv", "txt", "parquet"];
    let ending = endings[usize::from(*format) % endings.len()];
    let path = std::env::temp_dir().join(format!("powerband-fuzz-{}.{ending}", std::process::id()));
    if std::fs::write(&path, content).is_err() {
        return;
    }
    for prompt in data_file(&path).into_iter().flatten() {
        assert!(
            serde_json::from_str::<serde_json::Value>(&prompt).is_ok(),
            "{prompt}"
        );
    }
});
