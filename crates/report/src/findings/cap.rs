//! What it would bring to admit only as many requests as the best level had.

use super::{Finding, Prediction, collapse};
use crate::sweep::Sweep;

/// `cap_admission`: value = requests to admit at once. Only where throughput collapses past its peak.
pub fn find(sweep: &Sweep<'_>, collapse: Option<&Finding>) -> Option<Finding> {
    collapse?;
    let (best, _) = collapse::edge(sweep)?;
    let worst = sweep.points.last()?;
    let (cap, clients) = (best.asked?.round(), worst.asked?);
    let sustained = (clients / worst.rate, clients / best.rate);
    let mut finding = Finding::new("cap_admission", Some(best), cap, "requests at once", format!(
        "If admitting too many is the cause of the collapse, then with {cap} at once the server keeps the {:.2} requests/s that it has at {cap} clients; at {clients} it has {:.2}.",
        best.rate, worst.rate,
    )).advise(format!("Start the server with --max-num-seqs {cap} and repeat the level at {clients} clients."));
    let clients_name = format!("sustained load of {clients} clients");
    finding
        .predicted
        .push(prediction(&clients_name, "E2E", "s", sustained));
    let tokens = sweep.output_tokens?;
    finding.predicted.push(prediction(
        &clients_name,
        "output throughput",
        "tok/s",
        (worst.rate * tokens, best.rate * tokens),
    ));
    if let Some(n) = worst.requests {
        // Everything sent at once goes through in rounds of `cap`, each as long as E2E at that level.
        let rounds = (n / cap).ceil();
        let last = rounds * best.e2e;
        // The k-th of the full rounds ends after k x E2E, the rest of the requests after all rounds: a sum
        // in closed form, for a file may claim any number of requests.
        let (full, rest) = (rounds - 1.0, n - (rounds - 1.0) * cap);
        let mean = best.e2e * (cap * full * rounds / 2.0 + rest * rounds) / n;
        if n <= clients {
            let again = format!("the same {n} requests once more");
            finding
                .predicted
                .push(prediction(&again, "mean E2E", "s", (worst.e2e, mean)));
            finding.predicted.push(prediction(
                &again,
                "last one finished",
                "s",
                (n / worst.rate, last),
            ));
        }
    }
    Some(finding)
}

fn prediction(scenario: &str, metric: &str, unit: &str, (before, after): (f64, f64)) -> Prediction {
    Prediction {
        scenario: scenario.into(),
        metric: metric.into(),
        unit: unit.into(),
        before,
        after,
    }
}
