//! A byte for the formats of the file and of the trace, then a trace as `powerband bench --data` replays it. What is
//! read must be a list of ids when it is sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use powerband_bench::TraceFormat;
use powerband_bench::fuzzing::trace_file;

fuzz_target!(|bytes: &[u8]| {
    let Some((form, content)) = bytes.split_first() else {
        return;
    };
    let endings = ["jsonl", "json", "csv", "parquet"];
    let ending = endings[usize::from(*form) % endings.len()];
    let format = match form / 4 % 2 {
        0 => TraceFormat::Mooncake { block_tokens: 16 },
        _ => TraceFormat::OpenTelemetry,
    };
    let path = std::env::temp_dir().join(format!("powerband-fuzz-{}.{ending}", std::process::id()));
    if std::fs::write(&path, content).is_err() {
        return;
    }
    for prompt in trace_file(&path, format).into_iter().flatten() {
        assert!(
            serde_json::from_str::<Vec<u32>>(&prompt).is_ok(),
            "{prompt}"
        );
    }
});
