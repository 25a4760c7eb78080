//! Settings from a file and from the environment.

use crate::support::{Ended, Sandbox};

const BASE: [&str; 4] = ["run", "smollm2-135m", "--device", "sim"];

#[test]
fn typed_flags_win_over_the_file_and_the_file_over_the_environment() {
    let sandbox = Sandbox::new();
    std::fs::write(
        sandbox.path("p.toml"),
        "max-num-seqs = 3\nsim-step-ms = 0.1\nconcurrency = [2]\nmax-requests = 4\n",
    )
    .unwrap();
    let mut args = BASE.to_vec();
    args.extend(["--config", "p.toml", "--max-requests", "5"]);
    let mut command = sandbox.command(&args);
    command.env("POWERBAND_MAX_NUM_SEQS", "7");
    Ended::of(command.output().unwrap()).ok();
    let context = std::fs::read_to_string(sandbox.path("benchmark-results/context.json")).unwrap();
    assert!(context.contains("\"max_num_seqs\": 3"), "{context}");
    let csv =
        std::fs::read_to_string(sandbox.path("benchmark-results/benchmark_metrics_summary.csv"))
            .unwrap();
    assert!(csv.lines().nth(1).unwrap().contains(",5,0,0,5,2,"), "{csv}");
}

#[test]
fn a_key_opens_the_server() {
    let sandbox = Sandbox::new();
    let server = sandbox.start(
        &[
            "serve",
            "smollm2-135m",
            "--device",
            "sim",
            "--sim-step-ms",
            "0.1",
            "--port",
            "0",
            "--api-key",
            "sesame-42",
        ],
        " ready: ",
    );
    let url = format!("http://{}", server.address());
    let args = [
        "run",
        "--target",
        &url,
        "--concurrency",
        "1",
        "--max-requests",
        "2",
        "--api-key",
    ];
    // The simulated model has no tokenizer: text is refused, but only after the key was accepted.
    let without = sandbox.run(&args[..args.len() - 1]);
    without.fails(1, &["answered 401", "--api-key"]);
    let mut with = args.to_vec();
    with.push("sesame-42");
    let ended = sandbox.run(&with);
    assert!(!ended.stderr.contains("answered 401"), "{}", ended.stderr);
}
