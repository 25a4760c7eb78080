//! The numbers of a level, pure functions of its records, by GuideLLM's definitions: latencies of the
//! successful requests, rates over the measured window, which is first send to last byte unless a
//! warm-up or cool-down was asked for.

use std::collections::BinaryHeap;

use crate::column::{Column, Gaps};
use crate::distribution::DistributionSummary;
use crate::record::{LevelResult, RequestRecord, Strategy};
use crate::requests::{Requests, Totals};
use crate::spill::Scratch;
use crate::timeline::InOrder;

use crate::slo::Goodput;

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
    /// Request sent to first content chunk that is not reasoning, ms; successful requests.
    pub ttfot_ms: DistributionSummary,
    /// Output tokens of successful requests that are reasoning; `None` where the server does not tell.
    pub reasoning_tokens: Option<u64>,
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
    /// The most requests between their first and their last token at one moment; `None` if none had any.
    /// A request that waits for a slot has no token yet, so this shows the slots whatever the queue.
    pub peak_streaming: Option<u64>,
    /// What met the level's objective; `None` if it has none.
    pub goodput: Option<Goodput>,
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
pub type Window = (f64, f64);

/// The measured window of a level.
pub fn window(level: &LevelResult) -> Window {
    let start = level.warmup_s.clamp(0.0, level.duration_s.max(0.0));
    (start, (level.duration_s - level.cooldown_s).max(start))
}

/// Does the request overlap the window?
pub(crate) fn overlaps(request: &RequestRecord, window: Window) -> bool {
    seconds(request.end_ns) >= window.0 && seconds(request.sent_ns) <= window.1
}

/// Nanoseconds as seconds.
pub fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

impl LevelMetrics {
    /// Compute the numbers of a level.
    pub fn of(level: &LevelResult) -> LevelMetrics {
        let window = window(level);
        let open_loop = level.strategy.open_loop();
        let scratch = level.requests.scratch();
        let mut totals = Totals::default();
        let mut rates = Rates::new(window);
        let mut in_flight = InFlight::new(window);
        let mut tokens = TokenTimes::new(window, scratch);
        let (mut latency, mut scheduled) = (Column::new(scratch), Column::new(scratch));
        let mut gaps = Gaps::new(scratch);
        let mut ttfot = Column::new(scratch);
        let mut reasoning_tokens = None;
        let (mut met, mut judged, mut good_ends) = (0, 0, 0);
        for r in level.requests.iter().filter(|r| overlaps(r, window)) {
            totals.add(&r.outcome);
            in_flight.add(&r);
            if let Some(kept) = level.slo.and_then(|slo| slo.met_by(&r, open_loop)) {
                judged += 1;
                met += u64::from(kept);
                good_ends += u64::from(kept && seconds(r.end_ns) <= window.1);
            }
            if r.successful() {
                rates.add(&r);
                tokens.add(&r);
                if let Some(ms) = ttfot_in(&r, window) {
                    ttfot.push(ms);
                }
                if let Some(n) = r.reasoning_tokens {
                    reasoning_tokens = Some(reasoning_tokens.unwrap_or(0u64).saturating_add(n));
                }
                latency.push(r.e2e_s());
                scheduled.push(r.scheduled_latency_s());
                r.gaps_us.iter().for_each(|gap| gaps.push(*gap));
            }
        }
        let (requests, prompt, output) = rates.per_second();
        LevelMetrics {
            window_s: window.1 - window.0,
            successful: totals.successful,
            errored: totals.errored,
            incomplete: totals.incomplete,
            total: totals.total(),
            ttft_ms: tokens.ttft_ms.summary(),
            ttfot_ms: ttfot.summary(),
            reasoning_tokens,
            itl_ms: tokens.itl_ms.summary(),
            tpot_ms: tokens.tpot_ms.summary(),
            latency_s: latency.summary(),
            scheduled_latency_s: open_loop.then(|| scheduled.summary()),
            gap_ms: gaps.summary_ms(),
            requests_per_second: requests,
            output_tokens_per_second: output,
            prompt_tokens_per_second: prompt,
            total_tokens_per_second: output + prompt,
            delivered_concurrency: in_flight.mean(),
            peak_streaming: peak_streaming(level),
            goodput: level.slo.map(|_| Goodput {
                met,
                judged,
                share: met as f64 / judged.max(1) as f64,
                requests_per_second: good_ends as f64 / (window.1 - window.0).max(1e-9),
            }),
            steady: steady(level),
        }
    }
}

