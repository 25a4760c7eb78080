//! What requests hold. [`DataConfig`] is what the user asks for; `workload` gives each request its prompt and its
//! number of output tokens, as a turn of a `session`: from `synthetic` texts (`prompts` of `words`, of drawn
//! `lengths`) that `calibrate` has learnt to make as long as the server counts, or from the `rows` of a file (a
//! `table` whose `columns` hold prompts or a `conversation`, kept in a `store`), or from a `trace`, perhaps of
//! `otel` spans.

pub(crate) mod calibrate;
mod columns;
mod conversation;
pub(crate) mod lengths;
mod otel;
pub(crate) mod prompts;
mod rows;
pub(crate) mod session;
mod source;
mod store;
mod synthetic;
mod table;
mod trace;
pub(crate) mod words;
mod workload;

use serde_json::{Value, json};

pub use columns::Column;
pub use lengths::{Spread, ThinkTime};
pub(crate) use rows::Rows;
pub use source::{DataSource, FileData, History, RowOrder, TraceData, TraceFormat};
pub(crate) use synthetic::Synthetic;
pub(crate) use trace::{Calls, MOST_SPAN_S, Trace};
pub(crate) use workload::Workload;

use crate::error::BenchError;
use crate::target::TargetConfig;
use lengths::{Drawn, MOST_LENGTH};

/// Most turns of a session.
const MOST_TURNS: u32 = 1000;
/// Largest sum of the buckets' weights, and most prefixes of a bucket.
const MOST_PREFIXES: u64 = u32::MAX as u64;

/// How a prompt is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PromptFormat {
    /// As text.
    #[default]
    Text,
    /// As an array of token ids from this range (end excluded): exact without any tokenizer.
    TokenIds {
        /// Smallest id.
        low: u32,
        /// One past the largest.
        high: u32,
    },
}

/// Prompts that begin alike, as in a server with a few system prompts. The prefix is a system message where the
/// endpoint takes messages, else it stands in front of the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixBucket {
    /// Share of the sessions that take their prefix from here, against the other buckets' weights.
    pub weight: u64,
    /// Different prefixes, each taken equally often.
    pub count: u64,
    /// Tokens of each prefix, besides those of the prompt; with 0 these sessions have none.
    pub tokens: u64,
}

impl PrefixBucket {
    /// One prefix of so many tokens.
    pub(crate) fn of(tokens: u64) -> Self {
        PrefixBucket {
            tokens,
            ..PrefixBucket::default()
        }
    }
}

impl Default for PrefixBucket {
    /// GuideLLM's: a weight of 100, one prefix, no tokens.
    fn default() -> Self {
        PrefixBucket {
            weight: 100,
            count: 1,
            tokens: 0,
        }
    }
}

/// The requests' contents.
#[derive(Debug, Clone, PartialEq)]
pub struct DataConfig {
    /// Where prompts come from. What is said below of prompts, prefixes and turns is of those that are made up:
    /// a file has its own.
    pub source: DataSource,
    /// Mean tokens of each prompt, as the server's `usage` counts them. Of the later turns of a session it is
    /// the length of what the user says then.
    pub prompt_tokens: u64,
    /// How the prompts' lengths lie about it; all alike by default.
    pub prompt_spread: Spread,
    /// Mean tokens of each answer.
    pub output_tokens: u64,
    /// How the answers' lengths lie about it; all alike by default.
    pub output_spread: Spread,
    /// What prompts begin with in common; none by default. In a session the first turn alone has it.
    pub prefix_buckets: Vec<PrefixBucket>,
    /// Turns of a session, each with all that was said before in front: the server's own answers. A session
    /// ends with a turn that fails.
    pub turns: u32,
    /// Time between an answer and the session's next turn; none by default. In a closed loop the client
    /// waits meanwhile; in an open one the turn goes with the first arrival after it.
    pub think_time: Option<ThinkTime>,
    /// Text or token ids.
    pub format: PromptFormat,
    /// Ask the server to run on past its end token, so that answers have exactly `output_tokens`.
    pub ignore_eos: bool,
    /// Seed of the prompts; `None` for new ones in each run, so that a server's prefix cache cannot
    /// know them from the run before.
    pub seed: Option<u64>,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            source: DataSource::Synthetic,
            prompt_tokens: 128,
            prompt_spread: Spread::default(),
            output_tokens: 64,
            output_spread: Spread::default(),
            prefix_buckets: Vec::new(),
            turns: 1,
            think_time: None,
            format: PromptFormat::Text,
            ignore_eos: true,
            seed: None,
        }
    }
}

