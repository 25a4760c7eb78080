//! Requests that wait for a place in the running batch: how many places there are, from client data.

use super::Finding;
use crate::sweep::{Point, Sweep};

/// The level has at least this many times the clients that fit.
const OVER: f64 = 1.15;
/// Its wait is at least this share of the time in service.
const WAIT: f64 = 0.2;
/// A level fits if its clients are at most this many times the places.
const FITS: f64 = 1.03;
/// Levels that wait agree on the places within this share.
const SAME: f64 = 0.15;
/// A client more costs at least this many times the TTFT above the places as below them.
const KNEE: f64 = 3.0;

/// Places in the running batch, and the two levels that show it.
#[derive(Debug, Clone, Copy)]
pub struct Slots<'s> {
    /// How many.
    pub slots: f64,
    /// The largest number that the same data allows: a last wave that is not full hides places.
    pub most: f64,
    /// The highest level whose clients all fit.
    pub below: &'s Point,
    /// The level whose clients wait.
    pub above: &'s Point,
    /// Mean wait for a place, s.
    pub wait: f64,
}

/// Find the places. At a level with more clients than places, requests/s x (E2E - wait) is the number in
/// service (Little's law), and the wait is what TTFT grew since a level whose clients all fit. Measured
/// from a level that waits itself the law gives that level's clients instead, so the reference climbs
/// from the lowest level only as far as the estimate so far says that a level fits.
pub fn slots<'s>(sweep: &'s Sweep<'_>) -> Option<Slots<'s>> {
    let closed: Vec<(&Point, f64)> = sweep.closed().collect();
    let cap = sweep.context.max_num_seqs;
    (1..closed.len())
        .rev()
        .find_map(|i| waiting_at(&closed, i, cap))
}

/// Requests in service at `above`, if what its TTFT grew since `below` is waiting.
fn in_service(below: &Point, above: &Point) -> f64 {
    above.rate * (above.e2e - (above.ttft - below.ttft).max(0.0))
}

/// The places, if the clients of the level at `i` wait for one. `cap`: the server's own word for them.
fn waiting_at<'s>(closed: &[(&'s Point, f64)], i: usize, cap: Option<usize>) -> Option<Slots<'s>> {
    let (above, clients) = closed[i];
    let mut at = 0;
    while at + 1 < i && closed[at + 1].1 <= FITS * in_service(closed[at].0, above) {
        at += 1;
    }
    let (below, fit) = closed[at];
    let slots = in_service(below, above);
    let wait = above.ttft - below.ttft;
    let (queued, service) = (clients - slots, above.e2e - wait);
    if clients < OVER * slots || wait < WAIT * service || fit > FITS * slots {
        return None;
    }
    // Places are the same number at every level that waits; prompts that wait for each other are not.
    let others = || {
        closed
            .iter()
            .filter(|(p, c)| *c >= OVER * slots && p.index != above.index)
    };
    if others().any(|(p, _)| (in_service(below, p) / slots - 1.0).abs() > SAME) {
        return None;
    }
    // What a client more costs while all fit.
    let (first, first_clients) = closed[0];
    // Where prompts wait for each other TTFT grows below the places too, and the bend is soft; a cap that
    // is known and comes out of the law needs no bend.
    let known = cap.is_some_and(|cap| (slots / cap as f64 - 1.0).abs() <= SAME);
    let knee = if known {
        true
    } else if at > 0 {
        wait / queued >= KNEE * (below.ttft - first.ttft).max(0.0) / (fit - first_clients)
    } else {
        others().next().is_some()
    };
    // A level where TTFT is off the line of those that fit has clients that wait: fewer places than it.
    let slope = if at > 0 {
        (below.ttft - first.ttft).max(0.0) / (fit - first_clients)
    } else {
        f64::MAX
    };
    let waits = closed[at + 1..]
        .iter()
        .find(|(p, c)| *c > slots && p.ttft - below.ttft >= KNEE * slope * (c - fit));
    let most = most(slots, above.requests, clients).min(waits.map_or(clients, |w| w.1));
    knee.then_some(Slots {
        slots,
        most: most.max(slots),
        below,
        above,
        wait,
    })
}

/// The largest number of places that leaves `in_service` of them busy on average: N requests in k rounds
/// that keep step have N / k in service, whether the last round is full or not.
fn most(in_service: f64, requests: Option<f64>, clients: f64) -> f64 {
    let Some(n) = requests else {
        return in_service;
    };
    let rounds = (n / in_service).round().max(1.0);
    // One place more than this and a round less would do.
    let next = if rounds > 1.0 {
        n / (rounds - 1.0)
    } else {
        clients
    };
    next.min(clients).max(in_service)
}

/// `admission_queue`: value = places, level = the level that waits.
pub fn find(sweep: &Sweep<'_>) -> Option<Finding> {
    let found = slots(sweep)?;
    let (a, b) = (found.below, found.above);
    // Requests that receive tokens at once are in service for certain.
    let seen = sweep
        .points
        .iter()
        .filter_map(|p| sweep.level(p).peak_streaming)
        .fold(0.0, f64::max);
    let value = if seen >= found.slots && seen <= 1.3 * found.slots {
        seen
    } else {
        found.slots
    };
    let mut evidence = format!(
        "From {} to {} clients TTFT goes from {:.2} to {:.2} s. In service at {}: {:.3} requests/s x ({:.2} s E2E - {:.2} s more wait) = {:.1}: the server runs {value:.0} requests at once and the others wait for a place.",
        a.load(),
        b.load(),
        a.ttft,
        b.ttft,
        b.load(),
        b.rate,
        b.e2e,
        found.wait,
        found.slots,
    );
    if seen > 0.0 {
        evidence += &format!(" At most {seen:.0} requests received tokens at the same time.");
    }
    if let Some(cap) = sweep.context.max_num_seqs {
        evidence += &format!(" --max-num-seqs is {cap}.");
    }
    let step = b.itl / a.itl - 1.0;
    if step.abs() >= 0.05 {
        evidence += &format!(
            " Meanwhile the step {} by {:.0} % ({:.0} to {:.0} ms ITL) and throughput {} by {:.0} %.",
            if step > 0.0 { "slows" } else { "speeds up" },
            step.abs() * 100.0,
            a.itl * 1e3,
            b.itl * 1e3,
            if b.output < a.output {
                "falls"
            } else {
                "grows"
            },
            (b.output / a.output - 1.0).abs() * 100.0
        );
    }
    Some(Finding::new("admission_queue", Some(b), value, "requests at once", evidence)
        .within(Some((found.slots.min(value), found.most.max(value))))
        .advise(format!(
            "TTFT above {value:.0} clients is queueing at the cap, not slow prompts. More places help only where throughput still grows with the batch; else add a replica, or let clients wait in a queue of their own."
        )))
}
