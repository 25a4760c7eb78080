//! Results of other tools: real files of theirs, and files in their form whose numbers are easy to check.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use powerband_report::compare::{Settings, compare};
use powerband_report::{LevelSummary, Report, load};
use proptest::prelude::*;

fn read_named(name: &str, text: &[u8]) -> Result<Vec<LevelSummary>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    match load(std::slice::from_ref(&path)) {
        Ok(report) => {
            tell(&report);
            Ok(report.levels().to_vec())
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains(name), "{message}");
            Err(message)
        }
    }
}

fn read(text: &str) -> LevelSummary {
    // The name says nothing.
    read_named("results.txt", text.as_bytes())
        .unwrap()
        .remove(0)
}

fn tell(report: &Report) {
    assert!(!report.table_text().is_empty());
    assert!(!report.summary_text().is_empty());
}

fn near(actual: Option<f64>, expected: f64) {
    let actual = actual.unwrap_or_else(|| panic!("nothing instead of {expected}"));
    assert!(
        (actual - expected).abs() <= 1e-6 * expected.abs(),
        "{actual} is not {expected}"
    );
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

#[test]
fn guidellms_csv_of_a_closed_loop() {
    let report = load(&[fixture("guidellm-0.8.1-concurrent.csv")]).unwrap();
    let levels = report.levels();
    assert_eq!(levels.len(), 2);
    let l = &levels[1];
    assert_eq!(
        (l.concurrency, l.open_loop, l.file.as_str()),
        (Some(4.0), false, "throughput-4.json")
    );
    assert_eq!(
        (l.successful, l.errored, l.incomplete, l.total),
        (Some(20), Some(0), Some(0), Some(20))
    );
    // Read off the file; its request latency is in seconds.
    near(l.e2e_ms, 56.83896541595459);
    near(l.ttft_ms, 21.799838542938232);
    near(l.itl_ms, 4.910407747541155);
    near(l.e2e.p50, 56.142568588256836);
    near(l.ttft.p50, 21.396636962890625);
    // As the JSON report of the same run has them.
    near(l.e2e.p10, 55.86814880371094);
    near(l.e2e.p90, 59.26370620727539);
    near(l.e2e.p95, 59.80491638183594);
    near(l.e2e.p99, 60.56022644042969);
    near(l.itl.p99, 4.993166242327009);
    near(l.output_tokens_per_second, 509.4301512450926);
    near(l.prompt_tokens_per_second, 382.0726134338192);
    near(l.throughput, 891.5027646789117);
    near(l.requests_per_second, 63.67876890563653);
    near(l.delivered_concurrency, 3.61943534355804);
    assert_eq!((l.prompt_tokens, l.output_tokens), (Some(6.0), Some(8.0)));
    // 20 requests in 0.31407642364501953 s, each of 8 tokens.
    near(l.requests_per_second, 20.0 / 0.31407642364501953);
    near(l.output_tokens_per_second, 160.0 / 0.31407642364501953);
    // Whether its client was the limit it does not say.
    assert_eq!(l.client_limit, None);
    let sweep = report.sweep();
    assert_eq!(sweep.points.len(), 2);
}

#[test]
fn guidellms_csv_of_a_schedule() {
    let report = load(&[fixture("guidellm-0.8.1-constant.csv")]).unwrap();
    let l = &report.levels()[0];
    assert_eq!(
        (l.concurrency, l.open_loop, l.file.as_str()),
        (None, true, "constant-20.json")
    );
    near(l.e2e_ms, 56.22576475143433);
    let (low, high) = l.e2e.mean_interval.unwrap();
    near(Some(low), 56.03506255929517);
    near(Some(high), 56.41646694357348);
}

const VLLM: &str = r#"{"date": "20250101-000000", "endpoint_type": "openai", "backend": "openai", "label": null, "model_id": "m", "tokenizer_id": "m", "num_prompts": 10, "request_rate": "inf", "burstiness": 1.0, "max_concurrency": 4,
"duration": 2.0, "completed": 8, "failed": 2, "total_input_tokens": 800, "total_output_tokens": 160, "request_throughput": 4.0, "request_goodput": null, "output_throughput": 80.0, "total_token_throughput": 480.0,
"max_output_tokens_per_s": 99.0, "mean_ttft_ms": 50.0, "median_ttft_ms": 45.0, "std_ttft_ms": 3.0, "p99_ttft_ms": 70.0, "mean_tpot_ms": 10.0, "median_tpot_ms": 9.5, "std_tpot_ms": 1.0, "p99_tpot_ms": 14.0, "mean_itl_ms": 11.0, "median_itl_ms": 11.0, "std_itl_ms": 1.0, "p99_itl_ms": 30.0"#;

#[test]
fn vllm_bench_serve_without_details() {
    let l = read(&format!("{VLLM}}}"));
    assert_eq!(
        (l.concurrency, l.file.as_str()),
        (Some(4.0), "throughput-4.json")
    );
    assert_eq!(
        (l.successful, l.errored, l.total),
        (Some(8), Some(2), Some(10))
    );
    near(l.ttft_ms, 50.0);
    near(l.ttft.p50, 45.0);
    near(l.ttft.p99, 70.0);
    // Its TPOT is without the first token: our ITL.
    near(l.itl_ms, 10.0);
    near(l.itl.p99, 14.0);
    near(l.output_tokens_per_second, 80.0);
    near(l.prompt_tokens_per_second, 400.0);
    near(l.throughput, 480.0);
    assert_eq!(
        (l.prompt_tokens, l.output_tokens),
        (Some(100.0), Some(20.0))
    );
    // E2E is not there by default: 50 + 19 x 10.
    near(l.e2e_ms, 240.0);
    assert!(
        l.warnings[0].contains("E2E is not in the file"),
        "{:?}",
        l.warnings
    );
    let known = read(&format!(
        r#"{VLLM}, "mean_e2el_ms": 250.0, "p99_e2el_ms": 300.0}}"#
    ));
    near(known.e2e_ms, 250.0);
    near(known.e2e.p99, 300.0);
    assert!(known.warnings.is_empty());
    // A schedule; and no load at all, which is everything at once.
    let rate = read(&format!("{VLLM}}}").replace("\"inf\"", "5.5"));
    assert_eq!(
        (rate.open_loop, rate.file.as_str()),
        (true, "poisson-5.5.json")
    );
    let all =
        read(&format!("{VLLM}}}").replace("\"max_concurrency\": 4", "\"max_concurrency\": null"));
    assert_eq!(
        (all.concurrency, all.file.as_str()),
        (None, "throughput-max.json")
    );
    // Runs that were appended to one file.
    let two = format!(
        "{VLLM}}}\n{}}}\n",
        VLLM.replace("\"max_concurrency\": 4", "\"max_concurrency\": 8")
    );
    let two = read_named("x.json", two.as_bytes()).unwrap();
    assert_eq!(
        (two[0].concurrency, two[1].concurrency),
        (Some(4.0), Some(8.0))
    );
}

#[test]
fn vllm_bench_serve_with_details() {
    // Two requests and one that failed. TTFT 100 and 200 ms; ITL (10 + 20 + 30) / 3 = 20 and 10 ms;
    // E2E 160 and 230 ms; from 1000.0 to 1000.73 s: 0.73 s.
    let details = r#", "input_lens": [10, 20, 30], "output_lens": [4, 4, 0], "start_times": [1000.0, 1000.5, 1000.1], "ttfts": [0.1, 0.2, 0.0], "itls": [[0.01, 0.02, 0.03], [0.01, 0.01, 0.01], []], "generated_texts": ["a", "b", ""], "errors": ["", "", "Bad Gateway"]}"#;
    let l = read(&format!("{VLLM}{details}"));
    assert_eq!(
        (l.successful, l.errored, l.total),
        (Some(2), Some(1), Some(3))
    );
    near(l.ttft_ms, 150.0);
    near(l.itl_ms, 15.0);
    near(l.e2e_ms, 195.0);
    near(l.requests_per_second, 2.0 / 0.73);
    near(l.output_tokens_per_second, 8.0 / 0.73);
    near(l.prompt_tokens, 15.0);
    // Lists that do not belong together are not used.
    let uneven = details.replace("[10, 20, 30]", "[10, 20]");
    near(read(&format!("{VLLM}{uneven}")).ttft_ms, 50.0);
    // Nor numbers that no request has.
    let huge = details.replace("[4, 4, 0]", "[4, 99999999999, 0]");
    let error = read_named("v.json", format!("{VLLM}{huge}").as_bytes()).unwrap_err();
    assert!(error.contains("99999999999 tokens"), "{error}");
}

const AIPERF: &str = r#"{"schema_version": "1.0", "request_throughput": {"unit": "requests/sec", "avg": 4.0},
"request_latency": {"unit": "ms", "avg": 240.0, "p1": 1.0, "p10": 200.0, "p50": 230.0, "p90": 260.0, "p95": 270.0, "p99": 280.0, "min": 1.0, "max": 300.0, "std": 9.0},
"time_to_first_token": {"unit": "ms", "avg": 50.0, "p50": 45.0, "p99": 70.0},
"inter_token_latency": {"unit": "us", "avg": 10000.0, "p50": 9500.0, "p99": 14000.0},
"input_sequence_length": {"unit": "tokens", "avg": 100.0}, "output_sequence_length": {"unit": "tokens", "avg": 20.0},
"output_token_throughput": {"unit": "tokens/sec", "avg": 80.0}, "request_count": {"unit": "requests", "avg": 8.0},
"error_summary": [{"error_details": {"code": 499}, "count": 1}, {"error_details": {"code": 500}, "count": 2}], "was_cancelled": false,
"input_config": {"endpoint": {"model_names": ["m"]}, "loadgen": {"concurrency": 4}}}"#;

