//! The flags for what requests hold.

use std::path::PathBuf;

use clap::Args;
use powerband_bench::{BenchConfig, PromptFormat};

use crate::error::CliResult;
use crate::local_tokenizer;

/// What requests hold.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Tokens of each prompt, as the server counts them
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub prompt_tokens: u64,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub output_tokens: u64,
    /// Let answers end where the model ends them, rather than at --output-tokens exactly
    #[arg(long)]
    pub no_ignore_eos: bool,
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

impl DataArgs {
    /// Puts the flags into a run's settings.
    pub fn apply(&self, config: &mut BenchConfig) -> CliResult {
        config.data.prompt_tokens = self.prompt_tokens;
        config.data.output_tokens = self.output_tokens;
        config.data.ignore_eos = !self.no_ignore_eos;
        config.data.format = self.prompt_format;
        config.data.seed = self.data_seed;
        if let Some(path) = &self.tokenizer {
            config.tokenizer = Some(local_tokenizer::open(path)?);
        }
        Ok(())
    }
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
}
