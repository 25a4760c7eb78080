//! Traces, as the server sees them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;

use powerband_bench::*;
use serde_json::{Value, json};
use support::*;

/// When the requests come (ms), the tokens of their prompts and answers, and their blocks (of 16 tokens). The file has
/// them in another order.
const CALLS: [(u64, u64, u64, &[u64]); 8] = [
    (0, 40, 3, &[1, 2]),
    (20, 33, 4, &[1, 3]),
    (20, 50, 2, &[]),
    (50, 20, 5, &[9]),
    (60, 35, 3, &[1, 2]),
    (100, 18, 2, &[9]),
    (130, 60, 6, &[1, 2, 5]),
    (200, 25, 3, &[4]),
];

const MOONCAKE: TraceFormat = TraceFormat::Mooncake { block_tokens: 16 };

/// A folder with a trace of [`CALLS`].
fn trace() -> (tempfile::TempDir, DataSource) {
    let row = |(time, input, output, blocks): &(u64, u64, u64, &[u64])| {
        let row = json!({"timestamp": 27_000 + time, "input_length": input, "output_length": output, "hash_ids": blocks});
        row.to_string() + "\n"
    };
    // The two of one time stay in their order.
    let rows: String = CALLS[3..].iter().chain(&CALLS[..3]).map(row).collect();
    file(&rows, MOONCAKE)
}

fn file(rows: &str, format: TraceFormat) -> (tempfile::TempDir, DataSource) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.jsonl");
    std::fs::write(&path, rows).unwrap();
    (folder, DataSource::Trace(TraceData { path, format }))
}

fn replay(time_scales: &[f64]) -> Profile {
    Profile::Replay {
        time_scales: time_scales.to_vec(),
        max_concurrency: None,
    }
}

fn config(mock: &Mock, profile: Profile, source: DataSource) -> BenchConfig {
    let mut config = BenchConfig::new(mock.url(), profile);
    config.limits = Limits::NONE;
    config.data.source = source;
    config.data.seed = Some(1);
    config.workers = Some(2);
    config
}

async fn levels(config: &BenchConfig) -> Vec<LevelResult> {
    run(config, |_| {}, &Cancel::default()).await.unwrap()
}

/// Warnings that speak of tokens or of the trace: a busy machine may add others.
fn warnings(level: &LevelResult) -> Vec<&String> {
    let ours = |w: &&String| w.contains("token") || w.contains("trace");
    level.warnings.iter().filter(ours).collect()
}

/// The requests in the order of the trace.
fn in_order(level: &LevelResult) -> Vec<RequestRecord> {
    let mut requests: Vec<RequestRecord> = level.requests.iter().map(|r| r.into_owned()).collect();
    requests.sort_by_key(|r| {
        let (_, index) = r.id.rsplit_once('-').unwrap();
        index.parse::<u64>().unwrap()
    });
    requests
}

/// A report, which GuideLLM's schema must take.
fn valid_report(path: &Path) -> Value {
    let json = |path: &Path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let schema: Value =
        json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/report.schema.json"));
    let validator = jsonschema::validator_for(&schema).unwrap();
    let report: Value = json(path);
    let errors: Vec<String> = validator
        .iter_errors(&report)
        .map(|e| format!("{e} at {}", e.instance_path()))
        .collect();
    assert_eq!(errors, Vec::<String>::new());
    report
}

#[tokio::test]
async fn each_request_of_a_trace_is_sent_at_its_time_with_its_lengths() {
    let (folder, source) = trace();
    let settings = Settings {
        overhead: 3,
        ..Settings::default()
    };
    let mock = mock(settings).await;
    let mut config = config(&mock, replay(&[1.0, 2.0]), source);
    config.output_dir = Some(folder.path().join("out"));
    let levels = levels(&config).await;
    assert_eq!(levels.len(), 2);
    for (level, scale) in levels.iter().zip([1, 2]) {
        assert_eq!(level.requests.totals().successful, CALLS.len());
        assert_eq!(level.stopped, None);
        let requests = in_order(level);
        for (r, (_, input, output, _)) in requests.iter().zip(CALLS) {
            assert_eq!(
                (r.prompt_tokens, r.output_tokens),
                (input, output),
                "{}",
                r.id
            );
            assert!(r.sent_ns >= r.intended_ns);
        }
        for (r, (time, ..)) in requests.iter().zip(CALLS) {
            let due = time * scale * 1_000_000;
            // Seconds are no whole number of nanoseconds.
            assert!(
                r.intended_ns.abs_diff(due) <= 1,
                "{}: {}",
                r.id,
                r.intended_ns
            );
        }
        let metrics = LevelMetrics::of(level);
        assert_eq!(
            metrics.scheduled_latency_s.unwrap().count,
            CALLS.len() as u64
        );
        assert_eq!(level.requested_prompt_tokens, None);
    }
    assert_eq!(warnings(&levels[0]), Vec::<&String>::new());
    let path = folder.path().join("out/replay-2.json");
    let report = valid_report(&path);
    let spec = &report["config"]["spec"];
    assert_eq!(spec["profile"]["kind"], "replay");
    assert_eq!(spec["profile"]["time_scale"], 2.0);
    assert_eq!(spec["data"][0]["kind"], "mooncake");
    assert_eq!(spec["data"][0]["hash_id_block_size"], 16);
    assert_eq!(guidellm::read(&path).unwrap()[0], levels[1]);
}

