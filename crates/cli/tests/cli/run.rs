//! The main job on a simulated model of known timing: files, resumption, Ctrl-C.

use std::path::Path;
use std::time::Duration;

use crate::support::Sandbox;

const SIM: [&str; 6] = [
    "run",
    "smollm2-135m",
    "--device",
    "sim",
    "--sim-step-ms",
    "1",
];

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = SIM.to_vec();
    args.extend(more);
    args
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn one_command_leaves_results_and_a_report() {
    let sandbox = Sandbox::new();
    // Longer steps than the machine takes for all else, so that its own speed does not count.
    let mut slow = args(&[
        "--concurrency",
        "1,4",
        "--max-requests",
        "8",
        "--output-dir",
        "out",
    ]);
    slow[SIM.len() - 1] = "5";
    let ended = sandbox.run(&slow).ok();
    for word in ["ready", "throughput-1", "throughput-4"] {
        assert!(ended.stderr.contains(word), "{word}: {}", ended.stderr);
    }
    for word in ["Best ", "Bottleneck", "Next", "Report: out/report.html"] {
        assert!(ended.stdout.contains(word), "{word}: {}", ended.stdout);
    }
    let out = sandbox.path("out");
    for file in [
        "throughput-1.json",
        "throughput-4.json",
        "findings.json",
        "report.md",
        "plots/throughput.png",
        "plots/throughput.svg",
        "plots/TTFT.png",
        "plots/TTFT.svg",
    ] {
        assert!(out.join(file).metadata().unwrap().len() > 0, "{file}");
    }
    let csv = read(&out.join("benchmark_metrics_summary.csv"));
    let head = "File,Throughput (tokens/sec),TTFT (ms),ITL (ms),E2E Latency (ms),successful,errored,incomplete,total,MAX_CONCURRENCY";
    assert!(csv.starts_with(head), "{csv}");
    let page = read(&out.join("report.html"));
    for outside in ["src=\"http", "href=\"http", "url(http", "@import"] {
        assert!(!page.contains(outside), "the page loads {outside}");
    }
    // A step takes 5 ms, whatever is in it.
    let level: serde_json::Value =
        serde_json::from_str(&read(&out.join("throughput-4.json"))).unwrap();
    let metrics = &level["benchmarks"][0]["metrics"];
    let itl = metrics["inter_token_latency_ms"]["successful"]["median"]
        .as_f64()
        .unwrap();
    // A pause may end a little early by the other clock.
    assert!((4.5..15.0).contains(&itl), "{itl}");
    let requests = level["benchmarks"][0]["requests"]["successful"]
        .as_array()
        .unwrap();
    assert_eq!(requests.len(), 8);
    for request in requests {
        assert_eq!(request["prompt_tokens"], 128);
        assert_eq!(request["output_tokens"], 64);
    }
}

#[test]
fn resume_keeps_what_was_measured_with_the_same_settings() {
    let sandbox = Sandbox::new();
    let first = ["--concurrency", "1,2", "--max-requests", "3"];
    sandbox.run(&args(&first)).ok();
    let file = sandbox.path("benchmark-results/throughput-1.json");
    let before = read(&file);
    let mut again = args(&["--concurrency", "1,2,3", "--max-requests", "3", "--resume"]);
    let ended = sandbox.run(&again).ok();
    assert_eq!(
        ended.stderr.matches("(kept)").count(),
        2,
        "{}",
        ended.stderr
    );
    assert_eq!(read(&file), before);
    // Another engine: nothing is kept.
    again.extend(["--max-num-seqs", "7"]);
    let ended = sandbox.run(&again).ok();
    assert_eq!(
        ended.stderr.matches("(kept)").count(),
        0,
        "{}",
        ended.stderr
    );
}

#[test]
fn ctrl_c_keeps_finished_levels_and_resume_goes_on() {
    let sandbox = Sandbox::new();
    let flags = ["--concurrency", "1,2", "--max-requests", "40"];
    let mut running = sandbox.start(&args(&flags), "throughput-1");
    std::thread::sleep(Duration::from_millis(100));
    assert!(running.is_running());
    running.signal(libc::SIGINT);
    let ended = running.end();
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    assert!(ended.stderr.contains("--resume"), "{}", ended.stderr);
    assert!(ended.stdout.contains("Report: "), "{}", ended.stdout);
    let results = sandbox.path("benchmark-results");
    assert!(results.join("throughput-1.json").exists());
    assert!(!results.join("throughput-2.json").exists());
    let mut again = args(&flags);
    again.push("--resume");
    let ended = sandbox.run(&again).ok();
    assert_eq!(
        ended.stderr.matches("(kept)").count(),
        1,
        "{}",
        ended.stderr
    );
    assert!(results.join("throughput-2.json").exists());
}

#[test]
fn quick_is_shorter_and_flags_still_win() {
    let sandbox = Sandbox::new();
    let ended = sandbox
        .run(&args(&[
            "--quick",
            "--max-requests",
            "4",
            "--sim-step-ms",
            "0.1",
        ]))
        .ok();
    for level in [1, 10, 25, 50, 75] {
        assert!(
            ended.stderr.contains(&format!("throughput-{level} ")),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn a_report_is_made_again_from_the_folder_or_from_the_summary_alone() {
    let sandbox = Sandbox::new();
    sandbox
        .run(&args(&["--concurrency", "1,2", "--max-requests", "4"]))
        .ok();
    let page = read(&sandbox.path("benchmark-results/report.md"));
    sandbox.run(&["report"]).ok();
    assert_eq!(read(&sandbox.path("benchmark-results/report.md")), page);
    let summary = "benchmark-results/benchmark_metrics_summary.csv";
    let ended = sandbox
        .run(&["report", summary, "--output-dir", "alone", "--json"])
        .ok();
    let findings: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(
        findings
            .as_array()
            .unwrap()
            .iter()
            .any(|f| f["id"] == "peak")
    );
    assert!(sandbox.path("alone/report.html").exists());
}
