//! How throughput answers to load: the peak, where it grows with the load, where it stops growing.

use super::{Finding, Prediction};
use crate::sweep::{Point, Sweep};

/// Throughput grows "linearly" while it grows with the load to this power at least.
const LINEAR: f64 = 0.8;
/// A plateau starts at this share of its median ...
const KNEE: f64 = 0.93;
/// ... every level of it is within this share of the median, for levels of a hundred requests scatter ...
const SCATTER: f64 = 0.15;
/// ... throughput grows or falls with the load to this power at most ...
const FLAT: f64 = 0.2;
/// ... and the median is at least this share of the peak, else it is what a collapse left.
const STAYS: f64 = 0.85;
/// It spans at least this factor of load.
const SPAN: f64 = 1.4;

/// `peak`: value = output tok/s.
pub fn peak(sweep: &Sweep<'_>) -> Option<Finding> {
    let peak = sweep.peak()?;
    let last = sweep.points.last()?;
    let total = peak
        .total
        .map_or_else(String::new, |t| format!(" ({t:.0} tok/s with the prompts)"));
    let evidence = format!(
        "The most output comes at {}: {:.1} tok/s{total}, {:.2} requests/s, TTFT {:.0} ms, ITL {:.1} ms, {:.1} requests in flight.",
        sweep.at(peak.load()),
        peak.output,
        peak.rate,
        peak.ttft * 1e3,
        peak.itl * 1e3,
        peak.delivered,
    );
    // Throughput = requests in flight x tokens / E2E, so E2E's interval turns into one of throughput.
    let interval = sweep
        .level(peak)
        .e2e
        .mean_interval
        .filter(|(low, _)| *low > 0.0);
    let interval = interval.map(|(low, high)| {
        (
            peak.output * peak.e2e * 1e3 / high,
            peak.output * peak.e2e * 1e3 / low,
        )
    });
    let open = std::ptr::eq(peak, last) && sweep.points.len() > 1 && plateau(sweep).is_none();
    Some(Finding::new("peak", Some(peak), peak.output, "output tok/s", evidence).within(interval).advise(if open && sweep.cut_short_by_the_client() {
        "The peak is at the highest level that the load generator could measure: the server's limit was not shown. Run the levels above it again with a client that is not the limit."
    } else if open {
        "The peak is at the highest level: the sweep has not shown the limit. Add higher levels."
    } else {
        ""
    }))
}

/// `linear_scaling`: the longest run of levels over which throughput grows with the load; value = the
/// power of the load with which it grows, level = where it ends.
pub fn linear(sweep: &Sweep<'_>) -> Option<Finding> {
    let points = &sweep.points;
    let mut best: Option<(usize, usize, f64)> = None;
    for from in 0..points.len() {
        for to in from + 2..points.len() {
            let run = &points[from..=to];
            let spans = points[to].delivered >= 2.0 * points[from].delivered;
            // The ends alone must say it too: a fit over many levels forgives a flat end.
            let ends = (points[to].output / points[from].output).ln()
                / (points[to].delivered / points[from].delivered).ln();
            let rises = run.windows(2).all(|w| w[1].output >= w[0].output);
            let power = slope(run);
            let longer = best.is_none_or(|(f, t, _)| {
                points[to].delivered / points[from].delivered
                    > points[t].delivered / points[f].delivered
            });
            if spans && rises && ends >= LINEAR && power >= LINEAR && longer {
                best = Some((from, to, power));
            }
        }
    }
    let (from, to, power) = best?;
    let (a, b) = (&points[from], &points[to]);
    Some(Finding::new(
        "linear_scaling",
        Some(b),
        power,
        "power of the load",
        format!(
            "From {} to {} throughput grows with the requests in flight to the power {power:.2} (1 is linear): {:.0} to {:.0} output tok/s while {:.1} became {:.1} in flight. A larger batch costs little there.",
            a.load(),
            sweep.at(b.load()),
            a.output,
            b.output,
            a.delivered,
            b.delivered,
        ),
    ))
}

