//! What the server and the machines said, over the load: drawn only where they said something.

use super::chart::{Chart, Series};
use super::{BLUE, GREEN, GREY, ORANGE, RED, over_load};
use crate::findings::Finding;
use crate::summary::LevelSummary;
use crate::sweep::Sweep;

/// Of a level, one number.
type Get = fn(&LevelSummary) -> Option<f64>;

/// The plots of which there is data.
pub fn all(sweep: &Sweep<'_>, findings: &[Finding]) -> Vec<(&'static str, Chart)> {
    let server = |name: &'static str, title, y_label, lines: &[(&str, &'static str, Get)]| {
        let mut chart = over_load(sweep, findings, title, y_label);
        for (line, color, get) in lines {
            let points = points(sweep, *get);
            if !points.is_empty() {
                chart.series.push(Series::new(line, color, points));
            }
        }
        (!chart.series.is_empty()).then_some((name, chart))
    };
    let queue = server(
        "server-queue",
        "Requests in the server",
        "requests, by the server's own metrics",
        &[
            ("running", BLUE, |l| l.server.get("running_mean").copied()),
            ("waiting", RED, |l| l.server.get("waiting_mean").copied()),
        ],
    );
    let busy = server(
        "utilization",
        "What was busy",
        "share (%)",
        &[
            ("KV cache, fullest", ORANGE, |l| {
                percent(l.server.get("kv_cache_usage_max").copied())
            }),
            ("GPU", GREEN, |l| percent(l.gpu.utilization)),
            ("GPU memory", GREY, |l| percent(l.gpu.memory)),
            ("CPU of the client's machine", BLUE, |l| percent(l.host.cpu)),
            ("of it other programs", RED, |l| percent(l.host.others)),
        ],
    );
    let power = server(
        "gpu-power",
        "GPU power",
        "power (W)",
        &[
            ("mean", ORANGE, |l| l.gpu.power_w),
            ("allowed", GREY, |l| l.gpu.power_limit_w),
        ],
    );
    [queue, busy, power].into_iter().flatten().collect()
}

fn percent(share: Option<f64>) -> Option<f64> {
    share.map(|share| share * 100.0)
}

/// Of the server's levels and of those at which the client was the limit: the machine may be why.
fn points(sweep: &Sweep<'_>, get: Get) -> Vec<(f64, f64)> {
    let all = sweep.points.iter().chain(&sweep.limited);
    let known = all.filter_map(|p| Some((p.load(), get(sweep.level(p))?)));
    let mut points: Vec<(f64, f64)> = known.filter(|(_, y)| (0.0..1e15).contains(y)).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}
