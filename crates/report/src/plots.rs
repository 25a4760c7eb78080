//! The plots of a report: what is drawn, from a sweep and its findings. How, is [`chart`]'s.

pub mod chart;
mod machine;
pub mod png;
mod ticks;

use chart::{Band, Chart, Mark, Region, Rule, Series};

use crate::findings::{Finding, first};
use crate::sweep::{LoadUnit, Point, Sweep};

const BLUE: &str = "#1f5fbf";
const ORANGE: &str = "#d9720b";
const GREEN: &str = "#23845a";
const GREY: &str = "#8a94a3";
const RED: &str = "#c62f2f";

/// Every plot, by the name of its file without ending.
pub fn all(sweep: &Sweep<'_>, findings: &[Finding]) -> Vec<(&'static str, Chart)> {
    if sweep.points.is_empty() && sweep.limited.is_empty() {
        return Vec::new();
    }
    let mut all = vec![
        ("throughput", throughput(sweep, findings)),
        (
            "TTFT",
            latency(
                sweep,
                findings,
                "Time to first token",
                "TTFT (ms)",
                BLUE,
                |p| p.ttft * 1e3,
                |l| l.ttft,
            ),
        ),
        (
            "ITL",
            latency(
                sweep,
                findings,
                "Inter-token latency",
                "ITL (ms)",
                GREEN,
                |p| p.itl * 1e3,
                |l| l.itl,
            ),
        ),
        (
            "E2E",
            latency(
                sweep,
                findings,
                "End-to-end latency",
                "E2E (ms)",
                ORANGE,
                |p| p.e2e * 1e3,
                |l| l.e2e,
            ),
        ),
        ("latency-vs-throughput", pareto(sweep, findings)),
    ];
    all.extend(machine::all(sweep, findings));
    all
}

/// What all plots over the load share.
fn over_load(sweep: &Sweep<'_>, findings: &[Finding], title: &str, y_label: &str) -> Chart {
    let all = || sweep.points.iter().chain(&sweep.limited);
    let mut chart = Chart::new(title, sweep.unit.axis(), y_label);
    chart.x_ticks = all().map(Point::load).collect();
    chart.x_ticks.sort_by(f64::total_cmp);
    let last = sweep.points.last().map_or(0.0, Point::load);
    if let Some((prompt, output)) = sweep.prompt_tokens.zip(sweep.output_tokens) {
        chart.subtitle = format!("{prompt:.0} prompt + {output:.0} output tokens a request");
    }
    if let Some(at) = first(findings, "collapse").and_then(|f| f.level) {
        let before = sweep
            .points
            .iter()
            .map(Point::load)
            .filter(|x| *x < at)
            .fold(0.0, f64::max);
        chart.regions.push(Region {
            from: before,
            to: last,
            name: "collapse".into(),
            color: RED,
        });
    }
    let cap = sweep
        .context
        .max_num_seqs
        .map(|c| (c as f64, format!("--max-num-seqs {c}")));
    let slots = first(findings, "admission_queue")
        .map(|f| (f.value, format!("{:.0} run at once", f.value)));
    let places = cap.or(slots).filter(|_| sweep.unit != LoadUnit::Rate);
    if let Some((x, name)) = places.filter(|rule| rule.0 <= last) {
        chart.rules.push(Rule { x, name });
    }
    chart
}

/// The levels at which the load generator was the limit: points beside the line, which is the server's.
fn limited(sweep: &Sweep<'_>, at: impl Fn(&Point) -> (f64, f64)) -> Option<Series> {
    let points: Vec<(f64, f64)> = sweep.limited.iter().map(at).collect();
    (!points.is_empty()).then(|| Series {
        loose: true,
        ..Series::new("the client was the limit", RED, points)
    })
}

/// Each run of a load that was run more than once, beside the line through the medians.
fn repeats(sweep: &Sweep<'_>, at: impl Fn(&Point) -> (f64, f64)) -> Option<Series> {
    let points: Vec<(f64, f64)> = sweep.repeats.iter().map(at).collect();
    (!points.is_empty()).then(|| Series {
        loose: true,
        ..Series::new("repeats", GREY, points)
    })
}

