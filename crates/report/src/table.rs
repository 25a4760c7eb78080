//! The tables of a report, as cells.

use crate::findings::Finding;
use crate::plots::short;
use crate::summary::LevelSummary;
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

/// A table with a heading, of what is known.
pub struct Table {
    /// Above it.
    pub heading: &'static str,
    /// Of its columns, with units.
    pub head: Vec<&'static str>,
    /// One a level that knows any of it.
    pub rows: Vec<Vec<String>>,
}

type Column = (&'static str, fn(&LevelSummary) -> Option<f64>);

/// What is known beside the latencies: of the objective, of the client itself, of the server, and of the machines.
pub fn others(sweep: &Sweep<'_>) -> Vec<Table> {
    const CLIENT: [Column; 8] = [
        ("cores", |l| l.client_cpu),
        ("read lag p50 ms", |l| l.client.lag_p50_ms),
        ("read lag p99 ms", |l| l.client.lag_p99_ms),
        ("read lag max ms", |l| l.client.lag_max_ms),
        ("event loop lag p99 ms", |l| l.client.loop_lag_p99_ms),
        ("dispatch delay ms", |l| l.client.dispatch_delay_ms),
        ("connect mean ms", |l| l.client.connect_mean_ms),
        ("connect max ms", |l| l.client.connect_max_ms),
    ];
    const SERVER: [Column; 10] = [
        ("running", |l| l.server.get("running_mean").copied()),
        ("most running", |l| l.server.get("running_max").copied()),
        ("waiting", |l| l.server.get("waiting_mean").copied()),
        ("KV cache %", |l| {
            percent(l.server.get("kv_cache_usage_max").copied())
        }),
        ("preemptions", |l| l.server.get("preemptions").copied()),
        ("queue time s", |l| {
            l.server.get("queue_time_mean_s").copied()
        }),
        ("prefix hits %", |l| {
            percent(l.server.get("prefix_cache_hit_rate").copied())
        }),
        ("tokens/step", |l| {
            l.server.get("iteration_tokens_mean").copied()
        }),
        ("step ms", |l| l.server.get("step_mean_s").map(|s| s * 1e3)),
        ("of it device ms", |l| {
            l.server.get("step_device_mean_s").map(|s| s * 1e3)
        }),
    ];
    const MACHINES: [Column; 12] = [
        ("CPU %", |l| percent(l.host.cpu)),
        ("client %", |l| percent(l.host.client)),
        ("server %", |l| percent(l.host.server)),
        ("others %", |l| percent(l.host.others)),
        ("memory %", |l| percent(l.host.memory)),
        ("GPU %", |l| percent(l.gpu.utilization)),
        ("GPU memory %", |l| percent(l.gpu.memory)),
        ("GPU W", |l| l.gpu.power_w),
        ("GPU clock %", |l| percent(l.gpu.clock)),
        ("power-capped %", |l| percent(l.gpu.power_capped)),
        ("GPU deg C", |l| l.gpu.temperature_c),
        ("GPU J/output token", |l| {
            let tokens = l.output_tokens_per_second? * l.duration_s?;
            Some(l.gpu.energy_j? / tokens)
        }),
    ];
    const OBJECTIVE: [Column; 2] = [
        ("met the objective %", |l| percent(l.goodput_share)),
        ("goodput req/s", |l| l.goodput),
    ];
    [
        table(sweep, "Requests that met the objective", &OBJECTIVE),
        table(sweep, "How the client fared", &CLIENT),
        table(sweep, "What the server said of itself", &SERVER),
        table(
            sweep,
            "What the client's machine and its GPUs did",
            &MACHINES,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn percent(share: Option<f64>) -> Option<f64> {
    share.map(|share| share * 100.0)
}

/// The columns of which something is known, and the levels that know any of them.
fn table(sweep: &Sweep<'_>, heading: &'static str, columns: &[Column]) -> Option<Table> {
    fn get(of: &Column, level: &LevelSummary) -> Option<f64> {
        of.1(level).filter(|v| v.is_finite())
    }
    let knows = |column: &&Column| sweep.levels.iter().any(|l| get(column, l).is_some());
    let columns: Vec<&Column> = columns.iter().filter(knows).collect();
    let row = |level: &LevelSummary| {
        let cells: Vec<Option<f64>> = columns.iter().map(|c| get(c, level)).collect();
        cells.iter().any(Option::is_some).then(|| {
            let cells = cells
                .into_iter()
                .map(|v| v.map_or_else(|| "-".to_owned(), short));
            std::iter::once(level.label()).chain(cells).collect()
        })
    };
    (!columns.is_empty()).then(|| Table {
        heading,
        head: std::iter::once(sweep.unit.column())
            .chain(columns.iter().map(|c| c.0))
            .collect(),
        rows: sweep.levels.iter().filter_map(row).collect(),
    })
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
