//! `powerband report`: results to CSV, plots, Markdown and HTML.

use std::path::PathBuf;

use clap::Args;

use crate::error::{CliError, CliResult};

/// Explain results: summary CSV, plots, findings, report.md and report.html
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Folders of results, throughput-N.json files, or a summary CSV alone
    #[arg(default_value = "benchmark-results")]
    pub paths: Vec<PathBuf>,
    /// Where the report goes [default: the folder of the results]
    #[arg(long)]
    pub output_dir: Option<PathBuf>,
    /// The server's --max-num-seqs, if known: sharpens what is said about queueing
    #[arg(long)]
    pub max_num_seqs: Option<usize>,
    /// Print the findings as JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Reads, writes, prints.
pub fn run(args: &ReportArgs) -> CliResult {
    let report = powerband_report::load(&args.paths).map_err(|error| {
        CliError::new(error).hint("give a folder that `powerband bench` wrote, or a summary CSV")
    })?;
    let mut context = report.context().clone();
    context.max_num_seqs = args.max_num_seqs.or(context.max_num_seqs);
    let report = report.with_context(context);
    let folder = match (&args.output_dir, args.paths.first()) {
        (Some(folder), _) => folder.clone(),
        (None, Some(path)) if path.is_dir() => path.clone(),
        (None, path) => path
            .and_then(|p| p.parent())
            .map_or_else(PathBuf::new, PathBuf::from),
    };
    let written = report.write(&folder).map_err(CliError::new)?;
    if args.json {
        let text = serde_json::to_string_pretty(report.findings()).map_err(CliError::new)?;
        println!("{text}");
    } else {
        print!("{}", report.summary_text());
        println!("Report: {}", written.html.display());
    }
    Ok(())
}
