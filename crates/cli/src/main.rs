//! The binary: one file a command, only wiring.

mod commands;
mod config_file;
mod deploy;
mod engine_args;
mod error;
mod load_args;
mod loading;
mod local_tokenizer;
mod measure;
mod screen;
mod speculative_config;
mod weight_cache;

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
#[allow(clippy::large_enum_variant, reason = "there is one, once")]
enum Command {
    /// Serve a model, load it at rising concurrency, explain the result
    Run(commands::run::RunArgs),
    /// Serve a model behind an OpenAI-compatible API
    Serve(commands::serve::ServeArgs),
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
    let filter = tracing_subscriber::EnvFilter::try_from_env("POWERBAND_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,powerband_server=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    let outcome =
        config_file::expand(std::env::args_os().collect()).and_then(|args| match Cli::parse_from(
            args,
        )
        .command
        {
            Command::Run(args) => commands::run::run(&args),
            Command::Serve(args) => commands::serve::run(&args),
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
