//! What is read and written: the summary's form, errors that name the line, a report that is safe to open.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use powerband_bench::{LevelResult, Outcome, RequestRecord, Strategy, guidellm};
use powerband_report::{Context, Report, csv, load};

const SEED: &str = include_str!("fixtures/published-sweep.csv");

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/published-sweep.csv")
}

fn level(clients: usize) -> LevelResult {
    let mut level = LevelResult::empty(Strategy::Concurrent { streams: clients });
    level.model = "<script>alert(1)</script>".into();
    level.warnings = vec!["a \"server\" said <b>&</b> | `x`".into()];
    level.duration_s = 2.0;
    level.requests = (0..10 * clients as u64)
        .map(|i| RequestRecord {
            id: i.to_string(),
            outcome: if i == 3 {
                Outcome::Errored("no".into())
            } else {
                Outcome::Successful
            },
            sent_ns: i * 1_000_000,
            first_token_ns: Some(i * 1_000_000 + 20_000_000),
            last_token_ns: Some(i * 1_000_000 + 83_000_000),
            end_ns: i * 1_000_000 + 83_000_000,
            prompt_tokens: 128,
            output_tokens: 64,
            chunks: 64,
            ..RequestRecord::default()
        })
        .collect();
    level
}

#[test]
fn the_first_ten_columns_are_written_as_they_came() {
    let written = csv::to_string(load(&[fixture()]).unwrap().levels());
    for (ours, theirs) in written.lines().zip(SEED.lines()) {
        let first: Vec<&str> = ours.split(',').take(10).collect();
        assert_eq!(first.join(","), theirs.trim_end());
    }
    assert_eq!(written.lines().count(), SEED.lines().count());
}

#[test]
fn what_is_written_comes_back() {
    let report = Report::from_levels(&[level(1), level(4)], Context::default());
    let text = csv::to_string(report.levels());
    let mut back = csv::parse(Path::new("x.csv"), text.as_bytes()).unwrap();
    for (l, original) in back.iter_mut().zip(report.levels()) {
        // Not in the file.
        l.warnings.clone_from(&original.warnings);
        for (mine, theirs) in [
            (&mut l.ttft, &original.ttft),
            (&mut l.itl, &original.itl),
            (&mut l.e2e, &original.e2e),
        ] {
            mine.mean_interval = theirs.mean_interval;
            mine.p10 = theirs.p10;
        }
    }
    assert_eq!(back, report.levels());
    assert_eq!(csv::to_string(&back), text);
}

#[test]
fn a_broken_summary_names_file_line_and_column() {
    let fails = |text: &str| {
        csv::parse(Path::new("some.csv"), text.as_bytes())
            .unwrap_err()
            .to_string()
    };
    let empty = fails("");
    assert!(
        empty.starts_with("some.csv, line 1") && empty.contains("empty"),
        "{empty}"
    );
    assert!(
        fails(SEED.lines().next().unwrap()).contains("no level"),
        "header only"
    );
    let missing = fails(&SEED.replace("ITL (ms)", "Inter"));
    assert!(
        missing.contains("line 1") && missing.contains("`ITL (ms)` is missing"),
        "{missing}"
    );
    let word = fails(&SEED.replace("268.78800301738744", "fast"));
    assert!(
        word.contains("line 3") && word.contains("`fast`") && word.contains("Throughput"),
        "{word}"
    );
    let negative = fails(&SEED.replace("142.62033462524414", "-1"));
    assert!(
        negative.contains("line 2") && negative.contains("TTFT"),
        "{negative}"
    );
    let ragged = fails(&format!("{SEED}\nthroughput-200.json,1,2\n"));
    assert!(
        ragged.contains("line 1") && ragged.contains("not a table"),
        "{ragged}"
    );
    // What is not known is no error.
    let unknown = csv::parse(
        Path::new("x"),
        SEED.replace("142.62033462524414", "NaN").as_bytes(),
    )
    .unwrap();
    assert_eq!(unknown[0].ttft_ms, None);
    let report = Report::new(unknown, Context::default());
    assert_eq!(report.sweep().points.len(), 11);
}

