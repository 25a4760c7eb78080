//! What happens over the time of a level: how fast events came and how many things were open at once,
//! weighted by how long it lasted. Events are taken as they come, in order of time, and not kept.

use crate::column::Column;
use crate::distribution::DistributionSummary;
use crate::metrics::{Window, seconds};
use crate::spill::Scratch;

/// Events closer than this (seconds) are one event: finer than what the clock of a scheduler can tell.
const MERGE_S: f64 = 1e-4;
/// Events that are let wait before they are put into order: sorting few at a time would take long.
const LET_WAIT: usize = 16 * 1024;

/// Puts the events of requests into the order of time. Requests come in the order of sending and no
/// event is before its request's sending, so that only events of requests in flight have to wait.
pub(crate) struct InOrder<K, E> {
    waiting: Vec<(K, E)>,
    let_wait: usize,
}

impl<K: Ord + Copy, E: Copy> InOrder<K, E> {
    pub fn new() -> Self {
        InOrder {
            waiting: Vec::new(),
            let_wait: LET_WAIT,
        }
    }

    /// Add an event.
    pub fn push(&mut self, key: K, event: E) {
        self.waiting.push((key, event));
    }

    /// Hand out events, knowing that none before `until` will come any more.
    pub fn release(&mut self, until: K, out: impl FnMut((K, E))) {
        if self.waiting.len() >= self.let_wait {
            self.waiting.sort_by_key(|event| event.0);
            let before = self.waiting.partition_point(|event| event.0 < until);
            self.waiting.drain(..before).for_each(out);
            self.let_wait = LET_WAIT.max(2 * self.waiting.len());
        }
    }

    /// Hand out the rest.
    pub fn finish(mut self, out: impl FnMut((K, E))) {
        self.waiting.sort_by_key(|event| event.0);
        self.waiting.into_iter().for_each(out);
    }
}

/// Adds up points of time that are within [`MERGE_S`] of the first of their group.
#[derive(Default)]
struct Groups {
    open: Option<(f64, f64)>,
}

impl Groups {
    /// Add a point; if it begins a new group, the one before is returned.
    fn add(&mut self, time: f64, weight: f64) -> Option<(f64, f64)> {
        match &mut self.open {
            Some(group) if time <= group.0 + MERGE_S => {
                group.1 += weight;
                None
            }
            _ => self.open.replace((time, weight)),
        }
    }
}

/// Events per second within a window, each event's rate taken over the half-way points to its
/// neighbours. The mean is events over seconds; `count` the number of events.
pub(crate) struct RateMeter {
    window: Window,
    groups: Groups,
    /// The last whole group and from when its rate counts.
    last: Option<(f64, (f64, f64))>,
    events: f64,
    rates: Column,
}

impl RateMeter {
    pub fn new(window: Window, scratch: &Scratch) -> Self {
        let mut groups = Groups::default();
        groups.add(window.0, 0.0);
        RateMeter {
            window,
            groups,
            last: None,
            events: 0.0,
            rates: Column::new(scratch),
        }
    }

    /// An event of this weight at this time, ns; those outside of the window are left out.
    pub fn add(&mut self, time_ns: u64, weight: f64) {
        let time = seconds(time_ns);
        if time >= self.window.0
            && time <= self.window.1
            && let Some(group) = self.groups.add(time, weight)
        {
            self.group(group);
        }
    }

    fn group(&mut self, group: (f64, f64)) {
        self.events += group.1;
        let from = match self.last {
            Some((from, before)) => {
                let middle = (before.0 + group.0) / 2.0;
                self.rate(before.1, from, middle);
                middle
            }
            None => group.0,
        };
        self.last = Some((from, group));
    }

    fn rate(&mut self, weight: f64, from: f64, to: f64) {
        let seconds = (to - from).max(1e-6);
        self.rates.push_weighted(weight / seconds, seconds);
    }

    pub fn summary(mut self) -> DistributionSummary {
        let before = self.groups.add(self.window.1, 0.0);
        let last = self.groups.open.take();
        before.into_iter().chain(last).for_each(|g| self.group(g));
        match self.last {
            // A window of no length has no rate.
            Some((from, group)) if group.0 > self.window.0 => {
                self.rate(group.1, from, group.0);
                recounted(self.rates.summary(), self.events.round() as u64)
            }
            _ => DistributionSummary::default(),
        }
    }
}

/// How many intervals were open at once within a window, by time.
pub(crate) struct ConcurrencyMeter {
    window: Window,
    groups: Groups,
    last_s: Option<f64>,
    open: f64,
    intervals: u64,
    levels: Column,
}