#[test]
fn aiperfs_summary() {
    let l = read(AIPERF);
    assert_eq!(
        (l.concurrency, l.file.as_str()),
        (Some(4.0), "throughput-4.json")
    );
    assert_eq!(
        (l.successful, l.errored, l.total),
        (Some(8), Some(3), Some(11))
    );
    near(l.e2e_ms, 240.0);
    near(l.e2e.p99, 280.0);
    near(l.ttft.p50, 45.0);
    // Microseconds.
    near(l.itl_ms, 10.0);
    near(l.itl.p99, 14.0);
    near(l.requests_per_second, 4.0);
    near(l.output_tokens_per_second, 80.0);
    near(l.prompt_tokens_per_second, 400.0);
    near(l.throughput, 480.0);
    let rate = read(&AIPERF.replace(
        r#"{"concurrency": 4}"#,
        r#"{"request_rate": 3.0, "request_rate_mode": "constant"}"#,
    ));
    assert_eq!(
        (rate.open_loop, rate.file.as_str()),
        (true, "constant-3.json")
    );
    // GenAI-Perf keeps the load elsewhere.
    let genai = AIPERF.replace(
        r#""loadgen": {"concurrency": 4}"#,
        r#""perf_analyzer": {"stimulus": {"concurrency": 16}}"#,
    );
    assert_eq!(read(&genai).concurrency, Some(16.0));
}

