//! Many readings make one level's numbers.

use std::collections::BTreeMap;

use super::ServerSample;
use super::names::Reading;
use crate::over_time::{Gauge, Samples};

/// The readings of a level.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    first: Option<Reading>,
    last: Option<Reading>,
    running: Gauge,
    waiting: Gauge,
    kv_cache_usage: Gauge,
    samples: Samples<ServerSample>,
    asked: u64,
    missed: u64,
}

impl Gathered {
    /// Before the first request: where the counters begin.
    pub fn begin(&mut self, reading: Option<Reading>) {
        self.first = reading;
        self.count(reading);
    }

    /// While the level runs, so many seconds after an origin; `None` where the server did not answer.
    pub fn during(&mut self, at_s: f64, reading: Option<Reading>) {
        self.count(reading);
        let Some(reading) = reading else {
            return;
        };
        self.running.add(reading.running);
        self.waiting.add(reading.waiting);
        self.kv_cache_usage.add(reading.kv_cache_usage);
        self.samples.push(ServerSample {
            at_s,
            running: reading.running,
            waiting: reading.waiting,
            kv_cache_usage: reading.kv_cache_usage,
        });
    }

    /// After the last request: where the counters end.
    pub fn end(&mut self, reading: Option<Reading>) {
        self.last = reading;
        self.count(reading);
    }

    fn count(&mut self, reading: Option<Reading>) {
        self.asked += 1;
        self.missed += u64::from(reading.is_none());
    }

    /// The samples that were kept.
    pub fn samples(&self) -> &[ServerSample] {
        self.samples.kept()
    }

    /// The level's numbers, by the names that [`crate::LevelResult::server`] documents.
    pub fn numbers(&self) -> BTreeMap<String, f64> {
        let mut numbers = BTreeMap::new();
        let mut put = |name: &str, value: Option<f64>| {
            if let Some(value) = value.filter(|v| v.is_finite()) {
                numbers.insert(name.to_owned(), value);
            }
        };
        for (name, gauge) in [
            ("running", &self.running),
            ("waiting", &self.waiting),
            ("kv_cache_usage", &self.kv_cache_usage),
        ] {
            put(&format!("{name}_mean"), gauge.mean());
            put(&format!("{name}_max"), gauge.max());
        }
        let over = |of: fn(&Reading) -> Option<f64>| {
            let grown = of(self.last.as_ref()?)? - of(self.first.as_ref()?)?;
            // A counter that falls is one of a server that was started anew.
            (grown >= 0.0).then_some(grown)
        };
        let ratio =
            |part: Option<f64>, whole: Option<f64>| Some(part? / whole.filter(|w| *w > 0.0)?);
        put("preemptions", over(|r| r.preemptions));
        put("prompt_tokens", over(|r| r.prompt_tokens));
        put("generation_tokens", over(|r| r.generation_tokens));
        put(
            "queue_time_mean_s",
            ratio(over(|r| r.queue_time_s), over(|r| r.queue_times)),
        );
        put(
            "prefix_cache_hit_rate",
            ratio(
                over(|r| r.prefix_hits),
                over(|r| r.prefix_queries).or(over(|r| r.prompt_tokens)),
            ),
        );
        put(
            "iteration_tokens_mean",
            ratio(over(|r| r.iteration_tokens), over(|r| r.iterations)),
        );
        let (steps, working) = (over(|r| r.steps), over(|r| r.working_s));
        // A backend that does not know how long it computed says zero.
        let device = over(|r| r.device_s).filter(|s| *s > 0.0);
        put("working_s", working);
        put("step_mean_s", ratio(working, steps));
        put("step_device_mean_s", ratio(device, steps));
        numbers
    }

    /// What a reader must know of the samples.
    pub fn warning(&self) -> Option<String> {
        (self.missed > 0).then(|| {
            format!(
                "{} of {} times the server's metrics did not come in time: what it says of itself has holes",
                self.missed, self.asked
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauges(running: f64, waiting: f64) -> Option<Reading> {
        Some(Reading {
            running: Some(running),
            waiting: Some(waiting),
            ..Reading::default()
        })
    }

    #[test]
    fn numbers_by_hand() {
        let mut level = Gathered::default();
        let counters = |preemptions, s, n, queries, hits| {
            Some(Reading {
                preemptions: Some(preemptions),
                queue_time_s: Some(s),
                queue_times: Some(n),
                prefix_queries: Some(queries),
                prefix_hits: Some(hits),
                ..Reading::default()
            })
        };
        level.begin(counters(7.0, 100.0, 50.0, 1000.0, 900.0));
        level.during(1.5, gauges(4.0, 0.0));
        level.during(2.0, gauges(8.0, 6.0));
        level.end(counters(9.0, 110.0, 54.0, 1400.0, 1000.0));
        let numbers = level.numbers();
        let expected = [
            ("preemptions", 2.0),
            ("prefix_cache_hit_rate", 0.25),
            ("queue_time_mean_s", 2.5),
            ("running_max", 8.0),
            ("running_mean", 6.0),
            ("waiting_max", 6.0),
            ("waiting_mean", 3.0),
        ];
        assert_eq!(
            numbers,
            expected
                .map(|(k, v)| (k.to_owned(), v))
                .into_iter()
                .collect()
        );
        assert_eq!(level.samples()[0].at_s, 1.5);
        assert_eq!(level.warning(), None);
    }

    #[test]
    fn a_server_that_looks_up_every_prompt_token() {
        let mut level = Gathered::default();
        let at = |prompt_tokens, hits| {
            Some(Reading {
                prompt_tokens: Some(prompt_tokens),
                prefix_hits: Some(hits),
                ..Reading::default()
            })
        };
        level.begin(at(100.0, 7.0));
        level.end(at(500.0, 107.0));
        assert_eq!(level.numbers()["prefix_cache_hit_rate"], 0.25);
    }

    #[test]
    fn a_step_and_the_devices_share_of_it() {
        let at = |steps, working, device| {
            Some(Reading {
                steps: Some(steps),
                working_s: Some(working),
                device_s: Some(device),
                ..Reading::default()
            })
        };
        let numbers = |first, last| {
            let mut level = Gathered::default();
            level.begin(first);
            level.end(last);
            level.numbers()
        };
        let found = numbers(at(100.0, 2.0, 1.0), at(300.0, 6.0, 4.0));
        assert_eq!(found["working_s"], 4.0);
        assert_eq!(found["step_mean_s"], 0.02);
        assert_eq!(found["step_device_mean_s"], 0.015);
        let unknown = numbers(at(100.0, 2.0, 0.0), at(300.0, 6.0, 0.0));
        assert!(!unknown.contains_key("step_device_mean_s"));
    }

    #[test]
    fn what_was_not_seen_is_not_said() {
        let mut level = Gathered::default();
        let at = |preemptions| {
            Some(Reading {
                preemptions: Some(preemptions),
                ..Reading::default()
            })
        };
        level.begin(at(5.0));
        level.end(at(1.0));
        assert!(level.numbers().is_empty(), "the server was started anew");
        level.end(None);
        assert!(level.numbers().is_empty());
        assert!(level.warning().is_some());
    }
}
