//! What a step takes beyond the device's own time, where the server tells both.

use super::Finding;
use super::server::{most, says};
use crate::sweep::Sweep;

/// More than this share of a step should not go to anything but computing.
const MUCH: f64 = 0.05;
/// A server that had requests for less than this, s, says too little.
const LEAST_S: f64 = 0.5;

/// `step_overhead`: value = share of the step time, at the level where it is the most.
pub fn find(sweep: &Sweep<'_>) -> Option<Finding> {
    let (point, share) = most(sweep, |point| {
        let of = |name| says(sweep, point, name);
        of("working_s").filter(|s| *s >= LEAST_S)?;
        let step = of("step_mean_s").filter(|s| *s > 0.0)?;
        let rest = 1.0 - of("step_device_mean_s")? / step;
        (rest >= MUCH).then_some(rest)
    })?;
    let of = |name| says(sweep, point, name).unwrap_or_default() * 1e3;
    let evidence = format!(
        "At {} clients a step of the engine took {:.3} ms, of which the device computed {:.3} ms by its own clock: {:.0} % of the time it waited for scheduling, sampling or the HTTP server.",
        point.load(),
        of("step_mean_s"),
        of("step_device_mean_s"),
        share * 100.0
    );
    Some(Finding::new("step_overhead", Some(point), share, "share of the step time", evidence).advise(
        "Look at the server's CPU side: a faster or a free core, no --no-overlap, fewer clients that ask for log-probabilities or structured output. A larger batch hides it.",
    ))
}

#[cfg(test)]
mod tests {
    use super::super::server;
    use super::*;
    use crate::context::Context;
    use crate::summary::LevelSummary;

    fn level(clients: f64, working: f64, step: f64, device: f64) -> LevelSummary {
        let says = [
            ("working_s", working),
            ("step_mean_s", step),
            ("step_device_mean_s", device),
        ];
        server::tests::level(clients, &says)
    }

    #[test]
    fn what_the_device_waits_for() {
        let found = |levels: &[LevelSummary]| {
            let context = Context::default();
            find(&Sweep::of(levels, &context)).map(|f| (f.level, (f.value * 100.0).round()))
        };
        let busy = level(50.0, 3.0, 0.00125, 0.00122);
        assert_eq!(found(std::slice::from_ref(&busy)), None);
        let levels = [busy, level(10.0, 3.0, 0.001, 0.0008)];
        assert_eq!(found(&levels), Some((Some(10.0), 20.0)));
        // Too short, or a server that does not say.
        assert_eq!(found(&[level(10.0, 0.1, 0.001, 0.0008)]), None);
        let mut silent = level(10.0, 3.0, 0.001, 0.0008);
        silent.server.remove("step_device_mean_s");
        assert_eq!(found(&[silent]), None);
    }
}
