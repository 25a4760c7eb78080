//! What more places in the running batch would bring, where their number and not the step is the limit.

use super::{Finding, Prediction, queue};
use crate::sweep::{Point, Sweep};

/// Throughput still grows at the cap if it does so with at least this power of the requests in flight.
const GROWS: f64 = 0.5;
/// The two levels that show it are at least this far apart.
const SPAN: f64 = 1.5;
/// The higher of them fills at least this share of the places, and at most this many times them.
const NEAR: f64 = 0.75;
const FITS: f64 = 1.03;
/// How far the line through them is believed: this many times the places.
const FURTHER: f64 = 2.0;
/// More places are worth it from this gain on.
const GAIN: f64 = 1.1;

/// `more_places`: value = places to try. Only where requests queue for a place while a larger batch would
/// still give more: the time that a request takes in service is put on a line through the two levels below
/// the cap, and followed to twice the places at most. With L in service, each for the time E(L), a server
/// makes L / E(L) requests a second (Little's law).
pub fn find(sweep: &Sweep<'_>, collapse: Option<&Finding>) -> Option<Finding> {
    if collapse.is_some() {
        return None;
    }
    let places = queue::slots(sweep)?.slots;
    let known = sweep.context.max_num_seqs.map(|cap| cap as f64);
    let places = known.unwrap_or(places.round());
    let tokens = sweep.output_tokens?;
    let fitting: Vec<(&Point, f64)> = sweep
        .closed()
        .filter(|(_, clients)| *clients <= FITS * places)
        .collect();
    let (high, clients) = *fitting.last()?;
    let (low, _) = *fitting.iter().rev().find(|(_, c)| c * SPAN <= clients)?;
    let power = (high.output / low.output).ln() / (high.delivered / low.delivered).ln();
    if clients < NEAR * places || !power.is_finite() || power < GROWS {
        return None;
    }
    let (last, most) = sweep.closed().last()?;
    let more = (FURTHER * places).min(most).min(room(sweep)).floor();
    let slope = ((high.e2e - low.e2e) / (high.delivered - low.delivered)).max(0.0);
    let e2e = high.e2e + slope * (more - high.delivered).max(0.0);
    let rate = more / e2e;
    if rate < GAIN * last.rate.max(high.rate) {
        return None;
    }
    let mut finding = Finding::new("more_places", Some(high), more, "requests at once", format!(
        "Up to {} throughput grows with the requests in flight to the power {power:.2} (1 is linear), and above the {places:.0} places requests only wait: their number is the limit, not the step.",
        sweep.at(high.load()),
    )).advise(format!(
        "Let {more:.0} requests run at once instead of {places:.0} (--max-num-seqs {more:.0}), if the KV cache holds them, and repeat the levels from {} on.",
        sweep.at(high.load()),
    ));
    let scenario = format!("{more:.0} places at {}", sweep.at(last.load()));
    let mut predict = |metric: &str, unit: &str, before, after| {
        finding.predicted.push(Prediction {
            scenario: scenario.clone(),
            metric: metric.into(),
            unit: unit.into(),
            before,
            after,
        });
    };
    predict("output throughput", "tok/s", last.output, rate * tokens);
    predict("E2E", "s", last.e2e, most / rate);
    Some(finding)
}

/// Requests that the KV cache has room for, where its size is known.
fn room(sweep: &Sweep<'_>) -> f64 {
    let request = sweep.prompt_tokens.zip(sweep.output_tokens);
    match (sweep.context.kv_cache_tokens, request) {
        (Some(tokens), Some((prompt, output))) if prompt + output >= 1.0 => {
            tokens as f64 / (prompt + output)
        }
        _ => f64::INFINITY,
    }
}
