//! Summaries that are cut off, edited or made up: never a panic, and an error that names the file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use powerband_report::{Report, load};
use proptest::prelude::*;

const PUBLISHED: &str = include_str!("fixtures/published-sweep.csv");

fn read(bytes: &[u8]) -> Result<Report, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("summary.csv");
    std::fs::write(&path, bytes).unwrap();
    load(std::slice::from_ref(&path)).map_err(|error| {
        let message = error.to_string();
        assert!(message.contains(&*path.to_string_lossy()), "{message}");
        message
    })
}

/// All that is said of it.
fn tell(report: &Report) {
    assert!(!report.table_text().is_empty());
    assert!(!report.summary_text().is_empty());
}

#[test]
fn a_summary_cut_off_anywhere() {
    // A row that is cut may still be a row; the header is whole or an error.
    let header = PUBLISHED.find('\n').unwrap();
    for len in 0..PUBLISHED.len().min(1200) {
        match read(&PUBLISHED.as_bytes()[..len]) {
            Ok(report) => tell(&report),
            Err(_) => continue,
        }
        assert!(len > header, "{len} bytes");
    }
}

#[test]
fn a_summary_of_very_many_requests() {
    // Work that grows with a number in the file would never end.
    let mut rows: Vec<Vec<&str>> = PUBLISHED.lines().map(|l| l.split(',').collect()).collect();
    for row in &mut rows[1..] {
        (row[5], row[8]) = ("9007199254740993", "9007199254740993");
    }
    let rows: Vec<String> = rows.iter().map(|row| row.join(",")).collect();
    let report = read(rows.join("\n").as_bytes()).unwrap();
    tell(&report);
    assert!(report.findings().iter().any(|f| f.id == "cap_admission"));
}

/// The published sweep with some cells replaced.
fn edited() -> impl Strategy<Value = String> {
    let cell = prop::sample::select(vec![
        "",
        "0",
        "-1",
        "1",
        "0.1",
        "1e308",
        "1e-308",
        "1e309",
        "inf",
        "NaN",
        "x",
        "\"",
        "1,1",
        "9007199254740993",
    ]);
    let edits = prop::collection::vec(
        (
            any::<prop::sample::Index>(),
            any::<prop::sample::Index>(),
            cell,
        ),
        1..8,
    );
    edits.prop_map(|edits| {
        let mut rows: Vec<Vec<&str>> = PUBLISHED.lines().map(|l| l.split(',').collect()).collect();
        for (row, column, cell) in edits {
            // Not the header: without its columns nothing is read.
            let row = 1 + row.index(rows.len() - 1);
            let column = column.index(rows[row].len());
            rows[row][column] = cell;
        }
        let rows: Vec<String> = rows.iter().map(|row| row.join(",")).collect();
        rows.join("\n")
    })
}

proptest! {
    #[test]
    fn edited_summaries(text in edited()) {
        if let Ok(report) = read(text.as_bytes()) {
            tell(&report);
        }
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read(&bytes).is_err());
        let header = PUBLISHED.lines().next().unwrap();
        if let Ok(report) = read(&[header.as_bytes(), b"\n", &bytes[..]].concat()) {
            tell(&report);
        }
    }
}

proptest! {
    // A picture takes its time.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn edited_summaries_are_drawn(text in edited()) {
        if let Ok(report) = read(text.as_bytes()) {
            let folder = tempfile::tempdir().unwrap();
            report.write(folder.path()).unwrap();
        }
    }
}
