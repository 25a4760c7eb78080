//! What the server's own metrics say, where they were sampled during the levels.

use super::Finding;
use crate::sweep::{Point, Sweep};

/// Requests that wait, mean over a level, from which there is a queue.
pub(super) const QUEUE: f64 = 0.5;
/// Levels that wait agree on what runs within this share.
const SAME: f64 = 0.05;
/// A level alone shows a cap if this share of the most that ran was running all the time.
const STEADY: f64 = 0.9;
/// A KV cache is full from this share on.
const FULL: f64 = 0.95;
/// Prompts come from the prefix cache from this share of their tokens on.
const CACHED: f64 = 0.2;

/// `server_queue`, `kv_cache_full`, `prefix_cache_hits`: each once, at the level that shows it most.
pub fn find(sweep: &Sweep<'_>) -> Vec<Finding> {
    let found = [queue(sweep), kv_cache_full(sweep), prefix_cache_hits(sweep)];
    found.into_iter().flatten().collect()
}

pub(super) fn says(sweep: &Sweep<'_>, point: &Point, name: &str) -> Option<f64> {
    let value = sweep.level(point).server.get(name).copied();
    value.filter(|v| v.is_finite() && *v >= 0.0)
}

/// The level at which the server says the most of something.
pub(super) fn most<'s>(
    sweep: &'s Sweep<'_>,
    says: impl Fn(&Point) -> Option<f64>,
) -> Option<(&'s Point, f64)> {
    let all = sweep.points.iter().filter_map(|p| Some((p, says(p)?)));
    all.max_by(|a, b| a.1.total_cmp(&b.1))
}

/// Value = the most requests that ran at once while others waited.
fn queue(sweep: &Sweep<'_>) -> Option<Finding> {
    let of = |p: &Point, name: &str| says(sweep, p, name);
    let waits = |p: &Point| {
        let waiting = of(p, "waiting_mean").filter(|w| *w >= QUEUE)?;
        // A cache without room makes requests wait too: that is no cap on their number.
        let room = of(p, "kv_cache_usage_max").is_none_or(|u| u < FULL)
            && of(p, "preemptions").is_none_or(|n| n == 0.0);
        room.then_some(waiting)
    };
    let (worst, waiting) = most(sweep, waits)?;
    let cap = of(worst, "running_max").filter(|r| *r > 0.0)?;
    let others: Vec<f64> = sweep
        .points
        .iter()
        .filter(|p| p.index != worst.index && waits(p).is_some())
        .filter_map(|p| of(p, "running_max"))
        .collect();
    let capped = if others.is_empty() {
        of(worst, "running_mean").is_some_and(|mean| mean >= STEADY * cap)
    } else {
        others.iter().all(|r| (r / cap - 1.0).abs() <= SAME)
    };
    if !capped {
        return None;
    }
    let mut evidence = format!(
        "At {} clients the server had at most {cap:.0} requests running and {waiting:.1} waiting on average, by its own metrics.",
        worst.load()
    );
    if let Some(wait) = of(worst, "queue_time_mean_s") {
        evidence += &format!(
            " A request waited {wait:.2} s of the {:.2} s of its TTFT.",
            worst.ttft
        );
    }
    if !others.is_empty() {
        let levels = others.len() + 1;
        evidence += &format!(" All {levels} levels that waited had as many running.");
    }
    if let Some(cap) = sweep.context.max_num_seqs {
        evidence += &format!(" --max-num-seqs is {cap}.");
    }
    Some(Finding::new("server_queue", Some(worst), cap, "requests at once", evidence).advise(
        "The server takes no more at once while others wait, and its KV cache is not why: that is its cap on running requests (--max-num-seqs). More places help only where throughput still grows with the batch.",
    ))
}

/// Value = requests that were preempted.
fn kv_cache_full(sweep: &Sweep<'_>) -> Option<Finding> {
    let full = |p: &Point| {
        let usage = says(sweep, p, "kv_cache_usage_max").filter(|u| *u >= FULL);
        usage.and_then(|_| says(sweep, p, "preemptions").filter(|n| *n > 0.0))
    };
    let (worst, preempted) = most(sweep, full)?;
    let usage = says(sweep, worst, "kv_cache_usage_max")?;
    let evidence = format!(
        "At {} clients the KV cache was {:.0} % full and the server preempted {preempted:.0} requests, whose tokens it computes again.",
        worst.load(),
        usage * 100.0
    );
    Some(Finding::new("kv_cache_full", Some(worst), preempted, "preemptions", evidence).advise(
        "Give the KV cache more memory (--gpu-memory-utilization, a smaller KV type, a quantised model), or admit fewer requests at once (--max-num-seqs).",
    ))
}

