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
}

fn main() -> std::process::ExitCode {
    let outcome =
        config_file::expand(std::env::args_os().collect()).and_then(|args| match Cli::parse_from(
            args,
        )
        .command
        {
            Command::Doctor(args) => commands::doctor::run(&args),
        });
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            std::process::ExitCode::from(error.code)
        }
    }
}
