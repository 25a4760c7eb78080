//! Simulated closed loops: a known number of places and a known service time, from request to report.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use powerband_bench::{LevelResult, Outcome, RequestRecord, Strategy};
use powerband_report::{Context, LevelSummary, Report};
use proptest::prelude::*;

/// A server with `slots` places. Service: `prompt_ms`, then 63 steps of `step(busy)` ms, the batch taken
/// as what is busy when the request is admitted; `jitter` shifts requests apart.
struct Server {
    slots: usize,
    prompt_ms: f64,
    step: fn(f64) -> f64,
    jitter: f64,
}

impl Server {
    /// Run `n` requests with `clients` clients; first come, first served.
    fn level(&self, clients: usize, n: usize) -> LevelResult {
        let mut level = LevelResult::empty(Strategy::Concurrent { streams: clients });
        let mut requests = Vec::new();
        // When each client may send, and when each place is free.
        let mut ready = vec![0.0f64; clients];
        let mut free = vec![0.0f64; self.slots];
        for i in 0..n {
            let sender = (0..clients)
                .min_by(|a, b| ready[*a].total_cmp(&ready[*b]))
                .unwrap();
            let place = (0..self.slots)
                .min_by(|a, b| free[*a].total_cmp(&free[*b]))
                .unwrap();
            let sent = ready[sender];
            let start = sent.max(free[place]);
            // A number between -1 and 1 that differs from request to request.
            let noise = ((i as f64 * 0.754_877).fract() - 0.5) * 2.0;
            let step = (self.step)(clients.min(self.slots) as f64) * (1.0 + self.jitter * noise);
            let first = start + self.prompt_ms;
            let end = first + 63.0 * step;
            (ready[sender], free[place]) = (end, end);
            let ns = |ms: f64| (ms * 1e6) as u64;
            requests.push(RequestRecord {
                id: i.to_string(),
                outcome: Outcome::Successful,
                intended_ns: ns(sent),
                sent_ns: ns(sent),
                first_token_ns: Some(ns(first)),
                last_token_ns: Some(ns(end)),
                end_ns: ns(end),
                prompt_tokens: 128,
                output_tokens: 64,
                chunks: 64,
                ..RequestRecord::default()
            });
        }
        level.requests = requests.into();
        level.duration_s = level.requests.last_end_ns() as f64 / 1e9;
        level
    }
}

/// What a bare summary has of levels.
fn bare(levels: &[LevelResult]) -> Vec<LevelSummary> {
    levels
        .iter()
        .map(LevelSummary::of)
        .map(|l| LevelSummary {
            file: l.file,
            concurrency: l.concurrency,
            throughput: l.throughput,
            ttft_ms: l.ttft_ms,
            itl_ms: l.itl_ms,
            e2e_ms: l.e2e_ms,
            successful: l.successful,
            errored: l.errored,
            incomplete: l.incomplete,
            total: l.total,
            ..LevelSummary::default()
        })
        .collect()
}