#[test]
fn aiperfs_table() {
    let l = read(
        "Metric,avg,min,max,p1,p5,p10,p25,p50,p75,p90,p95,p99,std\nRequest Latency (ms),240.00,1,2,3,4,200,6,230,8,260,270,280,9\nTime to First Token (ms),50,1,2,3,4,5,6,45,8,9,10,70,12\nInter Token Latency (ms),10,1,2,3,4,5,6,9.5,8,9,10,14,12\nOutput Sequence Length (tokens),20,20,20,20,20,20,20,20,20,20,20,20,0\n\nMetric,Value\nRequest Throughput (requests/sec),4.0\nRequest Count,8.00\nOutput Token Throughput (tokens/sec),80.0\n\nEndpoint,GPU_Index,GPU_Name,GPU_UUID,Metric,avg\nh:1,0,n,u,GPU Power Usage (W),43.37\n",
    );
    near(l.e2e_ms, 240.0);
    near(l.e2e.p95, 270.0);
    near(l.ttft.p99, 70.0);
    near(l.itl_ms, 10.0);
    near(l.requests_per_second, 4.0);
    near(l.output_tokens_per_second, 80.0);
    assert_eq!((l.successful, l.output_tokens), (Some(8), Some(20.0)));
}

/// A request that starts at `start_ms`, with TTFT 100 ms, 5 tokens at 20 ms: E2E 180 ms.
fn aiperf_line(start_ms: u64, phase: &str, error: &str) -> String {
    let start = 1_759_813_207_000_000_000 + start_ms * 1_000_000;
    format!(
        r#"{{"metadata": {{"x_request_id": "r{start_ms}", "request_start_ns": {start}, "request_end_ns": {}, "benchmark_phase": "{phase}", "was_cancelled": false}}, "metrics": {{"input_sequence_length": {{"value": 50, "unit": "tokens"}}, "time_to_first_token": {{"value": 100.0, "unit": "ms"}}, "inter_chunk_latency": {{"value": [20.0, 20.0], "unit": "ms"}}, "output_sequence_length": {{"value": 5, "unit": "tokens"}}, "inter_token_latency": {{"value": 0.02, "unit": "s"}}}}, "error": {error}}}"#,
        start + 180_000_000
    ) + "\n"
}

