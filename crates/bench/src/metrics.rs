//! The numbers of a level, pure functions of its records, by GuideLLM's definitions: latencies of the
//! successful requests, rates over the measured window, which is first send to last byte unless a
//! warm-up or cool-down was asked for.

use crate::distribution::{DistributionSummary, summarize, summarize_weighted};
use crate::record::{LevelResult, Outcome, RequestRecord, Strategy};

pub use crate::distribution::{CONFIDENCE, ConfidenceInterval, PercentileIntervals, Percentiles};

/// Waves a closed-loop level must have before its middle is called steady.
pub const STEADY_WAVES: usize = 5;

/// The numbers of one level.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelMetrics {
    /// Length of the measured window, s.
    pub window_s: f64,
    /// Requests that completed, in the window.
    pub successful: usize,
    /// Requests that failed, in the window.
    pub errored: usize,
    /// Requests that the level's end cut off, in the window.
    pub incomplete: usize,
    /// All three.
    pub total: usize,
    /// Request sent to first content chunk, ms; successful requests.
    pub ttft_ms: DistributionSummary,
    /// (last token - first token) / (tokens - 1), ms, one value a request weighted by its tokens - 1.
    pub itl_ms: DistributionSummary,
    /// (last token - sent) / tokens, ms, one value a request weighted by its tokens.
    pub tpot_ms: DistributionSummary,
    /// Sent to last byte, s.
    pub latency_s: DistributionSummary,
    /// Intended start to last byte, s; `None` in a closed loop, which has no schedule.
    pub scheduled_latency_s: Option<DistributionSummary>,
    /// Gaps between successive content chunks, ms, every gap one value: its tail shows stalls.
    pub gap_ms: DistributionSummary,
    /// Successful requests per second.
    pub requests_per_second: f64,
    /// Output tokens of successful requests per second.
    pub output_tokens_per_second: f64,
    /// Prompt tokens of successful requests per second.
    pub prompt_tokens_per_second: f64,
    /// Prompt and output tokens per second: what GuideLLM and the summary CSV call throughput.
    pub total_tokens_per_second: f64,
    /// Mean number of requests in flight over the window, by time, however they ended.
    pub delivered_concurrency: f64,
    /// The same without the ramp at both ends; `None` for fewer than [`STEADY_WAVES`] waves.
    pub steady: Option<Steady>,
}

/// The middle of a closed-loop level: from the moment when the first wave is through to the last send,
/// so without the simultaneous start and without the tail in which clients run out of work.
#[derive(Debug, Clone, PartialEq)]
pub struct Steady {
    /// Start of this window, s since the level's start.
    pub start_s: f64,
    /// End of this window, s since the level's start.
    pub end_s: f64,
    /// Successful requests sent in this window.
    pub requests: usize,
    /// Successful requests that ended in it, per second.
    pub requests_per_second: f64,
    /// Output tokens that arrived in it, per second.
    pub output_tokens_per_second: f64,
    /// The same and the prompt tokens whose first output token arrived in it, per second.
    pub total_tokens_per_second: f64,
    /// Mean number of requests in flight.
    pub delivered_concurrency: f64,
    /// TTFT of the requests sent in it, ms.
    pub ttft_ms: DistributionSummary,
    /// ITL of the requests sent in it, ms.
    pub itl_ms: DistributionSummary,
}

/// A window of a level, seconds since its start.
pub(crate) type Window = (f64, f64);

/// The measured window of a level.
pub(crate) fn window(level: &LevelResult) -> Window {
    let start = level.warmup_s.clamp(0.0, level.duration_s.max(0.0));
    (start, (level.duration_s - level.cooldown_s).max(start))
}

/// Does the request overlap the window?
pub(crate) fn overlaps(request: &RequestRecord, window: Window) -> bool {
    seconds(request.end_ns) >= window.0 && seconds(request.sent_ns) <= window.1
}

/// Nanoseconds as seconds.
pub(crate) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

impl LevelMetrics {
    /// Compute the numbers of a level.
    pub fn of(level: &LevelResult) -> LevelMetrics {
        let window = window(level);
        let all: Vec<&RequestRecord> = level
            .requests
            .iter()
            .filter(|r| overlaps(r, window))
            .collect();
        let good: Vec<&RequestRecord> = all.iter().copied().filter(|r| r.successful()).collect();
        let errored = all
            .iter()
            .filter(|r| matches!(r.outcome, Outcome::Errored(_)))
            .count();
        let rates = Rates::of(&good, window);
        let gaps: Vec<f64> = good
            .iter()
            .flat_map(|r| r.gaps_us.iter().map(|g| f64::from(*g) / 1e3))
            .collect();
        LevelMetrics {
            window_s: window.1 - window.0,
            successful: good.len(),
            errored,
            incomplete: all.len() - good.len() - errored,
            total: all.len(),
            ttft_ms: ttft(&good),
            itl_ms: itl(&good),
            tpot_ms: tpot(&good),
            latency_s: summarize(&good.iter().map(|r| r.e2e_s()).collect::<Vec<_>>()),
            scheduled_latency_s: level.strategy.open_loop().then(|| {
                summarize(
                    &good
                        .iter()
                        .map(|r| r.scheduled_latency_s())
                        .collect::<Vec<_>>(),
                )
            }),
            gap_ms: summarize(&gaps),
            requests_per_second: rates.requests,
            output_tokens_per_second: rates.output,
            prompt_tokens_per_second: rates.prompt,
            total_tokens_per_second: rates.output + rates.prompt,
            delivered_concurrency: mean_in_flight(&all, window),
            steady: steady(level),
        }
    }
}