/// Least-squares slope of ln(throughput) over ln(requests in flight).
fn slope(run: &[Point]) -> f64 {
    let n = run.len() as f64;
    let xy = || run.iter().map(|p| (p.delivered.ln(), p.output.ln()));
    let (mx, my) = (
        xy().map(|p| p.0).sum::<f64>() / n,
        xy().map(|p| p.1).sum::<f64>() / n,
    );
    let covariance: f64 = xy().map(|(x, y)| (x - mx) * (y - my)).sum();
    let variance: f64 = xy().map(|(x, _)| (x - mx).powi(2)).sum();
    covariance / variance.max(1e-12)
}

/// Do these levels, the last of a sweep, make the same throughput whatever the load?
fn is_flat(levels: &[Point], peak: f64) -> bool {
    let (Some(first), Some(last)) = (levels.first(), levels.last()) else {
        return false;
    };
    let mut outputs: Vec<f64> = levels.iter().map(|p| p.output).collect();
    outputs.sort_by(f64::total_cmp);
    let median = (outputs[(outputs.len() - 1) / 2] + outputs[outputs.len() / 2]) / 2.0;
    last.load() >= SPAN * first.load()
        && median >= STAYS * peak
        && first.output >= KNEE * median
        && outputs.iter().all(|o| (o / median - 1.0).abs() <= SCATTER)
        && slope(levels).abs() <= FLAT
}

/// `plateau`: throughput that more load does not move; value = its mean, level = where it starts.
pub fn plateau(sweep: &Sweep<'_>) -> Option<Finding> {
    let (points, peak) = (&sweep.points, sweep.peak()?.output);
    let start = (0..points.len()).find(|&start| is_flat(&points[start..], peak))?;
    let (first, last) = (&points[start], points.last()?);
    let on = &points[start..];
    let mean = on.iter().map(|p| p.output).sum::<f64>() / on.len() as f64;
    let (low, high) = on.iter().fold((f64::MAX, 0.0f64), |(l, h), p| {
        (l.min(p.output), h.max(p.output))
    });
    let added = last.e2e - first.e2e;
    let waiting = if added > 0.0 {
        ((last.ttft - first.ttft) / added).clamp(0.0, 1.0)
    } else {
        0.0
    };
    let why = if waiting > 0.5 {
        format!(
            "{:.0} % of the added latency is waiting for the first token: requests queue for a place or for their prompt's turn.",
            waiting * 100.0
        )
    } else {
        format!(
            "{:.0} % of the added latency is a slower step: the batch grows and each step costs in proportion, so compute or memory traffic per sequence is the limit.",
            (1.0 - waiting) * 100.0
        )
    };
    let mut finding = Finding::new("plateau", Some(first), mean, "output tok/s", format!(
        "From {} to {} output stays between {low:.0} and {high:.0} tok/s while E2E goes from {:.2} to {:.2} s. {why}",
        first.load(), sweep.at(last.load()), first.e2e, last.e2e,
    )).within(Some((low, high))).advise(format!(
        "Make a token cheaper (smaller or better-supported weights, shorter context) or take faster hardware. Past {} more load buys waiting only: {:.0} output tok/s is this setup's capacity.",
        sweep.at(first.load()), mean,
    ));
    // Where the plateau starts nobody queues yet: what is not decoding stays as it is.
    let n = sweep.output_tokens?;
    let halved = first.e2e - (n - 1.0) * first.itl / 2.0;
    finding.predicted.push(Prediction {
        scenario: format!(
            "{}, a step twice as fast (weights of half the bytes at best: upper bound)",
            sweep.at(first.load())
        ),
        metric: "output throughput".into(),
        unit: "tok/s".into(),
        before: first.output,
        after: first.output * first.e2e / halved.max(first.e2e / 2.0),
    });
    Some(finding)
}
