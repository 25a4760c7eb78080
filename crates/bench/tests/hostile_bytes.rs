//! Reports and answers that are cut off, flipped or made up: never a panic, and an error that names
//! the file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use powerband_bench::fuzzing::{data_file, response, trace_file};
use powerband_bench::{
    LevelResult, Outcome, RequestRecord, Requests, TraceFormat, guidellm, jsonl,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A report as another tool writes it, with one request of each kind.
fn report() -> Value {
    let request = json!({
        "request_id": "1",
        "info": {"error": "x", "timings": {"request_start": 1.0, "request_end": 2.0,
            "first_token_iteration": 1.2, "last_token_iteration": 1.9, "token_iterations": 4,
            "request_iterations": 5}},
        "input_metrics": {"total_tokens": 8}, "output_metrics": {"total_tokens": 4},
    });
    json!({"benchmarks": [{
        "config": {"strategy": {"type_": "concurrent", "streams": 2},
            "backend": {"target": "http://127.0.0.1:1", "model": "m"}},
        "requests": {"successful": [request], "errored": [request], "incomplete": [request]},
        "warmup_duration": 0.5, "cooldown_duration": 0.0, "warnings": [{"message": "w"}],
    }]})
}

fn read(bytes: &[u8]) -> Result<Vec<LevelResult>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("throughput-1.json");
    std::fs::write(&path, bytes).unwrap();
    guidellm::read(&path).map_err(|error| {
        let message = error.to_string();
        assert!(message.contains(&*path.to_string_lossy()), "{message}");
        message
    })
}

/// An answer whose chunks cut its events.
fn answer() -> Vec<u8> {
    let chunks = [
        "data: {\"choices\":[{\"text\":\"\u{e9}\",\"finish_reason\":null}]}\n\n: c\r",
        "\ndata: {\"usage\":{\"prompt_tokens\":1,",
        "\"completion_tokens\":1}}\r\n",
        "\r\ndata: [DONE]\n\n\n",
    ];
    let chunks = chunks.map(|chunk| format!("{:x};a=b\r\n{chunk}\r\n", chunk.len()));
    format!(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
         Transfer-Encoding: chunked\r\n\r\n{}0\r\nx: y\r\n\r\n",
        chunks.concat()
    )
    .into_bytes()
}

#[test]
fn a_report_cut_off_anywhere_is_an_error() {
    let whole = report().to_string();
    assert_eq!(read(whole.as_bytes()).unwrap()[0].requests.len(), 3);
    for len in 0..whole.len() {
        assert!(read(&whole.as_bytes()[..len]).is_err(), "{len} bytes");
    }
    let missing = guidellm::read(Path::new("not/there.json")).unwrap_err();
    assert!(missing.to_string().contains("not/there.json"));
}

#[test]
fn an_answer_cut_off_anywhere_in_any_pieces() {
    let answer = answer();
    let (events, problem) = response(&answer, answer.len());
    assert_eq!((events.len(), problem), (3, None));
    for len in 0..answer.len() {
        let cut = &answer[..len];
        let whole = response(cut, len);
        for piece in 1..8 {
            assert_eq!(
                response(cut, piece),
                whole,
                "{len} bytes in pieces of {piece}"
            );
        }
    }
}

/// One value of a JSON document replaced by another; what is left of `at` if it was not reached.
fn replaced(document: &mut Value, at: usize, by: &Value) -> Option<usize> {
    let Some(mut at) = at.checked_sub(1) else {
        *document = by.clone();
        return None;
    };
    let children: Vec<&mut Value> = match document {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        _ => Vec::new(),
    };
    for child in children {
        at = replaced(child, at, by)?;
    }
    Some(at)
}

/// Two requests as JSON lines.
fn lines() -> String {
    let request = |i: u64| RequestRecord {
        id: format!("r-{i}"),
        outcome: match i {
            0 => Outcome::Successful,
            _ => Outcome::Errored("x".into()),
        },
        sent_ns: i,
        end_ns: 1_000 + i,
        output_tokens: 2,
        gaps_us: vec![5],
        ..RequestRecord::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    jsonl::write(&path, &(0..2).map(request).collect()).unwrap();
    std::fs::read_to_string(&path).unwrap()
}

fn read_lines(text: &str) -> Result<Requests, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    std::fs::write(&path, text).unwrap();
    jsonl::read(&path).map_err(|error| {
        let message = error.to_string();
        assert!(message.contains(&*path.to_string_lossy()), "{message}");
        message
    })
}

