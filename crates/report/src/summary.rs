//! One level in numbers. A summary CSV fills the first part only; results of ours fill all of it.

mod machine;

use std::collections::BTreeMap;

pub use machine::{ClientSummary, GpuSummary, HostSummary};

use powerband_bench::{ClientHealth, DistributionSummary, LevelMetrics, LevelResult};
use serde::{Deserialize, Serialize};

/// Mean and tail of a latency, ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// 10 % of the requests were faster.
    pub p10: Option<f64>,
    /// Median.
    pub p50: Option<f64>,
    /// 90 % of the requests were faster.
    pub p90: Option<f64>,
    /// 95 % of the requests were faster.
    pub p95: Option<f64>,
    /// 99 % of the requests were faster.
    pub p99: Option<f64>,
    /// 95 % interval of the mean.
    pub mean_interval: Option<(f64, f64)>,
}

/// The middle of a level, without ramp and drain; only levels of five waves or more have one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct SteadySummary {
    /// Prompt and output tokens per second.
    pub total_tokens_per_second: Option<f64>,
    /// Output tokens per second.
    pub output_tokens_per_second: Option<f64>,
    /// Requests in flight, mean over time.
    pub delivered_concurrency: Option<f64>,
    /// Mean TTFT, ms.
    pub ttft_ms: Option<f64>,
    /// Mean ITL, ms.
    pub itl_ms: Option<f64>,
}

/// One level of a sweep. `None` is "not known", never zero.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LevelSummary {
    /// Name of the level's file, as in the CSV's first column.
    pub file: String,
    /// Clients asked for.
    pub concurrency: Option<f64>,
    /// The CSV's throughput column, tokens/s: prompt and output tokens in our files; what it counts
    /// in others' is for [`crate::sweep`] to find out.
    pub throughput: Option<f64>,
    /// Mean time to first token, ms.
    pub ttft_ms: Option<f64>,
    /// Mean inter-token latency, ms.
    pub itl_ms: Option<f64>,
    /// Mean time from sending to the last byte, ms.
    pub e2e_ms: Option<f64>,
    /// Requests that completed.
    pub successful: Option<u64>,
    /// Requests that failed.
    pub errored: Option<u64>,
    /// Requests that the level's end cut off.
    pub incomplete: Option<u64>,
    /// All three.
    pub total: Option<u64>,

    /// Output tokens per second.
    pub output_tokens_per_second: Option<f64>,
    /// Prompt tokens per second.
    pub prompt_tokens_per_second: Option<f64>,
    /// Completed requests per second.
    pub requests_per_second: Option<f64>,
    /// Requests in flight, mean over the level's time.
    pub delivered_concurrency: Option<f64>,
    /// Prompt tokens a request, mean.
    pub prompt_tokens: Option<f64>,
    /// Output tokens a request, mean.
    pub output_tokens: Option<f64>,
    /// Most requests that received tokens at the same time: what the server ran at once.
    pub peak_streaming: Option<f64>,
    /// TTFT's tail, ms.
    pub ttft: Spread,
    /// ITL's tail, ms.
    pub itl: Spread,
    /// E2E's tail, ms.
    pub e2e: Spread,
    /// Share of the requests that met the run's objective, 0 to 1.
    #[serde(default)]
    pub goodput_share: Option<f64>,
    /// Requests per second that did.
    #[serde(default)]
    pub goodput: Option<f64>,
    /// Without ramp and drain.
    pub steady: Option<SteadySummary>,
    /// CPU cores that the client used.
    pub client_cpu: Option<f64>,
    /// Why the client is taken for the limit; empty where it is not.
    pub client_limit: Option<String>,
    /// How the client fared.
    #[serde(default)]
    pub client: ClientSummary,
    /// First send to last byte, s.
    #[serde(default)]
    pub duration_s: Option<f64>,
    /// Was the load a schedule (open loop), not a number of clients?
    pub open_loop: bool,
    /// Requests per second of that schedule.
    #[serde(default)]
    pub scheduled_rate: Option<f64>,
    /// What the server told of itself, by metric name.
    pub server: BTreeMap<String, f64>,
    /// What the client's machine did.
    #[serde(default)]
    pub host: HostSummary,
    /// What its GPUs did.
    #[serde(default)]
    pub gpu: GpuSummary,
    /// What a reader must know to trust the numbers.
    pub warnings: Vec<String>,
}

