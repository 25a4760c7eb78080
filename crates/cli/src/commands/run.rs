//! `powerband run`: serve, load, explain. The main job in one command.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use powerband_bench::{BenchConfig, DataSource, PromptFormat};
use powerband_model::fetch::DEFAULT_MODEL;
use powerband_report::Context;
use powerband_server::ServerConfig;
use tokio::sync::oneshot;

use crate::commands::{doctor, serve};
use crate::deploy::{Deployment, Phases, deploy};
use crate::engine_args::EngineArgs;
use crate::error::{CliError, CliResult};
use crate::load_args::LoadArgs;
use crate::measure;

/// Levels and requests of `--quick`: from alone to half as many again as --max-num-seqs.
const QUICK_LEVELS: [usize; 5] = [1, 10, 25, 50, 75];
const QUICK_REQUESTS: u64 = 75;

/// Sequences at once unless asked otherwise: half of the largest default level, so that the sweep
/// shows the band below the cap and the queue past it.
const MAX_NUM_SEQS: usize = 50;

/// Serve a model, load it at rising concurrency, explain the result
#[derive(Debug, Args)]
pub struct RunArgs {
    /// A path, a hub id (org/name) or a catalogue name (`powerband pull --list`); with --target, the
    /// model's name there
    #[arg(env = "POWERBAND_MODEL")]
    pub model: Option<String>,
    /// A look of a minute or two: fewer levels and requests
    #[arg(long)]
    pub quick: bool,
    /// Load this server instead of serving one, as in http://127.0.0.1:8000
    #[arg(long, env = "POWERBAND_TARGET")]
    pub target: Option<String>,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Does all three.
pub fn run(args: &RunArgs) -> CliResult {
    let folder = &args.load.results.output_dir;
    writable(folder)?;
    match &args.target {
        Some(url) => {
            let mut config = config(args, url)?;
            config.target.model.clone_from(&args.model);
            let measured = measure::levels(&config, args.load.results.json)?;
            let context = Context {
                target: Some(url.clone()),
                model: measured.levels().first().map(|level| level.model.clone()),
                command: Some(command()),
                ..Context::default()
            };
            measure::report(&measured, context, &config, args.load.results.json)
        }
        None => own(args),
    }
}

/// With our own server, in this process, on a port of its own.
fn own(args: &RunArgs) -> CliResult {
    let runtime = serve::runtime()?;
    let mut phases = Phases::begin();
    let server = serve::bound(
        &runtime,
        &ServerConfig {
            port: 0,
            ..ServerConfig::default()
        },
    )?;
    let url = format!("http://{}", server.local_addr());
    let name = args.model.as_deref().unwrap_or(DEFAULT_MODEL);
    let mut flags = args.engine.clone();
    flags.max_num_seqs.get_or_insert(MAX_NUM_SEQS);
    let deployment = deploy(name, &flags, &mut phases)?;
    eprintln!("{:>9}  ready", phases.total());

    let mut config = config(args, &url)?;
    let engine_config = deployment.engine.config().clone();
    config.identity = Some(format!(
        "{name} {} {engine_config:?} {:?} {:?} {:?}",
        deployment.backend, args.engine.kv_cache_dtype, args.engine.quantization, args.engine.dtype
    ));
    let made_up = !matches!(config.data.source, DataSource::File(_));
    if deployment.model.tokenizer.is_none() && made_up {
        let high = deployment.model.vocab_size as u32;
        config.data.format = PromptFormat::TokenIds { low: 0, high };
    }
    let context = Context {
        model: Some(name.to_owned()),
        target: Some(url),
        backend: Some(deployment.backend.to_owned()),
        machine: Some(doctor::machine_in_words()),
        command: Some(command()),
        max_num_seqs: Some(engine_config.max_num_seqs),
        kv_cache_tokens: Some(deployment.kv_cache_tokens as u64),
        ..Context::default()
    };
    let Deployment { engine, model, .. } = deployment;
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async { drop(stopped.await) };
    let serving = runtime.spawn(server.serve(engine, model, shutdown, Duration::ZERO));
    let measured = measure::levels(&config, args.load.results.json);
    drop(stop);
    match runtime.block_on(serving) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(CliError::new(error)),
        Err(error) => return Err(CliError::new(format!("the server failed: {error}"))),
    }
    measure::report(&measured?, context, &config, args.load.results.json)
}

fn config(args: &RunArgs, url: &str) -> CliResult<BenchConfig> {
    let mut load = args.load.clone();
    if args.quick {
        load.quicken(&QUICK_LEVELS, QUICK_REQUESTS);
    }
    load.config(url)
}

/// A sweep takes minutes: a folder that cannot be written is told first.
fn writable(folder: &Path) -> CliResult {
    std::fs::create_dir_all(folder).map_err(|error| {
        CliError::new(format!("--output-dir {}: {error}", folder.display()))
            .hint("give a folder that you may write to")
    })
}

/// The command as it was typed, for the report.
fn command() -> String {
    without_keys(std::env::args().skip(1))
}

/// A key is nobody's business but the server's, and a header may carry one.
fn without_keys(args: impl Iterator<Item = String>) -> String {
    let secret = |flag: &str| ["--api-key", "--header"].contains(&flag);
    let mut words = vec!["powerband".to_owned()];
    let mut hidden = false;
    for arg in args {
        let hide = std::mem::replace(&mut hidden, secret(&arg));
        words.push(match arg.split_once('=') {
            _ if hide => "***".to_owned(),
            Some((flag, _)) if secret(flag) => format!("{flag}=***"),
            _ => arg,
        });
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_key_is_in_no_report() {
        for (typed, told) in [
            (
                "run --api-key k --quick",
                "powerband run --api-key *** --quick",
            ),
            ("run --api-key=k m", "powerband run --api-key=*** m"),
            ("bench --header X-Key:k m", "powerband bench --header *** m"),
            ("run --target http://h", "powerband run --target http://h"),
        ] {
            let words = typed.split(' ').map(str::to_owned);
            assert_eq!(super::without_keys(words), told);
        }
    }
}
