//! `powerband bench compare`: two runs told apart, with an exit code for scripts.

use std::path::PathBuf;

use clap::Args;
use powerband_report::compare::{Outcome, Settings, compare};

use crate::error::{CliError, CliResult};

/// Tell two runs apart: exit code 0 if B is not worse than A, 1 if it is, 2 if they cannot be compared
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The run to compare with: a folder of results or a file that `powerband report` reads
    pub a: PathBuf,
    /// The run to judge
    pub b: PathBuf,
    /// Smallest change that counts; where only summaries are known, four times as much
    #[arg(long, default_value = "5%", value_parser = share)]
    pub threshold: f64,
    /// Print JSON instead of text
    #[arg(long, conflicts_with = "markdown")]
    pub json: bool,
    /// Print Markdown instead of text
    #[arg(long)]
    pub markdown: bool,
}

/// `5%` or `0.05`.
fn share(text: &str) -> Result<f64, String> {
    let value = match text.trim().strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|p| p / 100.0),
        None => text.trim().parse::<f64>(),
    };
    match value {
        Ok(share) if (0.0..1.0).contains(&share) => Ok(share),
        _ => Err("expected a share below 1, as in 5% or 0.05".into()),
    }
}

/// Reads both, prints, and fails where B is worse.
pub fn run(args: &CompareArgs) -> CliResult {
    let compared = compare(&args.a, &args.b, Settings::new(args.threshold))
        .map_err(|error| CliError::new(error).code(2))?;
    if args.json {
        println!("{}", compared.json().map_err(CliError::new)?);
    } else if args.markdown {
        print!("{}", compared.markdown());
    } else {
        print!("{}", compared.text());
    }
    let failed = || CliError::new(&compared.answer).code(compared.exit_code());
    match compared.outcome {
        Outcome::NoRegression => Ok(()),
        Outcome::Regression => Err(failed()
            .hint("what is worse is marked so; --threshold is the smallest change that counts")),
        Outcome::CannotCompare => {
            Err(failed()
                .hint("run the same levels on both sides, with a client that is not the limit"))
        }
    }
}
