//! `powerband bench`: load any OpenAI-compatible endpoint, level by level.

use clap::{Args, Subcommand, ValueEnum};
use powerband_bench::{BenchConfig, Profile};
use powerband_report::Context;

use crate::error::{CliError, CliResult};
use crate::load_args::LoadArgs;
use crate::measure;
use crate::target_args::TargetArgs;

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

/// What else than a measurement.
#[derive(Debug, Subcommand)]
pub enum BenchAction {
    Compare(crate::commands::compare::CompareArgs),
}

/// Load an OpenAI-compatible endpoint at rising concurrency
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub action: Option<BenchAction>,
    /// The server, as in http://127.0.0.1:8000
    // Required where no subcommand is given, which a bare `String` cannot say.
    #[arg(long, env = "POWERBAND_TARGET", required = true)]
    pub target: Option<String>,
    /// The model's name at the server [default: its first]
    #[arg(long)]
    pub model: Option<String>,
    /// The shape of the load
    #[arg(long, value_enum, default_value = "concurrent")]
    pub profile: ProfileName,
    /// Requests per second of each level (constant, poisson)
    #[arg(long, value_delimiter = ',')]
    pub rate: Vec<f64>,
    /// Most requests in flight (throughput, constant, poisson, sweep)
    #[arg(long)]
    pub max_concurrency: Option<usize>,
    /// Levels of a sweep
    #[arg(long, default_value_t = 10)]
    pub sweep_levels: usize,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub server: TargetArgs,
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
            ProfileName::Concurrent => Profile::Concurrent(self.load.levels()),
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
                poisson: false,
                max_concurrency,
            },
        };
        let mut config = BenchConfig::new(self.target.clone().unwrap_or_default(), profile);
        config.target.model.clone_from(&self.model);
        self.server.apply(&mut config.target);
        self.load.apply(&mut config);
        Ok(config)
    }
}

/// Measures the levels, then writes the report beside them.
pub fn run(args: &BenchArgs) -> CliResult {
    if let Some(BenchAction::Compare(args)) = &args.action {
        return crate::commands::compare::run(args);
    }
    let config = args.config()?;
    let levels = measure::levels(&config, args.load.json)?;
    let first = levels.first();
    let context = Context {
        model: first.map(|level| level.model.clone()),
        target: first.map(|level| level.target.clone()),
        ..Context::default()
    };
    measure::report(&levels, context, &config, args.load.json)
}
