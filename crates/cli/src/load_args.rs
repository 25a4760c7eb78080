//! The flags that describe a measurement: shared by `bench` and `run`.

use std::path::PathBuf;

use clap::Args;
use powerband_bench::BenchConfig;

/// Clients of each level, unless others are asked for.
pub const LEVELS: [usize; 12] = [1, 5, 10, 15, 25, 30, 35, 40, 45, 50, 55, 100];

/// What each level sends and when it ends.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Load")]
pub struct LoadArgs {
    /// Clients of each level [default: 1,5,10,15,25,30,35,40,45,50,55,100]
    #[arg(long, value_delimiter = ',', value_name = "N,N,...")]
    pub concurrency: Option<Vec<usize>>,
    /// Requests of a level [default: 100]
    #[arg(long)]
    pub max_requests: Option<u64>,
    /// Longest a level may take, in seconds
    #[arg(long)]
    pub max_seconds: Option<f64>,
    /// Tokens of each prompt, as the server counts them
    #[arg(long, default_value_t = 128)]
    pub prompt_tokens: u64,
    /// Tokens of each answer
    #[arg(long, default_value_t = 64)]
    pub output_tokens: u64,
    /// Seed of the prompts [default: new ones each run, so that no prefix cache knows them]
    #[arg(long, value_name = "SEED")]
    pub data_seed: Option<u64>,
    /// Where results go: one throughput-N.json a level, then the report
    #[arg(long, default_value = "benchmark-results")]
    pub output_dir: PathBuf,
    /// Keep levels that the folder already holds, measured with the same settings
    #[arg(long)]
    pub resume: bool,
    /// Events as JSON on standard output, one object a line; the table goes to standard error alone
    #[arg(long)]
    pub json: bool,
}

impl LoadArgs {
    /// The clients of each level.
    pub fn levels(&self) -> Vec<usize> {
        self.concurrency.clone().unwrap_or_else(|| LEVELS.to_vec())
    }

    /// Puts the flags into a run's settings.
    pub fn apply(&self, config: &mut BenchConfig) {
        config.data.prompt_tokens = self.prompt_tokens;
        config.data.output_tokens = self.output_tokens;
        config.data.seed = self.data_seed;
        config.limits.max_requests = Some(self.max_requests.unwrap_or(100));
        config.limits.max_seconds = self.max_seconds;
        config.output_dir = Some(self.output_dir.clone());
        config.resume = self.resume;
    }
}
