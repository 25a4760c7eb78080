//! What becomes of a level when its threads are through: the result, its phases and its warnings.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{LevelPlan, failures};
use crate::config::Phase;
use crate::counters::Counters;
use crate::health::{self, ThreadHealth};
use crate::metrics::{nth_end_ns, seconds};
use crate::preflight::Prepared;
use crate::record::{LevelResult, TokenSource};
use crate::requests::Gathering;
use crate::worker::LevelShared;

/// Put the threads' records together.
pub(super) fn result(
    prepared: &Prepared,
    plan: LevelPlan<'_>,
    shared: &LevelShared,
    started: SystemTime,
    threads: &[ThreadHealth],
    gathered: Gathering,
) -> LevelResult {
    let config = &prepared.config;
    let start_ns = gathered.start_ns(plan.strategy.open_loop());
    let requests = gathered.finish(start_ns);
    let started_unix = started
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    let (prompt_tokens, output_tokens) = prepared.workload.uniform();
    let generates = config.target.endpoint.generates();
    let mut level = LevelResult {
        target: prepared.target.clone(),
        model: prepared.model.clone(),
        endpoint: config.target.endpoint.path().to_owned(),
        http_version: prepared.connector.http_version().to_owned(),
        started_unix: started_unix + start_ns as f64 / 1e9,
        duration_s: requests.last_end_ns() as f64 / 1e9,
        requested_prompt_tokens: prompt_tokens,
        requested_output_tokens: output_tokens.filter(|_| generates),
        data: config.data.spec(),
        fingerprint: config.fingerprint(&prepared.target, &prepared.model, &plan.strategy),
        stopped: shared.watch.reason(requests.len() as u64),
        requests,
        rampup_s: plan.rampup_s,
        slo: config.slo,
        ..LevelResult::empty(plan.strategy)
    };
    level.warmup_s = phase_s(config.warmup, &level, false);
    level.cooldown_s = phase_s(config.cooldown, &level, true);
    level.warnings = prepared.warnings.clone();
    level.warnings.extend(shared.watch.warning());
    level.warnings.extend(failures::warning(&level));
    level
        .warnings
        .extend(warnings(&level, config.data.ignore_eos));
    level.warnings.extend(pauses(&shared.client.counters));
    let sessions = shared.sessions.load(Relaxed);
    level
        .warnings
        .extend(prepared.workload.warning(shared.first_session, sessions));
    level.warnings.extend(other_sizes(
        &level,
        &shared.client.counters,
        config.data.ignore_eos,
    ));
    level.client = health::judge(&level, threads, &shared.client.counters);
    level
        .warnings
        .extend(health::warnings(&level.client, &shared.client.counters));
    level
}

/// What clients that did as Retry-After told mean for the load.
fn pauses(counters: &Counters) -> Option<String> {
    let number = counters.pauses.load(Relaxed);
    let seconds = counters.paused_ms.load(Relaxed) as f64 / 1e3;
    (number > 0).then(|| {
        format!(
            "the server asked for less load (Retry-After) {number} times and clients waited {seconds:.1} s in all: fewer requests were in flight than asked for"
        )
    })
}

/// Length of a warm-up, or of a cool-down, seconds.
fn phase_s(phase: Phase, level: &LevelResult, at_end: bool) -> f64 {
    let duration = level.duration_s;
    match phase {
        Phase::None => 0.0,
        Phase::Seconds(seconds) => seconds.min(duration),
        Phase::Share(share) => share * duration,
        Phase::Requests(0) => 0.0,
        Phase::Requests(n) => {
            let n = (n as usize).min(level.requests.len());
            match nth_end_ns(&level.requests, n, at_end) {
                None => 0.0,
                Some(end) if at_end => duration - seconds(end),
                Some(end) => seconds(end),
            }
        }
    }
}

/// Counts that are not as asked.
struct Others {
    asked: Option<u64>,
    number: usize,
    low: u64,
    high: u64,
}

impl Others {
    fn than(asked: Option<u64>) -> Self {
        Others {
            asked,
            number: 0,
            low: u64::MAX,
            high: 0,
        }
    }

    fn add(&mut self, tokens: u64) {
        if self.asked.is_some_and(|asked| asked != tokens) {
            self.number += 1;
            (self.low, self.high) = (self.low.min(tokens), self.high.max(tokens));
        }
    }

    fn warning(&self, what: &str, requests: usize) -> Option<String> {
        let asked = self.asked.filter(|_| self.number > 0)?;
        Some(format!(
            "{} of {requests} requests have not {asked} {what} tokens but {} to {}",
            self.number, self.low, self.high
        ))
    }
}