/// When the tokens of requests came.
struct TokenTimes {
    window: Window,
    ttft_ms: Column,
    itl_ms: Column,
    tpot_ms: Column,
}

impl TokenTimes {
    fn new(window: Window, scratch: &Scratch) -> Self {
        TokenTimes {
            window,
            ttft_ms: Column::new(scratch),
            itl_ms: Column::new(scratch),
            tpot_ms: Column::new(scratch),
        }
    }

    fn add(&mut self, r: &RequestRecord) {
        if let Some(ttft) = ttft_in(r, self.window) {
            self.ttft_ms.push(ttft);
        }
        if let Some((itl, weight)) = itl_in(r, self.window) {
            self.itl_ms.push_weighted(itl, weight);
        }
        if let Some((tpot, weight)) = weighted_tpot(r) {
            self.tpot_ms.push_weighted(tpot, weight);
        }
    }
}

/// TTFT of a request that overlaps the window, ms, if its wait for the first token does so too.
pub fn ttft_in(r: &RequestRecord, window: Window) -> Option<f64> {
    let first_s = seconds(r.first_token_ns?);
    r.ttft_ms().filter(|_| first_s >= window.0)
}

/// The same for the time to the first token that is not reasoning.
pub fn ttfot_in(r: &RequestRecord, window: Window) -> Option<f64> {
    let first_s = seconds(r.first_output_token_ns?);
    r.ttfot_ms().filter(|_| first_s >= window.0)
}

/// ITL of a request that overlaps the window, ms, and its weight, the tokens after the first, if the time
/// from its first token on overlaps the window too.
pub fn itl_in(r: &RequestRecord, window: Window) -> Option<(f64, f64)> {
    let first_s = seconds(r.first_token_ns?);
    let itl = r.itl_ms().filter(|_| first_s <= window.1)?;
    Some((itl, (r.output_tokens - 1) as f64))
}

/// TPOT of a request, ms, and its weight: its tokens.
pub fn weighted_tpot(r: &RequestRecord) -> Option<(f64, f64)> {
    Some((r.tpot_ms()?, r.output_tokens as f64))
}

/// What requests brought within a window: a request counts where it ends, its prompt where its first
/// token arrives, its output tokens where their chunks arrive.
struct Rates {
    window: Window,
    ended: f64,
    prompt: f64,
    output: f64,
}

impl Rates {
    fn new(window: Window) -> Self {
        Rates {
            window,
            ended: 0.0,
            prompt: 0.0,
            output: 0.0,
        }
    }

    fn add(&mut self, r: &RequestRecord) {
        let window = self.window;
        let inside = |ns: u64| (window.0..=window.1).contains(&seconds(ns));
        self.ended += f64::from(u8::from(inside(r.end_ns)));
        if inside(prompt_time_ns(r)) {
            self.prompt += r.prompt_tokens as f64;
        }
        let output = output_events(r).filter(|e| inside(e.0)).map(|e| e.1);
        self.output += output.sum::<f64>();
    }

    /// Requests, prompt tokens and output tokens per second.
    fn per_second(&self) -> (f64, f64, f64) {
        let length = (self.window.1 - self.window.0).max(1e-9);
        (
            self.ended / length,
            self.prompt / length,
            self.output / length,
        )
    }
}

/// When the prompt of a request counts as processed, ns.
pub(crate) fn prompt_time_ns(request: &RequestRecord) -> u64 {
    request.first_token_ns.unwrap_or(request.end_ns)
}

