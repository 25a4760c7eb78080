//! What a person sees of a run: a line for each finished level, and on a terminal a live view below them.
//! Piped, only the lines remain. With `--json` standard output belongs to a script.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use powerband_bench::{Event, LevelMetrics, LevelResult, Progress};
use powerband_report::LevelSummary;
use serde_json::{Value, json};

/// Steps of the live view's bar.
const BAR: u64 = 1000;

/// Shows the events of a run.
pub struct Screen {
    /// The live view, where somebody can watch it.
    live: Option<ProgressBar>,
    /// Events as JSON on standard output, one object a line.
    json: bool,
    /// Levels that the run will have.
    levels: usize,
}

impl Screen {
    /// A screen on standard error, and with `json` events on standard output.
    pub fn new(json: bool) -> Self {
        Self {
            live: std::io::stderr().is_terminal().then(live),
            json,
            levels: 0,
        }
    }

    /// A line that stays.
    fn say(&self, text: &str) {
        match &self.live {
            Some(live) => live.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// An event for a script.
    fn tell(&self, event: &Value) {
        if self.json {
            let print = || {
                // A script that has gone away does not end a measurement.
                let _ = writeln!(std::io::stdout(), "{event}");
            };
            match &self.live {
                Some(live) => live.suspend(print),
                None => print(),
            }
        }
    }

    /// Take the live view away.
    pub fn clear(&self) {
        if let Some(live) = &self.live {
            live.finish_and_clear();
        }
    }

    /// Show one event.
    pub fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Prepared {
                target,
                model,
                levels,
                warnings,
            } => {
                self.levels = levels;
                self.say(&format!("loading {model} at {target}: {levels} level(s)"));
                for warning in warnings {
                    self.say(&format!("warning: {warning}"));
                }
                self.say(&head());
                self.tell(
                    &json!({"event": "prepared", "target": target, "model": model, "levels": levels,
                                  "warnings": warnings}),
                );
            }
            Event::WarmingUp { requests } => {
                if let Some(live) = &self.live {
                    live.set_message(format!("warming up with {requests} requests"));
                }
            }
            Event::LevelStarted { index, strategy } => {
                if let Some(live) = &self.live {
                    live.set_prefix(format!(
                        "{} ({} of {})",
                        strategy.file_stem(),
                        index + 1,
                        self.levels
                    ));
                }
            }
            Event::Progress { progress, .. } => {
                if let Some(live) = &self.live {
                    live.set_position((share(&progress) * BAR as f64) as u64);
                    live.set_message(so_far(&progress));
                    live.tick();
                }
            }
            Event::LevelFinished {
                index,
                result,
                metrics,
                path,
            } => {
                self.say(&row(result, metrics, ""));
                for warning in &result.warnings {
                    self.say(&format!("{:>16}  warning: {warning}", ""));
                }
                self.tell(&level(index, result, path, false));
            }
            Event::LevelSkipped {
                index,
                result,
                metrics,
                path,
            } => {
                self.say(&row(result, metrics, "  (kept)"));
                self.tell(&level(index, result, Some(path), true));
            }
            Event::LevelDropped { strategy, .. } => {
                self.say(&format!(
                    "{:>16}  stopped; not recorded",
                    strategy.file_stem()
                ));
            }
            Event::Concluded { conclusion } => {
                self.say(conclusion.statement());
                self.tell(&json!({"event": "concluded", "conclusion": conclusion}));
            }
            Event::DriftChecked { drift } => {
                match drift.warning() {
                    Some(moved) => self.say(&format!("warning: {moved}")),
                    None => self.say("the first level, repeated at the end, has not moved"),
                }
                self.tell(&json!({"event": "drift_checked", "drift": drift}));
            }
            Event::RunStopped { reason } => {
                self.say(&format!("the run ends early: {reason}"));
                self.tell(&json!({"event": "run_stopped", "reason": reason}));
            }
        }
    }
}

fn live() -> ProgressBar {
    let bar = ProgressBar::new(BAR);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{bar:30}] {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// How much of a level is done, 0 to 1: of its requests or of its time, whichever is further.
fn share(p: &Progress) -> f64 {
    let requests = p
        .max_requests
        .map_or(0.0, |n| (p.successful + p.errored) as f64 / n.max(1) as f64);
    let time = p.max_seconds.map_or(0.0, |s| p.elapsed_s / s.max(1e-9));
    requests.max(time).clamp(0.0, 1.0)
}

/// The live view's words, in lines.
fn so_far(p: &Progress) -> String {
    let of = p.max_requests.map_or_else(String::new, |n| format!("/{n}"));
    let done = share(p);
    let left = if done > 0.02 {
        let left = p.elapsed_s / done - p.elapsed_s;
        format!(
            ", {} left",
            HumanDuration(Duration::from_secs_f64(left.clamp(0.0, 1e7)))
        )
    } else {
        String::new()
    };
    let failed = match p.errored {
        0 => String::new(),
        n => format!(", {n} FAILED"),
    };
    format!(
        "{}{of} requests, {:.0} s{left}{failed}\n    {} in flight, {:.1} requests/s, {:.0} output tok/s, TTFT {:.0} ms, ITL {:.1} ms\n    client: {:.2} cores, up to {:.1} ms late",
        p.successful,
        p.elapsed_s,
        p.in_flight,
        p.requests_per_second,
        p.output_tokens_per_second,
        p.ttft_ms,
        p.itl_ms,
        p.client_cores,
        p.client_late_ms,
    )
}

fn head() -> String {
    format!(
        "{:>16}  {:>5} {:>6}  {:>12} {:>11}  {:>10} {:>9} {:>8}",
        "level", "ok", "failed", "output tok/s", "total tok/s", "TTFT ms", "ITL ms", "E2E s"
    )
}

fn row(result: &LevelResult, m: &LevelMetrics, note: &str) -> String {
    let limited = match result.client.limited {
        true => format!("  client limited: {}", result.client.reason),
        false => String::new(),
    };
    let met = m.goodput.map_or_else(String::new, |goodput| {
        format!("  {:.1} % meet the objective", goodput.share * 100.0)
    });
    format!(
        "{:>16}  {:>5} {:>6}  {:>12.1} {:>11.1}  {:>10.1} {:>9.2} {:>8.2}{met}{note}{limited}",
        result.strategy.file_stem(),
        m.successful,
        m.errored,
        m.output_tokens_per_second,
        m.total_tokens_per_second,
        m.ttft_ms.mean,
        m.itl_ms.mean,
        m.latency_s.mean,
    )
}

/// A finished level, for a script.
fn level(index: usize, result: &LevelResult, path: Option<&std::path::Path>, kept: bool) -> Value {
    json!({
        "event": "level",
        "index": index,
        "strategy": result.strategy,
        "file": path,
        "kept": kept,
        "stopped": result.stopped,
        "client": result.client,
        "summary": LevelSummary::of(result),
    })
}
