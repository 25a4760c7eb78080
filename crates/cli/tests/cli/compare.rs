//! `powerband bench compare`: its answers, forms and exit codes.

use crate::support::Sandbox;

const HEAD: &str = "File,Throughput (tokens/sec),TTFT (ms),ITL (ms),E2E Latency (ms),successful,errored,incomplete,total,MAX_CONCURRENCY";

/// A sandbox with the run `a.csv` of two levels, and `b.csv` with another ITL and number of errors.
fn runs(itl_ms: f64, errors: u32) -> Sandbox {
    let sandbox = Sandbox::new();
    let write = |name: &str, itl: f64, errors: u32| {
        let rows = [1, 8].map(|clients| {
            format!(
                "throughput-{clients}.json,500,50,{itl},700,400,{errors},0,{},{clients}",
                400 + errors
            )
        });
        let text = format!("{HEAD}\n{}\n", rows.join("\n"));
        std::fs::write(sandbox.path(name), text).unwrap();
    };
    write("a.csv", 10.0, 0);
    write("b.csv", itl_ms, errors);
    sandbox
}

const COMPARE: [&str; 4] = ["bench", "compare", "a.csv", "b.csv"];

#[test]
fn the_exit_code_says_whether_it_became_worse() {
    let same = runs(10.0, 0).run(&COMPARE).ok();
    assert!(
        same.stdout.contains("no regression: 0 worse"),
        "{}",
        same.stdout
    );
    // A faster one too.
    runs(5.0, 0).run(&COMPARE).ok();
    let worse = runs(15.0, 0).run(&COMPARE);
    assert!(worse.stdout.contains("WORSE"), "{}", worse.stdout);
    worse.fails(1, &["regression: 2 worse", "hint: "]);
    // Failures are tested even where only counts are known.
    runs(10.0, 100).run(&COMPARE).fails(1, &["regression"]);
}

#[test]
fn the_threshold_is_a_share_or_a_percentage() {
    let sandbox = runs(13.0, 0);
    sandbox.run(&COMPARE).fails(1, &["regression"]);
    for threshold in ["10%", "0.1"] {
        let args = [&COMPARE[..], &["--threshold", threshold]].concat();
        sandbox.run(&args).ok();
    }
    let args = [&COMPARE[..], &["--threshold", "7"]].concat();
    sandbox.run(&args).fails(2, &["--threshold", "5%"]);
}

#[test]
fn json_and_markdown() {
    let sandbox = runs(10.0, 0);
    let json = sandbox
        .run(&[&COMPARE[..], &["--json"]].concat())
        .ok()
        .stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["outcome"], "no_regression");
    assert_eq!(json["levels"][1]["level"], "8 clients");
    let markdown = sandbox
        .run(&[&COMPARE[..], &["--markdown"]].concat())
        .ok()
        .stdout;
    assert!(markdown.starts_with("# Comparison"), "{markdown}");
}

#[test]
fn what_cannot_be_compared_is_no_success() {
    let sandbox = runs(10.0, 0);
    sandbox
        .run(&["bench", "compare", "a.csv", "nothing"])
        .fails(2, &["nothing", "hint: "]);
    let other = format!("{HEAD}\nthroughput-3.json,500,50,10,700,400,0,0,400,3\n");
    std::fs::write(sandbox.path("c.csv"), other).unwrap();
    sandbox
        .run(&["bench", "compare", "a.csv", "c.csv"])
        .fails(2, &["no level in common", "3 clients", "hint: "]);
    sandbox
        .run(&["bench", "compare", "a.csv"])
        .fails(2, &["<B>"]);
    // The flags of a measurement are not those of a comparison.
    sandbox
        .run(&["bench", "--target", "http://h", "compare", "a.csv", "b.csv"])
        .fails(2, &["compare"]);
    // A target in the environment is no flag.
    let mut command = sandbox.command(&COMPARE);
    command.env("POWERBAND_TARGET", "http://h");
    assert!(command.output().unwrap().status.success());
}
