//! What follows from a published sweep, and from variations of it: nothing may be found that is not there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use powerband_report::{Context, Finding, LevelSummary, Report, csv, load};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/published-sweep.csv")
}

fn report() -> Report {
    load(&[fixture()]).unwrap()
}

fn levels() -> Vec<LevelSummary> {
    csv::read(&fixture()).unwrap()
}

fn vary(change: impl Fn(&mut LevelSummary)) -> Report {
    let mut all = levels();
    all.iter_mut().for_each(change);
    Report::new(all, Context::default())
}

fn get<'a>(report: &'a Report, id: &str) -> &'a Finding {
    let found = report.findings().iter().find(|f| f.id == id);
    found.unwrap_or_else(|| panic!("{id} is not among {:?}", ids(report)))
}

fn at<'a>(report: &'a Report, id: &str, level: f64) -> Option<&'a Finding> {
    report
        .findings()
        .iter()
        .find(|f| f.id == id && f.level == Some(level))
}

fn ids(report: &Report) -> Vec<&str> {
    report.findings().iter().map(|f| f.id.as_str()).collect()
}

fn has(report: &Report, id: &str) -> bool {
    ids(report).contains(&id)
}

fn near(value: f64, expected: f64, tolerance: f64) {
    assert!(
        (value - expected).abs() <= tolerance,
        "{value} is not {expected} within {tolerance}"
    );
}

/// After `scenario` (a part of it) and `metric`: before and after.
fn predicted(finding: &Finding, scenario: &str, metric: &str) -> (f64, f64) {
    let p = finding
        .predicted
        .iter()
        .find(|p| p.scenario.contains(scenario) && p.metric == metric)
        .unwrap();
    (p.before, p.after)
}

#[test]
fn fact_1_the_column_counts_prompts_too() {
    let report = report();
    near(get(&report, "throughput_is_total_tokens").value, 3.0, 0.02);
    let sweep = report.sweep();
    near(sweep.points[0].output, 59.0, 0.5);
    near(sweep.peak().unwrap().output, 386.0, 2.0);
    let peak = get(&report, "peak");
    assert_eq!(peak.level, Some(30.0));
    near(sweep.prompt_tokens.unwrap(), 128.0, 1.0);
}

#[test]
fn fact_2_tokens_account_for_the_time() {
    assert_eq!(get(&report(), "e2e_identity").value, 64.0);
    // A second that hides at the end of each request breaks it.
    let late = vary(|l| l.e2e_ms = l.e2e_ms.map(|v| v + 1000.0));
    assert!(!has(&late, "e2e_identity"));
}

#[test]
fn fact_3_the_last_wave_is_partial() {
    let report = report();
    for (level, delivered) in [
        (15.0, 14.3),
        (30.0, 25.6),
        (35.0, 33.8),
        (55.0, 52.0),
        (100.0, 82.0),
    ] {
        near(
            at(&report, "partial_last_wave", level).unwrap().value,
            delivered,
            0.3,
        );
    }
    for full in [5.0, 10.0, 25.0, 50.0] {
        assert!(at(&report, "partial_last_wave", full).is_none());
    }
    near(
        at(&report, "too_few_requests", 30.0).unwrap().value,
        3.33,
        0.01,
    );
    near(
        at(&report, "too_few_requests", 100.0).unwrap().value,
        1.0,
        1e-9,
    );
    assert!(at(&report, "too_few_requests", 15.0).is_none());
    assert!(!has(&report, "load_not_delivered"));
    // Ten times the requests: every level has its waves, and what is missing has another reason.
    let many = vary(|l| l.total = l.total.map(|n| n * 10));
    assert!(!has(&many, "too_few_requests"));
    assert!(at(&many, "load_not_delivered", 100.0).is_some());
}

#[test]
fn fact_4_the_step_jumps_at_a_small_batch() {
    let report = report();
    let jump = get(&report, "step_time_jump");
    assert_eq!(jump.level, Some(5.0));
    near(jump.value, 3.54, 0.01);
    assert!(jump.evidence.contains("within 21 %"), "{}", jump.evidence);
    // A step that was as slow alone does not jump.
    let slow = vary(|l| {
        if l.concurrency == Some(1.0) {
            (l.itl_ms, l.e2e_ms, l.throughput) =
                (Some(50.0), Some(142.6 + 63.0 * 50.0), Some(192.0 / 3.2926));
        }
    });
    assert!(!has(&slow, "step_time_jump"));
}

#[test]
fn fact_5_it_collapses_inside_the_batch() {
    let report = report();
    let collapse = get(&report, "collapse");
    assert_eq!(collapse.level, Some(35.0));
    near(collapse.value, 0.394, 0.002);
    assert!(
        collapse.evidence.contains("2.4 times"),
        "{}",
        collapse.evidence
    );
    assert!(
        collapse.evidence.contains("nothing queues"),
        "{}",
        collapse.evidence
    );
    assert!(!has(&report, "plateau"));
}