impl DataConfig {
    /// Find what cannot work before anything is sent.
    pub(crate) fn check(&self, target: &TargetConfig) -> Result<(), BenchError> {
        let error = |flag, problem: &str| Err(BenchError::config(flag, problem));
        let flags = [
            "--prompt-tokens",
            "--prompt-tokens-stdev",
            "--prompt-tokens-min",
            "--prompt-tokens-max",
        ];
        lengths::check(flags, self.prompt_tokens, self.prompt_spread)?;
        let flags = [
            "--output-tokens",
            "--output-tokens-stdev",
            "--output-tokens-min",
            "--output-tokens-max",
        ];
        lengths::check(flags, self.output_tokens, self.output_spread)?;
        self.check_prefixes()?;
        if !(1..=MOST_TURNS).contains(&self.turns) {
            return error("--turns", "must be between 1 and 1,000");
        }
        if let Some(think_time) = self.think_time {
            think_time.check()?;
            if self.turns == 1 && !matches!(self.source, DataSource::File(_)) {
                return error(
                    "--think-time",
                    "is between the turns of a session, and --turns is 1",
                );
            }
        }
        if self.turns > 1 && !target.endpoint.generates() {
            return error(
                "--turns",
                "an endpoint that answers with no text has no next turn",
            );
        }
        match &self.source {
            DataSource::Synthetic => {}
            DataSource::File(file) => {
                source::format_of(&file.path)?;
                self.check_made_up(self.format == PromptFormat::Text)?;
            }
            DataSource::Trace(trace) => {
                trace.check()?;
                let told = "means nothing to a trace, which tells the tokens of each answer";
                if self.output_spread != Spread::default() {
                    return error("--output-tokens-stdev", told);
                }
                if self.output_tokens != DataConfig::default().output_tokens {
                    return error("--output-tokens", told);
                }
                // Its prompts are made up, and may be token ids.
                self.check_made_up(true)?;
            }
        }
        if let PromptFormat::TokenIds { low, high } = self.format {
            if !target.endpoint.takes_raw_prompts() {
                return error(
                    "--prompt-format",
                    "token-ids needs the completions or embeddings endpoint; a chat takes text",
                );
            }
            if low >= high {
                return error("--prompt-format", "the range of token ids is empty");
            }
            if self.turns > 1 {
                return error(
                    "--prompt-format",
                    "answers are text, so token-ids cannot follow them: give --turns 1",
                );
            }
        }
        Ok(())
    }

    /// Settings of what is made up mean nothing where nothing is.
    fn check_made_up(&self, format: bool) -> Result<(), BenchError> {
        let default = DataConfig::default();
        let set = [
            (
                "--prompt-tokens",
                self.prompt_tokens != default.prompt_tokens,
            ),
            (
                "--prompt-tokens-stdev",
                self.prompt_spread != default.prompt_spread,
            ),
            ("--prefix", self.prefix_buckets != default.prefix_buckets),
            ("--turns", self.turns != default.turns),
            ("--prompt-format", !format),
        ];
        match set.into_iter().find(|(_, set)| *set) {
            None => Ok(()),
            Some((flag, _)) => Err(BenchError::config(
                flag,
                "is for requests that are made up, and --data names a file that has its own",
            )),
        }
    }

    fn check_prefixes(&self) -> Result<(), BenchError> {
        let error = |problem: String| Err(BenchError::config("--prefix", problem));
        let mut weights = 0u64;
        for bucket in &self.prefix_buckets {
            if !(1..=MOST_PREFIXES).contains(&bucket.weight) {
                return error(format!("a weight of {} is none", bucket.weight));
            }
            if !(1..=MOST_PREFIXES).contains(&bucket.count) {
                return error(format!("{} prefixes cannot be made", bucket.count));
            }
            if bucket.tokens > MOST_LENGTH {
                return error(format!("{} tokens are over 10,000,000", bucket.tokens));
            }
            weights = weights.saturating_add(bucket.weight);
        }
        if weights > MOST_PREFIXES {
            return error(format!("weights of {weights} together are too many"));
        }
        Ok(())
    }

