//! What the number of requests does to the numbers: too few waves, a last one that is not full.

use powerband_bench::metrics::STEADY_WAVES;

use super::Finding;
use crate::sweep::Sweep;

/// A level is full from this share of its clients on.
const FULL: f64 = 0.97;
/// A shortfall up to this much below what the last wave explains is still explained by it.
const EXPLAINED: f64 = 0.95;

/// `too_few_requests` (value = waves), `partial_last_wave` and `load_not_delivered` (value = requests in
/// flight), one for each level concerned.
pub fn find(sweep: &Sweep<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for (p, clients) in sweep.closed() {
        let (Some(n), Some(waves)) = (p.requests, p.waves()) else {
            continue;
        };
        if waves < STEADY_WAVES as f64 {
            let needed = STEADY_WAVES as f64 * clients;
            found.push(Finding::new("too_few_requests", Some(p), waves, "waves", format!(
                "{n} requests at {clients} clients are {waves:.1} waves: too few for a steady state. Start and drain are most of the level.",
            )).advise(format!("Send at least {needed} requests at {clients} clients (--max-requests).")));
        }
        if p.delivered >= FULL * clients {
            continue;
        }
        // In lock-step the mean in flight is N / ceil(N / c); requests that drift apart are above it,
        // and a single wave drains from its first end on.
        let lockstep = n / (n / clients).ceil();
        // Drifted apart, the last ones end over up to one more round than the waves.
        let drained = n / (waves + 1.0);
        let explained = p.delivered >= EXPLAINED * lockstep.min(drained);
        let (id, why) = if waves <= 1.0 + 1e-9 {
            (
                "partial_last_wave",
                format!("{n} requests are a single wave: as requests end, none follow."),
            )
        } else if explained && n % clients != 0.0 {
            (
                "partial_last_wave",
                format!(
                    "{n} requests are {} full waves of {clients} and a rest of {}: in lock-step that is {lockstep:.1} on average.",
                    (n / clients).floor(),
                    n % clients
                ),
            )
        } else if explained {
            (
                "partial_last_wave",
                format!(
                    "Requests drift apart, so the last of {waves:.0} waves drains over up to a round: {drained:.1} to {clients} on average."
                ),
            )
        } else {
            (
                "load_not_delivered",
                "The number of requests does not explain it: the client or the connection left places empty.".into(),
            )
        };
        found.push(Finding::new(id, Some(p), p.delivered, "requests in flight", format!(
            "Asked for {clients}, delivered {:.1} (requests/s x E2E). {why}", p.delivered,
        )).advise(if id == "partial_last_wave" {
            "Compare levels by delivered concurrency, or send a multiple of the clients. This is the measurement's doing, not the server's."
        } else {
            "Look at the client's CPU and at errors before drawing conclusions on the server."
        }));
    }
    found
}
