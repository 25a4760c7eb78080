//! The flags for what requests hold.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use powerband_bench::{
    BenchConfig, Column, DataConfig, DataSource, FileData, History, PrefixBucket, PromptFormat,
    RowOrder, Spread, ThinkTime, TraceData, TraceFormat,
};

use crate::error::{CliError, CliResult};
use crate::local_tokenizer;

/// What requests hold.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Prompts or conversations of a file (jsonl, json, csv, tsv, parquet, txt) rather than made-up ones
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// The rows of --data are a trace, of whose requests the lengths are taken and the times (--profile replay):
    /// mooncake or otel (spans of OpenTelemetry)
    #[arg(long, value_name = "FORMAT", requires = "data", value_parser = trace_format, conflicts_with_all = ["data_column", "data_shuffle", "data_history"])]
    pub trace_format: Option<TraceFormat>,
    /// Tokens that a number in a Mooncake trace's hash_ids stands for [default: 512]
    #[arg(long, value_name = "N", requires = "trace_format")]
    pub trace_block: Option<u64>,
    /// What a column of --data holds, as in prompt=question: prompt, messages, prefix, prompt_tokens,
    /// output_tokens or think_time; may be given again [default: by their usual names]
    #[arg(long, value_name = "WHAT=NAME", requires = "data", value_parser = column)]
    pub data_column: Vec<(Column, String)>,
    /// Rows of --data in random order; the same seed gives the same order
    #[arg(long, value_name = "SEED", requires = "data", num_args = 0..=1, default_missing_value = "0")]
    pub data_shuffle: Option<u64>,
    /// What later turns of a conversation hold as the answers so far: the server's own, or the file's
    #[arg(long, value_name = "WHOSE", requires = "data", value_parser = history)]
    pub data_history: Option<History>,
    /// Tokens of each prompt, as the server counts them; the mean, where they differ
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub prompt_tokens: u64,
    #[command(flatten)]
    pub prompt_spread: PromptSpread,
    /// Tokens of each answer; the mean, where they differ
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub output_tokens: u64,
    #[command(flatten)]
    pub output_spread: OutputSpread,
    /// Let answers end where the model ends them, rather than at --output-tokens exactly
    #[arg(long)]
    pub no_ignore_eos: bool,
    /// What prompts begin with in common: a number of tokens, or tokens=N,count=N,weight=N (so many different
    /// beginnings, taken by that share of the sessions); may be given again
    #[arg(long, value_name = "BUCKET", value_parser = prefix)]
    pub prefix: Vec<PrefixBucket>,
    /// Turns of a session, each with all that was said before in front
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub turns: u32,
    /// Seconds between an answer and the session's next turn, or mean=S,stdev=S,min=S,max=S
    #[arg(long, value_name = "SECONDS", value_parser = think_time)]
    pub think_time: Option<ThinkTime>,
    /// How prompts are sent: text, or token-ids:LOW-HIGH (ids from LOW up to, not including, HIGH)
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = prompt_format)]
    pub prompt_format: PromptFormat,
    /// Seed of the prompts [default: new ones each run, so that no prefix cache knows them]
    #[arg(long, value_name = "SEED")]
    pub data_seed: Option<u64>,
    /// A tokenizer.json, a folder that holds one, or a GGUF file, to count tokens with [default: the server
    /// counts]
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
}

/// How the prompts' lengths lie about their mean.
#[derive(Debug, Clone, Args)]
pub struct PromptSpread {
    /// Standard deviation of the prompts' tokens
    #[arg(long = "prompt-tokens-stdev", value_name = "N", id = "prompt_stdev")]
    stdev: Option<u64>,
    /// Fewest; with no deviation, lengths are even between the two bounds
    #[arg(long = "prompt-tokens-min", value_name = "N", id = "prompt_min")]
    min: Option<u64>,
    /// Most
    #[arg(long = "prompt-tokens-max", value_name = "N", id = "prompt_max")]
    max: Option<u64>,
}

/// The same of the answers.
#[derive(Debug, Clone, Args)]
pub struct OutputSpread {
    /// Standard deviation of the answers' tokens
    #[arg(long = "output-tokens-stdev", value_name = "N", id = "output_stdev")]
    stdev: Option<u64>,
    /// Fewest; with no deviation, lengths are even between the two bounds
    #[arg(long = "output-tokens-min", value_name = "N", id = "output_min")]
    min: Option<u64>,
    /// Most
    #[arg(long = "output-tokens-max", value_name = "N", id = "output_max")]
    max: Option<u64>,
}

impl DataArgs {
    /// What the rows are, where they are a trace.
    fn trace(&self) -> CliResult<Option<TraceFormat>> {
        match (self.trace_format, self.trace_block) {
            (Some(TraceFormat::Mooncake { .. }), Some(block_tokens)) => {
                Ok(Some(TraceFormat::Mooncake { block_tokens }))
            }
            (Some(TraceFormat::OpenTelemetry), Some(_)) => Err(CliError::new(
                "--trace-block is for --trace-format mooncake",
            )),
            (format, _) => Ok(format),
        }
    }

