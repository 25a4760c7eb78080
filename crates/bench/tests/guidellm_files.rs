//! Files that GuideLLM 0.8.1 wrote of each of its load shapes against a mock (what nobody reads is cut out of
//! them): read, and our metrics from their requests are the metrics that stand in them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use powerband_bench::{DistributionSummary, LevelMetrics, LevelResult, Strategy, guidellm};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/guidellm")
        .join(format!("{name}.json"))
}

/// Our levels with GuideLLM's own benchmarks.
fn levels(name: &str) -> Vec<(LevelResult, Value)> {
    let path = fixture(name);
    let report: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let benchmarks = report["benchmarks"].as_array().unwrap().clone();
    let levels = guidellm::read(&path).unwrap();
    assert_eq!(levels.len(), benchmarks.len());
    levels.into_iter().zip(benchmarks).collect()
}

/// Times of ours are whole nanoseconds, so values in a unit of `unit_ns` may differ by one of them. All
/// requests of the fixtures have as many tokens, so that weights do not move percentiles.
fn assert_same(
    name: &str,
    requests: usize,
    ours: &DistributionSummary,
    theirs: &Value,
    unit_ns: f64,
) {
    let theirs: DistributionSummary = serde_json::from_value(theirs.clone()).unwrap();
    let near = |what: &str, ours: f64, theirs: f64| {
        let apart_ns = (ours - theirs).abs() * unit_ns;
        assert!(apart_ns <= 1.0, "{name}, {what}: {ours} is not {theirs}");
    };
    assert_eq!(ours.count, theirs.count, "{name}");
    near("mean", ours.mean, theirs.mean);
    near("min", ours.min, theirs.min);
    near("max", ours.max, theirs.max);
    let (o, t) = (ours.percentiles, theirs.percentiles);
    for (q, ours, theirs) in [
        (0.001, o.p001, t.p001),
        (0.01, o.p01, t.p01),
        (0.05, o.p05, t.p05),
        (0.1, o.p10, t.p10),
        (0.25, o.p25, t.p25),
        (0.5, o.p50, t.p50),
        (0.75, o.p75, t.p75),
        (0.9, o.p90, t.p90),
        (0.95, o.p95, t.p95),
        (0.99, o.p99, t.p99),
        (0.999, o.p999, t.p999),
    ] {
        // Where a percentile falls between two values, rounding decides which of them GuideLLM takes.
        let between = q * requests as f64;
        if (between - between.round()).abs() > 1e-6 {
            near(&format!("{q}"), ours, theirs);
        }
    }
}

fn assert_metrics(name: &str, level: &LevelResult, benchmark: &Value) {
    let m = LevelMetrics::of(level);
    let theirs = |metric: &str| &benchmark["metrics"][metric]["successful"];
    assert_same(
        name,
        m.successful,
        &m.ttft_ms,
        theirs("time_to_first_token_ms"),
        1e6,
    );
    assert_same(
        name,
        m.successful,
        &m.itl_ms,
        theirs("inter_token_latency_ms"),
        1e6,
    );
    assert_same(
        name,
        m.successful,
        &m.tpot_ms,
        theirs("time_per_output_token_ms"),
        1e6,
    );
    assert_same(
        name,
        m.successful,
        &m.latency_s,
        theirs("request_latency"),
        1e9,
    );
    let in_window = &benchmark["metrics"]["request_totals"];
    assert_eq!(in_window["successful"], m.successful, "{name}");
    assert_eq!(in_window["errored"], m.errored, "{name}");
    assert_eq!(in_window["incomplete"], m.incomplete, "{name}");
    let window_s = benchmark["duration"].as_f64().unwrap();
    assert!(
        (m.window_s - window_s).abs() < 1e-6,
        "{name}: {}",
        m.window_s
    );
    for (metric, per_second) in [
        ("requests_per_second", m.requests_per_second),
        ("prompt_tokens_per_second", m.prompt_tokens_per_second),
        ("output_tokens_per_second", m.output_tokens_per_second),
    ] {
        let events = theirs(metric)["count"].as_f64().unwrap();
        let ours = per_second * m.window_s;
        assert!(
            (ours - events).abs() < 0.5,
            "{name}, {metric}: {ours} is not {events}"
        );
    }
    let listed = |kind: &str| benchmark["requests"][kind].as_array().map_or(0, Vec::len);
    let totals = level.requests.totals();
    assert_eq!(
        (totals.successful, totals.errored, totals.incomplete),
        (
            listed("successful"),
            listed("errored"),
            listed("incomplete")
        )
    );
    assert_eq!(level.model, "mock");
    assert_eq!(level.endpoint, "/v1/completions");
    for r in &level.requests {
        assert!(r.sent_ns <= r.end_ns && r.intended_ns <= r.sent_ns, "{r:?}");
        if let (Some(first), Some(last)) = (r.first_token_ns, r.last_token_ns) {
            assert!(
                r.sent_ns <= first && first <= last && last <= r.end_ns,
                "{r:?}"
            );
        }
    }
}

#[test]
fn each_shape_is_read_and_gives_guidellms_numbers() {
    let shapes = [
        ("synchronous", Strategy::Synchronous),
        ("concurrent", Strategy::Concurrent { streams: 3 }),
        // The same with 0.25 s of warm-up and 0.1 s of cool-down.
        ("warm-up", Strategy::Concurrent { streams: 3 }),
        (
            "throughput",
            Strategy::Throughput {
                max_concurrency: Some(6),
            },
        ),
        (
            "constant",
            Strategy::Constant {
                rate: 15.0,
                max_concurrency: Some(10240),
            },
        ),
        (
            "poisson",
            Strategy::Poisson {
                rate: 20.0,
                max_concurrency: Some(10240),
            },
        ),
    ];
    for (name, strategy) in shapes {
        let levels = levels(name);
        assert_eq!(levels.len(), 1);
        for (level, benchmark) in &levels {
            assert_eq!(level.strategy, strategy);
            assert_metrics(name, level, benchmark);
        }
    }
}

#[test]
fn a_sweep_is_read_level_by_level() {
    let levels = levels("sweep");
    let shapes: Vec<String> = levels.iter().map(|l| l.0.strategy.file_stem()).collect();
    assert_eq!(shapes[..2], ["synchronous", "throughput-max"]);
    assert!(shapes[2..].iter().all(|s| s.starts_with("constant-")));
    assert_eq!(shapes.len(), 4);
    for (level, benchmark) in &levels {
        assert_metrics("sweep", level, benchmark);
    }
}
