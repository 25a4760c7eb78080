//! The binary: one file a command, only wiring.

mod commands;
mod config_file;
mod error;

use clap::{Parser, Subcommand};

/// Serve an open LLM, load it at rising concurrency, explain what limits it
#[derive(Debug, Parser)]
#[command(
    name = "powerband",
    version,
    args_override_self = true,
    propagate_version = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What this machine is and what would run on it
    Doctor(commands::doctor::DoctorArgs),
    /// Load any OpenAI-compatible endpoint at rising concurrency
    Bench(commands::bench::BenchArgs),
    /// Explain results: CSV, plots, findings, Markdown, HTML
    Report(commands::report::ReportArgs),
    /// Fetch a model; the last line on stdout is its path
    Pull(commands::pull::PullArgs),
}

fn main() -> std::process::ExitCode {
    let outcome =
        config_file::expand(std::env::args_os().collect()).and_then(|args| match Cli::parse_from(
            args,
        )
        .command
        {
            Command::Doctor(args) => commands::doctor::run(&args),
            Command::Bench(args) => commands::bench::run(&args),
            Command::Report(args) => commands::report::run(&args),
            Command::Pull(args) => commands::pull::run(&args),
        });
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            std::process::ExitCode::from(error.code)
        }
    }
}
