//! `/metrics`: Prometheus text with vLLM's metric names, so that its dashboards work here too.

use std::fmt::Write;

use http::{HeaderValue, Response, header};
use powerband_engine::SpeculationStats;

use crate::body::Body;
use crate::gpus;
use crate::metrics::{End, Histogram};
use crate::state::State;

pub(crate) fn metrics(state: &State) -> Response<Body> {
    let mut response = Response::new(Body::full(render(state)));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}

fn render(state: &State) -> String {
    let stats = state.engine.stats();
    let model = state.model.served_names.first().map_or("", String::as_str);
    let labels = format!("engine=\"0\",model_name=\"{}\"", escaped(model));
    let mut page = Page {
        out: String::with_capacity(16 << 10),
        labels,
    };
    page.gauge(
        "vllm:num_requests_running",
        "Sequences in the batch.",
        stats.running as f64,
    );
    page.gauge(
        "vllm:num_requests_waiting",
        "Requests in the queue.",
        stats.waiting as f64,
    );
    page.gauge(
        "vllm:kv_cache_usage_perc",
        "Share of KV blocks in use; 1 is all.",
        stats.kv_cache_usage,
    );
    page.gauge(
        "powerband:kv_blocks_total",
        "KV blocks in the pool.",
        stats.kv_blocks_total as f64,
    );
    page.gauge(
        "powerband:kv_blocks_free",
        "KV blocks not in use.",
        stats.kv_blocks_free as f64,
    );
    for (name, help, value) in [
        (
            "vllm:num_preemptions_total",
            "Preemptions.",
            stats.preemptions,
        ),
        (
            "vllm:prompt_tokens_total",
            "Prompt tokens computed or found in the cache.",
            stats.prompt_tokens,
        ),
        (
            "vllm:generation_tokens_total",
            "Output tokens.",
            stats.generation_tokens,
        ),
        (
            "vllm:prefix_cache_queries_total",
            "Prompt tokens looked up in the prefix cache.",
            stats.prefix_cache_queries,
        ),
        (
            "vllm:prefix_cache_hits_total",
            "Prompt tokens found in the prefix cache.",
            stats.prefix_cache_hits,
        ),
        (
            "powerband:engine_steps_total",
            "Steps of the engine.",
            stats.steps,
        ),
        (
            "powerband:requests_rejected_total",
            "Requests refused because all places were taken.",
            state.metrics.rejected.get(),
        ),
    ] {
        page.head(name, help, "counter");
        page.sample(name, "", value as f64);
    }
    if state.engine.config().speculation.is_some() {
        speculation(&mut page, &stats.speculation);
    }
    for (name, help, seconds) in [
        (
            "powerband:executor_seconds_total",
            "Seconds spent in the executor.",
            stats.executor_seconds,
        ),
        (
            "powerband:device_seconds_total",
            "Seconds in which the device computed, by its own clock.",
            stats.device_seconds,
        ),
        (
            "powerband:working_seconds_total",
            "Seconds in which the engine had requests.",
            stats.working_seconds,
        ),
    ] {
        page.head(name, help, "counter");
        page.sample(name, "", seconds);
    }

    let name = "vllm:request_success_total";
    page.head(
        name,
        "Sequences that ended, by the reason their clients saw.",
        "counter",
    );
    for (end, count) in End::ALL.iter().zip(&state.metrics.ends) {
        let label = format!(",finished_reason=\"{}\"", end.name());
        page.sample(name, &label, count.get() as f64);
    }
    let name = "powerband:http_responses_total";
    page.head(
        name,
        "HTTP answers by the hundreds of their status.",
        "counter",
    );
    for (hundreds, count) in (1..).zip(&state.metrics.answers) {
        page.sample(
            name,
            &format!(",status=\"{hundreds}xx\""),
            count.get() as f64,
        );
    }

    let own = &state.metrics;
    page.latency(
        "vllm:time_to_first_token_seconds",
        "From arrival to the first token.",
        &own.time_to_first_token,
    );
    page.latency(
        "vllm:inter_token_latency_seconds",
        "Between two tokens of a sequence.",
        &own.inter_token,
    );
    page.latency(
        "vllm:e2e_request_latency_seconds",
        "From arrival to the last token.",
        &own.end_to_end,
    );
    page.histogram(
        "vllm:request_prompt_tokens",
        "Prompt tokens of a sequence.",
        &own.prompt_tokens,
        1.0,
    );
    page.histogram(
        "vllm:request_generation_tokens",
        "Output tokens of a sequence.",
        &own.generation_tokens,
        1.0,
    );
    if let Some(gpus) = &state.model.gpus {
        gpus::render(&(gpus.0)(), escaped, &mut page.out);
    }
    page.out
}

/// How drafts fared. As in vLLM these are there only where something is drafted.
fn speculation(page: &mut Page, stats: &SpeculationStats) {
    for (name, help, value) in [
        (
            "vllm:spec_decode_num_drafts_total",
            "Times that a sequence had drafts in a step.",
            stats.drafts,
        ),
        (
            "vllm:spec_decode_num_draft_tokens_total",
            "Drafted tokens.",
            stats.draft_tokens,
        ),
        (
            "vllm:spec_decode_num_accepted_tokens_total",
            "Drafted tokens that became output.",
            stats.accepted_tokens,
        ),
    ] {
        page.head(name, help, "counter");
        page.sample(name, "", value as f64);
    }
    let name = "vllm:spec_decode_num_accepted_tokens_per_pos_total";
    page.head(
        name,
        "Drafted tokens that became output, by their place in the draft.",
        "counter",
    );
    for (position, count) in stats.accepted_per_position.iter().enumerate() {
        page.sample(name, &format!(",position=\"{position}\""), *count as f64);
    }
}

struct Page {
    out: String,
    labels: String,
}

// Writing to a string cannot fail.
impl Page {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = write!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, more: &str, value: f64) {
        let _ = writeln!(self.out, "{name}{{{}{more}}} {value}", self.labels);
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help, "gauge");
        self.sample(name, "", value);
    }

    fn latency(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.histogram(name, help, histogram, 1e6);
    }

    /// `unit`: how many of the histogram's units make one of the metric's.
    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram, unit: f64) {
        self.head(name, help, "histogram");
        let (counts, sum) = histogram.cumulative();
        let bucket = format!("{name}_bucket");
        for (bound, count) in histogram.bounds.iter().zip(&counts) {
            let label = format!(",le=\"{}\"", *bound as f64 / unit);
            self.sample(&bucket, &label, *count as f64);
        }
        let total = counts.last().copied().unwrap_or(0) as f64;
        self.sample(&bucket, ",le=\"+Inf\"", total);
        self.sample(&format!("{name}_sum"), "", sum as f64 / unit);
        self.sample(&format!("{name}_count"), "", total);
    }
}

fn escaped(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn label_values_are_escaped() {
        assert_eq!(super::escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
