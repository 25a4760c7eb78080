//! Reading reports, ours and others', with whatever fields they have.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::chunk::excerpt;
use crate::error::BenchError;
use crate::jsonl;
use crate::record::{LevelResult, Outcome, RequestRecord, Strategy, TokenSource};
use crate::requests::{Gathering, Requests};
use crate::slo::Slo;
use crate::spill::Scratch;

/// Read the levels of a report, in its order. Fields that are missing are left empty; what we wrote
/// ourselves comes back exactly. The requests of a level of ours that are not all listed are taken from the
/// [JSON lines](crate::jsonl) beside the file.
///
/// # Errors
/// [`BenchError::Read`] for a file that is not there, is no JSON, or holds no benchmark.
pub fn read(path: &Path) -> Result<Vec<LevelResult>, BenchError> {
    let failed = |problem: String| BenchError::Read {
        path: path.to_owned(),
        problem,
    };
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let report: Report = serde_json::from_reader(BufReader::new(file))
        .map_err(|e| failed(format!("it is not a GuideLLM report ({e})")))?;
    if report.benchmarks.is_empty() {
        return Err(failed(
            "it holds no benchmark; expected GuideLLM's report, schema version 2".into(),
        ));
    }
    let levels = report.benchmarks.into_iter().map(|benchmark| {
        let created = benchmark.scheduler_state.created_requests;
        let created = created.filter(|_| benchmark.powerband.is_some());
        let mut level = benchmark.into_level().map_err(failed)?;
        if let Some(created) = created.filter(|created| *created != level.requests.len()) {
            level.requests = not_listed(path, created)?;
        }
        Ok(level)
    });
    levels.collect()
}

/// The requests of a level that its report lists only some of.
fn not_listed(path: &Path, created: usize) -> Result<Requests, BenchError> {
    let lines = jsonl::beside(path);
    let requests = jsonl::read(&lines)?;
    if requests.len() != created {
        return Err(BenchError::Read {
            problem: format!(
                "it has {} requests, but the level in {} had {created}",
                requests.len(),
                path.display()
            ),
            path: lines,
        });
    }
    Ok(requests)
}

#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    benchmarks: Vec<Benchmark>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Benchmark {
    config: Config,
    scheduler_state: SchedulerState,
    requests: RequestLists,
    start_time: Option<f64>,
    end_time: Option<f64>,
    warmup_duration: f64,
    cooldown_duration: f64,
    warnings: Vec<Warning>,
    powerband: Option<Box<LevelResult>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    strategy: RawStrategy,
    backend: Backend,
    requests: Data,
    slo: Option<RawSlo>,
}