fn slots(report: &Report) -> Option<f64> {
    report
        .findings()
        .iter()
        .find(|f| f.id == "admission_queue")
        .map(|f| f.value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Ten waves a level: the places come out of the summary alone within 8 %, of our records exactly,
    /// and their interval holds them.
    #[test]
    fn the_places_come_out(places in 4usize..80, prompt in 5.0..200.0f64, jitter in 0.0..0.2f64, slope in 0usize..3) {
        let step = [|_: f64| 20.0, |b: f64| 20.0 + 0.3 * b, |b: f64| 5.0 + 2.0 * b][slope];
        let server = Server { slots: places, prompt_ms: prompt, step, jitter };
        let clients = [1, 2, places / 2, places, places * 3 / 2, places * 2, places * 4];
        let levels: Vec<LevelResult> = clients.iter().map(|c| server.level((*c).max(1), 10 * c.max(&1))).collect();
        let summary = Report::new(bare(&levels), Context::default());
        let found = slots(&summary);
        prop_assert!(found.is_some_and(|s| (s / places as f64 - 1.0).abs() < 0.08), "{found:?} for {places}");
        let full = Report::from_levels(&levels, Context::default());
        prop_assert_eq!(slots(&full), Some(places as f64));
    }

    /// Where the cap is the limit, more places are foretold to bring what they bring; where the step is,
    /// nothing is.
    #[test]
    fn more_places_bring_what_was_foretold(places in 8usize..60, prompt in 5.0..60.0f64, jitter in 0.0..0.1f64, cheap in any::<bool>()) {
        let step: fn(f64) -> f64 = if cheap { |b| 20.0 + 0.05 * b } else { |b| 1.0 + 2.0 * b };
        let server = |slots| Server { slots, prompt_ms: prompt, step, jitter };
        let clients = [1, places / 2, places, places * 2, places * 4];
        let levels: Vec<LevelResult> = clients.iter().map(|c| server(places).level(*c, 20 * c)).collect();
        let report = Report::from_levels(&levels, Context::default());
        let found = report.findings().iter().find(|f| f.id == "more_places");
        prop_assert_eq!(found.is_some(), cheap, "{}", report.summary_text());
        if let Some(found) = found {
            prop_assert_eq!(found.value, 2.0 * places as f64);
            let then = LevelSummary::of(&server(2 * places).level(places * 4, 80 * places));
            let foretold = |metric: &str| found.predicted.iter().find(|p| p.metric == metric).unwrap().after;
            let output = then.output_tokens_per_second.unwrap();
            prop_assert!((foretold("output throughput") / output - 1.0).abs() < 0.1, "{found:?} {output}");
            let e2e = then.e2e_ms.unwrap() / 1e3;
            prop_assert!((foretold("E2E") / e2e - 1.0).abs() < 0.1, "{found:?} {e2e}");
        }
    }

    /// Room for everybody: no queue is found, whatever the step.
    #[test]
    fn no_places_no_queue(prompt in 5.0..200.0f64, jitter in 0.0..0.2f64, slope in 0usize..3) {
        let step = [|_: f64| 20.0, |b: f64| 20.0 + 0.3 * b, |b: f64| 5.0 + 2.0 * b][slope];
        let server = Server { slots: 1000, prompt_ms: prompt, step, jitter };
        let levels: Vec<LevelResult> = [1, 5, 20, 50, 100].iter().map(|c| server.level(*c, 5 * c)).collect();
        prop_assert_eq!(slots(&Report::new(bare(&levels), Context::default())), None);
        prop_assert_eq!(slots(&Report::from_levels(&levels, Context::default())), None);
    }

    /// Whatever a row holds, the report can be made, and says nothing that is no number.
    #[test]
    fn any_row_makes_a_report(rows in prop::collection::vec((0usize..6, 0usize..6, 0usize..6, 0usize..6, 0usize..6), 0..5)) {
        let pick = |i: usize| [None, Some(0.0), Some(f64::NAN), Some(1.0), Some(1e9), Some(1e-9)][i];
        let levels = rows.iter().map(|(a, b, c, d, e)| LevelSummary {
            throughput: pick(*a), ttft_ms: pick(*b), itl_ms: pick(*c), e2e_ms: pick(*d), concurrency: pick(*e),
            total: Some(*a as u64 * 20),
            ..LevelSummary::default()
        }).collect();
        let report = Report::new(levels, Context::default());
        for f in report.findings() {
            prop_assert!(f.value.is_finite(), "{:?}", f);
            prop_assert!(!f.evidence.contains("NaN"), "{:?}", f);
        }
        prop_assert!(!report.summary_text().is_empty());
        for (_, chart) in powerband_report::plots::all(&report.sweep(), report.findings()) {
            prop_assert!(!chart.svg().contains("NaN"));
        }
    }
}

#[test]
fn a_real_kind_of_run_reads_well_without_a_collapse() {
    let server = Server {
        slots: 16,
        prompt_ms: 40.0,
        step: |b| 10.0 + 0.5 * b,
        jitter: 0.1,
    };
    let levels: Vec<LevelResult> = [1, 4, 8, 16, 32]
        .iter()
        .map(|c| server.level(*c, 8 * c))
        .collect();
    let context = Context {
        model: Some("m".into()),
        max_num_seqs: Some(16),
        ..Context::default()
    };
    let report = Report::from_levels(&levels, context);
    let ids: Vec<&str> = report.findings().iter().map(|f| f.id.as_str()).collect();
    for wanted in [
        "throughput_is_total_tokens",
        "e2e_identity",
        "peak",
        "plateau",
        "admission_queue",
        "more_places",
    ] {
        assert!(ids.contains(&wanted), "{wanted}: {ids:?}");
    }
    for absent in [
        "collapse",
        "cap_admission",
        "too_few_requests",
        "client_limited",
        "step_time_jump",
    ] {
        assert!(!ids.contains(&absent), "{absent}: {ids:?}");
    }
    assert!(report.levels().iter().all(|l| l.steady.is_some()));
    let text = report.summary_text();
    assert!(
        text.contains("would grow with more") && text.lines().count() <= 10,
        "{text}"
    );
}

#[test]
fn a_client_at_its_limit_is_said_first() {
    let server = Server {
        slots: 16,
        prompt_ms: 40.0,
        step: |_| 10.0,
        jitter: 0.1,
    };
    let mut level = server.level(8, 40);
    (level.client.limited, level.client.reason) = (true, "its event loop was late".into());
    let report = Report::from_levels(&[server.level(1, 5), level], Context::default());
    assert_eq!(
        (report.findings()[0].id.as_str(), report.findings()[0].level),
        ("client_limited", Some(8.0))
    );
    assert!(
        report
            .summary_text()
            .contains("load generator was the limit")
    );
}

/// A sweep whose server never tires, and whose client does at 50 clients and above: to its client it looks
/// like a plateau, then a collapse.
fn tired_client() -> Vec<LevelResult> {
    let sweep = |server: &Server, clients: &[usize]| -> Vec<LevelResult> {
        let level = |c: &usize| server.level(*c, 10 * c);
        clients.iter().map(level).collect()
    };
    let server = |slots: usize, step: fn(f64) -> f64| Server {
        slots,
        prompt_ms: 4.0,
        step,
        jitter: 0.1,
    };
    let mut levels = sweep(&server(1000, |_| 10.0), &[1, 5, 10, 25]);
    let mut limited = sweep(&server(20, |_| 14.0), &[50, 100, 200]);
    for level in &mut limited {
        (level.client.limited, level.client.reason) = (true, "its cores were full".into());
    }
    levels.extend(limited);
    levels
}

#[test]
fn no_knee_is_drawn_where_the_client_is_the_limit() {
    let mut levels = tired_client();
    let report = Report::from_levels(&levels, Context::default());
    let ids: Vec<&str> = report.findings().iter().map(|f| f.id.as_str()).collect();
    for knee in ["plateau", "collapse", "admission_queue", "cap_admission"] {
        assert!(!ids.contains(&knee), "{knee} in {ids:?}");
    }
    for f in report
        .findings()
        .iter()
        .filter(|f| f.id != "client_limited")
    {
        assert!(f.level.is_none_or(|l| l < 50.0), "{f:?}");
    }
    let peak = report.findings().iter().find(|f| f.id == "peak").unwrap();
    assert_eq!(peak.level, Some(25.0));
    assert!(
        peak.advice.contains("client that is not the limit"),
        "{}",
        peak.advice
    );
    let text = report.summary_text();
    for words in [
        "above this the load generator was the limit",
        "limit at 50, 100, 200",
        "another machine",
    ] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    assert!(report.table_text().contains("100 (client-limited)"));
    // The same numbers without the client's word are the server's knee.
    for level in &mut levels {
        level.client.limited = false;
    }
    let believed = Report::from_levels(&levels, Context::default());
    let knee = |f: &powerband_report::Finding| f.id == "collapse";
    assert!(
        believed.findings().iter().any(knee),
        "{:?}",
        believed.findings()
    );
    // Drawn, but beside the line.
    let drawn = |report: &Report| {
        let folder = tempfile::tempdir().unwrap();
        report.write(folder.path()).unwrap();
        std::fs::read_to_string(folder.path().join("plots/throughput.svg")).unwrap()
    };
    assert!(drawn(&report).contains("the client was the limit"));
    assert!(!drawn(&believed).contains("the client was the limit"));
}

#[test]
fn a_client_at_its_limit_everywhere_says_nothing_about_the_server() {
    let levels = &tired_client()[4..];
    let report = Report::from_levels(levels, Context::default());
    assert!(
        report.findings().iter().all(|f| f.id == "client_limited"),
        "{:?}",
        report.findings()
    );
    let text = report.summary_text();
    assert!(
        text.contains("limit at every level") && text.contains("Next: Run these"),
        "{text}"
    );
    let folder = tempfile::tempdir().unwrap();
    let written = report.write(folder.path()).unwrap();
    let page = std::fs::read_to_string(written.markdown).unwrap();
    assert!(page.contains("its cores were full"), "{page}");
}

#[test]
fn levels_that_were_repeated_are_not_called_run_once() {
    let levels = &tired_client()[..3];
    let said = |levels: &[LevelResult]| {
        let folder = tempfile::tempdir().unwrap();
        let report = Report::from_levels(levels, Context::default());
        let written = report.write(folder.path()).unwrap();
        let page = std::fs::read_to_string(written.markdown).unwrap();
        page.contains("Each level was run once")
    };
    assert!(said(levels));
    assert!(!said(&[levels, levels].concat()));
}

#[test]
fn requests_that_drift_apart_are_not_the_clients_fault() {
    let server = Server {
        slots: 1000,
        prompt_ms: 40.0,
        step: |b| 10.0 + 0.3 * b,
        jitter: 0.2,
    };
    let levels: Vec<LevelResult> = [1, 5, 10, 25, 50, 100]
        .iter()
        .map(|c| server.level(*c, (5 * c).max(100)))
        .collect();
    let report = Report::new(bare(&levels), Context::default());
    let blamed: Vec<_> = report
        .findings()
        .iter()
        .filter(|f| f.id == "load_not_delivered")
        .collect();
    assert!(blamed.is_empty(), "{blamed:?}");
}

#[test]
fn of_repeats_the_median_stands_for_the_level() {
    let server = |step: fn(f64) -> f64| Server {
        slots: 64,
        prompt_ms: 40.0,
        step,
        jitter: 0.0,
    };
    let slow = server(|_| 12.0);
    let usual = server(|_| 10.0);
    let quick = server(|_| 9.0);
    let levels = [
        usual.level(1, 10),
        quick.level(8, 80),
        slow.level(8, 80),
        usual.level(8, 80),
    ];
    let report = Report::from_levels(&levels, Context::default());
    let sweep = report.sweep();
    let outputs: Vec<f64> = sweep.points.iter().map(|p| p.output).collect();
    assert_eq!((outputs.len(), sweep.repeats.len()), (2, 2));
    let output = |level| LevelSummary::of(level).output_tokens_per_second.unwrap();
    assert_eq!(outputs[1], output(&levels[3]));
    let (scatter, times) = sweep.scatter().unwrap();
    let expected = (output(&levels[1]) - output(&levels[2])) / output(&levels[3]);
    assert!((scatter - expected).abs() < 1e-9 && times == 3, "{scatter}");
    let charts = powerband_report::plots::all(&sweep, report.findings());
    assert!(charts[0].1.svg().contains("repeats"));
    // A run once more is no level more: nothing is said to grow or fall between repeats.
    assert!(!report.findings().iter().any(|f| f.id == "collapse"));
    assert_eq!(report.table_text().lines().count(), 5);
}
