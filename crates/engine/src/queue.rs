//! The waiting requests in the order in which they are admitted.
//!
//! Every policy is a key that does not change while a request waits, so that the queue is an ordered
//! map. A preempted request keeps the key it had, which puts it before whatever arrived later.

use std::collections::BTreeMap;

use crate::SchedulingPolicy;

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    rank: i64,
    arrival: u64,
}

/// Steps after which a request of `n` more tokens goes before a newer one: `n / AGEING`. Linear
/// ageing needs no re-sorting: `work - AGEING * waited` sorts as `work + AGEING * arrived`.
const AGEING: i64 = 4;

impl Place {
    /// The place of a request. `arrival`: its number; `step`: the engine's step when it arrived;
    /// `work`: tokens of prompt and output.
    pub fn new(
        policy: SchedulingPolicy,
        arrival: u64,
        step: u64,
        priority: i32,
        work: usize,
    ) -> Self {
        let rank = match policy {
            SchedulingPolicy::Fcfs => 0,
            SchedulingPolicy::Priority => i64::from(priority),
            SchedulingPolicy::Sjf => (work as i64).saturating_add(AGEING * step as i64),
        };
        Self { rank, arrival }
    }
}

/// Waiting requests by place.
#[derive(Debug)]
pub struct WaitingQueue<T> {
    waiting: BTreeMap<Place, T>,
}

impl<T> Default for WaitingQueue<T> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
        }
    }
}

impl<T> WaitingQueue<T> {
    /// Adds a request.
    pub fn insert(&mut self, place: Place, request: T) {
        self.waiting.insert(place, request);
    }

    /// The request that is admitted next.
    pub fn first(&self) -> Option<&T> {
        self.waiting.first_key_value().map(|(_, request)| request)
    }

    /// Takes the request that is admitted next.
    pub fn pop_first(&mut self) -> Option<T> {
        self.waiting.pop_first().map(|(_, request)| request)
    }

    /// Takes a request out of turn.
    pub fn remove(&mut self, place: Place) -> Option<T> {
        self.waiting.remove(&place)
    }

    /// The request at a place.
    pub fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        self.waiting.get_mut(&place)
    }

    /// Requests waiting.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Nobody waits?
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SchedulingPolicy::{Fcfs, Priority, Sjf};

    fn order(policy: SchedulingPolicy, requests: &[(u64, i32, usize)]) -> Vec<usize> {
        let mut queue = WaitingQueue::default();
        for (index, &(step, priority, work)) in requests.iter().enumerate() {
            let place = Place::new(policy, index as u64, step, priority, work);
            queue.insert(place, index);
        }
        std::iter::from_fn(|| queue.pop_first()).collect()
    }

    #[test]
    fn each_policy_orders_by_its_key() {
        let requests = [(0, 5, 300), (0, -1, 100), (0, 5, 200)];
        assert_eq!(order(Fcfs, &requests), [0, 1, 2]);
        assert_eq!(order(Priority, &requests), [1, 0, 2]);
        assert_eq!(order(Sjf, &requests), [1, 2, 0]);
    }

    #[test]
    fn a_long_job_does_not_starve_behind_short_ones() {
        // A job of 1,000 tokens, then one short job a step for ever.
        let requests: Vec<(u64, i32, usize)> = std::iter::once((0, 0, 1000))
            .chain((0..500).map(|step| (step, 0, 10)))
            .collect();
        let order = order(Sjf, &requests);
        assert!(order.iter().position(|&index| index == 0) < Some(260));
    }
}
