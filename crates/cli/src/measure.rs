//! Running the levels with a live display, then writing and printing the report.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use powerband_bench::{BenchConfig, Cancel, Event, LevelMetrics, LevelResult, Strategy};
use powerband_report::{Context, Report};

use crate::error::{CliError, CliResult};

/// Measures all levels on this thread. Ctrl-C ends the run; finished levels are kept.
pub fn levels(config: &BenchConfig) -> CliResult<Vec<LevelResult>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(format!("cannot start the client: {error}")))?;
    let cancel = Cancel::default();
    let display = Display::new();
    let levels = runtime
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
            powerband_bench::run(config, |event| display.show(event), &cancel).await
        })
        .map_err(CliError::new);
    display.clear();
    let levels = levels?;
    match (levels.is_empty(), cancel.is_cancelled()) {
        (true, true) => Err(CliError::new("stopped before the first level was finished").code(130)),
        (true, false) => Err(CliError::new("no level was finished")),
        _ => Ok(levels),
    }
}

/// Writes the report into the results' folder and prints what it says.
pub fn report(levels: &[LevelResult], context: Context, config: &BenchConfig) -> CliResult {
    let report = Report::from_levels(levels, context);
    let folder = config.output_dir.clone().unwrap_or_default();
    let written = report.write(&folder).map_err(CliError::new)?;
    println!("\n{}", report.table_text());
    print!("{}", report.summary_text());
    println!("Report: {}", written.html.display());
    if levels.len() < config.profile.levels() {
        return Err(CliError::new(format!(
            "stopped: {} of {} levels are finished and in the report",
            levels.len(),
            config.profile.levels()
        ))
        .hint("the same command with --resume measures the others")
        .code(130));
    }
    Ok(())
}

/// One line a level, and on a terminal one more that moves.
struct Display {
    line: Option<ProgressBar>,
}

impl Display {
    fn new() -> Self {
        let line = std::io::stderr().is_terminal().then(|| {
            let line = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                line.set_style(style);
            }
            line
        });
        Self { line }
    }

    fn say(&self, text: &str) {
        match &self.line {
            Some(line) => line.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn clear(&self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }

    fn show(&self, event: Event<'_>) {
        match event {
            Event::Prepared {
                target,
                model,
                levels,
                warnings,
            } => {
                self.say(&format!("loading {model} at {target}: {levels} level(s)"));
                for warning in warnings {
                    self.say(&format!("warning: {warning}"));
                }
                self.say(&format!(
                    "{:>16}  {:>5} {:>6}  {:>12} {:>11}  {:>10} {:>9} {:>8}",
                    "level",
                    "ok",
                    "failed",
                    "output tok/s",
                    "total tok/s",
                    "TTFT ms",
                    "ITL ms",
                    "E2E s"
                ));
            }
            Event::Progress {
                strategy, progress, ..
            } => {
                if let Some(line) = &self.line {
                    let of = progress
                        .max_requests
                        .map_or_else(String::new, |n| format!("/{n}"));
                    line.set_message(format!(
                        "{}: {}{of} done, {} in flight, {} failed, {:.0} output tok/s, TTFT {:.0} ms, ITL {:.1} ms, {:.0} s",
                        strategy.file_stem(),
                        progress.successful,
                        progress.in_flight,
                        progress.errored,
                        progress.output_tokens_per_second,
                        progress.ttft_ms,
                        progress.itl_ms,
                        progress.elapsed_s,
                    ));
                    line.tick();
                }
            }
            Event::LevelFinished {
                result, metrics, ..
            } => {
                self.say(&line(&result.strategy, metrics, ""));
                for warning in &result.warnings {
                    self.say(&format!("{:>16}  warning: {warning}", ""));
                }
            }
            Event::LevelSkipped {
                result, metrics, ..
            } => self.say(&line(&result.strategy, metrics, "  (kept)")),
            _ => {}
        }
    }
}

fn line(strategy: &Strategy, m: &LevelMetrics, note: &str) -> String {
    format!(
        "{:>16}  {:>5} {:>6}  {:>12.1} {:>11.1}  {:>10.1} {:>9.2} {:>8.2}{note}",
        strategy.file_stem(),
        m.successful,
        m.errored,
        m.output_tokens_per_second,
        m.total_tokens_per_second,
        m.ttft_ms.mean,
        m.itl_ms.mean,
        m.latency_s.mean,
    )
}