/// Requests that have not the sizes that each was asked for: where these differ, the records do not know them.
fn other_sizes(level: &LevelResult, counters: &Counters, exact_output: bool) -> Vec<String> {
    let of = level.requests.totals().successful;
    let others = |number: u64, uniform: Option<u64>, what: &str| {
        (number > 0 && uniform.is_none()).then(|| {
            format!(
                "{number} of {of} requests have another number of {what} tokens than was asked for"
            )
        })
    };
    let prompts = counters.other_prompts.load(Relaxed);
    let outputs = counters.other_outputs.load(Relaxed);
    let outputs = if exact_output { outputs } else { 0 };
    let unknown = counters.unknown_prompts.load(Relaxed);
    let unknown = (unknown > 0).then(|| {
        format!("the prompt tokens of {unknown} of {of} requests are not known and counted as none: neither the server nor the data tells them, nor a tokenizer")
    });
    let far = counters.far_prompts.load(Relaxed);
    let far = (far > 0).then(|| {
        format!("the server's usage disagrees with the data: of {far} of {of} requests it counts over 10 % more or fewer prompt tokens; its numbers are taken")
    });
    let short = counters.short_counts.load(Relaxed);
    let short = (short > 0).then(|| {
        format!("the server's usage disagrees with its answers: of {short} of {of} requests it counts fewer output tokens than chunks with text came; its numbers are taken")
    });
    let prompts = others(prompts, level.requested_prompt_tokens, "prompt");
    let outputs = others(outputs, level.requested_output_tokens, "output");
    [prompts, outputs, far, short, unknown]
        .into_iter()
        .flatten()
        .collect()
}

/// What the records themselves say against the numbers.
fn warnings(level: &LevelResult, exact_output: bool) -> Vec<String> {
    let mut prompts = Others::than(level.requested_prompt_tokens);
    let mut outputs = Others::than(level.requested_output_tokens.filter(|_| exact_output));
    let (mut prompt, mut cached, mut chunks_counted) = (0, 0, false);
    for r in level.requests.iter().filter(|r| r.successful()) {
        prompts.add(r.prompt_tokens);
        outputs.add(r.output_tokens);
        prompt += r.prompt_tokens;
        cached += r.cached_tokens.unwrap_or(0);
        chunks_counted |= r.token_source == TokenSource::Chunks && r.output_tokens > 0;
    }
    let successful = level.requests.totals().successful;
    let mut found = Vec::new();
    found.extend(prompts.warning("prompt", successful));
    found.extend(outputs.warning("output", successful));
    if chunks_counted {
        found.push("the server sends no usage: each chunk is counted as one output token".into());
    }
    // One block in common is a template; more means that prompts were known.
    if cached * 4 > prompt && prompt > 0 {
        found.push(format!(
            "the server took {:.0} % of the prompt tokens from its prefix cache",
            100.0 * cached as f64 / prompt as f64
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{RequestRecord, Strategy};

    #[test]
    fn phases_in_seconds_requests_and_shares() {
        let mut level = LevelResult::empty(Strategy::Synchronous);
        level.duration_s = 10.0;
        level.requests = (1..=10)
            .map(|i| RequestRecord {
                end_ns: i * 1_000_000_000,
                ..RequestRecord::default()
            })
            .collect();
        assert_eq!(phase_s(Phase::Seconds(2.5), &level, false), 2.5);
        assert_eq!(phase_s(Phase::Seconds(99.0), &level, true), 10.0);
        assert_eq!(phase_s(Phase::Share(0.2), &level, false), 2.0);
        assert_eq!(phase_s(Phase::Requests(3), &level, false), 3.0);
        assert_eq!(phase_s(Phase::Requests(3), &level, true), 2.0);
        assert_eq!(phase_s(Phase::Requests(0), &level, true), 0.0);
    }

    #[test]
    fn counts_that_are_not_as_asked_are_told_once() {
        let mut level = LevelResult::empty(Strategy::Synchronous);
        level.requested_prompt_tokens = Some(128);
        level.requested_output_tokens = Some(64);
        let request = |prompt, output| RequestRecord {
            outcome: crate::Outcome::Successful,
            prompt_tokens: prompt,
            output_tokens: output,
            cached_tokens: Some(100),
            token_source: TokenSource::Usage,
            ..RequestRecord::default()
        };
        level.requests = vec![request(128, 64), request(127, 64), request(130, 10)].into();
        let told = warnings(&level, true);
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("2 of 3") && told[0].contains("127 to 130"));
        assert!(told[1].contains("1 of 3") && !told[1].contains("prefix"));
        assert!(told[2].contains("prefix cache"));
        assert_eq!(warnings(&level, false).len(), 2);
    }
}