#[test]
fn fact_6_the_slots_follow_from_client_data() {
    let report = report();
    let queue = get(&report, "admission_queue");
    assert_eq!(queue.level, Some(100.0));
    near(queue.value, 50.1, 0.2);
    assert!(
        queue.evidence.contains("slows by 36 %") && queue.evidence.contains("falls by 23 %"),
        "{}",
        queue.evidence
    );
}

#[test]
fn fact_7_what_capping_admission_would_bring() {
    let report = report();
    let cap = get(&report, "cap_admission");
    assert_eq!(cap.value, 30.0);
    let (before, after) = predicted(cap, "sustained", "E2E");
    near(before, 32.1, 0.1);
    near(after, 16.6, 0.1);
    let (before, after) = predicted(cap, "once more", "mean E2E");
    near(before, 26.3, 0.1);
    near(after, 9.3, 0.1);
    let (before, after) = predicted(cap, "once more", "last one finished");
    near(before, 32.1, 0.1);
    near(after, 17.0, 0.1);
}

#[test]
fn linear_from_five_to_the_peak() {
    let report = report();
    let linear = get(&report, "linear_scaling");
    assert_eq!(linear.level, Some(30.0));
    assert!((0.8..1.0).contains(&linear.value), "{}", linear.value);
}

#[test]
fn a_faster_machine_changes_numbers_and_not_findings() {
    for factor in [0.01, 7.3] {
        let scaled = vary(|l| {
            l.throughput = l.throughput.map(|v| v * factor);
            for ms in [&mut l.ttft_ms, &mut l.itl_ms, &mut l.e2e_ms] {
                *ms = ms.map(|v| v / factor);
            }
        });
        assert_eq!(ids(&scaled), ids(&report()));
        near(get(&scaled, "admission_queue").value, 50.1, 0.2);
        near(get(&scaled, "collapse").value, 0.394, 0.002);
        let (_, after) = predicted(get(&scaled, "cap_admission"), "sustained", "E2E");
        near(after * factor, 16.6, 0.1);
    }
}

#[test]
fn a_column_of_output_tokens_is_told_apart() {
    let output = vary(|l| l.throughput = l.throughput.map(|v| v / 3.0));
    assert!(!has(&output, "throughput_is_total_tokens"));
    let sweep = output.sweep();
    near(sweep.peak().unwrap().output, 386.0, 2.0);
    assert!(sweep.points.iter().all(|p| p.total.is_none()));
    near(get(&output, "admission_queue").value, 50.1, 0.5);
    assert!(has(&output, "collapse"));
}

/// A closed loop with a given step time at each level and `slots` places, N requests so many that
/// ramps do not matter. 128 + 64 tokens.
fn closed_loop(
    clients: &[f64],
    slots: f64,
    itl_ms: impl Fn(f64) -> f64,
    prompt_ms: f64,
) -> Vec<LevelSummary> {
    let level = |c: &f64| {
        let batch = c.min(slots);
        let service = prompt_ms + 63.0 * itl_ms(batch);
        let e2e = service * c / batch;
        LevelSummary {
            file: format!("throughput-{c}.json"),
            concurrency: Some(*c),
            throughput: Some(192.0 * batch / service * 1e3),
            ttft_ms: Some(prompt_ms + e2e - service),
            itl_ms: Some(itl_ms(batch)),
            e2e_ms: Some(e2e),
            successful: Some(10_000),
            errored: Some(0),
            incomplete: Some(0),
            total: Some(10_000),
            ..LevelSummary::default()
        }
    };
    clients.iter().map(level).collect()
}

const CLIENTS: [f64; 12] = [
    1.0, 5.0, 10.0, 15.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0, 55.0, 100.0,
];

#[test]
fn the_collapse_is_found_where_it_is() {
    for from in [15.0, 40.0, 100.0] {
        let slow = move |b: f64| {
            if b >= from {
                60.0 + 3.0 * b
            } else {
                20.0 + 0.1 * b
            }
        };
        let report = Report::new(closed_loop(&CLIENTS, 1e9, slow, 50.0), Context::default());
        let collapse = get(&report, "collapse");
        assert_eq!(collapse.level, Some(from));
        let before = CLIENTS.into_iter().rfind(|c| *c < from).unwrap();
        assert_eq!(get(&report, "cap_admission").value, before);
        assert!(!has(&report, "admission_queue"));
    }
}

#[test]
fn a_plain_plateau_is_no_collapse() {
    // Past 30 each sequence costs its share of the step: throughput stays.
    let step = |b: f64| 60.0 * (b / 30.0f64).max(1.0);
    let report = Report::new(closed_loop(&CLIENTS, 1e9, step, 50.0), Context::default());
    let plateau = get(&report, "plateau");
    assert!(
        plateau.level.is_some_and(|l| (25.0..=35.0).contains(&l)),
        "{plateau:?}"
    );
    for absent in [
        "collapse",
        "cap_admission",
        "admission_queue",
        "step_time_jump",
        "too_few_requests",
        "partial_last_wave",
    ] {
        assert!(!has(&report, absent), "{absent}: {:?}", ids(&report));
    }
    assert!(get(&report, "plateau").evidence.contains("slower step"));
}

