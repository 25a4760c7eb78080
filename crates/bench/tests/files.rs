//! The report: valid by GuideLLM's own schema, and read back without loss.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use powerband_bench::*;
use serde_json::{Value, json};

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

const MS: u64 = 1_000_000;

fn level(strategy: Strategy) -> LevelResult {
    let request = |i: u64| {
        let sent = i * 50 * MS + 123;
        let first = sent + 20 * MS + i * MS;
        RequestRecord {
            id: format!("r-{i}"),
            outcome: match i {
                7 => Outcome::Errored("HTTP 500: boom".into()),
                8 => Outcome::Incomplete("time limit reached".into()),
                _ => Outcome::Successful,
            },
            intended_ns: i * 50 * MS,
            sent_ns: sent,
            first_token_ns: (i != 7).then_some(first),
            first_output_token_ns: (i != 7).then_some(first),
            last_token_ns: (i != 7).then_some(first + 63 * MS),
            end_ns: first + 64 * MS,
            prompt_tokens: 128,
            cached_tokens: Some(i),
            output_tokens: 64,
            reasoning_tokens: None,
            chunks: 64,
            iterations: 66,
            gaps_us: vec![1000; 63],
            token_source: TokenSource::Usage,
            session: Some(i / 2),
            turn: (i % 2) as u32,
            predecessor_end_ns: (i % 2 == 1).then(|| sent - MS),
        }
    };
    LevelResult {
        target: "http://127.0.0.1:8000".into(),
        model: "m".into(),
        endpoint: "/v1/completions".into(),
        http_version: "1.1".into(),
        started_unix: 1_795_511_353.539_022,
        duration_s: 0.0,
        requested_prompt_tokens: Some(128),
        requested_output_tokens: Some(64),
        requests: (0..10).map(request).collect(),
        warnings: vec!["a warning".into()],
        fingerprint: "00ff".into(),
        client: ClientHealth {
            cpu_share: 0.9,
            limited: true,
            reason: "busy".into(),
            ..ClientHealth::default()
        },
        server: [("running".to_owned(), 3.0)].into(),
        ..LevelResult::empty(strategy)
    }
    .with_duration()
}

trait WithDuration {
    fn with_duration(self) -> Self;
}

impl WithDuration for LevelResult {
    fn with_duration(mut self) -> Self {
        self.duration_s = self.requests.iter().map(|r| r.end_ns).max().unwrap_or(0) as f64 / 1e9;
        self
    }
}

fn strategies() -> Vec<Strategy> {
    vec![
        Strategy::Synchronous,
        Strategy::Concurrent { streams: 5 },
        Strategy::Throughput {
            max_concurrency: Some(9),
        },
        Strategy::Constant {
            rate: 2.5,
            max_concurrency: None,
        },
        Strategy::Poisson {
            rate: 2.5,
            max_concurrency: Some(3),
        },
        Strategy::Replay {
            time_scale: 0.25,
            max_concurrency: Some(7),
        },
    ]
}

