//! What makes numbers untrustworthy: a client at its limit, failed or cut-off requests.

use super::Finding;
use crate::sweep::Sweep;

/// `client_limited` (value = cores of the client's CPU), `errors` and `incomplete` (value = share of the
/// requests), one for each level concerned.
pub fn find(sweep: &Sweep<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for level in sweep.levels {
        let at = |id: &str, value: f64, unit: &str, evidence: String| Finding {
            level: level.concurrency,
            ..Finding::new(id, None, value, unit, evidence)
        };
        let label = level.label();
        if let Some(why) = level.client_limit.as_ref().filter(|why| !why.is_empty()) {
            found.push(at("client_limited", level.client_cpu.unwrap_or(0.0), "cores of the client", format!("At {label}: {why}."))
                .advise("The level shows the client's limit, not the server's, and nothing is concluded from it: run it again with the client on another machine or with more cores."));
        }
        let total = level.total.unwrap_or(0);
        for (id, count, what) in [
            ("errors", level.errored, "failed"),
            ("incomplete", level.incomplete, "were cut off"),
        ] {
            let Some(count) = count.filter(|n| *n > 0 && total > 0) else {
                continue;
            };
            let share = count as f64 / total as f64;
            found.push(at(id, share, "share of the requests", format!("At {label}: {count} of {total} requests {what}; latencies are those of the others."))
                .advise("Read the error texts in the level's file; do not compare this level with whole ones."));
        }
    }
    found
}
