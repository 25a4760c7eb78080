//! The `metrics` of a report: each as four distributions, by how the requests ended. The requests are read
//! once for each metric, so that only one column is in memory at a time.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use crate::column::Column;
use crate::distribution::DistributionSummary;
use crate::metrics::{self, Window, itl_in, overlaps, ttfot_in, ttft_in, weighted_tpot};
use crate::record::{LevelResult, Outcome, RequestRecord};
use crate::requests::Totals;
use crate::slo::Slo;
use crate::timeline::{ConcurrencyMeter, InOrder, RateMeter};

/// The requests of a level's window, by how they ended.
pub(super) struct ByStatus<'a> {
    level: &'a LevelResult,
    window: Window,
    totals: Totals,
}

/// Requests of these kinds are told apart.
#[derive(Clone, Copy)]
enum Status {
    Successful,
    Errored,
    Incomplete,
}

impl Status {
    fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Successful => Status::Successful,
            Outcome::Errored(_) => Status::Errored,
            Outcome::Incomplete(_) => Status::Incomplete,
        }
    }
}

/// What gathers a distribution, for each status and for all requests.
struct Each<T> {
    successful: T,
    errored: T,
    incomplete: T,
    total: T,
    /// Did all requests succeed? Then these are the total, and need not be gathered twice.
    all_successful: bool,
}

impl<T> Each<T> {
    fn new(totals: Totals, make: impl Fn() -> T) -> Self {
        Each {
            successful: make(),
            errored: make(),
            incomplete: make(),
            total: make(),
            all_successful: totals.successful == totals.total(),
        }
    }

    fn add(&mut self, status: Status, add: impl Fn(&mut T)) {
        match status {
            Status::Successful if self.all_successful => {}
            Status::Successful => add(&mut self.successful),
            Status::Errored => add(&mut self.errored),
            Status::Incomplete => add(&mut self.incomplete),
        }
        add(&mut self.total);
    }

    fn summaries(self, of: impl Fn(T) -> DistributionSummary) -> Value {
        let total = of(self.total);
        let successful = match self.all_successful {
            true => total.clone(),
            false => of(self.successful),
        };
        json!({
            "successful": successful,
            "errored": of(self.errored),
            "incomplete": of(self.incomplete),
            "total": total,
        })
    }
}

impl<'a> ByStatus<'a> {
    pub fn of(level: &'a LevelResult) -> Self {
        let window = metrics::window(level);
        let mut totals = Totals::default();
        for r in level.requests.iter().filter(|r| overlaps(r, window)) {
            totals.add(&r.outcome);
        }
        ByStatus {
            level,
            window,
            totals,
        }
    }

