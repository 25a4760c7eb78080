//! The `metrics` of a report: each as four distributions, by how the requests ended.

use serde_json::{Map, Value, json};

use crate::distribution::{DistributionSummary, summarize, summarize_weighted};
use crate::metrics::{self, Window, overlaps, seconds};
use crate::record::{LevelResult, Outcome, RequestRecord};
use crate::timeline::{concurrency_distribution, rate_distribution};

/// The requests of a level's window, by how they ended.
pub(super) struct ByStatus<'a> {
    window: Window,
    successful: Vec<&'a RequestRecord>,
    errored: Vec<&'a RequestRecord>,
    incomplete: Vec<&'a RequestRecord>,
    total: Vec<&'a RequestRecord>,
}

impl<'a> ByStatus<'a> {
    pub fn of(level: &'a LevelResult) -> Self {
        let window = metrics::window(level);
        let total: Vec<&RequestRecord> = level
            .requests
            .iter()
            .filter(|r| overlaps(r, window))
            .collect();
        let pick = |keep: fn(&Outcome) -> bool| {
            total.iter().copied().filter(|r| keep(&r.outcome)).collect()
        };
        ByStatus {
            window,
            successful: pick(|o| matches!(o, Outcome::Successful)),
            errored: pick(|o| matches!(o, Outcome::Errored(_))),
            incomplete: pick(|o| matches!(o, Outcome::Incomplete(_))),
            total,
        }
    }

    /// How many there are of each.
    pub fn totals(&self) -> Value {
        json!({
            "successful": self.successful.len(),
            "errored": self.errored.len(),
            "incomplete": self.incomplete.len(),
            "total": self.total.len(),
        })
    }

    /// A distribution of each.
    fn each(&self, of: impl Fn(&[&RequestRecord]) -> DistributionSummary) -> Value {
        json!({
            "successful": of(&self.successful),
            "errored": of(&self.errored),
            "incomplete": of(&self.incomplete),
            "total": of(&self.total),
        })
    }

    /// Distributions of one value a request.
    fn values(&self, of: impl Fn(&RequestRecord) -> Option<f64>) -> Value {
        self.each(|requests| summarize(&requests.iter().filter_map(|r| of(r)).collect::<Vec<_>>()))
    }

    /// Distributions of one value a request, weighted.
    fn weighted(&self, of: impl Fn(&RequestRecord) -> Option<(f64, f64)>) -> Value {
        self.each(|requests| {
            summarize_weighted(&requests.iter().filter_map(|r| of(r)).collect::<Vec<_>>())
        })
    }

    /// Distributions of rates.
    fn rates<I: Iterator<Item = (f64, f64)>>(&self, events: impl Fn(&RequestRecord) -> I) -> Value {
        self.each(|requests| {
            let all: Vec<(f64, f64)> = requests.iter().flat_map(|r| events(r)).collect();
            rate_distribution(all.into_iter(), self.window)
        })
    }
}

/// `metrics` of a benchmark.
pub(super) fn metrics(level: &LevelResult, by: &ByStatus<'_>) -> Value {
    let open_loop = level.strategy.open_loop();
    let scheduled = |of: fn(&RequestRecord) -> f64| {
        if open_loop {
            by.values(|r| Some(of(r)))
        } else {
            Value::Null
        }
    };
    let prompt = by.values(|r| Some(r.prompt_tokens as f64));
    let output = by.values(|r| Some(r.output_tokens as f64));
    let total = by.values(|r| Some((r.prompt_tokens + r.output_tokens) as f64));
    let prompt_event =
        |r: &RequestRecord| std::iter::once((metrics::prompt_time(r), r.prompt_tokens as f64));
    let output_events =
        |r: &RequestRecord| metrics::output_events(r).collect::<Vec<_>>().into_iter();
    let prompt_rate = by.rates(prompt_event);
    let output_rate = by.rates(output_events);
    let total_rate = by.rates(|r| prompt_event(r).chain(output_events(r)));
    let none = by.values(|_| None);
    let delays: Vec<f64> = by.total.iter().map(|r| r.dispatch_delay_s()).collect();
    json!({
        "request_totals": by.totals(),
        "requests_per_second": by.rates(|r| std::iter::once((seconds(r.end_ns), 1.0))),
        "request_concurrency": by.each(|requests| {
            let spans = requests.iter().map(|r| (seconds(r.sent_ns), seconds(r.end_ns)));
            concurrency_distribution(spans, by.window)
        }),
        "request_latency": by.values(|r| Some(r.e2e_s())),
        "request_dispatch_delay": scheduled(RequestRecord::dispatch_delay_s),
        "request_scheduled_latency": scheduled(RequestRecord::scheduled_latency_s),
        "turn_predecessor_delay": scheduled(|_| 0.0),
        "turn_scheduling_delay": scheduled(RequestRecord::dispatch_delay_s),
        "root_dispatch_delay": if delays.is_empty() { Value::Null } else { json!(summarize(&delays)) },
        "request_streaming_iterations_count": by.values(|r| Some(r.iterations as f64)),
        "prompt_token_count": prompt,
        "output_token_count": output,
        "total_token_count": total,
        "time_to_first_token_ms": by.values(RequestRecord::ttft_ms),
        "time_to_first_output_token_ms": by.values(|r| {
            Some(r.first_output_token_ns?.saturating_sub(r.sent_ns) as f64 / 1e6)
        }),
        "time_per_output_token_ms": by.weighted(|r| Some((r.tpot_ms()?, r.output_tokens as f64))),
        "inter_token_latency_ms": by.weighted(|r| Some((r.itl_ms()?, (r.output_tokens - 1) as f64))),
        // These two are measured on websockets only.
        "time_to_last_round_trip_ms": none,
        "avg_round_trip_time_ms": none,
        "prompt_tokens_per_second": prompt_rate,
        "output_tokens_per_second": output_rate,
        "tokens_per_second": total_rate,
        "output_tokens_per_iteration": by.weighted(|r| {
            (r.chunks > 0).then(|| (r.output_tokens as f64 / r.chunks as f64, r.chunks as f64))
        }),
        "iter_tokens_per_iteration": by.weighted(|r| {
            let more = r.chunks > 1 && r.output_tokens > 1;
            more.then(|| ((r.output_tokens - 1) as f64 / (r.chunks - 1) as f64, (r.chunks - 1) as f64))
        }),
        "text": modality(&["words", "characters"], Some(json!({
            "input": prompt, "input_per_second": prompt_rate, "input_concurrency": null,
            "output": output, "output_per_second": output_rate, "output_concurrency": null,
            "total": total, "total_per_second": total_rate, "total_concurrency": null,
        }))),
        "image": modality(&["images", "pixels", "bytes"], None),
        "video": modality(&["frames", "seconds", "bytes"], None),
        "audio": modality(&["samples", "seconds", "bytes"], None),
        "tool_call": modality(&["mixed_tokens", "count"], None),
        "turns": null,
        "slo_attainment": null,
        "slo_determined_requests": 0,
        "request_goodput": null,
    })
}

/// Token counts of a kind of content, and its other measures, which are not known.
fn modality(others: &[&str], tokens: Option<Value>) -> Value {
    let empty = json!({
        "input": null, "input_per_second": null, "input_concurrency": null,
        "output": null, "output_per_second": null, "output_concurrency": null,
        "total": null, "total_per_second": null, "total_concurrency": null,
    });
    let mut all = Map::new();
    for name in others {
        all.insert((*name).to_owned(), empty.clone());
    }
    all.insert("tokens".to_owned(), tokens.unwrap_or(empty));
    Value::Object(all)
}
