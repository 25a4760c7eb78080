//! Metrics of levels small enough to compute by hand.

use super::*;
use crate::record::{Outcome, TokenSource};

const MS: u64 = 1_000_000;

/// A request sent at `sent` ms: first token after `ttft` ms, then a token every `gap` ms.
fn request(sent: u64, ttft: u64, gap: u64, tokens: u64) -> RequestRecord {
    let first = (sent + ttft) * MS;
    let last = first + gap * (tokens - 1) * MS;
    RequestRecord {
        id: format!("r{sent}"),
        outcome: Outcome::Successful,
        intended_ns: sent * MS,
        sent_ns: sent * MS,
        first_token_ns: Some(first),
        first_output_token_ns: Some(first),
        last_token_ns: Some(last),
        end_ns: last,
        prompt_tokens: 10,
        output_tokens: tokens,
        chunks: tokens,
        gaps_us: vec![gap as u32 * 1000; tokens as usize - 1],
        token_source: TokenSource::Usage,
        ..RequestRecord::default()
    }
}

fn level(strategy: Strategy, requests: Vec<RequestRecord>) -> LevelResult {
    let end = requests.iter().map(|r| r.end_ns).max().unwrap_or(0);
    LevelResult {
        target: "http://127.0.0.1:8000".into(),
        model: "m".into(),
        endpoint: "/v1/completions".into(),
        started_unix: 0.0,
        duration_s: seconds(end),
        requested_prompt_tokens: Some(10),
        requested_output_tokens: Some(5),
        requests: requests.into(),
        ..LevelResult::empty(strategy)
    }
}

#[test]
fn two_requests_by_hand() {
    // A: sent 0, first 100 ms, 5 tokens every 10 ms, ends at 140. B: sent 140, first 260, ends at 340.
    let l = level(
        Strategy::Synchronous,
        vec![request(0, 100, 10, 5), request(140, 120, 20, 5)],
    );
    let m = LevelMetrics::of(&l);
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    near(m.window_s, 0.34);
    near(m.ttft_ms.mean, 110.0);
    near(m.itl_ms.mean, 15.0);
    assert_eq!(m.itl_ms.count, 8);
    near(m.tpot_ms.mean, (140.0 / 5.0 + 200.0 / 5.0) / 2.0);
    assert_eq!(m.tpot_ms.count, 10);
    near(m.latency_s.mean, 0.17);
    near(m.requests_per_second, 2.0 / 0.34);
    near(m.output_tokens_per_second, 10.0 / 0.34);
    near(m.prompt_tokens_per_second, 20.0 / 0.34);
    near(m.total_tokens_per_second, 30.0 / 0.34);
    near(m.delivered_concurrency, 1.0);
    near(m.gap_ms.mean, 15.0);
    assert_eq!(
        (m.successful, m.errored, m.incomplete, m.total),
        (2, 0, 0, 2)
    );
    assert!(m.scheduled_latency_s.is_none() && m.steady.is_none());
}

#[test]
fn only_successful_requests_count_but_all_are_in_flight() {
    let mut failed = request(0, 100, 10, 5);
    failed.outcome = Outcome::Errored("HTTP 500".into());
    let mut cut = request(0, 100, 10, 5);
    cut.outcome = Outcome::Incomplete("time limit".into());
    let l = level(
        Strategy::Concurrent { streams: 3 },
        vec![failed, cut, request(0, 100, 10, 5)],
    );
    let m = LevelMetrics::of(&l);
    assert_eq!(
        (m.successful, m.errored, m.incomplete, m.total),
        (1, 1, 1, 3)
    );
    assert_eq!(m.ttft_ms.count, 1);
    assert!((m.requests_per_second - 1.0 / 0.14).abs() < 1e-9);
    assert!((m.delivered_concurrency - 3.0).abs() < 1e-9);
}