impl LevelSummary {
    /// The numbers of a measured level.
    pub fn of(level: &LevelResult) -> LevelSummary {
        let m = LevelMetrics::of(level);
        let any = m.successful > 0;
        let known = |v: f64| (any && v.is_finite()).then_some(v);
        let (mut prompt, mut output) = (0u64, 0u64);
        for r in level.requests.iter().filter(|r| r.successful()) {
            prompt += r.prompt_tokens;
            output += r.output_tokens;
        }
        let successful = level.requests.totals().successful;
        // Other tools say nothing of themselves.
        let client_known = level.client != ClientHealth::default();
        let mean = |sum: u64| known(sum as f64 / successful.max(1) as f64);
        let mut warnings = level.warnings.clone();
        warnings.extend(
            level
                .stopped
                .iter()
                .map(|why| format!("the level ended early: {why}")),
        );
        LevelSummary {
            file: format!("{}.json", level.strategy.file_stem()),
            concurrency: level.strategy.concurrency().map(|c| c as f64),
            throughput: known(m.total_tokens_per_second),
            ttft_ms: mean_of(&m.ttft_ms, 1.0),
            itl_ms: mean_of(&m.itl_ms, 1.0),
            e2e_ms: mean_of(&m.latency_s, 1e3),
            successful: Some(m.successful as u64),
            errored: Some(m.errored as u64),
            incomplete: Some(m.incomplete as u64),
            total: Some(m.total as u64),
            output_tokens_per_second: known(m.output_tokens_per_second),
            prompt_tokens_per_second: known(m.prompt_tokens_per_second),
            requests_per_second: known(m.requests_per_second),
            delivered_concurrency: known(m.delivered_concurrency),
            prompt_tokens: mean(prompt),
            output_tokens: mean(output),
            peak_streaming: m.peak_streaming.map(|n| n as f64),
            ttft: spread(&m.ttft_ms, 1.0),
            itl: spread(&m.itl_ms, 1.0),
            e2e: spread(&m.latency_s, 1e3),
            goodput_share: m.goodput.filter(|g| g.judged > 0).map(|g| g.share),
            goodput: m.goodput.map(|g| g.requests_per_second),
            steady: m.steady.map(|s| SteadySummary {
                total_tokens_per_second: Some(s.total_tokens_per_second),
                output_tokens_per_second: Some(s.output_tokens_per_second),
                delivered_concurrency: Some(s.delivered_concurrency),
                ttft_ms: mean_of(&s.ttft_ms, 1.0),
                itl_ms: mean_of(&s.itl_ms, 1.0),
            }),
            client_cpu: client_known.then_some(level.client.cpu_share),
            client_limit: client_known.then(|| {
                match (level.client.limited, level.client.reason.as_str()) {
                    (false, _) => String::new(),
                    (true, "") => "the load generator was at its limit".into(),
                    (true, reason) => reason.into(),
                }
            }),
            client: match client_known {
                true => ClientSummary::of(&level.client),
                false => ClientSummary::default(),
            },
            duration_s: known(level.duration_s),
            open_loop: level.strategy.open_loop(),
            scheduled_rate: level.strategy.rate(),
            server: level.server.clone(),
            host: level.host.as_ref().map(HostSummary::of).unwrap_or_default(),
            gpu: GpuSummary::of(&level.gpus),
            warnings,
        }
    }

    /// How a reader calls the level: its clients where it has such a number, else its file.
    pub fn label(&self) -> String {
        match self.concurrency {
            Some(c) if !self.open_loop => format!("{c}"),
            _ => self.file.trim_end_matches(".json").to_owned(),
        }
    }

    /// Is the client known to have been the limit?
    pub fn client_limited(&self) -> bool {
        self.client_limit
            .as_ref()
            .is_some_and(|why| !why.is_empty())
    }
}

/// The mean of a distribution that holds something.
fn mean_of(d: &DistributionSummary, unit: f64) -> Option<f64> {
    (d.count > 0).then_some(d.mean * unit)
}

fn spread(d: &DistributionSummary, unit: f64) -> Spread {
    let p = |v: f64| (d.count > 0).then_some(v * unit);
    Spread {
        p10: p(d.percentiles.p10),
        p50: p(d.percentiles.p50),
        p90: p(d.percentiles.p90),
        p95: p(d.percentiles.p95),
        p99: p(d.percentiles.p99),
        mean_interval: d.mean_ci.map(|ci| (ci.lower * unit, ci.upper * unit)),
    }
}