#[tokio::test]
async fn prompts_share_the_blocks_that_the_trace_says() {
    let (_folder, source) = trace();
    let mock = mock(Settings::default()).await;
    let mut config = config(&mock, replay(&[0.1]), source);
    config.data.format = PromptFormat::TokenIds { low: 0, high: 5000 };
    let level = levels(&config).await.remove(0);
    assert_eq!(level.requests.totals().successful, CALLS.len());
    let prompts: Vec<Vec<u64>> = mock
        .prompts()
        .iter()
        .map(|p| serde_json::from_value(p.clone()).unwrap())
        .collect();
    let of = |input: u64| prompts.iter().find(|p| p.len() as u64 == input).unwrap();
    let common = |a: u64, b: u64| of(a).iter().zip(of(b)).take_while(|(a, b)| a == b).count();
    for (a, blocks_a) in CALLS.map(|c| (c.1, c.3)) {
        for (b, blocks_b) in CALLS.map(|c| (c.1, c.3)) {
            let shared = blocks_a
                .iter()
                .zip(blocks_b)
                .take_while(|(a, b)| a == b)
                .count();
            let longest = a.min(b).min(16 * shared as u64) as usize;
            assert!(a == b || common(a, b) == longest, "{a} and {b}");
        }
    }
}

#[tokio::test]
async fn limits_end_a_replay_before_its_trace_does() {
    let (_folder, source) = trace();
    let mock = mock(Settings::default()).await;
    let mut config = config(&mock, replay(&[1.0]), source);
    config.limits.max_requests = Some(3);
    let level = levels(&config).await.remove(0);
    assert_eq!((level.requests.len(), &level.stopped), (3, &None));
    config.limits.max_requests = Some(1000);
    config.limits.max_seconds = Some(0.16);
    let level = levels(&config).await.remove(0);
    // Seven are due before that time.
    assert!((1..=7).contains(&level.requests.len()));
}

#[tokio::test]
async fn other_profiles_take_the_lengths_alone() {
    let (_folder, source) = trace();
    let mock = mock(Settings::default()).await;
    let mut config = config(&mock, Profile::Concurrent(vec![2]), source);
    config.limits.max_requests = Some(10);
    let level = levels(&config).await.remove(0);
    let found: Vec<(u64, u64)> = in_order(&level)
        .iter()
        .map(|r| (r.prompt_tokens, r.output_tokens))
        .collect();
    let lengths = CALLS.iter().cycle().take(10).map(|c| (c.1, c.2));
    assert_eq!(found, lengths.collect::<Vec<_>>());
    assert_eq!(warnings(&level).len(), 1, "{:?}", level.warnings);
    assert!(
        level
            .warnings
            .iter()
            .any(|w| w.contains("has 8 requests and the level needed 10"))
    );
}

#[tokio::test]
async fn spans_are_replayed_too() {
    let span = |ms: u32, operation: &str, input: u64| {
        json!({"start_time": format!("2024-05-01T12:00:00.{ms:03}Z"), "attributes": {
            "gen_ai.operation.name": operation, "gen_ai.usage.input_tokens": input, "gen_ai.usage.output_tokens": 2}})
        .to_string()
    };
    let rows = [
        span(80, "chat", 30),
        span(10, "chat", 20),
        span(40, "invoke_agent", 50),
    ]
    .join("\n");
    let (folder, source) = file(&rows, TraceFormat::OpenTelemetry);
    let mock = mock(Settings::default()).await;
    let mut config = config(&mock, replay(&[0.5]), source);
    config.output_dir = Some(folder.path().to_owned());
    let level = levels(&config).await.remove(0);
    let requests = in_order(&level);
    let prompts: Vec<u64> = requests.iter().map(|r| r.prompt_tokens).collect();
    assert_eq!(prompts, [20, 30]);
    // 70 ms apart, at twice the speed.
    let due: Vec<u64> = requests.iter().map(|r| r.intended_ns).collect();
    assert_eq!(due[0], 0);
    assert!(due[1].abs_diff(35_000_000) < 1_000, "{due:?}");
    let report = valid_report(&folder.path().join("replay-0.5.json"));
    assert_eq!(report["config"]["spec"]["data"][0]["kind"], "otel");
}

#[tokio::test]
async fn a_trace_that_cannot_be_replayed_is_an_error_before_anything_is_sent() {
    let mock = mock(Settings::default()).await;
    let row =
        |time: f64| json!({"timestamp": time, "input_length": 5, "output_length": 1}).to_string();
    for (rows, scale, words) in [
        (
            row(0.0) + "\n{\"timestamp\": 1}",
            1.0,
            "trace.jsonl: line 2: there is no `input_length`",
        ),
        (row(0.0) + "\n" + &row(1e14), 1.0, "over three years"),
        (
            row(0.0) + "\n" + &row(1e9),
            1000.0,
            "--time-scale: the trace takes 1000000 s",
        ),
    ] {
        let (_folder, source) = file(&rows, MOONCAKE);
        let config = config(&mock, replay(&[scale]), source);
        let error = run(&config, |_| {}, &Cancel::default()).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(mock.seen.connections.load(SeqCst), 0);
}