    /// The length of a prompt that is as good as any for trying out.
    pub(crate) fn usual_prompt(&self) -> u64 {
        let drawn = Drawn::tokens(self.prompt_tokens, self.prompt_spread);
        (self.prompt_tokens as f64).clamp(drawn.low, drawn.high) as u64
    }

    /// What a level depends on besides the two lengths, the format and `ignore_eos`; `None` for the default.
    pub(crate) fn fingerprint(&self) -> Option<Value> {
        let same = DataConfig {
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
            format: self.format,
            ignore_eos: self.ignore_eos,
            seed: self.seed,
            ..DataConfig::default()
        };
        // A seed makes other words, not another load.
        (*self != same).then(|| {
            json!({
                "prompt_spread": format!("{:?}", self.prompt_spread),
                "output_spread": format!("{:?}", self.output_spread),
                "prefix_buckets": format!("{:?}", self.prefix_buckets),
                "turns": self.turns,
                "think_time": format!("{:?}", self.think_time),
                "file": self.source.path().map(source::identity),
                "source": format!("{:?}", self.source),
            })
        })
    }

    /// This in GuideLLM's words, for its report.
    pub(crate) fn spec(&self) -> Value {
        match &self.source {
            DataSource::Synthetic => {}
            DataSource::File(file) => return source::file_spec(&file.path),
            DataSource::Trace(trace) => return trace.spec(source::file_spec(&trace.path)),
        }
        let mut spec = json!({"kind": "synthetic_text"});
        let spreads = [
            ("prompt_tokens", self.prompt_tokens, self.prompt_spread),
            ("output_tokens", self.output_tokens, self.output_spread),
        ];
        for (name, mean, spread) in spreads {
            spec[name] = json!(mean);
            let parts = [
                ("stdev", spread.stdev),
                ("min", spread.min),
                ("max", spread.max),
            ];
            for (part, value) in parts {
                if let Some(value) = value {
                    spec[format!("{name}_{part}")] = json!(value);
                }
            }
        }
        if !self.prefix_buckets.is_empty() {
            let bucket = |b: &PrefixBucket| json!({"bucket_weight": b.weight, "prefix_count": b.count, "prefix_tokens": b.tokens});
            spec["prefix_buckets"] = self.prefix_buckets.iter().map(bucket).collect();
        }
        if self.turns > 1 {
            spec["turns"] = json!(self.turns);
        }
        if let Some(think) = self.think_time {
            // GuideLLM takes no deviation and no delay of 0.
            let parts = [
                ("delay", Some(think.mean_s)),
                ("delay_stdev", think.stdev_s),
                ("delay_min", think.min_s),
                ("delay_max", think.max_s),
            ];
            for (name, value) in parts {
                if let Some(value) = value.filter(|s| *s > 0.0 || name == "delay_min") {
                    spec[name] = json!(value);
                }
            }
        }
        spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Endpoint;

    fn error(change: impl FnOnce(&mut DataConfig), endpoint: Endpoint) -> String {
        let mut data = DataConfig::default();
        change(&mut data);
        let target = TargetConfig {
            endpoint,
            ..TargetConfig::default()
        };
        let checked = data.check(&target);
        checked.map_or_else(|e| e.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn bad_settings_name_their_flag() {
        let text = Endpoint::Completions;
        assert_eq!(error(|_| {}, text), "fine");
        assert!(error(|d| d.prompt_tokens = 0, text).starts_with("--prompt-tokens:"));
        assert!(
            error(|d| d.prompt_spread.min = Some(500), text).starts_with("--prompt-tokens-min")
        );
        assert!(error(|d| d.output_tokens = 1 << 40, text).starts_with("--output-tokens:"));
        assert!(error(|d| d.output_spread.max = Some(3), text).starts_with("--output-tokens-max"));
        assert!(error(|d| d.turns = 0, text).starts_with("--turns"));
        assert!(error(|d| d.turns = 2, Endpoint::Embeddings).starts_with("--turns"));
        let think = Some(ThinkTime::fixed(1.0));
        assert!(error(|d| d.think_time = think, text).starts_with("--think-time"));
        let sessions = |d: &mut DataConfig| (d.turns, d.think_time) = (3, think);
        assert_eq!(error(sessions, text), "fine");
        for (weight, count, tokens) in [(0, 1, 1), (1, 0, 1), (1, 1, 1 << 40), (1 << 32, 1, 1)] {
            let bucket = PrefixBucket {
                weight,
                count,
                tokens,
            };
            assert!(error(|d| d.prefix_buckets = vec![bucket], text).starts_with("--prefix"));
        }
        let ids = |low, high| PromptFormat::TokenIds { low, high };
        assert!(error(|d| d.format = ids(9, 9), text).starts_with("--prompt-format"));
        assert!(
            error(|d| d.format = ids(0, 9), Endpoint::ChatCompletions)
                .contains("a chat takes text")
        );
        assert!(error(|d| (d.format, d.turns) = (ids(0, 9), 2), text).contains("--turns 1"));
    }

    #[test]
    fn a_trace_has_its_own_lengths() {
        let trace = || {
            DataSource::Trace(TraceData {
                path: "t.jsonl".into(),
                format: TraceFormat::OpenTelemetry,
            })
        };
        let with = |change: fn(&mut DataConfig)| {
            let set = |d: &mut DataConfig| {
                d.source = trace();
                change(d);
            };
            error(set, Endpoint::Completions)
        };
        assert_eq!(with(|_| {}), "fine");
        assert_eq!(
            with(|d| d.format = PromptFormat::TokenIds { low: 1, high: 9 }),
            "fine"
        );
        assert!(with(|d| d.prompt_tokens = 9).starts_with("--prompt-tokens:"));
        assert!(with(|d| d.output_tokens = 9).starts_with("--output-tokens:"));
        assert!(with(|d| d.output_spread.min = Some(9)).starts_with("--output-tokens-stdev"));
        assert!(with(|d| d.turns = 2).starts_with("--turns"));
        assert!(with(|d| d.think_time = Some(ThinkTime::fixed(1.0))).starts_with("--think-time"));
    }

    #[test]
    fn the_fingerprint_knows_settings_apart_and_leaves_the_default_as_it_was() {
        let base = DataConfig::default();
        let with = |change: fn(&mut DataConfig)| {
            let mut data = base.clone();
            change(&mut data);
            data.fingerprint()
        };
        assert_eq!(base.fingerprint(), None);
        assert_eq!(with(|d| d.seed = Some(1)), None);
        let all = [
            with(|d| d.prompt_spread.stdev = Some(1)),
            with(|d| d.output_spread.stdev = Some(1)),
            with(|d| d.prefix_buckets = vec![PrefixBucket::default()]),
            with(|d| d.turns = 2),
            with(|d| d.think_time = Some(ThinkTime::fixed(2.0))),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(one.is_some() && !all[..i].contains(one), "{one:?}");
        }
    }

    #[test]
    fn the_spec_has_guidellms_names() {
        let data = DataConfig {
            prompt_spread: Spread {
                stdev: Some(9),
                min: Some(2),
                max: None,
            },
            prefix_buckets: vec![PrefixBucket {
                tokens: 5,
                ..PrefixBucket::default()
            }],
            turns: 3,
            think_time: Some(ThinkTime {
                min_s: Some(0.0),
                ..ThinkTime::fixed(0.0)
            }),
            ..DataConfig::default()
        };
        assert_eq!(
            data.spec(),
            json!({"kind": "synthetic_text", "prompt_tokens": 128, "prompt_tokens_stdev": 9, "prompt_tokens_min": 2,
                   "output_tokens": 64, "turns": 3, "delay_min": 0.0,
                   "prefix_buckets": [{"bucket_weight": 100, "prefix_count": 1, "prefix_tokens": 5}]})
        );
    }
}
