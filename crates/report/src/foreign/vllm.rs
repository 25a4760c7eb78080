//! The result file of `vllm bench serve`: one object a run, several where it was appended to. With
//! `--save-detailed` it holds every request, and where it holds their start times too, our own definitions
//! are used; else its means and percentiles are taken over.
//!
//! Its TPOT is without the first token, which is GuideLLM's (and our) ITL; its ITL is the gap of two chunks.

use std::io::Read;

use powerband_bench::{LevelResult, Outcome, RequestRecord, Strategy, TokenSource};
use serde::Deserialize;
use serde_json::Value;

use super::{plausible, summary_of};
use crate::load::Level;
use crate::summary::{LevelSummary, Spread};

#[derive(Default, Deserialize)]
#[serde(default)]
struct Run {
    model_id: Option<String>,
    /// A number, or `inf`.
    request_rate: Value,
    burstiness: Option<f64>,
    max_concurrency: Option<usize>,
    num_prompts: Option<u64>,
    duration: f64,
    completed: u64,
    failed: Option<u64>,
    total_input_tokens: Option<f64>,
    total_output_tokens: Option<f64>,
    request_throughput: Option<f64>,
    output_throughput: Option<f64>,
    total_token_throughput: Option<f64>,
    mean_ttft_ms: Option<f64>,
    median_ttft_ms: Option<f64>,
    p90_ttft_ms: Option<f64>,
    p95_ttft_ms: Option<f64>,
    p99_ttft_ms: Option<f64>,
    mean_tpot_ms: Option<f64>,
    median_tpot_ms: Option<f64>,
    p90_tpot_ms: Option<f64>,
    p95_tpot_ms: Option<f64>,
    p99_tpot_ms: Option<f64>,
    mean_e2el_ms: Option<f64>,
    median_e2el_ms: Option<f64>,
    p90_e2el_ms: Option<f64>,
    p95_e2el_ms: Option<f64>,
    p99_e2el_ms: Option<f64>,
    input_lens: Vec<u64>,
    output_lens: Vec<u64>,
    /// Seconds, as all times of a request.
    start_times: Vec<f64>,
    ttfts: Vec<f64>,
    itls: Vec<Vec<f32>>,
    latencies: Vec<f64>,
    errors: Vec<String>,
}

/// The runs of a file; what is wrong if it is none.
pub fn read(file: impl Read) -> Result<Vec<Level>, String> {
    let runs = serde_json::Deserializer::from_reader(file).into_iter::<Run>();
    runs.map(|run| {
        run.map_err(|e| format!("it is no result of `vllm bench serve` ({e})"))?
            .level()
    })
    .collect()
}

impl Run {
    fn strategy(&self) -> Strategy {
        let max_concurrency = self.max_concurrency;
        match (self.request_rate.as_f64(), max_concurrency) {
            (Some(rate), _) => Strategy::Poisson {
                rate,
                max_concurrency,
            },
            (None, Some(streams)) => Strategy::Concurrent { streams },
            (None, None) => Strategy::Throughput { max_concurrency },
        }
    }

    fn warnings(&self) -> Vec<String> {
        let regular = self.burstiness.filter(|b| *b != 1.0);
        let gamma = regular.filter(|_| self.request_rate.is_number());
        gamma
            .map(|b| format!("arrivals follow a gamma distribution of burstiness {b}, not Poisson"))
            .into_iter()
            .collect()
    }

    fn level(self) -> Result<Level, String> {
        let n = self.start_times.len();
        let whole = [
            self.input_lens.len(),
            self.output_lens.len(),
            self.ttfts.len(),
            self.itls.len(),
        ];
        if n > 0 && whole.iter().all(|len| *len == n) {
            return self.records();
        }
        Ok(self.summary().into())
    }

