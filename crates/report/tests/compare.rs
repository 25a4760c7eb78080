//! Two runs in files told apart, and what is said where only summaries are known.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use powerband_bench::{LevelResult, Outcome, RequestRecord, Strategy, guidellm};
use powerband_report::compare::{Metric, Settings, Verdict, compare};
use proptest::prelude::*;

const PUBLISHED: &str = include_str!("fixtures/published-sweep.csv");

fn put(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// The published sweep with all of a column times `factor`.
fn with(column: usize, factor: f64) -> String {
    let row = |(i, line): (usize, &str)| {
        let mut cells: Vec<String> = line.split(',').map(str::to_owned).collect();
        if i > 0 {
            cells[column] = (cells[column].parse::<f64>().unwrap() * factor).to_string();
        }
        cells.join(",") + "\n"
    };
    PUBLISHED.lines().enumerate().map(row).collect()
}

#[test]
fn summaries_are_judged_by_large_differences_only() {
    let folder = tempfile::tempdir().unwrap();
    let a = put(folder.path(), "a.csv", PUBLISHED);
    for (factor, verdict, code) in [
        (1.0, Verdict::Same, 0),
        (1.1, Verdict::Undecided, 0),
        (1.3, Verdict::Worse, 1),
        (0.7, Verdict::Better, 0),
    ] {
        let b = put(folder.path(), "b.csv", &with(3, factor));
        let c = compare(&a, &b, Settings::new(0.05)).unwrap();
        assert_eq!(c.levels.len(), 12);
        for m in c.levels.iter().flat_map(|l| &l.metrics) {
            match m.metric {
                Metric::Itl => assert_eq!(m.verdict, verdict, "{factor}: {m:?}"),
                _ => assert_eq!(m.verdict, Verdict::Same, "{m:?}"),
            }
        }
        assert_eq!(c.exit_code(), code, "{factor}");
        let text = c.text();
        assert!(
            text.contains("Summaries do not hold single requests"),
            "{text}"
        );
        assert!(
            text.contains("not tested: no single requests are known"),
            "{text}"
        );
        assert!(
            c.markdown().contains("| ITL mean, ms |"),
            "{}",
            c.markdown()
        );
        let json: serde_json::Value = serde_json::from_str(&c.json().unwrap()).unwrap();
        assert_eq!(json["levels"].as_array().unwrap().len(), 12);
    }
}

#[test]
fn folders_and_files_that_cannot_be_compared() {
    let folder = tempfile::tempdir().unwrap();
    let a = put(folder.path(), "a.csv", PUBLISHED);
    let missing = compare(&a, &folder.path().join("b"), Settings::new(0.05)).unwrap_err();
    assert!(missing.to_string().contains("no such file"), "{missing}");
    let broken = put(folder.path(), "b.json", "{");
    let broken = compare(&a, &broken, Settings::new(0.05)).unwrap_err();
    assert!(broken.to_string().contains("b.json"), "{broken}");
}

#[test]
fn a_folder_against_its_summary_and_against_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut level = LevelResult::empty(Strategy::Concurrent { streams: 2 });
    level.duration_s = 10.0;
    level.requests = (0..200u64)
        .map(|i| RequestRecord {
            id: i.to_string(),
            outcome: Outcome::Successful,
            sent_ns: i / 2 * 100_000_000,
            first_token_ns: Some(i / 2 * 100_000_000 + 20_000_000),
            last_token_ns: Some(i / 2 * 100_000_000 + 83_000_000),
            end_ns: i / 2 * 100_000_000 + 83_000_000,
            prompt_tokens: 128,
            output_tokens: 64,
            chunks: 64,
            ..RequestRecord::default()
        })
        .collect();
    guidellm::write(&folder.path().join("throughput-2.json"), &level).unwrap();
    let report = powerband_report::load(&[folder.path().to_owned()]).unwrap();
    report.write(folder.path()).unwrap();
    let itself = compare(folder.path(), folder.path(), Settings::new(0.05)).unwrap();
    assert_eq!(itself.exit_code(), 0);
    assert!(itself.levels[0].metrics.len() > 8, "{itself:?}");
    let summary = folder.path().join("benchmark_metrics_summary.csv");
    let summary = compare(folder.path(), &summary, Settings::new(0.05)).unwrap();
    assert_eq!(
        (summary.levels[0].basis.as_str(), summary.exit_code()),
        ("summaries", 0)
    );
}

proptest! {
    #[test]
    fn summaries_with_any_cells(
        row in 1usize..12,
        column in 1usize..10,
        cell in prop::sample::select(vec!["", "0", "1e308", "1e-308", "NaN", "9007199254740993"]),
        threshold in 0.0f64..10.0,
    ) {
        let mut rows: Vec<Vec<&str>> = PUBLISHED.lines().map(|l| l.split(',').collect()).collect();
        rows[row][column] = cell;
        let edited: Vec<String> = rows.iter().map(|row| row.join(",")).collect();
        let folder = tempfile::tempdir().unwrap();
        let a = put(folder.path(), "a.csv", PUBLISHED);
        let b = put(folder.path(), "b.csv", &edited.join("\n"));
        if let Ok(c) = compare(&a, &b, Settings::new(threshold)) {
            prop_assert!(c.exit_code() <= 2);
            prop_assert!(c.text().contains("undecided of") || c.exit_code() == 2);
            c.json().unwrap();
        }
    }
}