#[test]
fn json_lines_cut_off_anywhere_are_whole_requests_or_an_error() {
    let whole = lines();
    let first = whole.find('\n').unwrap();
    for len in 0..whole.len() {
        match read_lines(&whole[..len]) {
            Ok(requests) => {
                let ends = [0, first, first + 1, whole.len() - 1];
                assert!(ends.contains(&len), "{len} bytes");
                assert_eq!(
                    requests.len(),
                    ends.iter().position(|e| *e == len).unwrap().div_ceil(2)
                );
            }
            Err(error) => assert!(error.contains("request "), "{error}"),
        }
    }
    assert_eq!(read_lines(&whole).unwrap().len(), 2);
    assert!(jsonl::read(Path::new("not/there.jsonl")).is_err());
}

proptest! {
    #[test]
    fn a_line_with_an_odd_value(at in 0usize..40, by in prop::sample::select(vec![
        json!(null), json!(-1), json!(1e300), json!(u64::MAX), json!(1u64 << 62), json!(""), json!([]), json!({}),
    ])) {
        let text = lines();
        let mut line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        replaced(&mut line, at, &by);
        if let Ok(requests) = read_lines(&line.to_string()) {
            let level = LevelResult {
                duration_s: requests.last_end_ns() as f64 / 1e9,
                requests,
                ..LevelResult::empty(powerband_bench::Strategy::Synchronous)
            };
            powerband_bench::LevelMetrics::of(&level);
        }
    }

    #[test]
    fn a_report_with_an_odd_value(at in 0usize..70, by in prop::sample::select(vec![
        json!(null), json!(-1), json!(1e300), json!(-1e300), json!(u64::MAX), json!(""), json!([]), json!({}), json!([[]]),
    ])) {
        let mut report = report();
        replaced(&mut report, at, &by);
        // A count that is taken for a number of steps shows as a test without end.
        for level in read(report.to_string().as_bytes()).unwrap_or_default() {
            powerband_bench::LevelMetrics::of(&level);
        }
    }

    #[test]
    fn flipped_answers(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        piece in 1usize..20,
    ) {
        let mut bytes = answer();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        prop_assert_eq!(response(&bytes, piece), response(&bytes, bytes.len()));
    }
}

/// What a file of prompts gives; an error must name the file.
fn prompts(name: &str, bytes: &[u8]) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let prompts = data_file(&path);
    if let Err(error) = &prompts {
        assert!(error.contains(name), "{error}");
    }
    for prompt in prompts.iter().flatten() {
        let json: Value = serde_json::from_str(prompt).unwrap();
        assert!(json.is_array(), "{prompt}");
    }
    prompts
}

#[test]
fn files_of_prompts_cut_off_or_flipped_anywhere_are_read_or_refused() {
    let parquet = std::fs::read("tests/fixtures/data/zstd.parquet").unwrap();
    let sharegpt = std::fs::read("tests/fixtures/data/sharegpt.parquet").unwrap();
    let json = b"[{\"conversations\": [{\"from\": \"human\", \"value\": \"\\u00fc\"}]}, {\"prompt\": [1, 2]}]";
    let lines =
        b"{\"prompt\": \"a\", \"output_tokens\": 3}\n{\"prompt\": \"b\", \"requeue_delay\": 0.5}\n";
    let csv = b"prompt_0,prompt_1,output_tokens\n\"a \"\"b\"\"\",c,3\nd,,\n";
    let files: [(&str, &[u8]); 5] = [
        ("a.parquet", &parquet),
        ("b.parquet", &sharegpt),
        ("a.json", json),
        ("a.jsonl", lines),
        ("a.csv", csv),
    ];
    for (name, whole) in files {
        assert_eq!(prompts(name, whole).map(|p| p.len()), Ok(4), "{name}");
        for i in 0..whole.len() {
            let _ = prompts(name, &whole[..i]);
            for flip in [0x01, 0x80, 0xff] {
                let mut other = whole.to_vec();
                other[i] ^= flip;
                let _ = prompts(name, &other);
            }
        }
    }
}

