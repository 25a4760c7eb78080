//! `powerband bench`: load any OpenAI-compatible endpoint, level by level.

use clap::{Args, Subcommand};
use powerband_report::Context;

use crate::error::CliResult;
use crate::load_args::LoadArgs;
use crate::measure;

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
    #[command(flatten)]
    pub load: LoadArgs,
}

/// Measures the levels, then writes the report beside them.
pub fn run(args: &BenchArgs) -> CliResult {
    if let Some(BenchAction::Compare(args)) = &args.action {
        return crate::commands::compare::run(args);
    }
    let mut config = args
        .load
        .config(args.target.as_deref().unwrap_or_default())?;
    config.target.model.clone_from(&args.model);
    let measured = measure::levels(&config, args.load.results.json)?;
    let first = measured.levels().first();
    let context = Context {
        model: first.map(|level| level.model.clone()),
        target: first.map(|level| level.target.clone()),
        ..Context::default()
    };
    measure::report(&measured, context, &config, args.load.results.json)
}