/// GuideLLM calls the ITL `tpot` in an objective.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RawSlo {
    ttft_ms: Option<f64>,
    tpot_ms: Option<f64>,
    e2el_ms: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SchedulerState {
    created_requests: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawStrategy {
    type_: String,
    streams: Option<usize>,
    rate: Option<f64>,
    max_concurrency: Option<usize>,
    time_scale: Option<f64>,
    rampup_duration: f64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Backend {
    target: Option<String>,
    model: Option<String>,
    request_format: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    prompt_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Warning {
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Stats {
    request_id: String,
    info: Info,
    input_metrics: Usage,
    output_metrics: Usage,
    request_start_time: Option<f64>,
    request_end_time: Option<f64>,
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    output_tokens: Option<u64>,
    powerband: Option<RequestRecord>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    total_tokens: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Info {
    timings: Timings,
    error: Option<String>,
    turn_index: u32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Timings {
    targeted_start: Option<f64>,
    predecessor_completed: Option<f64>,
    request_start: Option<f64>,
    first_token_iteration: Option<f64>,
    first_output_token_iteration: Option<f64>,
    last_token_iteration: Option<f64>,
    request_iterations: u64,
    token_iterations: u64,
    request_end: Option<f64>,
    resolve_end: Option<f64>,
}

/// How a group's requests ended, given their errors.
type ToOutcome = fn(String) -> Outcome;

impl Stats {
    /// When it was sent, seconds since 1970.
    fn start(&self) -> Option<f64> {
        self.info.timings.request_start.or(self.request_start_time)
    }

    /// As a record of ours, its times in ns since 1970.
    fn into_record(self, outcome: ToOutcome) -> RequestRecord {
        let sent = self.start().map_or(0, unix_ns);
        let t = self.info.timings;
        let end = t.request_end.or(self.request_end_time).or(t.resolve_end);
        let counted = self.output_tokens.or(self.output_metrics.total_tokens);
        RequestRecord {
            id: self.request_id,
            outcome: outcome(self.info.error.unwrap_or_default()),
            intended_ns: t.targeted_start.map_or(sent, unix_ns),
            sent_ns: sent,
            first_token_ns: t.first_token_iteration.map(unix_ns),
            first_output_token_ns: t.first_output_token_iteration.map(unix_ns),
            last_token_ns: t.last_token_iteration.map(unix_ns),
            end_ns: end.map_or(sent, unix_ns),
            prompt_tokens: self
                .prompt_tokens
                .or(self.input_metrics.total_tokens)
                .unwrap_or(0),
            cached_tokens: self.cached_tokens,
            output_tokens: counted.unwrap_or(t.token_iterations),
            reasoning_tokens: None,
            chunks: t.token_iterations,
            iterations: t.request_iterations,
            gaps_us: Vec::new(),
            token_source: match counted {
                Some(_) => TokenSource::Usage,
                None => TokenSource::Chunks,
            },
            session: None,
            turn: self.info.turn_index,
            predecessor_end_ns: t.predecessor_completed.map(unix_ns),
        }
    }
}

/// Seconds since 1970 as nanoseconds. Whole seconds and the rest apart: together they have more digits
/// than a float.
fn unix_ns(seconds: f64) -> u64 {
    let whole = (seconds.max(0.0) as u64).saturating_mul(1_000_000_000);
    whole.saturating_add((seconds.max(0.0).fract() * 1e9).round() as u64)
}

/// The lists of requests, taken one request at a time: they may be longer than memory.
struct RequestLists {
    records: Gathering,
    /// Start of the first request that has no record of ours, seconds since 1970.
    origin: Option<f64>,
    /// Requests that have a record of ours.
    ours: u64,
    others: u64,
    implausible: Option<String>,
}

impl Default for RequestLists {
    fn default() -> Self {
        RequestLists {
            records: Gathering::new(Scratch::default()),
            origin: None,
            ours: 0,
            others: 0,
            implausible: None,
        }
    }
}

impl RequestLists {
    fn push(&mut self, mut stats: Stats, outcome: ToOutcome) {
        let record = match stats.powerband.take() {
            Some(record) => {
                self.ours += 1;
                record
            }
            None => {
                self.others += 1;
                let start = stats.start().filter(|t| t.is_finite());
                self.origin = [self.origin, start].into_iter().flatten().reduce(f64::min);
                stats.into_record(outcome)
            }
        };
        if let (None, Some(what)) = (&self.implausible, record.implausible()) {
            let id = excerpt(record.id.as_bytes());
            self.implausible = Some(format!("the request `{id}` claims {what}"));
        }
        self.records.push_anyway(record);
    }

    /// The requests and the start of the first, seconds since 1970; why they cannot be, if so.
    fn finish(self) -> Result<(Requests, f64), String> {
        if let Some(what) = self.implausible {
            return Err(what);
        }
        if self.ours > 0 && self.others > 0 {
            return Err("some of its requests have a `powerband` record and some have none".into());
        }
        let origin = self.origin.unwrap_or(0.0);
        Ok((self.records.finish(unix_ns(origin)), origin))
    }
}

impl<'de> Deserialize<'de> for RequestLists {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ListsVisitor)
    }
}

struct ListsVisitor;

impl<'de> Visitor<'de> for ListsVisitor {
    type Value = RequestLists;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("lists of requests")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<RequestLists, A::Error> {
        let mut lists = RequestLists::default();
        while let Some(name) = fields.next_key::<Cow<'_, str>>()? {
            let outcome: ToOutcome = match &*name {
                "successful" => |_| Outcome::Successful,
                "errored" => Outcome::Errored,
                "incomplete" => Outcome::Incomplete,
                _ => {
                    fields.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let lists = &mut lists;
            fields.next_value_seed(List { lists, outcome })?;
        }
        Ok(lists)
    }
}

/// One list, which may also be null.
struct List<'a> {
    lists: &'a mut RequestLists,
    outcome: ToOutcome,
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of requests")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(stats) = list.next_element()? {
            self.lists.push(stats, self.outcome);
        }
        Ok(())
    }
}

impl Benchmark {
    /// The level; why it cannot be, if so.
    fn into_level(self) -> Result<LevelResult, String> {
        let (requests, origin) = self.requests.finish()?;
        if let Some(level) = self.powerband {
            return Ok(LevelResult { requests, ..*level });
        }
        let duration_s = requests.last_end_ns() as f64 / 1e9;
        // The measured window, where it stands in the file. GuideLLM's ends where the level should have
        // ended, which is not when its last request did. What is below a microsecond is rounding.
        let phase = |seconds: f64| if seconds < 1e-6 { 0.0 } else { seconds };
        let warmup_s = self.start_time.map(|t| phase(t - origin));
        let cooldown_s = self.end_time.map(|t| phase(duration_s - (t - origin)));
        Ok(LevelResult {
            target: self.config.backend.target.unwrap_or_default(),
            model: self.config.backend.model.unwrap_or_default(),
            endpoint: self.config.backend.request_format.unwrap_or_default(),
            started_unix: origin,
            duration_s,
            requested_prompt_tokens: self.config.requests.prompt_tokens,
            requested_output_tokens: self.config.requests.output_tokens,
            requests,
            slo: self.config.slo.and_then(RawSlo::into_slo),
            rampup_s: self.config.strategy.rampup_duration,
            warmup_s: warmup_s.unwrap_or(self.warmup_duration),
            cooldown_s: cooldown_s.unwrap_or(self.cooldown_duration),
            warnings: self.warnings.into_iter().map(|w| w.message).collect(),
            ..LevelResult::empty(self.config.strategy.into_strategy())
        })
    }
}

impl RawSlo {
    /// `None` for one that limits nothing.
    fn into_slo(self) -> Option<Slo> {
        let slo = Slo {
            ttft_ms: self.ttft_ms,
            itl_ms: self.tpot_ms,
            e2e_ms: self.e2el_ms,
        };
        slo.check().is_ok().then_some(slo)
    }
}

impl RawStrategy {
    fn into_strategy(self) -> Strategy {
        let max_concurrency = self.max_concurrency;
        match (self.type_.as_str(), self.streams, self.rate) {
            ("concurrent", Some(streams), _) => Strategy::Concurrent { streams },
            ("constant", _, Some(rate)) => Strategy::Constant {
                rate,
                max_concurrency,
            },
            ("poisson", _, Some(rate)) => Strategy::Poisson {
                rate,
                max_concurrency,
            },
            ("trace", ..) => Strategy::Replay {
                time_scale: self.time_scale.unwrap_or(1.0),
                max_concurrency,
            },
            ("throughput", ..) => Strategy::Throughput { max_concurrency },
            ("synchronous", ..) => Strategy::Synchronous,
            // A shape that we do not have: what is known of it is its cap.
            _ => Strategy::Throughput { max_concurrency },
        }
    }
}
