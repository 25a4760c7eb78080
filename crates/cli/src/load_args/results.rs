//! The flags for where results go and how they are told.

use std::path::PathBuf;

use clap::Args;
use powerband_bench::{BenchConfig, Slo};

/// What is kept and shown.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Results")]
pub struct ResultArgs {
    /// Where results go: one throughput-N.json a level, then the report
    #[arg(long, value_name = "FOLDER", default_value = "benchmark-results")]
    pub output_dir: PathBuf,
    /// Keep levels that the folder already holds, measured with the same settings
    #[arg(long)]
    pub resume: bool,
    /// What a good request keeps, in ms, as in ttft:500,itl:50,e2e:10000 (any of the three): each level then
    /// tells its goodput
    #[arg(long, value_name = "LIMITS", value_parser = slo)]
    pub goodput: Option<Slo>,
    /// Also write each level's requests as JSON lines, with the time of every chunk
    #[arg(long)]
    pub requests_jsonl: bool,
    /// Requests of each outcome that a level's JSON lists (needs --requests-jsonl) [default: all]
    #[arg(long, value_name = "N")]
    pub sample_size: Option<usize>,
    /// Events as JSON on standard output, one object a line; the table goes to standard error alone
    #[arg(long)]
    pub json: bool,
}

impl ResultArgs {
    /// Puts the flags into a run's settings.
    pub fn apply(&self, config: &mut BenchConfig) {
        config.output_dir = Some(self.output_dir.clone());
        config.resume = self.resume;
        config.slo = self.goodput;
        config.requests_jsonl = self.requests_jsonl;
        config.sample_size = self.sample_size;
    }
}

fn slo(text: &str) -> Result<Slo, String> {
    Slo::parse(text).map_err(|error| error.to_string())
}