/// Into how many chunks the output of a request is spread at most: a file may claim any number.
const MOST_CHUNKS: u64 = 1 << 20;

/// (time ns, tokens) of a request's output: the tokens shared evenly over the chunks, at the chunks' own
/// times where these are known, else evenly between the first and the last.
pub fn output_events(request: &RequestRecord) -> impl Iterator<Item = (u64, f64)> + '_ {
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
        .map(move |t| (t.min(last), tokens / chunks as f64))
}

/// Time-weighted number of requests in flight.
struct InFlight {
    window: Window,
    open_s: f64,
}

impl InFlight {
    fn new(window: Window) -> Self {
        InFlight {
            window,
            open_s: 0.0,
        }
    }

    fn add(&mut self, r: &RequestRecord) {
        let (start, end) = (seconds(r.sent_ns), seconds(r.end_ns));
        self.open_s += (end.min(self.window.1) - start.max(self.window.0)).max(0.0);
    }

    fn mean(&self) -> f64 {
        self.open_s / (self.window.1 - self.window.0).max(1e-9)
    }
}

/// The most requests between their first and their last token at one moment, whatever became of them.
fn peak_streaming(level: &LevelResult) -> Option<u64> {
    let (mut now, mut peak) = (0i64, None);
    let mut count = |((_, change), ()): ((u64, i8), ())| {
        now += i64::from(change);
        peak = peak.max(Some(now));
    };
    // Ends before starts: one request that takes over another's slot does not make two.
    let mut order = InOrder::new();
    for r in &level.requests {
        order.release((r.sent_ns, i8::MIN), &mut count);
        if let (Some(first), Some(last)) = (r.first_token_ns, r.last_token_ns) {
            order.push((first, 1), ());
            order.push((last.max(first), -1), ());
        }
    }
    order.finish(&mut count);
    peak.and_then(|peak| u64::try_from(peak).ok())
}

/// When the n-th request ended, ns since the level's start, or the n-th from the end; `None` if there
/// are fewer or n is 0. Only n times are held.
pub(crate) fn nth_end_ns(requests: &Requests, n: usize, from_the_end: bool) -> Option<u64> {
    let mut first: BinaryHeap<u64> = BinaryHeap::new();
    for r in requests {
        // The first n of what is turned around are the last.
        let key = if from_the_end { !r.end_ns } else { r.end_ns };
        if first.len() < n {
            first.push(key);
        } else if let Some(mut largest) = first.peek_mut()
            && key < *largest
        {
            *largest = key;
        }
    }
    let key = *first.peek().filter(|_| first.len() == n)?;
    Some(if from_the_end { !key } else { key })
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
    let first_wave_ns = nth_end_ns(&level.requests, clients, false)?;
    let start_s = seconds(first_wave_ns).max(level.warmup_s);
    let last_sent_ns = level.requests.iter().map(|r| r.sent_ns).max()?;
    let end_s = seconds(last_sent_ns).min(window(level).1);
    if end_s <= start_s {
        return None;
    }
    let window = (start_s, end_s);
    let mut rates = Rates::new(window);
    let mut in_flight = InFlight::new(window);
    let mut tokens = TokenTimes::new((start_s, f64::INFINITY), level.requests.scratch());
    let mut sent = 0;
    for r in level.requests.iter().filter(|r| overlaps(r, window)) {
        in_flight.add(&r);
        if r.successful() {
            rates.add(&r);
            if seconds(r.sent_ns) >= start_s {
                sent += 1;
                tokens.add(&r);
            }
        }
    }
    let (requests, prompt, output) = rates.per_second();
    Some(Steady {
        start_s,
        end_s,
        requests: sent,
        requests_per_second: requests,
        output_tokens_per_second: output,
        total_tokens_per_second: output + prompt,
        delivered_concurrency: in_flight.mean(),
        ttft_ms: tokens.ttft_ms.summary(),
        itl_ms: tokens.itl_ms.summary(),
    })
}

#[cfg(test)]
mod tests;