#[test]
fn every_shape_is_valid_and_comes_back_exactly() {
    let validator = jsonschema::validator_for(&json_of(&fixture("report.schema.json"))).unwrap();
    // The check itself works: a report without metrics is not valid, GuideLLM's own is.
    assert!(
        !validator.is_valid(
            &json!({"metadata": {}, "config": {}, "benchmarks": [{}], "conclusions": []})
        )
    );
    assert!(validator.is_valid(&json_of(&fixture("report.example.json"))));
    let dir = tempfile::tempdir().unwrap();
    for strategy in strategies() {
        let path = dir.path().join(format!("{}.json", strategy.file_stem()));
        let mut original = level(strategy);
        original.warmup_s = 0.04;
        original.rampup_s = 0.5;
        original.slo = Some(Slo::parse("ttft:25,itl:2").unwrap());
        guidellm::write(&path, &original).unwrap();
        let report = json_of(&path);
        let errors: Vec<String> = validator
            .iter_errors(&report)
            .map(|e| format!("{} at {}", e, e.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{:?}: {errors:#?}", original.strategy);
        assert_eq!(guidellm::read(&path).unwrap(), [original]);
    }
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        6,
        "no temporary file is left"
    );
}

#[test]
fn an_empty_level_is_valid_too() {
    let validator = jsonschema::validator_for(&json_of(&fixture("report.schema.json"))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.json");
    guidellm::write(
        &path,
        &LevelResult::empty(Strategy::Concurrent { streams: 1 }),
    )
    .unwrap();
    let report = json_of(&path);
    assert!(
        validator.is_valid(&report),
        "{:?}",
        validator
            .iter_errors(&report)
            .map(|e| e.to_string())
            .collect::<Vec<_>>()
    );
}

#[test]
fn what_scripts_read_is_where_they_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.json");
    let original = level(Strategy::Concurrent { streams: 5 });
    guidellm::write(&path, &original).unwrap();
    let report = json_of(&path);
    let benchmark = &report["benchmarks"][0];
    let metrics = &benchmark["metrics"];
    assert_eq!(benchmark["config"]["strategy"]["streams"], 5);
    assert_eq!(
        metrics["request_totals"],
        json!({"successful": 8, "errored": 1, "incomplete": 1, "total": 10})
    );
    assert_eq!(
        benchmark["requests"]["successful"]
            .as_array()
            .unwrap()
            .len(),
        8
    );
    assert_eq!(
        benchmark["requests"]["errored"][0]["info"]["error"],
        "HTTP 500: boom"
    );
    let ours = LevelMetrics::of(&original);
    for (name, ours) in [
        ("time_to_first_token_ms", ours.ttft_ms.mean),
        ("inter_token_latency_ms", ours.itl_ms.mean),
        ("time_per_output_token_ms", ours.tpot_ms.mean),
        ("request_latency", ours.latency_s.mean),
        ("requests_per_second", ours.requests_per_second),
        ("output_tokens_per_second", ours.output_tokens_per_second),
        ("prompt_tokens_per_second", ours.prompt_tokens_per_second),
        ("tokens_per_second", ours.total_tokens_per_second),
    ] {
        let written = metrics[name]["successful"]["mean"].as_f64().unwrap();
        assert!(
            (written - ours).abs() < 1e-3 * ours,
            "{name}: {written} is not {ours}"
        );
    }
    let delivered = metrics["request_concurrency"]["total"]["mean"]
        .as_f64()
        .unwrap();
    assert!((delivered - ours.delivered_concurrency).abs() < 1e-3);
    assert!(
        benchmark["warnings"][0]["message"]
            .as_str()
            .unwrap()
            .contains("the client was the limit")
    );
}

/// GuideLLM's own report: our metrics from its request list against its own, for what needs no request
/// that was cut from the fixture's lists.
#[test]
fn guidellms_own_report_is_read() {
    let path = fixture("report.example.json");
    let levels = guidellm::read(&path).unwrap();
    assert_eq!(levels.len(), 2);
    assert_eq!(levels[0].strategy, Strategy::Concurrent { streams: 2 });
    assert_eq!(levels[1].strategy, Strategy::Concurrent { streams: 4 });
    assert_eq!(
        (levels[0].model.as_str(), levels[0].endpoint.as_str()),
        ("mock", "/v1/chat/completions")
    );
    let report = json_of(&path);
    for (level, benchmark) in levels.iter().zip(report["benchmarks"].as_array().unwrap()) {
        let listed = benchmark["requests"]["successful"].as_array().unwrap();
        assert_eq!(level.requests.len(), listed.len());
        for theirs in listed {
            let ours = level
                .requests
                .iter()
                .find(|r| r.id == theirs["request_id"].as_str().unwrap())
                .unwrap();
            let near = |name: &str, value: f64| {
                let theirs = theirs[name].as_f64().unwrap();
                assert!(
                    (value - theirs).abs() < 1e-3,
                    "{name}: {value} is not {theirs}"
                );
            };
            near("time_to_first_token_ms", ours.ttft_ms().unwrap());
            near("inter_token_latency_ms", ours.itl_ms().unwrap());
            near("time_per_output_token_ms", ours.tpot_ms().unwrap());
            near("request_latency", ours.e2e_s());
            // Our clock starts with the first send: a start that was due before it has no place.
            let due = theirs["info"]["timings"]["targeted_start"]
                .as_f64()
                .unwrap();
            if due >= level.started_unix {
                near("request_dispatch_delay", ours.dispatch_delay_s());
                near("request_scheduled_latency", ours.scheduled_latency_s());
            }
            near("prompt_tokens", ours.prompt_tokens as f64);
            near("output_tokens", ours.output_tokens as f64);
        }
    }
}

#[test]
fn the_objective_of_a_foreign_report_is_judged() {
    let mut report = json_of(&fixture("report.example.json"));
    let slo = &mut report["benchmarks"][0]["config"]["slo"];
    *slo = json!({"ttft_ms": 103.0, "tpot_ms": 9.99, "e2el_ms": null});
    report["benchmarks"][1]["config"]["slo"] = json!({"ttft_ms": -1.0});
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("theirs.json");
    std::fs::write(&path, report.to_string()).unwrap();
    let levels = guidellm::read(&path).unwrap();
    // Its four listed requests: TTFT 101.27, 104.11, 103.51, 102.16; ITL 9.9885, 9.9913, 9.9893, 9.9919.
    let goodput = LevelMetrics::of(&levels[0]).goodput.unwrap();
    assert_eq!((goodput.met, goodput.judged), (1, 4));
    assert_eq!(goodput.share, 0.25);
    assert_eq!(LevelMetrics::of(&levels[1]).goodput, None);
}

#[test]
fn files_that_are_no_report_say_so() {
    let dir = tempfile::tempdir().unwrap();
    for (name, content, words) in [
        (
            "cut.json",
            "{\"benchmarks\": [{\"config\"",
            "not a GuideLLM report",
        ),
        ("other.json", "{\"a\": 1}", "no benchmark"),
        ("text.json", "hello", "not a GuideLLM report"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let error = guidellm::read(&path).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(name), "{error}");
    }
    assert!(guidellm::read(&dir.path().join("none.json")).is_err());
    // Little is enough: a request with its times.
    let path = dir.path().join("little.json");
    let little = json!({"benchmarks": [{"config": {"strategy": {"type_": "concurrent", "streams": 3}},
        "requests": {"successful": [{"request_start_time": 10.0, "request_end_time": 12.5, "output_tokens": 4}]}}]});
    std::fs::write(&path, little.to_string()).unwrap();
    let level = guidellm::read(&path).unwrap().remove(0);
    assert_eq!(LevelMetrics::of(&level).latency_s.mean, 2.5);
}

#[test]
fn json_lines_hold_every_request_and_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    let original = level(Strategy::Concurrent { streams: 5 });
    jsonl::write(&path, &original.requests).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 10);
    // Request 3 of `level`: first token 23 ms after its sending, 64 tokens a millisecond apart.
    let line = &lines[3];
    assert_eq!(
        (&line["id"], &line["outcome"]),
        (&json!("r-3"), &json!("successful"))
    );
    assert_eq!(line["reason"], json!(null));
    assert_eq!(line["sent_ns"], 150 * MS + 123);
    assert_eq!(
        (&line["ttft_ms"], &line["itl_ms"]),
        (&json!(23.0), &json!(1.0))
    );
    assert_eq!(line["tpot_ms"], (23.0 + 63.0) / 64.0);
    assert_eq!(line["e2e_s"], 0.087);
    assert_eq!(line["dispatch_delay_s"], 123.0 / 1e9);
    assert_eq!(line["gaps_us"].as_array().unwrap().len(), 63);
    assert_eq!(
        (&lines[7]["outcome"], &lines[7]["reason"]),
        (&json!("errored"), &json!("HTTP 500: boom"))
    );
    assert_eq!(lines[7]["ttft_ms"], json!(null));
    assert_eq!(lines[8]["outcome"], "incomplete");
    assert_eq!(jsonl::read(&path).unwrap(), original.requests);
    std::fs::write(&path, text.replacen("\"sent_ns\":", "\"sent\":", 1)).unwrap();
    let error = jsonl::read(&path).unwrap_err().to_string();
    assert!(
        error.contains("request 1 ") && error.contains("x.jsonl"),
        "{error}"
    );
}

