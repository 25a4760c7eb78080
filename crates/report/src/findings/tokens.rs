//! What the throughput column counts, and whether tokens account for all of a request's time.

use super::Finding;
use crate::sweep::{Counts, Sweep};

/// E2E and TTFT + (n - 1) ITL may differ by this share of E2E, at every level.
const IDENTITY: f64 = 0.02;

/// `throughput_is_total_tokens`: value = tokens that the column counts for each output token.
pub fn throughput_is_total_tokens(sweep: &Sweep<'_>) -> Option<Finding> {
    let (n, first) = (sweep.output_tokens?, sweep.points.first()?);
    let counted = match sweep.prompt_tokens {
        Some(prompt) if sweep.counts == Counts::Total && prompt > 0.0 => n + prompt,
        _ => return None,
    };
    let column = sweep.level(first).throughput?;
    let e2e = first.e2e;
    let how = if sweep.inferred {
        format!(
            "At {load} the column says {column:.0} tok/s with a mean E2E of {e2e:.3} s. A request has {n:.0} output tokens, from (E2E - TTFT) / ITL + 1. Read as output tokens the column would mean {as_output:.1} requests in flight (Little's law), more than the clients there are; read as {counted:.0} tokens, prompt and output, it means {as_total:.2}.",
            load = sweep.at(first.load()),
            as_output = column * e2e / n,
            as_total = column * e2e / counted,
        )
    } else {
        format!(
            "A request has {:.0} prompt and {n:.0} output tokens, counted one by one; the column counts both.",
            counted - n
        )
    };
    let peak = sweep.peak()?;
    Some(
        Finding::new("throughput_is_total_tokens", None, counted / n, "tokens counted per output token", how).advise(format!(
            "Divide the column by {:.2} before comparing it with output tokens per second elsewhere: {:.0} output tok/s at {}, {:.0} at {}.",
            counted / n, first.output, first.load(), peak.output, peak.load(),
        )),
    )
}

/// `e2e_identity`: E2E = TTFT + (n - 1) ITL at every level; value = n.
pub fn e2e_identity(sweep: &Sweep<'_>) -> Option<Finding> {
    let n = sweep.output_tokens?;
    let residuals = sweep
        .points
        .iter()
        .map(|p| ((p.ttft + (n - 1.0) * p.itl) / p.e2e - 1.0).abs());
    let worst = residuals.fold(0.0, f64::max);
    if sweep.points.len() < 2 || worst > IDENTITY {
        return None;
    }
    Some(Finding::new(
        "e2e_identity",
        None,
        n,
        "output tokens a request",
        format!(
            "E2E = TTFT + {:.0} x ITL at every level, within {:.2} %: all of a request's time is waiting for the first token or the pace of the others; nothing hides at the end.",
            n - 1.0,
            (worst * 100.0).max(0.01),
        ),
    ))
}
