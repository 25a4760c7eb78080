//! Many readings make one level's numbers.

use std::collections::BTreeMap;

use super::ServerSample;
use super::names::Reading;

/// Samples of a level that are kept; of a longer one every second is dropped each time they are too many.
const MAX_SAMPLES: usize = 512;

/// A number that goes up and down, over a level.
#[derive(Debug, Default)]
struct Gauge {
    sum: f64,
    count: f64,
    most: f64,
}

impl Gauge {
    fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.sum += value;
            self.count += 1.0;
            self.most = self.most.max(value);
        }
    }
}

/// The readings of a level.
#[derive(Debug)]
pub(super) struct Gathered {
    first: Option<Reading>,
    last: Option<Reading>,
    running: Gauge,
    waiting: Gauge,
    kv_cache_usage: Gauge,
    samples: Vec<ServerSample>,
    /// Of so many readings one is kept as a sample.
    every: u64,
    readings: u64,
    asked: u64,
    missed: u64,
}

impl Default for Gathered {
    fn default() -> Self {
        Gathered {
            first: None,
            last: None,
            running: Gauge::default(),
            waiting: Gauge::default(),
            kv_cache_usage: Gauge::default(),
            samples: Vec::new(),
            every: 1,
            readings: 0,
            asked: 0,
            missed: 0,
        }
    }
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
        if self.readings.is_multiple_of(self.every) {
            if self.samples.len() == MAX_SAMPLES {
                let mut even = false;
                self.samples.retain(|_| {
                    even = !even;
                    even
                });
                self.every *= 2;
            }
            self.samples.push(ServerSample {
                at_s,
                running: reading.running,
                waiting: reading.waiting,
                kv_cache_usage: reading.kv_cache_usage,
            });
        }
        self.readings += 1;
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

    /// The samples, their times counted from `start_s` after the origin.
    pub fn samples(&self, start_s: f64) -> Vec<ServerSample> {
        let shifted = self.samples.iter().map(|sample| ServerSample {
            at_s: (sample.at_s - start_s).max(0.0),
            ..*sample
        });
        shifted.collect()
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
            let some = gauge.count > 0.0;
            put(
                &format!("{name}_mean"),
                some.then_some(gauge.sum / gauge.count),
            );
            put(&format!("{name}_max"), some.then_some(gauge.most));
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
            ratio(over(|r| r.prefix_hits), over(|r| r.prefix_queries)),
        );
        put(
            "iteration_tokens_mean",
            ratio(over(|r| r.iteration_tokens), over(|r| r.iterations)),
        );
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
        assert_eq!(level.samples(1.0)[0].at_s, 0.5);
        assert_eq!(level.warning(), None);
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

    #[test]
    fn a_long_level_keeps_few_samples_and_its_true_mean() {
        let mut level = Gathered::default();
        let many = 10 * MAX_SAMPLES;
        for i in 0..many {
            level.during(i as f64, gauges((i % 2) as f64, 0.0));
        }
        assert_eq!(level.numbers()["running_mean"], 0.5);
        let samples = level.samples(0.0);
        assert!((MAX_SAMPLES / 2..=MAX_SAMPLES).contains(&samples.len()));
        // Even steps to the end.
        let step = samples[1].at_s - samples[0].at_s;
        assert!(samples.windows(2).all(|w| w[1].at_s - w[0].at_s == step));
        assert!(samples.last().unwrap().at_s >= many as f64 - step);
    }
}
