//! Distributions over time: how fast events came and how many things were open at once, weighted by
//! how long it lasted.

use crate::distribution::{DistributionSummary, summarize_weighted};

/// Events closer than this (seconds) are one event: finer than what the clock of a scheduler can tell.
const MERGE_S: f64 = 1e-4;

/// Sort (time, weight) points and add up those within [`MERGE_S`] of the first of their group.
fn merged(mut points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut groups: Vec<(f64, f64)> = Vec::with_capacity(points.len());
    for (time, weight) in points {
        match groups.last_mut() {
            Some(last) if time <= last.0 + MERGE_S => last.1 += weight,
            _ => groups.push((time, weight)),
        }
    }
    groups
}

/// Events per second within `window` (start, end; seconds), each event's rate taken over the half-way
/// points to its neighbours. The mean is events over seconds; `count` the number of events.
pub(crate) fn rate_distribution(
    events: impl Iterator<Item = (f64, f64)>,
    window: (f64, f64),
) -> DistributionSummary {
    let mut points: Vec<(f64, f64)> = events
        .filter(|e| e.0 >= window.0 && e.0 <= window.1)
        .collect();
    points.extend([(window.0, 0.0), (window.1, 0.0)]);
    let points = merged(points);
    if points.len() < 2 {
        return DistributionSummary::default();
    }
    let middle = |i: usize| (points[i].0 + points[i + 1].0) / 2.0;
    let rates: Vec<(f64, f64)> = (0..points.len())
        .map(|i| {
            let from = if i == 0 { points[0].0 } else { middle(i - 1) };
            let to = if i + 1 == points.len() {
                points[i].0
            } else {
                middle(i)
            };
            let seconds = (to - from).max(1e-6);
            (points[i].1 / seconds, seconds)
        })
        .collect();
    let count = points.iter().map(|p| p.1).sum::<f64>().round();
    recounted(summarize_weighted(&rates), count as u64)
}

/// How many intervals (start, end; seconds) were open at once within `window`, by time.
pub(crate) fn concurrency_distribution(
    intervals: impl Iterator<Item = (f64, f64)>,
    window: (f64, f64),
) -> DistributionSummary {
    let mut count = 0;
    let mut points = Vec::new();
    for (start, end) in intervals.filter(|i| i.1 >= window.0 && i.0 <= window.1) {
        count += 1;
        points.push((start.max(window.0), 1.0));
        points.push((end.min(window.1), -1.0));
    }
    points.extend([(window.0, 0.0), (window.1, 0.0)]);
    let points = merged(points);
    let mut open = 0.0f64;
    let levels: Vec<(f64, f64)> = points
        .windows(2)
        .map(|pair| {
            open = (open + pair[0].1).max(0.0);
            (open, pair[1].0 - pair[0].0)
        })
        .collect();
    recounted(summarize_weighted(&levels), count)
}

/// The weights were seconds: what is counted are events, and seconds are no sample of anything.
fn recounted(mut summary: DistributionSummary, count: u64) -> DistributionSummary {
    summary.count = count;
    summary.total_sum = summary.mean * count as f64;
    summary.mean_ci = None;
    summary.percentile_cis = None;
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_events_in_two_seconds_are_five_a_second() {
        let events = (0..10).map(|i| (0.1 + 0.2 * f64::from(i), 1.0));
        let s = rate_distribution(events, (0.0, 2.0));
        assert!((s.mean - 5.0).abs() < 1e-4, "{}", s.mean);
        assert!((s.median - 5.0).abs() < 1e-9);
        assert_eq!(s.count, 10);
        // Events outside of the window are not counted.
        let s = rate_distribution([(0.5, 3.0), (9.0, 5.0)].into_iter(), (0.0, 1.0));
        assert_eq!(s.count, 3);
        assert!((s.mean - 3.0).abs() < 1e-4);
    }

    #[test]
    fn two_overlapping_requests() {
        // 0..2 and 1..4 in a window of 0..4: 1 for 1 s, 2 for 1 s, 1 for 2 s = 5/4.
        let s = concurrency_distribution([(0.0, 2.0), (1.0, 4.0)].into_iter(), (0.0, 4.0));
        assert!((s.mean - 1.25).abs() < 1e-9);
        assert_eq!((s.max, s.median, s.count), (2.0, 1.0, 2));
    }

    #[test]
    fn what_reaches_into_the_window_counts_from_its_edge() {
        let s = concurrency_distribution([(-5.0, 1.0), (3.0, 9.0)].into_iter(), (0.0, 4.0));
        assert!((s.mean - 0.5).abs() < 1e-9);
        assert_eq!(rate_distribution(std::iter::empty(), (0.0, 1.0)).mean, 0.0);
    }
}