#[test]
fn latency_from_the_intended_start_in_an_open_loop() {
    let mut late = request(50, 100, 10, 5);
    late.intended_ns = 10 * MS;
    let l = level(
        Strategy::Constant {
            rate: 1.0,
            max_concurrency: None,
        },
        vec![late],
    );
    let m = LevelMetrics::of(&l);
    assert!((m.scheduled_latency_s.unwrap().mean - 0.18).abs() < 1e-9);
    assert!((m.latency_s.mean - 0.14).abs() < 1e-9);
}

#[test]
fn steady_leaves_out_the_ramp_and_the_tail() {
    // Two clients, ten requests each of 100 ms, the first wave slow (400 ms), back to back.
    let mut requests = Vec::new();
    for _ in 0..2 {
        requests.push(request(0, 360, 10, 5));
        requests.extend((0..9).map(|i| request(400 + 100 * i, 60, 10, 5)));
    }
    let l = level(Strategy::Concurrent { streams: 2 }, requests);
    let m = LevelMetrics::of(&l);
    let s = m.steady.unwrap();
    assert_eq!((s.start_s, s.end_s), (0.4, 1.2));
    assert!((s.delivered_concurrency - 2.0).abs() < 1e-9);
    assert!((s.ttft_ms.mean - 60.0).abs() < 1e-9);
    assert!((s.itl_ms.mean - 10.0).abs() < 1e-9);
    // 2 clients x 8 requests of 5 tokens in 0.8 s, and the 2 last tokens of the first wave on the edge.
    assert!((s.output_tokens_per_second - 82.0 / 0.8).abs() < 1e-9);
    assert!(m.output_tokens_per_second < s.output_tokens_per_second);
    // Four waves are too few.
    let few = LevelResult {
        strategy: Strategy::Concurrent { streams: 5 },
        ..l.clone()
    };
    assert!(LevelMetrics::of(&few).steady.is_none());
}

#[test]
fn warm_up_is_left_out() {
    let mut l = level(
        Strategy::Synchronous,
        vec![
            request(0, 900, 10, 5),
            request(1000, 100, 10, 5),
            request(1140, 100, 10, 5),
        ],
    );
    l.warmup_s = 0.95;
    let m = LevelMetrics::of(&l);
    assert_eq!(m.successful, 2);
    assert!((m.ttft_ms.mean - 100.0).abs() < 1e-9);
    assert!((m.window_s - 0.33).abs() < 1e-9);
}

#[test]
fn what_crosses_an_edge_of_the_window_counts_for_the_part_inside() {
    // First tokens at 100, 200 and 950 ms, last ones at 140, 240 and 990.
    let mut l = level(
        Strategy::Synchronous,
        vec![
            request(0, 100, 10, 5),
            request(100, 100, 20, 3),
            request(850, 100, 30, 2),
        ],
    );
    (l.warmup_s, l.cooldown_s) = (0.12, 0.08);
    // 0.12 to 0.9: the first had its first token before, the third has it after.
    let m = LevelMetrics::of(&l);
    assert_eq!((m.total, m.latency_s.count), (3, 3));
    assert_eq!((m.ttft_ms.count, m.ttft_ms.max), (2, 100.0));
    assert_eq!(
        (m.itl_ms.count, m.itl_ms.min, m.itl_ms.max),
        (6, 10.0, 20.0)
    );
    assert_eq!(m.tpot_ms.count, 10);
}

#[test]
fn a_level_without_requests_has_zeros() {
    let m = LevelMetrics::of(&level(Strategy::Synchronous, vec![]));
    assert_eq!(
        (m.total, m.requests_per_second, m.delivered_concurrency),
        (0, 0.0, 0.0)
    );
}

#[test]
fn output_events_without_gaps_are_spread_evenly() {
    let mut r = request(0, 100, 10, 5);
    r.gaps_us.clear();
    let events: Vec<(u64, f64)> = output_events(&r).collect();
    assert_eq!(events.len(), 5);
    assert_eq!((events[1].0, events[4].0), (110 * MS, 140 * MS));
    assert_eq!(events.iter().map(|e| e.1).sum::<f64>(), 5.0);
}
