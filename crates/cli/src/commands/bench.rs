//! `powerband bench`: load any OpenAI-compatible endpoint, level by level.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use powerband_bench::{BenchConfig, Cancel, Endpoint, Event, LevelMetrics, Profile, Strategy};

use crate::error::{CliError, CliResult};

/// The shapes of load, by GuideLLM's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProfileName {
    /// One request after the other.
    Synchronous,
    /// A closed loop of so many clients, for each level of --concurrency.
    Concurrent,
    /// All at once.
    Throughput,
    /// Requests at even gaps, for each of --rate.
    Constant,
    /// Requests at random gaps, for each of --rate.
    Poisson,
    /// Synchronous, throughput, then rates between the two.
    Sweep,
}

/// Load an OpenAI-compatible endpoint at rising concurrency
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The server, as in http://127.0.0.1:8000
    #[arg(long, env = "POWERBAND_TARGET")]
    pub target: String,
    /// The model's name at the server [default: its first]
    #[arg(long)]
    pub model: Option<String>,
    /// Key, sent as a bearer token
    #[arg(long, env = "POWERBAND_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// completions or chat
    #[arg(long, default_value = "completions")]
    pub endpoint: String,
    /// The shape of the load
    #[arg(long, value_enum, default_value = "concurrent")]
    pub profile: ProfileName,
    /// Clients of each level
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,5,10,15,25,30,35,40,45,50,55,100"
    )]
    pub concurrency: Vec<usize>,
    /// Requests per second of each level (constant, poisson)
    #[arg(long, value_delimiter = ',')]
    pub rate: Vec<f64>,
    /// Most requests in flight (throughput, constant, poisson, sweep)
    #[arg(long)]
    pub max_concurrency: Option<usize>,
    /// Levels of a sweep
    #[arg(long, default_value_t = 10)]
    pub sweep_levels: usize,
    /// Requests of a level
    #[arg(long, default_value_t = 100)]
    pub max_requests: u64,
    /// Longest a level may take, s
    #[arg(long)]
    pub max_seconds: Option<f64>,
    /// Tokens of each prompt, as the server counts them
    #[arg(long, default_value_t = 128)]
    pub prompt_tokens: u64,
    /// Tokens of each answer
    #[arg(long, default_value_t = 64)]
    pub output_tokens: u64,
    /// Seed of the prompts [default: new ones each run, so that no prefix cache knows them]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where results go: one throughput-N.json a level, then the report
    #[arg(long, default_value = "benchmark-results")]
    pub output_dir: PathBuf,
    /// Keep levels that the folder already holds, measured with the same settings
    #[arg(long)]
    pub resume: bool,
}

impl BenchArgs {
    fn config(&self) -> CliResult<BenchConfig> {
        let max_concurrency = self.max_concurrency;
        if matches!(self.profile, ProfileName::Constant | ProfileName::Poisson)
            && self.rate.is_empty()
        {
            return Err(CliError::new("this --profile needs --rate")
                .hint("for example --rate 1,2,4 (requests per second)"));
        }
        let rates = self.rate.clone();
        let profile = match self.profile {
            ProfileName::Synchronous => Profile::Synchronous,
            ProfileName::Concurrent => Profile::Concurrent(self.concurrency.clone()),
            ProfileName::Throughput => Profile::Throughput { max_concurrency },
            ProfileName::Constant => Profile::Constant {
                rates,
                max_concurrency,
            },
            ProfileName::Poisson => Profile::Poisson {
                rates,
                max_concurrency,
            },
            ProfileName::Sweep => Profile::Sweep {
                levels: self.sweep_levels,
                max_concurrency,
            },
        };
        let mut config = BenchConfig::new(&self.target, profile);
        config.target.model.clone_from(&self.model);
        config.target.api_key.clone_from(&self.api_key);
        config.target.endpoint = Endpoint::parse(&self.endpoint).ok_or_else(|| {
            CliError::new(format!("--endpoint: unknown endpoint {:?}", self.endpoint))
                .hint("use completions or chat")
        })?;
        config.data.prompt_tokens = self.prompt_tokens;
        config.data.output_tokens = self.output_tokens;
        config.data.seed = self.seed;
        config.limits.max_requests = Some(self.max_requests);
        config.limits.max_seconds = self.max_seconds;
        config.output_dir = Some(self.output_dir.clone());
        config.resume = self.resume;
        Ok(config)
    }
}

/// Measures the levels, then writes the report beside them.
pub fn run(args: &BenchArgs) -> CliResult {
    let config = args.config()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::new)?;
    let cancel = Arc::new(Cancel::default());
    let levels = runtime
        .block_on(async {
            let raised = cancel.clone();
            tokio::spawn(async move {
                if tokio::signal::ctrl_c().await.is_ok() {
                    eprintln!("stopping; finished levels are kept (go on with --resume)");
                    raised.cancel();
                }
            });
            powerband_bench::run(&config, show, &cancel).await
        })
        .map_err(CliError::new)?;
    if levels.is_empty() {
        return Err(CliError::new("no level was finished"));
    }
    let context = powerband_report::Context {
        model: Some(levels[0].model.clone()),
        target: Some(levels[0].target.clone()),
        ..Default::default()
    };
    let report = powerband_report::Report::from_levels(&levels, context);
    let written = report.write(&args.output_dir).map_err(CliError::new)?;
    print!("{}", report.summary_text());
    println!("Report: {}", written.html.display());
    Ok(())
}

/// One line a level.
fn show(event: Event<'_>) {
    match event {
        Event::Prepared {
            target,
            model,
            levels,
            warnings,
        } => {
            eprintln!("{model} at {target}, {levels} level(s)");
            warnings.iter().for_each(|w| eprintln!("warning: {w}"));
        }
        Event::LevelFinished {
            result, metrics, ..
        } => {
            line(&result.strategy, metrics, "");
            result
                .warnings
                .iter()
                .for_each(|w| eprintln!("  warning: {w}"));
        }
        Event::LevelSkipped {
            result, metrics, ..
        } => line(&result.strategy, metrics, " (kept)"),
        _ => {}
    }
}

fn line(strategy: &Strategy, m: &LevelMetrics, note: &str) {
    eprintln!(
        "{:>16}: {:>4} ok {:>3} failed | {:>8.1} output tok/s {:>9.1} total | TTFT {:>9.1} ms | ITL {:>7.2} ms{note}",
        strategy.file_stem(),
        m.successful,
        m.errored,
        m.output_tokens_per_second,
        m.total_tokens_per_second,
        m.ttft_ms.mean,
        m.itl_ms.mean,
    );
}
