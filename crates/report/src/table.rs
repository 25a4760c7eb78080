//! The tables of a report, as cells.

use crate::findings::Finding;
use crate::plots::short;
use crate::sweep::Sweep;

/// Columns of the table of levels.
pub const COLUMNS: usize = 10;

/// Headings with units.
pub fn head(sweep: &Sweep<'_>) -> [&'static str; COLUMNS] {
    [
        sweep.unit.column(),
        "in flight",
        "output tok/s",
        "total tok/s",
        "req/s",
        "TTFT ms",
        "TTFT p99 ms",
        "ITL ms",
        "E2E s",
        "ok / errors / cut off",
    ]
}

/// One row a level, in the order given; a dash where nothing is known.
pub fn rows(sweep: &Sweep<'_>) -> Vec<Vec<String>> {
    let dash = || "-".to_owned();
    let number = |v: Option<f64>| v.map_or_else(dash, short);
    let count = |v: Option<u64>| v.map_or_else(dash, |v| v.to_string());
    (0..sweep.levels.len())
        .map(|i| {
            let level = &sweep.levels[i];
            let point = sweep.point_of(i);
            vec![
                match level.client_limited() {
                    true => format!("{} (client-limited)", level.label()),
                    false => level.label(),
                },
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

/// The findings of one kind.
pub struct FindingRow {
    /// Its kind.
    pub id: String,
    /// Where it was found.
    pub levels: String,
    /// Its number; from and to for several levels, with the interval where it is known.
    pub value: String,
    /// Of the number.
    pub unit: String,
    /// Of the first one, and how many more there are.
    pub evidence: String,
}

/// One row a kind, in the order of the findings.
pub fn findings(all: &[Finding]) -> Vec<FindingRow> {
    let mut kinds: Vec<&str> = Vec::new();
    for f in all {
        if !kinds.contains(&f.id.as_str()) {
            kinds.push(&f.id);
        }
    }
    kinds.into_iter().filter_map(|id| kind(all, id)).collect()
}

fn kind(all: &[Finding], id: &str) -> Option<FindingRow> {
    let of: Vec<&Finding> = all.iter().filter(|f| f.id == id).collect();
    let first = of.first()?;
    let levels: Vec<String> = of
        .iter()
        .filter_map(|f| f.level)
        .map(|l| l.to_string())
        .collect();
    let low = of.iter().map(|f| f.value).fold(f64::MAX, f64::min);
    let high = of.iter().map(|f| f.value).fold(f64::MIN, f64::max);
    let value = match first
        .interval
        .filter(|(a, b)| of.len() == 1 && short(*a) != short(*b))
    {
        Some((a, b)) => format!("{} ({} to {})", short(first.value), short(a), short(b)),
        None if short(low) != short(high) => format!("{} to {}", short(low), short(high)),
        None => short(low),
    };
    let more = of.len() - 1;
    Some(FindingRow {
        id: id.to_owned(),
        levels: if levels.is_empty() {
            "-".into()
        } else {
            levels.join(", ")
        },
        value,
        unit: first.unit.clone(),
        evidence: if more > 0 {
            format!("{} The same at {more} more.", first.evidence)
        } else {
            first.evidence.clone()
        },
    })
}
