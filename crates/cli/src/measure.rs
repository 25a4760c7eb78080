//! Running the levels on screen, then writing and printing the report.

use powerband_bench::{BenchConfig, Cancel, LevelResult, RunResult};
use powerband_report::{Context, Report};

use crate::error::{CliError, CliResult};
use crate::screen::Screen;

/// What a run has measured.
pub struct Measured {
    result: RunResult,
    /// The user ended it.
    cancelled: bool,
}

impl Measured {
    /// The finished levels; at least one.
    pub fn levels(&self) -> &[LevelResult] {
        &self.result.levels
    }
}

/// Measures all levels on this thread. Ctrl-C ends the run; finished levels are kept.
/// `json`: events on standard output, for a script.
pub fn levels(config: &BenchConfig, json: bool) -> CliResult<Measured> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(format!("cannot start the client: {error}")))?;
    let cancel = Cancel::default();
    let mut screen = Screen::new(json);
    let result = runtime
        .block_on(async {
            let raised = cancel.clone();
            tokio::spawn(async move {
                if tokio::signal::ctrl_c().await.is_ok() {
                    eprintln!("stopping; finished levels are kept (--resume goes on)");
                    raised.cancel();
                    if tokio::signal::ctrl_c().await.is_ok() {
                        std::process::exit(130);
                    }
                }
            });
            powerband_bench::measure(config, |event| screen.show(event), &cancel).await
        })
        .map_err(CliError::new);
    screen.clear();
    let measured = Measured {
        result: result?,
        cancelled: cancel.is_cancelled(),
    };
    match (measured.levels().is_empty(), measured.cancelled) {
        (true, true) => Err(CliError::new("stopped before the first level was finished").code(130)),
        (true, false) => Err(CliError::new("no level was finished")),
        _ => Ok(measured),
    }
}

/// Writes the report into the results' folder and prints what it says.
pub fn report(
    measured: &Measured,
    context: Context,
    config: &BenchConfig,
    json: bool,
) -> CliResult {
    let folder = config.output_dir.clone().unwrap_or_default();
    let report = Report::from_levels(measured.levels(), context.with_conclusions(&folder));
    let written = report.write(&folder).map_err(CliError::new)?;
    if json {
        let event = serde_json::json!({"event": "report", "folder": folder, "html": written.html,
            "findings": report.findings()});
        println!("{event}");
    } else {
        println!("\n{}", report.table_text());
        print!("{}", report.summary_text());
        println!("Report: {}", written.html.display());
    }
    // A limit that the user has set is no failure; the screen and the files tell it.
    if measured.cancelled && measured.result.stopped.is_some() {
        return Err(CliError::new(format!(
            "stopped: {} of up to {} levels are finished and in the report",
            measured.levels().len(),
            config.levels()
        ))
        .hint("the same command with --resume measures the others")
        .code(130));
    }
    Ok(())
}