/// What a trace gives; an error must name the file.
fn trace(name: &str, format: TraceFormat, bytes: &[u8]) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let prompts = trace_file(&path, format);
    if let Err(error) = &prompts {
        assert!(error.contains(name), "{error}");
    }
    for prompt in prompts.iter().flatten() {
        assert!(serde_json::from_str::<Vec<u32>>(prompt).is_ok(), "{prompt}");
    }
    prompts
}

#[test]
fn traces_cut_off_or_flipped_anywhere_are_read_or_refused() {
    let mooncake = br#"{"timestamp": 0, "input_length": 75, "output_length": 5, "hash_ids": [0, 1]}
{"timestamp": 3052, "input_length": 64, "output_length": 2, "hash_ids": [0]}"#;
    let csv = b"timestamp,input_length,output_length,hash_ids\n27.5,75,9,\"[3, 4]\"\n28,5,2,\n";
    let otel = br#"{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "1544712660500000000", "status": {"code": 1},
"attributes": [{"key": "gen_ai.usage.input_tokens", "value": {"intValue": "12"}}, {"key": "gen_ai.usage.output_tokens", "value": {"intValue": 5}}]}]}]}]}"#;
    let otel: Vec<u8> = otel.iter().copied().filter(|b| *b != b'\n').collect();
    let span = br#"{"start_time": "2024-05-01T12:00:00.250Z", "attributes": {"gen_ai.usage.prompt_tokens": "7", "gen_ai.usage.completion_tokens": 3}}"#;
    let blocks = TraceFormat::Mooncake { block_tokens: 64 };
    let files: [(&str, TraceFormat, &[u8]); 4] = [
        ("a.jsonl", blocks, mooncake),
        ("a.csv", blocks, csv),
        ("b.json", TraceFormat::OpenTelemetry, &otel),
        ("c.jsonl", TraceFormat::OpenTelemetry, span),
    ];
    for (name, format, whole) in files {
        let prompts = trace(name, format, whole);
        assert_eq!(prompts.map(|p| p.len()), Ok(4), "{name}");
        for i in 0..whole.len() {
            let _ = trace(name, format, &whole[..i]);
            for flip in [0x01, 0x80, 0xff] {
                let mut other = whole.to_vec();
                other[i] ^= flip;
                let _ = trace(name, format, &other);
            }
        }
    }
}

proptest! {
    #[test]
    fn a_trace_with_an_odd_value(at in 0usize..12, otel: bool, by in prop::sample::select(vec![
        json!(null), json!(-1), json!(1e300), json!(u64::MAX), json!(1u64 << 40), json!(""), json!([]), json!({}), json!([[0]]),
    ])) {
        let (format, mut row) = match otel {
            false => (
                TraceFormat::Mooncake { block_tokens: 16 },
                json!({"timestamp": 5, "input_length": 30, "output_length": 3, "hash_ids": [1, 2]}),
            ),
            true => (
                TraceFormat::OpenTelemetry,
                json!({"spans": [{"startTimeUnixNano": 5, "status": {"code": 1}, "attributes": {
                    "gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3}}]}),
            ),
        };
        let fine = row.to_string();
        replaced(&mut row, at, &by);
        let _ = trace("a.jsonl", format, format!("{fine}\n{row}").as_bytes());
    }

    #[test]
    fn any_bytes_are_prompts_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..200), ending in "json|jsonl|csv|tsv|txt|parquet",
    ) {
        let _ = prompts(&format!("a.{ending}"), &bytes);
    }

    #[test]
    fn any_text_is_sent_as_it_is(texts in prop::collection::vec("\\PC{1,30}", 4)) {
        let lines: String = texts.iter().map(|text| json!({"prompt": text}).to_string() + "\n").collect();
        let sent = prompts("a.jsonl", lines.as_bytes()).unwrap();
        for (text, sent) in texts.iter().zip(sent) {
            let sent: Value = serde_json::from_str(&sent).unwrap();
            prop_assert_eq!(sent, json!([{"role": "user", "content": text}]));
        }
    }
}