fn throughput(sweep: &Sweep<'_>, findings: &[Finding]) -> Chart {
    let mut chart = over_load(sweep, findings, "Throughput", "throughput (tokens/s)");
    let xy = |of: fn(&Point) -> Option<f64>| {
        sweep
            .points
            .iter()
            .filter_map(|p| Some((p.load(), of(p)?)))
            .collect::<Vec<_>>()
    };
    let total = xy(|p| p.total);
    if !total.is_empty() {
        chart
            .series
            .push(Series::new("prompt + output tokens", GREY, total));
    }
    chart
        .series
        .push(Series::new("output tokens", BLUE, xy(|p| Some(p.output))));
    chart
        .series
        .extend(repeats(sweep, |p| (p.load(), p.output)));
    chart
        .series
        .extend(limited(sweep, |p| (p.load(), p.output)));
    if let Some(peak) = sweep.peak() {
        chart.marks.push(Mark {
            x: peak.load(),
            y: peak.output,
            name: format!(
                "peak: {} output tok/s at {}",
                short(peak.output),
                peak.load()
            ),
        });
    }
    chart
}

fn latency(
    sweep: &Sweep<'_>,
    findings: &[Finding],
    title: &str,
    y_label: &str,
    color: &'static str,
    mean: fn(&Point) -> f64,
    spread: fn(&crate::LevelSummary) -> crate::summary::Spread,
) -> Chart {
    let mut chart = over_load(sweep, findings, title, y_label);
    let points = &sweep.points;
    let band = |low: fn(&crate::summary::Spread) -> Option<f64>,
                high: fn(&crate::summary::Spread) -> Option<f64>| {
        points
            .iter()
            .filter_map(|p| {
                let s = spread(sweep.level(p));
                Some((p.load(), low(&s)?, high(&s)?))
            })
            .collect::<Vec<_>>()
    };
    let wide = band(|s| s.p50, |s| s.p99);
    if wide.len() > 1 {
        chart.bands.push(Band {
            name: "p50 to p99".into(),
            color,
            points: wide,
            opacity: 0.16,
        });
    }
    let medians: Vec<(f64, f64)> = points
        .iter()
        .filter_map(|p| Some((p.load(), spread(sweep.level(p)).p50?)))
        .collect();
    if medians.len() > 1 {
        chart.series.push(Series {
            dashed: true,
            ..Series::new("median", color, medians)
        });
    }
    chart.series.push(Series::new(
        "mean",
        color,
        points.iter().map(|p| (p.load(), mean(p))).collect(),
    ));
    chart.series.extend(repeats(sweep, |p| (p.load(), mean(p))));
    chart.series.extend(limited(sweep, |p| (p.load(), mean(p))));
    let all = || {
        points
            .iter()
            .chain(&sweep.repeats)
            .chain(&sweep.limited)
            .map(mean)
    };
    let (low, high) = (all().fold(f64::MAX, f64::min), all().fold(0.0, f64::max));
    chart.log_y = high / low > 100.0;
    if let Some(last) = points.last() {
        let at = mean(last);
        chart.marks.push(Mark {
            x: last.load(),
            y: at,
            name: format!("{} at {}", duration(at), last.load()),
        });
    }
    chart
}

/// Each level as what it gives and what it costs: to the lower right is better.
fn pareto(sweep: &Sweep<'_>, findings: &[Finding]) -> Chart {
    let mut chart = Chart::new(
        "What a level gives and what it costs",
        "throughput (output tokens/s)",
        "E2E (s)",
    );
    chart.subtitle =
        "one point a level, joined in the order of the load; lower right is better".into();
    chart.series.push(Series {
        labels: sweep
            .points
            .iter()
            .map(|p| format!("{}", p.load()))
            .collect(),
        ..Series::new(
            match sweep.unit {
                LoadUnit::Clients => "a level, with its clients",
                LoadUnit::Rate => "a level, with its requests/s",
                LoadUnit::InFlight => "a level, with its requests in flight",
            },
            BLUE,
            sweep.points.iter().map(|p| (p.output, p.e2e)).collect(),
        )
    });
    chart.series.extend(limited(sweep, |p| (p.output, p.e2e)));
    if let (Some(peak), true) = (sweep.peak(), first(findings, "peak").is_some()) {
        chart.marks.push(Mark {
            x: peak.output,
            y: peak.e2e,
            name: String::new(),
        });
    }
    chart
}

/// A number in few characters.
pub fn short(v: f64) -> String {
    match v.abs() {
        a if a >= 100_000.0 => format!("{:.1}k", v / 1e3),
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        _ => format!("{v:.2}"),
    }
}

/// Milliseconds for people.
pub fn duration(ms: f64) -> String {
    match ms {
        m if m >= 1000.0 => format!("{:.2} s", m / 1e3),
        m if m >= 100.0 => format!("{m:.0} ms"),
        m => format!("{m:.1} ms"),
    }
}