/// Value = share of the prompt tokens that came from the cache.
fn prefix_cache_hits(sweep: &Sweep<'_>) -> Option<Finding> {
    let (worst, share) = most(sweep, |p| says(sweep, p, "prefix_cache_hit_rate"))?;
    if share < CACHED {
        return None;
    }
    let evidence = format!(
        "At {} clients the server found {:.0} % of the prompt tokens in its prefix cache, by its own metrics: TTFT is {:.0} ms with them.",
        worst.load(),
        share * 100.0,
        worst.ttft * 1e3
    );
    Some(Finding::new("prefix_cache_hits", Some(worst), share, "share of the prompt tokens", evidence).advise(
        "TTFT and prompt throughput are not those of new prompts: compare them only with runs of the same hit rate.",
    ))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::context::Context;
    use crate::summary::LevelSummary;

    /// A level of which a server says so.
    pub fn level(clients: f64, says: &[(&str, f64)]) -> LevelSummary {
        LevelSummary {
            concurrency: Some(clients),
            requests_per_second: Some(10.0),
            output_tokens_per_second: Some(640.0),
            ttft_ms: Some(1500.0),
            itl_ms: Some(10.0),
            e2e_ms: Some(2130.0),
            server: says.iter().map(|(k, v)| ((*k).into(), *v)).collect(),
            ..LevelSummary::default()
        }
    }

    fn found(levels: &[LevelSummary]) -> Vec<(String, Option<f64>, f64)> {
        let context = Context::default();
        let found = find(&Sweep::of(levels, &context));
        found
            .into_iter()
            .map(|f| (f.id, f.level, f.value))
            .collect()
    }

    #[test]
    fn a_cap_is_what_runs_while_others_wait() {
        let at = |clients, running, waiting| {
            level(
                clients,
                &[
                    ("running_max", running),
                    ("running_mean", 0.8 * running),
                    ("waiting_mean", waiting),
                ],
            )
        };
        let levels = [
            at(10.0, 10.0, 0.0),
            at(30.0, 16.0, 12.0),
            at(60.0, 16.0, 40.0),
        ];
        assert_eq!(found(&levels), [("server_queue".into(), Some(60.0), 16.0)]);
        // What runs differs, or nothing waits, or one level alone that is not steady.
        assert!(found(&[at(30.0, 16.0, 12.0), at(60.0, 31.0, 40.0)]).is_empty());
        assert!(found(&[at(10.0, 10.0, 0.0), at(30.0, 30.0, 0.2)]).is_empty());
        assert!(found(&[at(60.0, 16.0, 40.0)]).is_empty());
    }

    #[test]
    fn a_full_cache_is_no_cap() {
        let says = |usage, preemptions| {
            let numbers = [
                ("running_max", 16.0),
                ("running_mean", 16.0),
                ("waiting_mean", 9.0),
                ("kv_cache_usage_max", usage),
                ("preemptions", preemptions),
            ];
            found(&[level(30.0, &numbers)])
        };
        assert_eq!(says(0.99, 7.0), [("kv_cache_full".into(), Some(30.0), 7.0)]);
        assert_eq!(says(0.5, 0.0), [("server_queue".into(), Some(30.0), 16.0)]);
        assert!(says(0.99, 0.0).is_empty() && says(0.5, 7.0).is_empty());
    }

    #[test]
    fn prompts_from_the_cache_and_silence() {
        let says = |share| found(&[level(5.0, &[("prefix_cache_hit_rate", share)])]);
        assert_eq!(says(0.9), [("prefix_cache_hits".into(), Some(5.0), 0.9)]);
        assert!(says(0.05).is_empty() && says(f64::NAN).is_empty());
        assert!(found(&[level(5.0, &[])]).is_empty());
    }
}
