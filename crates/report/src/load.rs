//! Finding results: a folder, files of levels, or a summary CSV alone.

use std::path::{Path, PathBuf};

use powerband_bench::LevelResult;

use crate::error::ReportError;
use crate::summary::LevelSummary;
use crate::{csv, foreign};

/// A level as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Level {
    pub summary: LevelSummary,
    /// Its requests, where the file has them.
    pub result: Option<LevelResult>,
}

impl Level {
    /// A level whose requests are known.
    pub fn of(result: &LevelResult) -> Level {
        Level {
            summary: LevelSummary::of(result),
            result: Some(result.clone()),
        }
    }
}

impl From<LevelSummary> for Level {
    fn from(summary: LevelSummary) -> Level {
        Level {
            summary,
            result: None,
        }
    }
}

/// What was read.
pub(crate) struct Loaded {
    pub levels: Vec<Level>,
    pub sources: Vec<PathBuf>,
}

/// Read every path. A folder gives its levels' files, and its summary CSV only where it has none.
pub(crate) fn load(paths: &[PathBuf]) -> Result<Loaded, ReportError> {
    let mut loaded = Loaded {
        levels: Vec::new(),
        sources: Vec::new(),
    };
    for path in paths {
        let nothing = |problem: &str| ReportError::NothingToRead {
            path: path.clone(),
            problem: problem.into(),
        };
        if path.is_dir() {
            let files = level_files(path)?;
            let summary = path.join(csv::FILE_NAME);
            match (files.is_empty(), summary.is_file()) {
                (false, _) => files.iter().try_for_each(|f| read_one(f, &mut loaded))?,
                (true, true) => read_one(&summary, &mut loaded)?,
                (true, false) => {
                    let files = foreign_files(path)?;
                    if files.is_empty() {
                        return Err(nothing("the folder holds no results"));
                    }
                    files.iter().try_for_each(|f| read_one(f, &mut loaded))?;
                }
            }
        } else if path.is_file() {
            read_one(path, &mut loaded)?;
        } else {
            return Err(nothing("there is no such file or folder"));
        }
    }
    if loaded.levels.is_empty() {
        let path = paths.first().cloned().unwrap_or_default();
        return Err(ReportError::NothingToRead {
            path,
            problem: "no results were given".into(),
        });
    }
    Ok(loaded)
}

/// Other tools' results in a folder: what JSON files hold one, and AIPerf's requests instead of its summary.
fn foreign_files(folder: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let requests = folder.join("profile_export.jsonl");
    if requests.is_file() {
        return Ok(vec![requests]);
    }
    let failed = |source| ReportError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let json = path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("json"));
        if json && path.is_file() && foreign::is_json_result(&path) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The levels' files of a folder: JSON files with the names that levels have.
fn level_files(folder: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let failed = |source| ReportError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let level = ["throughput-", "synchronous", "constant-", "poisson-"]
            .iter()
            .any(|start| name.starts_with(start));
        if level && name.ends_with(".json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_one(path: &Path, loaded: &mut Loaded) -> Result<(), ReportError> {
    loaded.levels.extend(foreign::read(path)?);
    loaded.sources.push(path.to_owned());
    Ok(())
}