    fn requests(&self) -> impl Iterator<Item = Cow<'a, RequestRecord>> {
        let window = self.window;
        let requests = self.level.requests.iter();
        requests.filter(move |r| overlaps(r, window))
    }

    /// How many there are of each.
    pub fn totals(&self) -> Value {
        json!({
            "successful": self.totals.successful,
            "errored": self.totals.errored,
            "incomplete": self.totals.incomplete,
            "total": self.totals.total(),
        })
    }

    /// Distributions of one value a request.
    fn values(&self, of: impl Fn(&RequestRecord) -> Option<f64>) -> Value {
        self.weighted(|r| Some((of(r)?, 1.0)))
    }

    /// Distributions of one value a request, weighted.
    fn weighted(&self, of: impl Fn(&RequestRecord) -> Option<(f64, f64)>) -> Value {
        let scratch = self.level.requests.scratch();
        let mut each = Each::new(self.totals, || Column::new(scratch));
        for r in self.requests() {
            if let Some((value, weight)) = of(&r) {
                let status = Status::of(&r.outcome);
                each.add(status, |column| column.push_weighted(value, weight));
            }
        }
        each.summaries(Column::summary)
    }

    /// Distributions of the rate of events, each with its time, ns, and its weight.
    fn rates(&self, events: impl Fn(&RequestRecord, &mut dyn FnMut((u64, f64)))) -> Value {
        let scratch = self.level.requests.scratch();
        let mut each = Each::new(self.totals, || RateMeter::new(self.window, scratch));
        let mut add = |(time_ns, (status, weight)): (u64, (Status, f64))| {
            each.add(status, |meter| meter.add(time_ns, weight));
        };
        let mut order = InOrder::new();
        for r in self.requests() {
            order.release(r.sent_ns, &mut add);
            let status = Status::of(&r.outcome);
            events(&r, &mut |(time_ns, weight)| {
                order.push(time_ns, (status, weight));
            });
        }
        order.finish(add);
        each.summaries(RateMeter::summary)
    }

    /// Distributions of the number of requests in flight.
    fn concurrency(&self) -> Value {
        let scratch = self.level.requests.scratch();
        let meter = || ConcurrencyMeter::new(self.window, scratch);
        let mut each = Each::new(self.totals, meter);
        let mut add = |(time_ns, (status, change)): (u64, (Status, f64))| {
            each.add(status, |meter| meter.add(time_ns, change));
        };
        let mut order = InOrder::new();
        for r in self.requests() {
            order.release(r.sent_ns, &mut add);
            let status = Status::of(&r.outcome);
            order.push(r.sent_ns, (status, 1.0));
            order.push(r.end_ns, (status, -1.0));
        }
        order.finish(add);
        each.summaries(ConcurrencyMeter::summary)
    }

    /// How late requests were sent, s, in any load shape.
    fn dispatch_delay(&self) -> Value {
        if self.totals.total() == 0 {
            return Value::Null;
        }
        let mut delays = Column::new(self.level.requests.scratch());
        self.requests()
            .for_each(|r| delays.push(r.dispatch_delay_s()));
        json!(delays.summary())
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
    let prompt_event = |r: &RequestRecord| (metrics::prompt_time_ns(r), r.prompt_tokens as f64);
    let prompt_rate = by.rates(|r, add| add(prompt_event(r)));
    let output_rate = by.rates(|r, add| metrics::output_events(r).for_each(add));
    let total_rate = by.rates(|r, add| {
        add(prompt_event(r));
        metrics::output_events(r).for_each(add);
    });
    let none = by.values(|_| None);
    let (attainment, judged, goodput) = match level.slo {
        Some(slo) => {
            let (met, judged) = attained(level, slo);
            let kept = |r: &RequestRecord| r.successful() && slo.met_by(r, open_loop) == Some(true);
            let goodput = by.rates(|r, add| {
                if kept(r) {
                    add((r.end_ns, 1.0));
                }
            });
            let share = (judged > 0).then(|| met as f64 / judged as f64);
            (share, judged, goodput)
        }
        None => (None, 0, Value::Null),
    };
    json!({
        "request_totals": by.totals(),
        "requests_per_second": by.rates(|r, add| add((r.end_ns, 1.0))),
        "request_concurrency": by.concurrency(),
        "request_latency": by.values(|r| Some(r.e2e_s())),
        "request_dispatch_delay": scheduled(RequestRecord::dispatch_delay_s),
        "request_scheduled_latency": scheduled(RequestRecord::scheduled_latency_s),
        "turn_predecessor_delay": scheduled(|_| 0.0),
        "turn_scheduling_delay": scheduled(RequestRecord::dispatch_delay_s),
        "root_dispatch_delay": by.dispatch_delay(),
        "request_streaming_iterations_count": by.values(|r| Some(r.iterations as f64)),
        "prompt_token_count": prompt,
        "output_token_count": output,
        "total_token_count": total,
        "time_to_first_token_ms": by.values(|r| ttft_in(r, by.window)),
        "time_to_first_output_token_ms": by.values(|r| ttfot_in(r, by.window)),
        "time_per_output_token_ms": by.weighted(weighted_tpot),
        "inter_token_latency_ms": by.weighted(|r| itl_in(r, by.window)),
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
        "slo_attainment": attainment,
        "slo_determined_requests": judged,
        "request_goodput": goodput,
    })
}

/// (requests that met the objective, requests judged) as GuideLLM counts: the successful ones alone.
fn attained(level: &LevelResult, slo: Slo) -> (u64, u64) {
    let window = metrics::window(level);
    let open_loop = level.strategy.open_loop();
    let good = level
        .requests
        .iter()
        .filter(|r| r.successful() && overlaps(r, window));
    good.filter_map(|r| slo.met_by(&r, open_loop))
        .fold((0, 0), |(met, judged), kept| {
            (met + u64::from(kept), judged + 1)
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