#[test]
fn a_sample_has_all_metrics_and_comes_back_whole_from_the_lines() {
    let validator = jsonschema::validator_for(&json_of(&fixture("report.schema.json"))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (whole, path) = (dir.path().join("whole.json"), dir.path().join("x.json"));
    let original = level(Strategy::Concurrent { streams: 5 });
    guidellm::write(&whole, &original).unwrap();
    let all = &json_of(&whole)["benchmarks"][0];
    for (sample_size, listed) in [
        (0, [0, 0, 0]),
        (3, [3, 1, 1]),
        (8, [8, 1, 1]),
        (99, [8, 1, 1]),
    ] {
        guidellm::write_sample(&path, &original, sample_size).unwrap();
        let report = json_of(&path);
        assert!(validator.is_valid(&report));
        let benchmark = &report["benchmarks"][0];
        for (kind, listed) in ["successful", "errored", "incomplete"].iter().zip(listed) {
            let list = benchmark["requests"][kind].as_array().unwrap();
            assert_eq!(list.len(), listed);
        }
        assert_eq!(benchmark["metrics"], all["metrics"]);
        assert_eq!(benchmark["scheduler_state"], all["scheduler_state"]);
        let lines = jsonl::beside(&path);
        let _ = std::fs::remove_file(&lines);
        if listed[0] < 8 {
            let error = guidellm::read(&path).unwrap_err().to_string();
            assert!(error.contains("x.jsonl"), "{error}");
            jsonl::write(&lines, &Requests::default()).unwrap();
            let error = guidellm::read(&path).unwrap_err().to_string();
            assert!(
                error.contains("has 0 requests") && error.contains("10"),
                "{error}"
            );
            jsonl::write(&lines, &original.requests).unwrap();
        }
        assert_eq!(
            guidellm::read(&path).unwrap(),
            std::slice::from_ref(&original)
        );
    }
}