    fn records(self) -> Result<Level, String> {
        let finite = |v: &&f64| v.is_finite();
        let start = self
            .start_times
            .iter()
            .filter(finite)
            .fold(f64::MAX, |a, b| a.min(*b));
        let ns = |seconds: f64| (seconds.max(0.0) * 1e9).round() as u64;
        let record = |i: usize| {
            let sent = self.start_times[i] - start;
            let first = sent + self.ttfts[i];
            let last = first + self.itls[i].iter().map(|gap| f64::from(*gap)).sum::<f64>();
            let error = self.errors.get(i).filter(|e| !e.is_empty());
            let streamed = error.is_none() && self.ttfts[i] > 0.0;
            RequestRecord {
                id: i.to_string(),
                outcome: match error {
                    Some(why) => Outcome::Errored(why.clone()),
                    None => Outcome::Successful,
                },
                intended_ns: ns(sent),
                sent_ns: ns(sent),
                first_token_ns: streamed.then(|| ns(first)),
                first_output_token_ns: streamed.then(|| ns(first)),
                last_token_ns: streamed.then(|| ns(last)),
                end_ns: ns(self.latencies.get(i).map_or(last, |l| (sent + l).max(last))),
                prompt_tokens: self.input_lens[i],
                output_tokens: self.output_lens[i],
                chunks: self.itls[i].len() as u64 + 1,
                gaps_us: self.itls[i]
                    .iter()
                    .map(|gap| (gap * 1e6).round() as u32)
                    .collect(),
                token_source: TokenSource::Tokenizer,
                ..RequestRecord::default()
            }
        };
        let mut level = LevelResult::empty(self.strategy());
        let mut records = Vec::with_capacity(self.start_times.len());
        for i in 0..self.start_times.len() {
            let record = record(i);
            if let Some(what) = record.implausible() {
                return Err(format!("its request {i} claims {what}"));
            }
            records.push(record);
        }
        level.model = self.model_id.clone().unwrap_or_default();
        level.warnings = self.warnings();
        level.requests = records.into_iter().collect();
        level.duration_s = level.requests.last_end_ns() as f64 / 1e9;
        Ok(Level::of(&level))
    }

    fn summary(&self) -> LevelSummary {
        let known = |v: Option<f64>| v.and_then(plausible);
        let each = |sum: Option<f64>| known(Some(known(sum)? / self.completed as f64));
        let (ttft, itl) = (known(self.mean_ttft_ms), known(self.mean_tpot_ms));
        let output_tokens = each(self.total_output_tokens);
        let mut warnings = self.warnings();
        let e2e_ms = known(self.mean_e2el_ms).or_else(|| {
            let e2e = ttft? + (output_tokens? - 1.0).max(0.0) * itl?;
            warnings.push("E2E is not in the file and was taken as TTFT + (n - 1) ITL".into());
            Some(e2e)
        });
        let failed = self.failed.or(self
            .num_prompts
            .map(|asked| asked.saturating_sub(self.completed)));
        let requests_per_second = known(self.request_throughput);
        let spread = |p50, p90, p95, p99| Spread {
            p50: known(p50),
            p90: known(p90),
            p95: known(p95),
            p99: known(p99),
            ..Spread::default()
        };
        LevelSummary {
            throughput: known(self.total_token_throughput),
            ttft_ms: ttft,
            itl_ms: itl,
            e2e_ms,
            successful: Some(self.completed),
            errored: failed,
            incomplete: Some(0),
            total: failed.map(|failed| failed.saturating_add(self.completed)),
            output_tokens_per_second: known(self.output_throughput),
            prompt_tokens_per_second: self
                .total_input_tokens
                .and_then(|tokens| known(Some(tokens / self.duration))),
            requests_per_second,
            prompt_tokens: each(self.total_input_tokens),
            output_tokens,
            ttft: spread(
                self.median_ttft_ms,
                self.p90_ttft_ms,
                self.p95_ttft_ms,
                self.p99_ttft_ms,
            ),
            itl: spread(
                self.median_tpot_ms,
                self.p90_tpot_ms,
                self.p95_tpot_ms,
                self.p99_tpot_ms,
            ),
            e2e: spread(
                self.median_e2el_ms,
                self.p90_e2el_ms,
                self.p95_e2el_ms,
                self.p99_e2el_ms,
            ),
            warnings,
            ..summary_of(&self.strategy())
        }
    }
}
