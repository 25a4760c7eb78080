//! The summary table, as cells.

use crate::plots::short;
use crate::sweep::Sweep;

/// Headings with units.
pub const HEAD: [&str; 10] = [
    "clients",
    "in flight",
    "output tok/s",
    "total tok/s",
    "req/s",
    "TTFT ms",
    "TTFT p99 ms",
    "ITL ms",
    "E2E s",
    "ok / errors / cut off",
];

/// One row a level, in the order given; a dash where nothing is known.
pub fn rows(sweep: &Sweep<'_>) -> Vec<Vec<String>> {
    let dash = || "-".to_owned();
    let number = |v: Option<f64>| v.map_or_else(dash, short);
    let count = |v: Option<u64>| v.map_or_else(dash, |v| v.to_string());
    (0..sweep.levels.len())
        .map(|i| {
            let level = &sweep.levels[i];
            let point = sweep.points.iter().find(|p| p.index == i);
            vec![
                level.label(),
                number(point.map(|p| p.delivered)),
                number(point.map(|p| p.output)),
                number(point.and_then(|p| p.total)),
                number(point.map(|p| p.rate)),
                number(level.ttft_ms),
                number(level.ttft.p99),
                number(level.itl_ms),
                number(level.e2e_ms.map(|v| v / 1e3)),
                format!(
                    "{} / {} / {}",
                    count(level.successful),
                    count(level.errored),
                    count(level.incomplete)
                ),
            ]
        })
        .collect()
}
