//! The shapes of load, limits and searches, by their flags.

use crate::support::Sandbox;

/// The main job on a simulated model whose steps take 1 ms, with short requests.
fn run(sandbox: &Sandbox, flags: &str) -> crate::support::Ended {
    of_file(
        sandbox,
        &format!("--output-tokens 4 --prompt-tokens 16 {flags}"),
    )
}

/// The same where a file tells the lengths.
fn of_file(sandbox: &Sandbox, flags: &str) -> crate::support::Ended {
    let start = "run smollm2-135m --device sim --sim-step-ms 1";
    let args: Vec<&str> = start
        .split_whitespace()
        .chain(flags.split_whitespace())
        .collect();
    sandbox.run(&args)
}

#[test]
fn every_profile_runs_by_its_flags() {
    for (flags, files) in [
        (
            "--profile synchronous --max-requests 3",
            &["synchronous"][..],
        ),
        (
            "--profile throughput --max-concurrency 4 --max-requests 8",
            &["throughput-max"],
        ),
        (
            "--profile constant --rate 100,200 --max-requests 8",
            &["constant-100", "constant-200"],
        ),
        (
            "--profile poisson --rate 100 --max-requests 8",
            &["poisson-100"],
        ),
    ] {
        let sandbox = Sandbox::new();
        run(&sandbox, flags).ok();
        for file in files {
            let file = sandbox.path(&format!("benchmark-results/{file}.json"));
            assert!(file.exists(), "{flags}: {}", file.display());
        }
    }
}

#[test]
fn searches_say_what_they_have_found() {
    let sandbox = Sandbox::new();
    let ended = run(
        &sandbox,
        "--profile goodput --goodput e2e:5000 --goodput-share 0.5 --max-concurrency 4 --search-start 4",
    )
    .ok();
    assert!(sandbox.path("benchmark-results/goodput.json").exists());
    assert!(ended.stderr.contains("objective"), "{}", ended.stderr);
    let sandbox = Sandbox::new();
    run(
        &sandbox,
        "--profile knee --max-concurrency 4 --search-levels 3 --max-requests 4",
    )
    .ok();
    assert!(sandbox.path("benchmark-results/knee.json").exists());
}

#[test]
fn a_flag_that_the_profile_does_not_look_at_is_refused() {
    let sandbox = Sandbox::new();
    for (flags, words) in [
        ("--rate 5", "--rate means nothing to --profile concurrent"),
        (
            "--profile sweep --concurrency 5",
            "it is for --profile concurrent",
        ),
        ("--profile constant", "needs --rate"),
        ("--profile replay", "--data"),
        ("--time-scale 2", "--profile replay"),
        ("--trace-format mooncake", "--data"),
        ("--profile knee", "needs --max-concurrency"),
        (
            "--profile goodput --goodput ttft:9",
            "--max-concurrency or --max-rate",
        ),
        ("--profile goodput --max-rate 5", "--goodput"),
        ("--over-saturation", "by a schedule"),
        ("--goodput fast:9", "ttft:500"),
        ("--sample-size 5", "--requests-jsonl"),
        ("--tokenizer nowhere.json", "--tokenizer"),
        ("--profile sweep --repeats 2", "--repeats"),
    ] {
        let ended = run(&sandbox, flags);
        assert_eq!(ended.code.map(|code| code == 0), Some(false), "{flags}");
        assert!(ended.stderr.contains(words), "{flags}: {}", ended.stderr);
    }
}

#[test]
fn a_limit_of_the_run_ends_it_and_is_no_failure() {
    let sandbox = Sandbox::new();
    let ended = run(
        &sandbox,
        "--concurrency 1,2,3 --max-requests 4 --max-total-requests 8",
    )
    .ok();
    assert!(
        ended.stderr.contains("request limit of the run (8)"),
        "{}",
        ended.stderr
    );
    let results = sandbox.path("benchmark-results");
    assert!(results.join("throughput-2.json").exists());
    assert!(!results.join("throughput-3.json").exists());
}

#[test]
fn rounds_drift_and_requests_as_lines() {
    let sandbox = Sandbox::new();
    let ended = run(
        &sandbox,
        "--concurrency 1,2 --max-requests 5 --repeats 2 --shuffle 3 --drift-check --requests-jsonl --sample-size 1 \
         --warmup 1 --cooldown 10% --warmup-requests 2 --goodput ttft:1000",
    )
    .ok();
    let results = sandbox.path("benchmark-results");
    let files = std::fs::read_dir(&results)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let (mut levels, mut lines) = (0, 0);
    for file in files.filter(|name| name.starts_with("throughput-")) {
        levels += usize::from(file.ends_with(".json"));
        if file.ends_with(".jsonl") {
            lines += 1;
            let text = std::fs::read_to_string(results.join(&file)).unwrap();
            assert_eq!(text.lines().count(), 5, "{file}");
        }
    }
    assert_eq!((levels, lines), (5, 5), "{}", ended.stderr);
    assert!(results.join("drift.json").exists());
}

#[test]
fn lengths_differ_where_they_may() {
    let sandbox = Sandbox::new();
    run(
        &sandbox,
        "--concurrency 1 --max-requests 6 --output-tokens 9 --output-tokens-min 2 --output-tokens-max 9 --prefix 10",
    )
    .ok();
    let drawn = output_tokens(&sandbox.path("benchmark-results/throughput-1.json"));
    assert!(drawn.iter().all(|n| (2..=9).contains(n)), "{drawn:?}");
    assert!(drawn.first() != drawn.last(), "{drawn:?}");
}

/// Output tokens of each request of a level, rising.
pub fn output_tokens(level: &std::path::Path) -> Vec<u64> {
    let text = std::fs::read_to_string(level).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let requests = json["benchmarks"][0]["requests"]["successful"].as_array();
    let mut all: Vec<u64> = requests
        .unwrap()
        .iter()
        .map(|request| request["output_tokens"].as_u64().unwrap())
        .collect();
    all.sort_unstable();
    all
}

#[test]
fn a_data_file_that_is_not_there_is_named() {
    let sandbox = Sandbox::new();
    let ended = of_file(&sandbox, "--concurrency 1 --data nowhere.jsonl");
    assert_ne!(ended.code, Some(0));
    assert!(ended.stderr.contains("nowhere.jsonl"), "{}", ended.stderr);
}

#[test]
fn a_trace_is_replayed_at_its_times() {
    let sandbox = Sandbox::new();
    let rows = [(0, 20, 3), (40, 30, 5), (90, 10, 2)];
    let lines: Vec<String> = rows
        .iter()
        .map(|(at, input, output)| {
            format!(r#"{{"timestamp": {at}, "input_length": {input}, "output_length": {output}}}"#)
        })
        .collect();
    std::fs::write(sandbox.path("trace.jsonl"), lines.join("\n")).unwrap();
    of_file(
        &sandbox,
        "--profile replay --data trace.jsonl --trace-format mooncake --time-scale 1,2",
    )
    .ok();
    for level in ["replay-1", "replay-2"] {
        let file = sandbox.path(&format!("benchmark-results/{level}.json"));
        assert_eq!(output_tokens(&file), [2, 3, 5], "{level}");
    }
}