/// TTFT of requests, ms.
pub(crate) fn ttft(requests: &[&RequestRecord]) -> DistributionSummary {
    summarize(
        &requests
            .iter()
            .filter_map(|r| r.ttft_ms())
            .collect::<Vec<_>>(),
    )
}

/// ITL of requests, ms, weighted by the tokens after the first.
pub(crate) fn itl(requests: &[&RequestRecord]) -> DistributionSummary {
    let values = requests
        .iter()
        .filter_map(|r| Some((r.itl_ms()?, (r.output_tokens - 1) as f64)));
    summarize_weighted(&values.collect::<Vec<_>>())
}

/// TPOT of requests, ms, weighted by tokens.
pub(crate) fn tpot(requests: &[&RequestRecord]) -> DistributionSummary {
    let values = requests
        .iter()
        .filter_map(|r| Some((r.tpot_ms()?, r.output_tokens as f64)));
    summarize_weighted(&values.collect::<Vec<_>>())
}

/// Per second of a window.
struct Rates {
    requests: f64,
    prompt: f64,
    output: f64,
}

impl Rates {
    /// What these requests brought within the window: a request counts where it ends, its prompt where
    /// its first token arrives, its output tokens where their chunks arrive.
    fn of(requests: &[&RequestRecord], window: Window) -> Rates {
        let inside = |t: f64| t >= window.0 && t <= window.1;
        let (mut ended, mut prompt, mut output) = (0.0, 0.0, 0.0);
        for r in requests {
            ended += f64::from(u8::from(inside(seconds(r.end_ns))));
            if inside(prompt_time(r)) {
                prompt += r.prompt_tokens as f64;
            }
            output += output_events(r)
                .filter(|e| inside(e.0))
                .map(|e| e.1)
                .sum::<f64>();
        }
        let length = (window.1 - window.0).max(1e-9);
        Rates {
            requests: ended / length,
            prompt: prompt / length,
            output: output / length,
        }
    }
}

/// When the prompt of a request counts as processed, s.
pub(crate) fn prompt_time(request: &RequestRecord) -> f64 {
    seconds(request.first_token_ns.unwrap_or(request.end_ns))
}

/// Into how many chunks the output of a request is spread at most: a file may claim any number.
const MOST_CHUNKS: u64 = 1 << 20;

/// (time s, tokens) of a request's output: the tokens shared evenly over the chunks, at the chunks' own
/// times where these are known, else evenly between the first and the last.
pub(crate) fn output_events(request: &RequestRecord) -> impl Iterator<Item = (f64, f64)> + '_ {
    let tokens = request.output_tokens as f64;
    let (first, last) = (
        request.first_token_ns.unwrap_or(request.end_ns),
        request.last_token_ns.unwrap_or(request.end_ns),
    );
    let known =
        request.gaps_us.len() as u64 + 1 == request.chunks && request.first_token_ns.is_some();
    let chunks = request.chunks.clamp(1, MOST_CHUNKS);
    let step = last.saturating_sub(first) as f64 / (chunks.max(2) - 1) as f64;
    // At least one chunk; none where there are no tokens.
    let spaced = (!known && tokens > 0.0)
        .then(|| (0..chunks).map(move |i| first.saturating_add((step * i as f64) as u64)));
    request
        .chunk_times_ns()
        .filter(move |_| known)
        .chain(spaced.into_iter().flatten())
        .map(move |t| (seconds(t.min(last)), tokens / chunks as f64))
}

/// Time-weighted number of requests in flight.
fn mean_in_flight(requests: &[&RequestRecord], window: Window) -> f64 {
    let open: f64 = requests
        .iter()
        .map(|r| (seconds(r.end_ns).min(window.1) - seconds(r.sent_ns).max(window.0)).max(0.0))
        .sum();
    open / (window.1 - window.0).max(1e-9)
}

/// The steady middle of a closed-loop level that had enough waves.
fn steady(level: &LevelResult) -> Option<Steady> {
    let clients = match level.strategy {
        Strategy::Synchronous => 1,
        Strategy::Concurrent { streams } => streams,
        _ => return None,
    };
    if clients == 0 || level.requests.len() < STEADY_WAVES.saturating_mul(clients) {
        return None;
    }
    let mut ends: Vec<u64> = level.requests.iter().map(|r| r.end_ns).collect();
    ends.sort_unstable();
    let start_s = seconds(*ends.get(clients - 1)?).max(level.warmup_s);
    let end_s = seconds(level.requests.iter().map(|r| r.sent_ns).max()?).min(window(level).1);
    if end_s <= start_s {
        return None;
    }
    let window = (start_s, end_s);
    let overlapping: Vec<&RequestRecord> = level
        .requests
        .iter()
        .filter(|r| overlaps(r, window))
        .collect();
    let good: Vec<&RequestRecord> = overlapping
        .iter()
        .copied()
        .filter(|r| r.successful())
        .collect();
    let sent: Vec<&RequestRecord> = good
        .iter()
        .copied()
        .filter(|r| seconds(r.sent_ns) >= start_s)
        .collect();
    let rates = Rates::of(&good, window);
    Some(Steady {
        start_s,
        end_s,
        requests: sent.len(),
        requests_per_second: rates.requests,
        output_tokens_per_second: rates.output,
        total_tokens_per_second: rates.output + rates.prompt,
        delivered_concurrency: mean_in_flight(&overlapping, window),
        ttft_ms: ttft(&sent),
        itl_ms: itl(&sent),
    })
}

#[cfg(test)]
mod tests;