    /// Puts the flags into a run's settings.
    pub fn apply(&self, config: &mut BenchConfig) -> CliResult {
        let spread = |stdev, min, max| Spread { stdev, min, max };
        let (prompt, output) = (&self.prompt_spread, &self.output_spread);
        config.data = DataConfig {
            source: match (&self.data, self.trace()?) {
                (None, _) => DataSource::Synthetic,
                (Some(path), Some(format)) => DataSource::Trace(TraceData {
                    path: path.clone(),
                    format,
                }),
                (Some(path), None) => DataSource::File(FileData {
                    columns: self.data_column.clone(),
                    order: match self.data_shuffle {
                        Some(seed) => RowOrder::Shuffled { seed },
                        None => RowOrder::AsIs,
                    },
                    history: self.data_history.unwrap_or_default(),
                    ..FileData::new(path)
                }),
            },
            prompt_tokens: self.prompt_tokens,
            prompt_spread: spread(prompt.stdev, prompt.min, prompt.max),
            output_tokens: self.output_tokens,
            output_spread: spread(output.stdev, output.min, output.max),
            prefix_buckets: self.prefix.clone(),
            turns: self.turns,
            think_time: self.think_time,
            format: self.prompt_format,
            ignore_eos: !self.no_ignore_eos,
            seed: self.data_seed,
        };
        if let Some(path) = &self.tokenizer {
            config.tokenizer = Some(local_tokenizer::open(path)?);
        }
        Ok(())
    }
}

fn trace_format(text: &str) -> Result<TraceFormat, String> {
    TraceFormat::parse(text).ok_or_else(|| "use mooncake or otel".to_owned())
}

fn column(text: &str) -> Result<(Column, String), String> {
    let (what, name) = text.split_once('=').unwrap_or((text, ""));
    match Column::parse(what) {
        Some(column) if !name.is_empty() => Ok((column, name.to_owned())),
        _ => Err("write it as prompt=NAME, messages=NAME, prefix=NAME, prompt_tokens=NAME, output_tokens=NAME or think_time=NAME".to_owned()),
    }
}

fn history(text: &str) -> Result<History, String> {
    match text {
        "server" => Ok(History::Server),
        "file" => Ok(History::File),
        _ => Err("use server or file".to_owned()),
    }
}

/// Numbers by name, as in `tokens=100,count=2`; a number alone has the first name.
fn named<T: FromStr>(text: &str, names: &[&str]) -> Result<Vec<Option<T>>, String> {
    let form = || {
        let all: Vec<String> = names.iter().map(|name| format!("{name}=N")).collect();
        format!("give a number, or {}", all.join(","))
    };
    let mut values: Vec<Option<T>> = names.iter().map(|_| None).collect();
    for part in text.split(',') {
        let (name, value) = match part.split_once('=') {
            Some(pair) => pair,
            None if part == text => (names[0], part),
            None => return Err(form()),
        };
        let at = names.iter().position(|known| *known == name);
        let value = value.parse().map_err(|_| form())?;
        match at.map(|at| values[at].replace(value).is_none()) {
            Some(true) => {}
            _ => return Err(form()),
        }
    }
    match values[0] {
        Some(_) => Ok(values),
        None => Err(form()),
    }
}

fn prefix(text: &str) -> Result<PrefixBucket, String> {
    let values = named(text, &["tokens", "count", "weight"])?;
    let usual = PrefixBucket::default();
    Ok(PrefixBucket {
        tokens: values[0].unwrap_or(usual.tokens),
        count: values[1].unwrap_or(usual.count),
        weight: values[2].unwrap_or(usual.weight),
    })
}

fn think_time(text: &str) -> Result<ThinkTime, String> {
    let values = named(text, &["mean", "stdev", "min", "max"])?;
    Ok(ThinkTime {
        mean_s: values[0].unwrap_or_default(),
        stdev_s: values[1],
        min_s: values[2],
        max_s: values[3],
    })
}

fn prompt_format(text: &str) -> Result<PromptFormat, String> {
    let ids = text.strip_prefix("token-ids:").and_then(|range| {
        let (low, high) = range.split_once('-')?;
        Some((low.parse().ok()?, high.parse().ok()?))
    });
    match (text, ids) {
        ("text", _) => Ok(PromptFormat::Text),
        (_, Some((low, high))) => Ok(PromptFormat::TokenIds { low, high }),
        _ => Err("use text or token-ids:LOW-HIGH, as in token-ids:100-32000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_text_or_ids() {
        assert_eq!(prompt_format("text"), Ok(PromptFormat::Text));
        let ids = PromptFormat::TokenIds { low: 5, high: 90 };
        assert_eq!(prompt_format("token-ids:5-90"), Ok(ids));
        for bad in ["", "ids", "token-ids", "token-ids:5", "token-ids:-1-5"] {
            assert!(prompt_format(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn buckets_and_pauses_are_numbers_by_name() {
        let bucket = |tokens, count, weight| PrefixBucket {
            weight,
            count,
            tokens,
        };
        assert_eq!(prefix("500"), Ok(bucket(500, 1, 100)));
        assert_eq!(prefix("count=3,tokens=8"), Ok(bucket(8, 3, 100)));
        assert_eq!(prefix("tokens=8,weight=7"), Ok(bucket(8, 1, 7)));
        for bad in [
            "",
            "x",
            "count=3",
            "5,count=3",
            "tokens=1,tokens=2",
            "size=3",
            "tokens=-1",
        ] {
            assert!(prefix(bad).unwrap_err().contains("tokens=N"), "{bad}");
        }
        assert_eq!(think_time("2.5"), Ok(ThinkTime::fixed(2.5)));
        let drawn = think_time("mean=5,stdev=2,max=20").unwrap();
        assert_eq!(
            (drawn.stdev_s, drawn.min_s, drawn.max_s),
            (Some(2.0), None, Some(20.0))
        );
    }

    #[test]
    fn columns_have_a_meaning_and_a_name() {
        assert_eq!(column("prompt=a=b"), Ok((Column::Prompt, "a=b".to_owned())));
        for bad in ["prompt", "prompt=", "answer=x", "=x"] {
            assert!(
                column(bad).unwrap_err().contains("think_time=NAME"),
                "{bad}"
            );
        }
    }
}
