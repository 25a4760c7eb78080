//! Levels that come by a schedule: the load is requests per second, not clients.

#![allow(clippy::unwrap_used, clippy::panic)]

use powerband_bench::{LevelResult, Outcome, RequestRecord, Strategy};
use powerband_report::{Context, Report};

/// `n` requests, one each `1 / rate` s, served in 100 ms by a server that can take `most` a second.
fn level(strategy: Strategy, rate: f64, most: f64, n: u64) -> LevelResult {
    let mut level = LevelResult::empty(strategy);
    let ns = |s: f64| (s * 1e9) as u64;
    let mut free = 0.0f64;
    let requests: Vec<RequestRecord> = (0..n)
        .map(|i| {
            let sent = i as f64 / rate;
            let start = sent.max(free);
            free = start + 1.0 / most;
            RequestRecord {
                id: i.to_string(),
                outcome: Outcome::Successful,
                intended_ns: ns(sent),
                sent_ns: ns(sent),
                first_token_ns: Some(ns(start + 0.037)),
                last_token_ns: Some(ns(start + 0.1)),
                end_ns: ns(start + 0.1),
                prompt_tokens: 128,
                output_tokens: 64,
                chunks: 64,
                ..RequestRecord::default()
            }
        })
        .collect();
    level.requests = requests.into();
    level.duration_s = level.requests.last_end_ns() as f64 / 1e9;
    level
}

fn constant(rate: f64, most: f64) -> LevelResult {
    let strategy = Strategy::Constant {
        rate,
        max_concurrency: None,
    };
    level(strategy, rate, most, 200)
}

#[test]
fn loads_are_requests_per_second() {
    let levels: Vec<LevelResult> = [5.0, 10.0, 20.0, 40.0, 80.0]
        .map(|rate| constant(rate, 20.0))
        .into();
    let report = Report::from_levels(&levels, Context::default());
    let loads: Vec<f64> = report.sweep().points.iter().map(|p| p.load()).collect();
    assert_eq!(loads, [5.0, 10.0, 20.0, 40.0, 80.0]);
    let text = report.summary_text();
    assert!(text.contains("requests/s"), "{text}");
    assert!(!text.contains("client"), "{text}");
    let plateau = report.findings().iter().find(|f| f.id == "plateau");
    assert_eq!(plateau.unwrap().level, Some(20.0), "{text}");
}

#[test]
fn levels_of_both_kinds_are_told_by_what_is_in_flight() {
    let levels = [
        level(Strategy::Synchronous, 10.0, 20.0, 50),
        constant(15.0, 20.0),
    ];
    let report = Report::from_levels(&levels, Context::default());
    let text = report.summary_text();
    assert!(text.contains("1 in flight"), "{text}");
    assert!(text.contains("1.5 in flight"), "{text}");
    assert!(!text.contains("client"), "{text}");
}
