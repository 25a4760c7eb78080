//! `powerband serve`: the OpenAI-compatible API over our own engine.

use std::time::Duration;

use clap::Args;
use powerband_model::fetch::DEFAULT_MODEL;
use powerband_server::{BoundServer, ServerConfig, bind};

use crate::deploy::{Deployment, Phases, deploy};
use crate::engine_args::EngineArgs;
use crate::error::{CliError, CliResult};

/// Serve a model behind an OpenAI-compatible API
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A path, a hub id (org/name) or a catalogue name (`powerband pull --list`)
    #[arg(default_value = DEFAULT_MODEL, env = "POWERBAND_MODEL")]
    pub model: String,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// How the API listens.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Address to listen on; 0.0.0.0 for all of this machine's
    #[arg(long, default_value = "127.0.0.1", env = "POWERBAND_HOST")]
    pub host: String,
    /// Port to listen on; 0 for any free one
    #[arg(long, default_value_t = 8000, env = "POWERBAND_PORT")]
    pub port: u16,
    /// Key that clients must send as a bearer token; give it again for several
    #[arg(long, env = "POWERBAND_API_KEY", hide_env_values = true)]
    pub api_key: Vec<String>,
    /// Name of the model in the API [default: MODEL as given]; give it again for several
    #[arg(long, env = "POWERBAND_SERVED_MODEL_NAME")]
    pub served_model_name: Vec<String>,
    /// Origin that browsers may call from, or *; give it again for several
    #[arg(long)]
    pub allowed_origins: Vec<String>,
    /// Log one line a request (never prompts, answers or keys)
    #[arg(long)]
    pub enable_log_requests: bool,
    /// Seconds that running requests get to finish after Ctrl-C
    #[arg(long, default_value_t = 30)]
    pub shutdown_timeout: u64,
}

/// Serves until a signal comes.
pub fn run(args: &ServeArgs) -> CliResult {
    let runtime = runtime()?;
    let mut phases = Phases::begin();
    let config = ServerConfig {
        host: args.server.host.clone(),
        port: args.server.port,
        api_keys: args.server.api_key.clone(),
        allowed_origins: args.server.allowed_origins.clone(),
        log_requests: args.server.enable_log_requests,
        ..ServerConfig::default()
    };
    let server = bound(&runtime, &config)?;
    let mut deployment = deploy(&args.model, &args.engine, &mut phases)?;
    if !args.server.served_model_name.is_empty() {
        deployment
            .model
            .served_names
            .clone_from(&args.server.served_model_name);
    }
    let Deployment { engine, model, .. } = deployment;
    eprintln!(
        "{:>9}  ready: {} at http://{}/v1 (Ctrl-C stops)",
        phases.total(),
        model.served_names.join(", "),
        server.local_addr()
    );
    let drain = Duration::from_secs(args.server.shutdown_timeout);
    runtime
        .block_on(server.serve(engine, model, stop_signal(), drain))
        .map_err(CliError::new)
}

/// Threads for HTTP. Few: a token is a small write, and the cores are for the model.
pub fn runtime() -> CliResult<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(1, 8))
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(|error| CliError::new(format!("cannot start threads: {error}")))
}

/// Takes the port.
pub fn bound(runtime: &tokio::runtime::Runtime, config: &ServerConfig) -> CliResult<BoundServer> {
    runtime.block_on(bind(config)).map_err(CliError::new)
}

/// Resolves at Ctrl-C or SIGTERM; the second of them ends the process at once.
pub async fn stop_signal() {
    any_signal().await;
    eprintln!("stopping: running requests may finish (again to stop at once)");
    tokio::spawn(async {
        any_signal().await;
        std::process::exit(130);
    });
}

#[cfg(unix)]
async fn any_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let ctrl_c = tokio::signal::ctrl_c();
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = ctrl_c => {}
            _ = terminate.recv() => {}
        },
        Err(_) => drop(ctrl_c.await),
    }
}

#[cfg(not(unix))]
async fn any_signal() {
    let _ = tokio::signal::ctrl_c().await;
}