#[test]
fn nothing_to_read_says_what_would_do() {
    let folder = tempfile::tempdir().unwrap();
    for paths in [
        vec![folder.path().to_owned()],
        vec![folder.path().join("none")],
        vec![],
    ] {
        let error = load(&paths).unwrap_err().to_string();
        assert!(error.contains("hint: give a folder"), "{error}");
    }
}

#[test]
fn a_folder_of_levels_becomes_a_report() {
    let folder = tempfile::tempdir().unwrap();
    for c in [1, 4, 16] {
        guidellm::write(
            &folder.path().join(format!("throughput-{c}.json")),
            &level(c),
        )
        .unwrap();
    }
    let report = load(&[folder.path().to_owned()]).unwrap();
    let of: Vec<Option<f64>> = report.levels().iter().map(|l| l.concurrency).collect();
    assert_eq!(of, [Some(1.0), Some(4.0), Some(16.0)]);
    let written = report.write(folder.path()).unwrap();
    for name in [
        "benchmark_metrics_summary.csv",
        "findings.json",
        "report.md",
        "report.html",
        "plots/throughput.png",
        "plots/throughput.svg",
        "plots/TTFT.png",
        "plots/TTFT.svg",
    ] {
        let path = folder.path().join(name);
        assert!(written.files.contains(&path), "{name}");
        assert!(std::fs::metadata(&path).unwrap().len() > 100, "{name}");
    }
    let png = std::fs::read(folder.path().join("plots/TTFT.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG\r\n"));
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.ends_with(".tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let findings: Vec<powerband_report::Finding> =
        serde_json::from_slice(&std::fs::read(folder.path().join("findings.json")).unwrap())
            .unwrap();
    assert_eq!(findings.len(), report.findings().len());
    for (written, found) in findings.iter().zip(report.findings()) {
        // JSON may move the last bit of a number.
        assert!((written.value / found.value - 1.0).abs() < 1e-12);
        assert_eq!(
            (&written.id, written.level, &written.evidence),
            (&found.id, found.level, &found.evidence)
        );
    }

    // Names and messages of others cannot become markup, and the page loads nothing.
    let html = std::fs::read_to_string(&written.html).unwrap();
    assert!(html.contains("&lt;script&gt;alert(1)") && html.contains("said &lt;b&gt;&amp;"));
    for bad in ["<script", "<b>&", "src=", "href=", "url(", "@import"] {
        assert!(!html.contains(bad), "{bad}");
    }
    let markdown = std::fs::read_to_string(&written.markdown).unwrap();
    assert!(!markdown.contains("<script") && markdown.contains("\\|"));
    for question in [
        "How does this serving setup perform?",
        "Where is the bottleneck?",
        "What to change next",
    ] {
        assert!(html.contains(question) && markdown.contains(question));
    }
}

#[test]
fn the_summary_that_a_report_came_from_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join(csv::FILE_NAME);
    std::fs::write(&source, SEED).unwrap();
    let written = load(&[folder.path().to_owned()])
        .unwrap()
        .write(folder.path())
        .unwrap();
    assert_eq!(std::fs::read_to_string(&source).unwrap(), SEED);
    assert!(!written.files.contains(&source) && written.html.is_file());
    // Elsewhere it is written, with our columns.
    let other = tempfile::tempdir().unwrap();
    load(&[source]).unwrap().write(other.path()).unwrap();
    let text = std::fs::read_to_string(other.path().join(csv::FILE_NAME)).unwrap();
    assert!(
        text.starts_with("File,Throughput (tokens/sec),TTFT (ms)")
            && text.contains("Delivered Concurrency")
    );
}

#[test]
fn another_tools_report_is_read_too() {
    let example =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/tests/fixtures/report.example.json");
    let report = load(&[example]).unwrap();
    assert!(!report.levels().is_empty());
    let folder = tempfile::tempdir().unwrap();
    report.write(folder.path()).unwrap();
}

