//! Throughput that falls as load rises and does not come back.

use super::Finding;
use crate::sweep::{Point, Sweep};

/// Throughput falls by at least this share from one level to the next ...
const FALL: f64 = 0.15;
/// ... and no later level comes back to this share of the peak.
const BACK: f64 = 0.9;
/// The step itself is slower if ITL grows by this factor.
const SLOWER: f64 = 1.15;

/// The levels around the largest lasting fall after the peak.
pub fn edge<'s>(sweep: &'s Sweep<'_>) -> Option<(&'s Point, &'s Point)> {
    let points = &sweep.points;
    let peak = sweep.peak()?;
    let at = points.iter().position(|p| p.index == peak.index)?;
    let fall = |i: usize| 1.0 - points[i + 1].output / points[i].output;
    let i = (at..points.len().saturating_sub(1)).max_by(|a, b| fall(*a).total_cmp(&fall(*b)))?;
    let stays = points[i + 1..]
        .iter()
        .all(|p| p.output < BACK * peak.output);
    (fall(i) >= FALL && stays).then(|| (&points[i], &points[i + 1]))
}

/// `collapse`: value = share of the throughput lost, level = the first level after the fall.
pub fn find(sweep: &Sweep<'_>) -> Option<Finding> {
    let (a, b) = edge(sweep)?;
    let lost = 1.0 - b.output / a.output;
    let step = b.itl / a.itl;
    let cap = sweep.context.max_num_seqs.map(|c| c as f64);
    let cap = cap.or_else(|| super::queue::slots(sweep).map(|s| s.slots));
    let mut evidence = format!(
        "From {} to {} output falls from {:.0} to {:.0} tok/s, by {:.0} %, and no higher level comes back. The step time grows {step:.1} times ({:.0} to {:.0} ms ITL), TTFT goes from {:.0} to {:.0} ms.",
        a.load(),
        sweep.at(b.load()),
        a.output,
        b.output,
        lost * 100.0,
        a.itl * 1e3,
        b.itl * 1e3,
        a.ttft * 1e3,
        b.ttft * 1e3,
    );
    match cap {
        Some(cap) if b.delivered <= cap => {
            evidence += &format!(
                " {:.0} requests fit beside each other ({:.0} places), so nothing queues for a place: the running batch itself is slower. This is a collapse, not a plateau.",
                b.delivered, cap
            )
        }
        Some(cap) => evidence += &format!(" It happens at the cap on running requests ({cap:.0})."),
        None => {}
    }
    if step < SLOWER {
        evidence +=
            " The step hardly slows, so the time is lost between steps or before the first token.";
    }
    evidence += &server_says(sweep, b);
    Some(Finding::new("collapse", Some(b), lost, "share of throughput lost", evidence).advise(format!(
        "Candidates: a batch larger than the largest captured CUDA graph, a full KV cache that preempts and recomputes, the host CPU, power or heat. Deciding experiments: the server's preemption count and KV cache usage at {} and {}; the levels around the fall in random order with repeats (heat moves with time, the others with the level); the cap at {} (--max-num-seqs {}).",
        a.load(), b.load(), a.load(), a.load().round(),
    )))
}

/// What the server's own metrics say about the candidates.
fn server_says(sweep: &Sweep<'_>, point: &Point) -> String {
    let of = |part: &str| {
        sweep
            .level(point)
            .server
            .iter()
            .find(|(name, _)| name.contains(part))
            .map(|(_, v)| *v)
    };
    match of("preemption") {
        Some(n) if n > 0.0 => format!(
            " The server preempted {n:.0} requests there: the KV cache is too small for the batch."
        ),
        Some(_) => " The server preempted nothing there, which rules out a full KV cache.".into(),
        None => String::new(),
    }
}
