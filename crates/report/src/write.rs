//! Writing a report: each file whole or not at all.

use std::path::{Path, PathBuf};

use crate::error::ReportError;
use crate::findings::Finding;
use crate::sweep::Sweep;
use crate::{Context, LevelSummary, context, csv, html, markdown, plots};

/// The files of a written report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// In the order of writing.
    pub files: Vec<PathBuf>,
    /// The page to open.
    pub html: PathBuf,
    /// The same as Markdown.
    pub markdown: PathBuf,
}

/// Write everything into `folder`. The summary CSV is left as it is where it is the report's source.
pub(crate) fn write(
    folder: &Path,
    levels: &[LevelSummary],
    sweep: &Sweep<'_>,
    findings: &[Finding],
    sources: &[PathBuf],
    context: &Context,
) -> Result<Written, ReportError> {
    let plots_folder = folder.join("plots");
    std::fs::create_dir_all(&plots_folder).map_err(|source| ReportError::Write {
        path: plots_folder.clone(),
        source,
    })?;
    let mut written = Written {
        html: folder.join("report.html"),
        markdown: folder.join("report.md"),
        ..Written::default()
    };
    let mut put = |path: PathBuf, bytes: &[u8]| {
        atomically(&path, bytes)?;
        written.files.push(path);
        Ok::<(), ReportError>(())
    };
    let summary = folder.join(csv::FILE_NAME);
    let is_source = |path: &Path| {
        sources
            .iter()
            .any(|s| match (s.canonicalize(), path.canonicalize()) {
                (Ok(a), Ok(b)) => a == b,
                _ => false,
            })
    };
    if !is_source(&summary) {
        put(summary, csv::to_string(levels).as_bytes())?;
    }
    let json = serde_json::to_vec_pretty(findings).map_err(|e| ReportError::Write {
        path: folder.join("findings.json"),
        source: e.into(),
    })?;
    put(folder.join("findings.json"), &json)?;
    if !context.is_empty() {
        let path = folder.join(context::FILE_NAME);
        let json = serde_json::to_vec_pretty(context).map_err(|e| ReportError::Write {
            path: path.clone(),
            source: e.into(),
        })?;
        put(path, &json)?;
    }
    let charts = plots::all(sweep, findings);
    for (name, chart) in &charts {
        let svg = chart.svg();
        let png = plots::png::render(&svg).map_err(|problem| ReportError::Plot {
            name: (*name).into(),
            problem,
        })?;
        put(plots_folder.join(format!("{name}.svg")), svg.as_bytes())?;
        put(plots_folder.join(format!("{name}.png")), &png)?;
    }
    let names: Vec<&str> = charts.iter().map(|(name, _)| *name).collect();
    put(
        folder.join("report.md"),
        markdown::render(sweep, findings, &names).as_bytes(),
    )?;
    put(
        folder.join("report.html"),
        html::render(sweep, findings, &charts).as_bytes(),
    )?;
    Ok(written)
}

/// Into a file beside it first, which then takes its name.
fn atomically(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let done = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    if done.is_err() {
        // Best effort: the error that matters is the first one.
        let _ = std::fs::remove_file(&temporary);
    }
    done.map_err(|source| ReportError::Write {
        path: path.to_owned(),
        source,
    })
}