impl ConcurrencyMeter {
    pub fn new(window: Window, scratch: &Scratch) -> Self {
        let mut groups = Groups::default();
        groups.add(window.0, 0.0);
        ConcurrencyMeter {
            window,
            groups,
            last_s: None,
            open: 0.0,
            intervals: 0,
            levels: Column::new(scratch),
        }
    }

    /// An interval begins (+1) or ends (-1) at this time, ns. One that reaches into the window counts
    /// from the window's edge on; the caller leaves out those that do not.
    pub fn add(&mut self, time_ns: u64, change: f64) {
        self.intervals += u64::from(change > 0.0);
        let time = seconds(time_ns).clamp(self.window.0, self.window.1);
        if let Some(group) = self.groups.add(time, change) {
            self.group(group);
        }
    }

    fn group(&mut self, group: (f64, f64)) {
        if let Some(last_s) = self.last_s.replace(group.0) {
            self.levels.push_weighted(self.open, group.0 - last_s);
        }
        self.open = (self.open + group.1).max(0.0);
    }

    pub fn summary(mut self) -> DistributionSummary {
        let before = self.groups.add(self.window.1, 0.0);
        let last = self.groups.open.take();
        before.into_iter().chain(last).for_each(|g| self.group(g));
        recounted(self.levels.summary(), self.intervals)
    }
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

    const MS: u64 = 1_000_000;

    fn rates(events: impl IntoIterator<Item = (u64, f64)>, window: Window) -> DistributionSummary {
        let mut meter = RateMeter::new(window, &Scratch::default());
        events.into_iter().for_each(|(t, w)| meter.add(t * MS, w));
        meter.summary()
    }

    /// Intervals in whole seconds, as changes in order.
    fn concurrency(changes: &[(u64, f64)], window: Window) -> DistributionSummary {
        let mut meter = ConcurrencyMeter::new(window, &Scratch::default());
        changes
            .iter()
            .for_each(|(t, c)| meter.add(t * 1000 * MS, *c));
        meter.summary()
    }

    #[test]
    fn ten_events_in_two_seconds_are_five_a_second() {
        let s = rates((0..10).map(|i| (100 + 200 * i, 1.0)), (0.0, 2.0));
        assert!((s.mean - 5.0).abs() < 1e-4, "{}", s.mean);
        assert!((s.median - 5.0).abs() < 1e-9);
        assert_eq!(s.count, 10);
        // Events outside of the window are not counted.
        let s = rates([(500, 3.0), (9000, 5.0)], (0.0, 1.0));
        assert_eq!(s.count, 3);
        assert!((s.mean - 3.0).abs() < 1e-4);
        assert_eq!(rates([], (0.0, 1.0)).mean, 0.0);
        assert_eq!(
            rates([(0, 1.0)], (0.0, 0.0)),
            DistributionSummary::default()
        );
    }

    #[test]
    fn two_overlapping_requests() {
        // 0..2 and 1..4 in a window of 0..4: 1 for 1 s, 2 for 1 s, 1 for 2 s = 5/4.
        let changes = [(0, 1.0), (1, 1.0), (2, -1.0), (4, -1.0)];
        let s = concurrency(&changes, (0.0, 4.0));
        assert!((s.mean - 1.25).abs() < 1e-9);
        assert_eq!((s.max, s.median, s.count), (2.0, 1.0, 2));
    }

    #[test]
    fn what_reaches_into_the_window_counts_from_its_edge() {
        // 0..6 and 8..14 in a window of 5..9.
        let changes = [(0, 1.0), (6, -1.0), (8, 1.0), (14, -1.0)];
        let s = concurrency(&changes, (5.0, 9.0));
        assert!((s.mean - 0.5).abs() < 1e-9);
    }

    #[test]
    fn events_come_out_in_order_whenever_they_are_released() {
        // A request each 10, its events 0, 35 and 70 later: more than are let wait.
        let mut order = InOrder::new();
        let mut out: Vec<(u64, u64)> = Vec::new();
        let requests = 10_000;
        for i in 0..requests {
            order.release(10 * i, |e| out.push(e));
            for after in [70, 0, 35] {
                order.push(10 * i + after, i);
            }
        }
        assert!(out.len() > 10_000, "they are not kept to the end");
        order.finish(|e| out.push(e));
        assert_eq!(out.len() as u64, 3 * requests);
        assert!(out.is_sorted_by_key(|e| e.0));
    }
}
