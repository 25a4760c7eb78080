//! Runs of a simulated server whose truth is known.

#![allow(clippy::unwrap_used)]

use std::slice::from_ref;

use powerband_bench::{ClientHealth, Outcome as Ended, RequestRecord, Strategy};

use super::*;

/// Random numbers of a seed: an even one of [0, 1), and one of a normal distribution.
struct Random(u64);

impl Random {
    fn even(&mut self) -> f64 {
        // Numerical Recipes' 64-bit linear congruence, of which the high bits are good.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.even(), self.even());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// A closed loop of `clients` on a server that is `slower` times as slow as the first: TTFT of about 50 ms,
/// 20 tokens at about 10 ms, all of it slowed by a shared load that lasts about as long as a request, so that
/// neighbouring requests are alike.
fn run(seed: u64, clients: usize, requests: usize, slower: f64) -> LevelResult {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1);
    random.even();
    let mut free = vec![0u64; clients];
    let mut shared: Vec<f64> = Vec::new();
    let mut state = 0.0;
    let records = (0..requests).map(|i| {
        let (client, sent) = free
            .iter()
            .copied()
            .enumerate()
            .min_by_key(|c| c.1)
            .unwrap();
        let slot = (sent / 200_000_000) as usize;
        while shared.len() <= slot {
            state = 0.4 * state + 0.1 * random.normal();
            shared.push(state);
        }
        let speed = slower * shared[slot].exp();
        let ttft_ms = 50.0 * speed * (0.3 * random.normal()).exp();
        let itl_ms = 10.0 * speed * (0.1 * random.normal()).exp();
        let first = sent + (ttft_ms * 1e6) as u64;
        let last = first + (19.0 * itl_ms * 1e6) as u64;
        free[client] = last;
        RequestRecord {
            id: i.to_string(),
            outcome: Ended::Successful,
            intended_ns: sent,
            sent_ns: sent,
            first_token_ns: Some(first),
            last_token_ns: Some(last),
            end_ns: last,
            prompt_tokens: 100,
            output_tokens: 20,
            chunks: 20,
            ..RequestRecord::default()
        }
    });
    let mut level = LevelResult::empty(Strategy::Concurrent { streams: clients });
    level.requests = records.collect();
    level.duration_s = level.requests.last_end_ns() as f64 / 1e9;
    level
}

fn told(a: &[LevelResult], b: &[LevelResult], threshold: f64) -> Comparison {
    compare_results(("a", "b"), a, b, Settings::new(threshold)).unwrap()
}

fn verdict_of(c: &Comparison, metric: Metric) -> Verdict {
    let all = c.levels.iter().flat_map(|l| &l.metrics);
    all.clone().find(|m| m.metric == metric).unwrap().verdict
}

#[test]
fn runs_without_a_difference_are_called_different_as_rarely_as_stated() {
    const RUNS: u64 = 150;
    let mut by_metric = [0u32; 11];
    let mut any = 0;
    for seed in 0..RUNS {
        let run = |seed| [Level::of(&run(seed, 4, 400, 1.0))];
        let (a, b) = (run(2 * seed), run(2 * seed + 1));
        let settings = Settings::new(0.0);
        let mut change = [level(&grouped(&a)[0], &grouped(&b)[0], &settings)];
        for m in &change[0].metrics {
            let at = Metric::ALL.iter().position(|x| *x == m.metric).unwrap();
            by_metric[at] += u32::from(m.p.unwrap() < 0.05);
        }
        judge(&mut change, &settings);
        let calls = |m: &MetricChange| matches!(m.verdict, Verdict::Better | Verdict::Worse);
        any += u32::from(change[0].metrics.iter().any(calls));
    }
    // One in twenty by itself: 7.5 of 150, 16 with a probability of 0.3 %.
    assert!(by_metric.iter().all(|n| *n <= 16), "{by_metric:?}");
    // The test is not merely dead: a mean is called different sometimes.
    assert!(by_metric.iter().sum::<u32>() > 10, "{by_metric:?}");
    assert!(any <= 16, "{any}");
}

#[test]
fn a_shift_of_a_fifth_is_found() {
    let mut found = 0;
    for seed in 0..20 {
        let (a, b) = (run(seed, 4, 400, 1.0), run(1000 + seed, 4, 400, 1.2));
        let c = told(from_ref(&a), from_ref(&b), 0.05);
        let worse = [
            Metric::OutputThroughput,
            Metric::Ttft,
            Metric::Itl,
            Metric::E2e,
        ]
        .iter()
        .all(|m| verdict_of(&c, *m) == Verdict::Worse);
        assert!(!worse || c.exit_code() == 1);
        let back = told(from_ref(&b), from_ref(&a), 0.05);
        let better = verdict_of(&back, Metric::Itl) == Verdict::Better && back.exit_code() == 0;
        found += u32::from(worse && better);
    }
    assert!(found >= 19, "{found} of 20");
}

#[test]
fn a_run_is_the_same_as_itself() {
    for requests in [30, 400] {
        let a = [run(1, 4, requests, 1.0), run(2, 8, requests, 1.0)];
        let c = told(&a, &a, 0.05);
        assert_eq!((c.levels.len(), c.exit_code()), (2, 0));
        for m in c.levels.iter().flat_map(|l| &l.metrics) {
            assert_eq!(m.verdict, Verdict::Same, "{m:?}");
        }
    }
}

#[test]
fn the_numbers_are_those_of_the_level() {
    let level = run(3, 4, 400, 1.0);
    let steady = LevelMetrics::of(&level).steady.unwrap();
    let c = told(from_ref(&level), from_ref(&level), 0.05);
    assert_eq!(c.levels[0].basis, "the steady middle");
    let value = |c: &Comparison, metric| {
        let mut all = c.levels[0].metrics.iter();
        all.find(|m| m.metric == metric).unwrap().a
    };
    let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{a} {b}");
    near(
        value(&c, Metric::OutputThroughput),
        steady.output_tokens_per_second,
    );
    near(
        value(&c, Metric::RequestThroughput),
        steady.requests_per_second,
    );
    near(value(&c, Metric::Ttft), steady.ttft_ms.mean);
    near(value(&c, Metric::TtftP99), steady.ttft_ms.percentiles.p99);
    near(value(&c, Metric::Itl), steady.itl_ms.mean);
    near(value(&c, Metric::ItlP99), steady.itl_ms.percentiles.p99);
    // A schedule has no steady middle: the whole level.
    let mut open = level;
    open.strategy = Strategy::Constant {
        rate: 10.0,
        max_concurrency: None,
    };
    let whole = LevelMetrics::of(&open);
    let c = told(from_ref(&open), from_ref(&open), 0.05);
    assert_eq!(c.levels[0].basis, "the whole level");
    near(
        value(&c, Metric::OutputThroughput),
        whole.output_tokens_per_second,
    );
    near(value(&c, Metric::Tpot), whole.tpot_ms.mean);
    near(value(&c, Metric::TpotP99), whole.tpot_ms.percentiles.p99);
    near(value(&c, Metric::E2e), whole.latency_s.mean * 1e3);
    near(
        value(&c, Metric::E2eP99),
        whole.latency_s.percentiles.p99 * 1e3,
    );
}

#[test]
fn repeats_are_compared_by_their_own_scatter() {
    // Runs that differ among themselves by a fifth: slices of one cannot know, repeats do.
    let runs = |seed: u64, speeds: [f64; 3]| {
        speeds
            .map(|s| run(seed + (s * 100.0) as u64, 4, 200, s))
            .to_vec()
    };
    let c = told(
        &runs(1, [1.0, 1.1, 1.2]),
        &runs(7, [1.05, 1.15, 1.25]),
        0.05,
    );
    assert_eq!(
        (c.levels[0].runs, c.levels[0].basis.as_str()),
        ((3, 3), "repeats")
    );
    assert_eq!(verdict_of(&c, Metric::Itl), Verdict::Undecided);
    let c = told(
        &runs(1, [1.0, 1.01, 1.02]),
        &runs(7, [1.5, 1.51, 1.52]),
        0.05,
    );
    assert_eq!(verdict_of(&c, Metric::Itl), Verdict::Worse);
}

#[test]
fn a_client_at_its_limit_is_not_judged() {
    let a = [run(1, 4, 200, 1.0), run(1, 8, 200, 1.0)];
    let mut b = [run(2, 4, 200, 2.0), run(2, 8, 200, 1.0)];
    b[0].client = ClientHealth {
        limited: true,
        reason: "one core is full".into(),
        ..ClientHealth::default()
    };
    let c = told(&a, &b, 0.05);
    let why = c.levels[0].not_judged.as_ref().unwrap();
    assert!(
        why.contains("in B") && why.contains("one core is full"),
        "{why}"
    );
    assert_eq!(c.exit_code(), 0);
    assert!(
        c.text().contains("4 clients: not judged: in B"),
        "{}",
        c.text()
    );
    let c = told(&a[..1], &b[..1], 0.05);
    assert_eq!(c.exit_code(), 2);
    assert!(c.answer.contains("cannot compare"), "{}", c.answer);
}

#[test]
fn levels_that_are_missing_empty_or_failed() {
    let a = [run(1, 4, 200, 1.0), run(1, 8, 200, 1.0)];
    let c = told(&a, &[run(2, 8, 200, 1.0), run(2, 16, 200, 1.0)], 0.05);
    assert_eq!(
        (c.only_a.as_slice(), c.only_b.as_slice()),
        (
            &["4 clients".to_owned()][..],
            &["16 clients".to_owned()][..]
        )
    );
    assert!(c.text().contains("Only A has: 4 clients."));
    assert_eq!(c.levels.len(), 1);
    // Nothing in common.
    let c = told(&a, &[run(2, 2, 50, 1.0)], 0.05);
    assert_eq!(c.exit_code(), 2);
    assert!(
        c.answer.contains("no level in common") && c.answer.contains("4 clients"),
        "{}",
        c.answer
    );
    // Nothing in it.
    let empty = LevelResult::empty(Strategy::Concurrent { streams: 4 });
    let c = told(from_ref(&empty), from_ref(&empty), 0.05);
    assert_eq!(c.exit_code(), 2, "{}", c.answer);
    // All failed: worse, though no latency can be compared.
    let mut failed = run(2, 4, 200, 1.0);
    failed.requests = failed
        .requests
        .iter()
        .map(|r| RequestRecord {
            outcome: Ended::Errored("500".into()),
            ..r.into_owned()
        })
        .collect();
    let c = told(&a[..1], from_ref(&failed), 0.05);
    assert_eq!(
        (verdict_of(&c, Metric::Failed), c.exit_code()),
        (Verdict::Worse, 1)
    );
    assert_eq!(c.levels[0].metrics.len(), 1);
}

#[test]
fn the_first_after_the_other_is_one_client() {
    let mut one = run(1, 1, 100, 1.0);
    one.strategy = Strategy::Synchronous;
    let c = told(from_ref(&one), &[run(1, 1, 100, 1.0)], 0.05);
    assert_eq!((c.levels[0].level.as_str(), c.exit_code()), ("1 client", 0));
}

#[test]
fn a_few_requests_are_not_enough_for_a_test() {
    let c = told(&[run(1, 8, 16, 1.0)], &[run(2, 8, 16, 1.6)], 0.05);
    let ttft = c.levels[0]
        .metrics
        .iter()
        .find(|m| m.metric == Metric::Ttft)
        .unwrap();
    assert_eq!((ttft.verdict, ttft.p), (Verdict::Undecided, None));
    assert!(ttft.untested.contains("too short"), "{}", ttft.untested);
}