#[test]
fn aiperfs_requests() {
    let failed = r#"{"code": 500, "type": "E", "message": "broke"}"#;
    let text: String = [
        aiperf_line(120, "profiling", "null"),
        aiperf_line(0, "profiling", "null"),
        aiperf_line(320, "profiling", failed),
    ]
    .concat();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("profile_export.jsonl"), &text).unwrap();
    std::fs::write(folder.path().join("profile_export_aiperf.json"), AIPERF).unwrap();
    let report = load(&[folder.path().to_owned()]).unwrap();
    let l = &report.levels()[0];
    // The load comes from the summary, the numbers from the requests.
    assert_eq!((report.levels().len(), l.concurrency), (1, Some(4.0)));
    assert_eq!(report.context().model.as_deref(), Some("m"));
    assert_eq!((l.successful, l.errored), (Some(2), Some(1)));
    near(l.ttft_ms, 100.0);
    near(l.itl_ms, 20.0);
    near(l.e2e_ms, 180.0);
    near(l.requests_per_second, 2.0 / 0.5);
    let itself = compare(folder.path(), folder.path(), Settings::new(0.05)).unwrap();
    assert_eq!(itself.exit_code(), 0);
    // Warm-up is not measured; without the summary the load is not known, and that is said.
    let warm = format!(
        "{}{}",
        aiperf_line(0, "warmup", "null"),
        aiperf_line(200, "profiling", "null")
    );
    let l = read(&warm);
    assert_eq!((l.successful, l.concurrency), (Some(1), None));
    assert!(
        l.warnings[0].contains("load is not known"),
        "{:?}",
        l.warnings
    );
    let error = read_named("r.jsonl", format!("{text}{{\"metadata\": 1}}").as_bytes()).unwrap_err();
    assert!(error.contains("request 4"), "{error}");
}

#[test]
fn a_folder_of_several_runs() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    put("openai-infqps-concurrency4-m.json", &format!("{VLLM}}}"));
    put(
        "openai-infqps-concurrency8-m.json",
        &format!("{VLLM}}}").replace("\"max_concurrency\": 4", "\"max_concurrency\": 8"),
    );
    put("openai-infqps-concurrency8-m.pytorch.json", "[{}]");
    put("notes.json", r#"{"a": 1}"#);
    let report = load(&[folder.path().to_owned()]).unwrap();
    let loads: Vec<_> = report.levels().iter().map(|l| l.concurrency).collect();
    assert_eq!(loads, [Some(4.0), Some(8.0)]);
}

#[test]
fn what_is_none_of_these_is_told_what_can_be_read() {
    for text in [
        "",
        "hello",
        "{",
        "{}",
        "[1]",
        "\u{0}\u{1}",
        r#"{"completed": 1}"#,
        "{\"metrics\": {}}",
    ] {
        let error = read_named("thing", text.as_bytes()).unwrap_err();
        for tool in ["GuideLLM", "vllm bench serve", "AIPerf", "summary CSV"] {
            assert!(error.contains(tool), "{text:?}: {error}");
        }
    }
}

fn texts() -> Vec<String> {
    let csv = std::fs::read_to_string(fixture("guidellm-0.8.1-constant.csv")).unwrap();
    vec![
        format!("{VLLM}}}"),
        AIPERF.into(),
        aiperf_line(0, "profiling", "null").repeat(3),
        csv,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn files_that_are_cut_off_or_changed(
        which in 0usize..4,
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = texts().swap_remove(which).into_bytes();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] = byte;
        }
        let _ = read_named("some.json", &bytes);
    }

    #[test]
    fn numbers_that_no_measurement_has(
        which in 0usize..4,
        place in any::<prop::sample::Index>(),
        number in prop::sample::select(vec!["0", "-1", "1e308", "1e-308", "18446744073709551615", "0.0", "null"]),
    ) {
        let text = texts().swap_remove(which);
        let digits: Vec<usize> = text
            .char_indices()
            .filter(|(i, c)| c.is_ascii_digit() && !text[..*i].ends_with(|p: char| p.is_ascii_digit() || p == '.'))
            .map(|(i, _)| i)
            .collect();
        let start = digits[place.index(digits.len())];
        let rest = text[start..].trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let _ = read_named("some.json", format!("{}{number}{rest}", &text[..start]).as_bytes());
    }
}
