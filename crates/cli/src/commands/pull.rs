//! `powerband pull`: fetch a model; the last line on stdout is the path of its GGUF file or folder.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use powerband_model::fetch::{self, CATALOGUE, DEFAULT_MODEL, FetchOptions, Progress};

use crate::error::{CliError, CliResult};

/// Fetch a model; the last line on stdout is its path
#[derive(Debug, Args)]
pub struct PullArgs {
    /// A catalogue name, a hub id (org/name, org/name:file.gguf, org/name@revision), or a path
    #[arg(default_value = DEFAULT_MODEL)]
    pub model: String,
    /// Branch, tag or commit of a hub repository
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// List the models that have a short name
    #[arg(long)]
    pub list: bool,
}

/// Fetches or lists.
pub fn run(args: &PullArgs) -> CliResult {
    let mut options = options()?;
    if args.list {
        list(&options);
        return Ok(());
    }
    options.revision.clone_from(&args.revision);
    let path = locate_with(&args.model, &options)?;
    println!("{}", path.display());
    Ok(())
}

/// The GGUF file or folder of `model`, fetched with a bar on stderr if it is not on this machine.
pub fn locate_model(model: &str) -> CliResult<PathBuf> {
    locate_with(model, &options()?)
}

fn options() -> CliResult<FetchOptions> {
    // A folder that is gone has no `.env`.
    let folder = std::env::current_dir().unwrap_or_default();
    FetchOptions::from_env(&folder).map_err(CliError::new)
}

fn locate_with(model: &str, options: &FetchOptions) -> CliResult<PathBuf> {
    let lines = Lines::default();
    let bar = Bar::default();
    let progress: &dyn Progress = if std::io::stderr().is_terminal() {
        &bar
    } else {
        &lines
    };
    fetch::locate(model, options, progress).map_err(CliError::new)
}

fn list(options: &FetchOptions) {
    println!("{:<20} {:>8}  {:<7} about", "name", "size", "cached");
    for model in CATALOGUE {
        let size = model
            .file
            .as_ref()
            .map_or_else(|| "-".to_owned(), |file| megabytes(file.size));
        let cached = if fetch::cached(model.name, options).is_some() {
            "yes"
        } else {
            "no"
        };
        println!("{:<20} {size:>8}  {cached:<7} {}", model.name, model.about);
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

/// A bar, for people.
#[derive(Default)]
struct Bar(Mutex<Option<ProgressBar>>);

impl Bar {
    fn with(&self, act: impl FnOnce(&ProgressBar)) {
        let bar = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = bar.as_ref() {
            act(bar);
        }
    }
}

impl Progress for Bar {
    fn note(&self, text: &str) {
        let bar = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match bar.as_ref() {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    fn begin(&self, name: &str, total: u64) {
        let template = "{wide_msg} {bar:24} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(total).with_style(style);
        // A long path says the most at its end.
        let short = Path::new(name).file_name().and_then(|name| name.to_str());
        bar.set_message(short.unwrap_or(name).to_owned());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
    }

    fn at(&self, bytes: u64) {
        self.with(|bar| bar.set_position(bytes));
    }

    fn end(&self) {
        // The path that follows on stdout gets a line of its own.
        self.with(ProgressBar::finish_and_clear);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A few plain lines, for logs.
#[derive(Default)]
struct Lines(Mutex<Quarters>);

/// How far a file is, in quarters: a line for each.
#[derive(Default)]
struct Quarters {
    name: String,
    total: u64,
    said: u64,
}

impl Progress for Lines {
    fn note(&self, text: &str) {
        eprintln!("{text}");
    }

    fn begin(&self, name: &str, total: u64) {
        eprintln!("fetching {name} ({})", megabytes(total));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Quarters {
            name: name.to_owned(),
            total,
            said: 0,
        };
    }

    fn at(&self, bytes: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Of a small file its beginning is enough.
        if state.total < 32 << 20 {
            return;
        }
        let quarter = bytes.saturating_mul(4) / state.total;
        if quarter > state.said && quarter < 4 {
            state.said = quarter;
            eprintln!("{}: {} %", state.name, quarter * 25);
        }
    }

    fn end(&self) {}
}
