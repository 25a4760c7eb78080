//! A decode step that jumps at a small batch and is flat after it: other code, not more work.

use super::{Finding, Prediction};
use crate::sweep::Sweep;

/// The step takes at least this many times as long as at the level before ...
const JUMP: f64 = 1.8;
/// ... and then stays within this factor ...
const FLAT: f64 = 1.35;
/// ... while the load grows at least this much.
const SPAN: f64 = 2.5;

/// `step_time_jump`: value = factor of the step time, level = where the slow step starts.
pub fn find(sweep: &Sweep<'_>) -> Option<Finding> {
    let points = &sweep.points;
    for i in 1..points.len() {
        let (before, after) = (&points[i - 1], &points[i]);
        let factor = after.itl / before.itl;
        if factor < JUMP || after.output < before.output {
            continue;
        }
        // How far the step stays as it is.
        let (mut low, mut high, mut end) = (after.itl, after.itl, i);
        for (j, p) in points.iter().enumerate().skip(i + 1) {
            if p.itl.max(high) / p.itl.min(low) > FLAT {
                break;
            }
            (low, high, end) = (low.min(p.itl), high.max(p.itl), j);
        }
        let last = &points[end];
        if last.delivered < SPAN * after.delivered {
            continue;
        }
        let n = sweep.output_tokens?;
        let then = last.ttft + (n - 1.0) * last.itl / factor;
        let mut finding = Finding::new("step_time_jump", Some(after), factor, "times the step time", format!(
            "ITL goes from {:.1} ms at {} to {:.1} ms at {}, {factor:.1} times, and then stays within {:.0} % up to {}. A decode step that is limited by reading the weights costs nearly the same for the batch of {} as for that of {}, and one limited by arithmetic would go on growing: the two batch sizes run different code.",
            before.itl * 1e3, sweep.at(before.load()), after.itl * 1e3, after.load(), (high / low - 1.0) * 100.0, sweep.at(last.load()), sweep.at(after.load()), before.load(),
        )).advise("Try another weight format first (one with a batched kernel: bf16, FP8, AWQ or GPTQ with Marlin), then compare ITL at the same two levels; a profile of one step at each batch names the kernel.");
        finding.predicted = vec![Prediction {
            scenario: format!(
                "{}, a step as fast as at {} (upper bound)",
                sweep.at(last.load()),
                before.load()
            ),
            metric: "output throughput".into(),
            unit: "tok/s".into(),
            before: last.output,
            after: last.output * last.e2e / then,
        }];
        return Some(finding);
    }
    None
}
