//! From results to findings: summary, diagnosis, plots, CSV, Markdown, HTML. Pure functions but for the
//! reading at the start and the writing at the end.
//!
//! Reading order: [`summary`] (one level in numbers), [`csv`] (the same as a table), [`sweep`] (the levels
//! side by side), [`findings`] (what follows from them), [`answers`] (the same in words), then the forms:
//! [`plots`], `markdown`, `html`, and `write`. [`compare`] tells two runs apart.

pub mod answers;
pub mod compare;
pub mod context;
pub mod csv;
mod error;
pub mod findings;
mod foreign;
mod html;
mod load;
mod markdown;
pub mod plots;
pub mod summary;
pub mod sweep;
mod table;
mod write;

use std::path::{Path, PathBuf};

pub use context::Context;
pub use error::ReportError;
pub use findings::{Finding, Prediction};
use powerband_bench::LevelResult;
pub use summary::LevelSummary;
pub use sweep::Sweep;
pub use write::Written;

/// Levels and what follows from them.
#[derive(Debug, Clone)]
pub struct Report {
    levels: Vec<LevelSummary>,
    context: Context,
    findings: Vec<Finding>,
    sources: Vec<PathBuf>,
}

/// Read results: folders (the files of their levels, else their summary CSV), files of levels, or a
/// summary CSV alone.
///
/// # Errors
/// [`ReportError`], naming the file and, in a CSV, the line.
pub fn load(paths: &[PathBuf]) -> Result<Report, ReportError> {
    let loaded = load::load(paths)?;
    // Written beside the results by whoever measured them.
    let folder = paths.iter().find(|path| path.is_dir());
    let mut context = folder.map_or_else(Context::default, |f| Context::read(f));
    if let Some(result) = loaded.levels.iter().find_map(|l| l.result.as_ref()) {
        let known = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        context.model = context.model.or(known(&result.model));
        context.target = context.target.or(known(&result.target));
    }
    let levels = loaded.levels.into_iter().map(|l| l.summary).collect();
    let mut report = Report::new(levels, context);
    report.sources = loaded.sources;
    Ok(report)
}

impl Report {
    /// A report on levels just measured.
    pub fn from_levels(levels: &[LevelResult], context: Context) -> Report {
        Report::new(levels.iter().map(LevelSummary::of).collect(), context)
    }

    /// A report on summaries, sorted by their load.
    pub fn new(mut levels: Vec<LevelSummary>, context: Context) -> Report {
        levels.sort_by(|a, b| {
            let load = |l: &LevelSummary| match l.scheduled_rate {
                Some(rate) => rate,
                None => l.concurrency.unwrap_or(f64::INFINITY),
            };
            (a.open_loop, load(a))
                .partial_cmp(&(b.open_loop, load(b)))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        let findings = findings::all(&Sweep::of(&levels, &context));
        Report {
            levels,
            context,
            findings,
            sources: Vec::new(),
        }
    }

    /// The same results, with more known about them.
    pub fn with_context(self, context: Context) -> Report {
        Report {
            sources: self.sources,
            ..Report::new(self.levels, context)
        }
    }

    /// What is known beside the levels.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The levels, by load.
    pub fn levels(&self) -> &[LevelSummary] {
        &self.levels
    }

    /// What was found.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The levels side by side.
    pub fn sweep(&self) -> Sweep<'_> {
        Sweep::of(&self.levels, &self.context)
    }

    /// Write `benchmark_metrics_summary.csv`, `findings.json`, `plots/`, `report.md` and `report.html` into
    /// a folder, which is made if need be. A summary CSV that the report was read from stays as it is.
    ///
    /// # Errors
    /// [`ReportError::Write`] and [`ReportError::Plot`]; each file is whole or not there.
    pub fn write(&self, folder: &Path) -> Result<Written, ReportError> {
        write::write(
            folder,
            &self.levels,
            &self.sweep(),
            &self.findings,
            &self.sources,
            &self.context,
        )
    }

    /// The levels as an aligned table for a terminal.
    pub fn table_text(&self) -> String {
        let sweep = self.sweep();
        let mut rows = vec![table::head(&sweep).map(str::to_owned).to_vec()];
        rows.extend(table::rows(&sweep));
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..table::COLUMNS).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths);
            let cells: Vec<String> = cells.map(|(cell, w)| format!("{cell:>w$}")).collect();
            cells.join("  ") + "\n"
        };
        rows.iter().map(line).collect()
    }

    /// The report in a few lines for a terminal.
    pub fn summary_text(&self) -> String {
        let sweep = self.sweep();
        let answers = answers::of(&sweep, &self.findings);
        let mut lines = answers.headline;
        if let (Some(low), Some(high)) = (sweep.points.first(), sweep.points.last()) {
            for p in [low, high] {
                lines.push(format!(
                    "  at {:>12}: {:>8} output tok/s, TTFT {}, E2E {}",
                    sweep.at(p.load()),
                    plots::short(p.output),
                    plots::duration(p.ttft * 1e3),
                    plots::duration(p.e2e * 1e3)
                ));
            }
        }
        let few = self
            .findings
            .iter()
            .filter(|f| f.id == "too_few_requests")
            .count();
        if few > 0 {
            lines.push(format!(
                "  {few} level(s) have too few requests for a steady state; see the report"
            ));
        }
        lines.push(String::new());
        lines.join("\n")
    }
}