#[test]
fn what_a_run_has_found_out_itself_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    powerband_bench::guidellm::write(&folder.path().join("throughput-4.json"), &level(4)).unwrap();
    put(
        "knee.json",
        r#"{"knee": 8, "between": [4, 16], "statement": "The knee is at 8 clients.", "points": []}"#,
    );
    put("goodput.json", "{\"statement\": 7}");
    let moved = |moved: bool| {
        let p = if moved { "0.001" } else { "0.4" };
        format!(
            r#"{{"level": "throughput-4", "metrics": [{{"metric": "request_latency", "first": 1.0, "last": 1.5, "p_value": {p}, "moved": {moved}}}]}}"#
        )
    };
    put("drift.json", &moved(true));
    let report = load(&[folder.path().to_owned()]).unwrap();
    let text = report.summary_text();
    assert!(text.contains("The knee is at 8 clients."), "{text}");
    assert!(text.contains("goodput.json cannot be read"), "{text}");
    assert!(
        text.contains("Caution: the server drifted") && text.contains("+50.0 %"),
        "{text}"
    );
    let written = report.write(folder.path()).unwrap();
    let page = std::fs::read_to_string(&written.markdown).unwrap();
    assert!(page.contains("The knee is at 8 clients."), "{page}");
    // They stay in their own files.
    if let Ok(context) = std::fs::read_to_string(folder.path().join("context.json")) {
        assert!(!context.contains("knee"), "{context}");
    }
    put("drift.json", &moved(false));
    let report = load(&[folder.path().to_owned()]).unwrap();
    assert!(!report.summary_text().contains("drift"));
    let written = report.write(folder.path()).unwrap();
    let page = std::fs::read_to_string(&written.markdown).unwrap();
    assert!(page.contains("did not drift"), "{page}");
}

#[test]
fn the_machines_are_told_where_they_are_known() {
    use powerband_bench::{ClientLag, GpuUse, HostUse};
    let mut known = level(4);
    known.duration_s = 10.0;
    known.client.cpu_share = 0.5;
    known.client.connections = 4;
    known.client.connect_max_ms = 12.5;
    known.client.client_lag = Some(ClientLag {
        p99_ms: 0.75,
        ..ClientLag::default()
    });
    known.server = [("running_mean".into(), 3.0), ("waiting_mean".into(), 1.5)].into();
    known.host = Some(HostUse {
        cores: 8,
        cpu: 0.97,
        server: Some(0.4),
        others: Some(0.5),
        ..HostUse::default()
    });
    known.gpus = vec![GpuUse {
        utilization_mean: Some(0.25),
        utilization_max: Some(0.5),
        power_mean_w: Some(123.0),
        ..GpuUse::default()
    }];
    let mut silent = level(1);
    silent.duration_s = 10.0;
    let report = Report::from_levels(&[silent, known], Context::default());
    let ids: Vec<&str> = report.findings().iter().map(|f| f.id.as_str()).collect();
    for id in ["host_cpu_full", "other_programs", "gpu_idle"] {
        assert!(ids.contains(&id), "{id}: {ids:?}");
    }
    // The summary alone says as much.
    let text = csv::to_string(report.levels());
    let back = Report::new(
        csv::parse(Path::new("x.csv"), text.as_bytes()).unwrap(),
        Context::default(),
    );
    for (read, written) in back.levels().iter().zip(report.levels()) {
        assert_eq!((read.client, read.host), (written.client, written.host));
        assert_eq!((read.gpu, &read.server), (written.gpu, &written.server));
    }
    let written = |report: &Report| {
        let folder = tempfile::tempdir().unwrap();
        let written = report.write(folder.path()).unwrap();
        let page = std::fs::read_to_string(&written.markdown).unwrap();
        let html = std::fs::read_to_string(&written.html).unwrap();
        let plots = folder.path().join("plots/server-queue.svg").exists();
        (page, html, plots)
    };
    let (page, html, plots) = written(&report);
    for words in ["read lag p99 ms", "connect max ms", "others %", "GPU W"] {
        assert!(page.contains(words) && html.contains(words), "{words}");
    }
    assert!(plots && page.contains("12.5"), "{page}");
    assert!(
        page.contains("GPU busy 25 % of the time at 123 W"),
        "{page}"
    );
    let (page, html, plots) = written(&Report::from_levels(&[level(1)], Context::default()));
    for words in ["How the client fared", "GPU", "others %"] {
        assert!(!page.contains(words) && !html.contains(words), "{words}");
    }
    assert!(!plots);
}