#[test]
fn a_queue_at_the_cap_is_a_plateau_with_slots() {
    let report = Report::new(
        closed_loop(&CLIENTS, 50.0, |b| 20.0 + 0.2 * b, 80.0),
        Context::default(),
    );
    near(get(&report, "admission_queue").value, 50.0, 0.5);
    assert!(!has(&report, "collapse") && !has(&report, "cap_admission"));
    assert!(get(&report, "linear_scaling").level >= Some(30.0));
}

#[test]
fn linear_all_the_way_says_that_the_limit_was_not_reached() {
    let report = Report::new(
        closed_loop(&CLIENTS, 1e9, |_| 20.0, 50.0),
        Context::default(),
    );
    near(get(&report, "linear_scaling").value, 1.0, 0.01);
    assert_eq!(get(&report, "linear_scaling").level, Some(100.0));
    for absent in [
        "collapse",
        "plateau",
        "admission_queue",
        "step_time_jump",
        "cap_admission",
    ] {
        assert!(!has(&report, absent), "{absent}");
    }
    assert!(report.summary_text().contains("still grows"));
}

#[test]
fn prompts_that_wait_for_each_other_are_no_queue_for_places() {
    // Every client's prompt waits for those before it: TTFT grows with the clients from the first on.
    let mut levels = closed_loop(&CLIENTS, 1e9, |_| 20.0, 0.1);
    for l in &mut levels {
        let c = l.concurrency.unwrap();
        let (ttft, e2e) = (100.0 * c, 100.0 * c + 63.0 * 20.0);
        (l.ttft_ms, l.e2e_ms, l.throughput) = (Some(ttft), Some(e2e), Some(192.0 * c / e2e * 1e3));
    }
    let report = Report::new(levels, Context::default());
    assert!(
        !has(&report, "admission_queue"),
        "{:?}",
        get(&report, "admission_queue")
    );
}

#[test]
fn a_peak_at_the_end_of_a_plateau_is_the_limit() {
    let advice = |slots: f64| {
        let report = Report::new(
            closed_loop(&CLIENTS, slots, |_| 20.0, 50.0),
            Context::default(),
        );
        (get(&report, "peak").advice.clone(), has(&report, "plateau"))
    };
    assert_eq!(advice(50.0), (String::new(), true));
    let (more, plateau) = advice(1e9);
    assert!(more.contains("Add higher levels") && !plateau, "{more}");
}

/// Levels of a hundred requests on a shared machine scatter by a tenth: a measured sweep whose highest
/// level happens to be its best still has its limit far below.
#[test]
fn a_plateau_is_found_through_the_scatter_of_its_levels() {
    let measured = [
        162.4, 410.0, 505.6, 483.1, 530.8, 475.2, 463.8, 501.2, 536.9, 499.1, 484.8, 553.1,
    ];
    let mut levels = closed_loop(&CLIENTS, 1e9, |_| 20.0, 50.0);
    for (level, output) in levels.iter_mut().zip(measured) {
        let clients = level.concurrency.unwrap();
        level.throughput = Some(output * 3.0);
        let e2e = clients * 64.0 / output * 1e3;
        level.e2e_ms = Some(e2e);
        level.ttft_ms = Some(e2e / 4.0);
        level.itl_ms = Some(e2e * 0.75 / 63.0);
    }
    let report = Report::new(levels, Context::default());
    let plateau = get(&report, "plateau");
    assert_eq!(plateau.level, Some(10.0), "{plateau:?}");
    near(plateau.value, 503.4, 1.0);
    assert!(!has(&report, "collapse"), "{:?}", ids(&report));
    let text = report.summary_text();
    assert!(text.contains("Best range: 10 clients and more"), "{text}");
}

/// On a CPU prompts wait for each other, so TTFT grows below the cap as well: Little's law and the cap that
/// the server was started with say together what the bend in TTFT alone does not.
#[test]
fn a_soft_bend_is_a_queue_where_the_cap_is_known() {
    let mut levels = closed_loop(&CLIENTS, 50.0, |_| 20.0, 80.0);
    for level in &mut levels {
        let clients = level.concurrency.unwrap();
        let batch = clients.min(50.0);
        let (prompts, step) = (60.0 * batch, 1.6 * batch);
        let service = prompts + 63.0 * step;
        let e2e = service * clients / batch;
        level.ttft_ms = Some(e2e - service + prompts);
        level.itl_ms = Some(step);
        level.e2e_ms = Some(e2e);
        level.throughput = Some(clients / e2e * 1e3 * 192.0);
    }
    let with = |cap| {
        let context = Context {
            max_num_seqs: cap,
            ..Context::default()
        };
        Report::new(levels.clone(), context)
    };
    let known = with(Some(50));
    near(get(&known, "admission_queue").value, 50.0, 2.5);
    // A cap that the data contradicts does not make a queue.
    assert!(!has(&with(Some(90)), "admission_queue"));
}
