//! A run: the levels of a profile, one after the other, each written as soon as it is finished.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::Path;

use crate::cancel::Cancel;
use crate::config::BenchConfig;
use crate::drift::Drift;
use crate::error::BenchError;
use crate::guidellm;
use crate::jsonl;
use crate::level::{LevelPlan, Progress, run_plan};
use crate::limits::{self, Budget, CANCELLED, Left, Limits};
use crate::metrics::LevelMetrics;
use crate::preflight::{Prepared, prepare};
use crate::record::{LevelResult, Outcome, Strategy};
use crate::requests::Requests;
use crate::search::{Conclusion, Search};
use crate::system::make_room_for_connections;
use crate::whole_file;

/// How the warning of a level begins after which a limit ended the run.
const RUN_ENDED: &str = "the run ended after this level: ";

/// What happens in a run, for a display.
#[derive(Debug)]
pub enum Event<'a> {
    /// The server was found well.
    Prepared {
        /// Its base URL.
        target: &'a str,
        /// Model.
        model: &'a str,
        /// Levels to come.
        levels: usize,
        /// What a reader of the results must know.
        warnings: &'a [String],
    },
    /// Requests that are not recorded are being sent.
    WarmingUp {
        /// How many.
        requests: u64,
    },
    /// A level begins.
    LevelStarted {
        /// Its number, from 0.
        index: usize,
        /// Load shape.
        strategy: &'a Strategy,
    },
    /// A level goes on; about five times a second.
    Progress {
        /// Its number, from 0.
        index: usize,
        /// Load shape.
        strategy: &'a Strategy,
        /// So far.
        progress: Progress,
    },
    /// A level is finished and its file, if any, written.
    LevelFinished {
        /// Its number, from 0.
        index: usize,
        /// All that was measured.
        result: &'a LevelResult,
        /// The numbers.
        metrics: &'a LevelMetrics,
        /// Its file.
        path: Option<&'a Path>,
    },
    /// A level was found complete in its file (`--resume`).
    LevelSkipped {
        /// Its number, from 0.
        index: usize,
        /// All that was measured then.
        result: &'a LevelResult,
        /// The numbers.
        metrics: &'a LevelMetrics,
        /// Its file.
        path: &'a Path,
    },
    /// The level that was running when the run was cancelled is dropped.
    LevelDropped {
        /// Its number, from 0.
        index: usize,
        /// Load shape.
        strategy: &'a Strategy,
    },
    /// A search is at its end; `knee.json` or `goodput.json` is written.
    Concluded {
        /// What it has found.
        conclusion: &'a Conclusion,
    },
    /// The first level was measured once more and compared; `drift.json` is written.
    DriftChecked {
        /// What has moved.
        drift: &'a Drift,
    },
    /// The run ends before its last level.
    RunStopped {
        /// Why, one sentence.
        reason: &'a str,
    },
}

/// What a run has at its end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunResult {
    /// The finished levels, in the order of the run.
    pub levels: Vec<LevelResult>,
    /// Why the run ended before its last level, where it did: a limit of the run, a level that failed,
    /// or the user.
    pub stopped: Option<String>,
    /// The first level against its repeat at the end, where that was asked for and measured.
    pub drift: Option<Drift>,
    /// What a search (knee, goodput) found out, or why it did not.
    pub conclusion: Option<Conclusion>,
}

/// [`measure`], of which only the levels are kept.
///
/// # Errors
/// Those of [`measure`].
pub async fn run(
    config: &BenchConfig,
    events: impl FnMut(Event<'_>),
    cancel: &Cancel,
) -> Result<Vec<LevelResult>, BenchError> {
    measure(config, events, cancel)
        .await
        .map(|result| result.levels)
}

/// Run all levels. When `cancel` is raised, the levels finished so far are returned.
///
/// # Errors
/// What [`prepare`] finds, a file that cannot be written, or a level of which every request failed (its
/// file is written). Files of finished levels are complete in each case.
pub async fn measure(
    config: &BenchConfig,
    mut events: impl FnMut(Event<'_>),
    cancel: &Cancel,
) -> Result<RunResult, BenchError> {
    make_room_for_connections();
    let directory = config.output_dir.as_deref();
    if let Some(directory) = directory {
        std::fs::create_dir_all(directory).map_err(|source| BenchError::Write {
            path: directory.to_owned(),
            source,
        })?;
    }
    let prepared = tokio::select! {
        prepared = prepare(config) => prepared?,
        () = cancel.cancelled() => return Ok(RunResult {
            stopped: Some(CANCELLED.to_owned()),
            ..RunResult::default()
        }),
    };
    events(Event::Prepared {
        target: &prepared.target,
        model: &prepared.model,
        levels: config.levels(),
        warnings: &prepared.warnings,
    });
    let mut done: Vec<LevelResult> = Vec::new();
    let mut names = HashSet::new();
    let mut warm = config.warmup_requests == 0;
    let mut budget = Budget::new(config.run_limits);
    let mut stopped = None;
    let planned = config.profile.fixed().map(|l| config.order.arrange(&l));
    let (mut checks_drift, mut drift) = (false, None);
    let mut search = Search::of(config);
    let mut last_path = None;
    loop {
        let next = match (&planned, &search) {
            _ if checks_drift => None,
            (Some(levels), _) => levels.get(done.len()).cloned(),
            (None, Some(search)) => search.next(),
            (None, None) => config.profile.next(&done),
        };
        let strategy = match (next, done.first()) {
            (Some(next), _) => next,
            (None, Some(first)) if config.order.drift_check && !checks_drift => {
                checks_drift = true;
                first.strategy.clone()
            }
            _ => break,
        };
        if cancel.is_cancelled() {
            stopped = Some(CANCELLED.to_owned());
            break;
        }
        let index = done.len();
        let name = free_name(&mut names, &strategy);
        let path = directory.map(|d| d.join(format!("{name}.json")));
        if let (true, Some(path)) = (config.resume, &path)
            && let Some(mut result) = finished_before(
                path,
                &config.fingerprint(&prepared.target, &prepared.model, &strategy),
            )
        {
            // The run goes on after it now.
            let warnings = result.warnings.len();
            result.warnings.retain(|w| !w.starts_with(RUN_ENDED));
            if result.warnings.len() < warnings {
                save(config, path, &result)?;
            }
            let lines = jsonl::beside(path);
            if config.requests_jsonl && !lines.exists() {
                jsonl::write(&lines, &result.requests)?;
            }
            let metrics = LevelMetrics::of(&result);
            if checks_drift {
                drift = done.first().map(|first| Drift::between(first, &result));
            } else if let Some(search) = &mut search {
                search.learn(&result, &metrics);
            }
            last_path = Some(path.clone());
            events(Event::LevelSkipped {
                index,
                result: &result,
                metrics: &metrics,
                path,
            });
            result.requests.put_away();
            done.push(result);
            continue;
        }
        if !std::mem::replace(&mut warm, true) {
            warm_up(
                &prepared,
                &strategy,
                config.warmup_requests,
                &mut events,
                cancel,
            )
            .await?;
        }
        let left = match budget.left() {
            Ok(left) => left,
            Err(reason) => {
                stopped = Some(reason);
                break;
            }
        };
        events(Event::LevelStarted {
            index,
            strategy: &strategy,
        });
        let plan = LevelPlan {
            strategy: strategy.clone(),
            number: index as u64,
            name: &name,
            limits: search
                .as_ref()
                .map_or(config.limits, |s| s.limits(&strategy, config.limits)),
            left,
            rampup_s: config.rampup_s,
        };
        let on_progress = |progress| {
            events(Event::Progress {
                index,
                strategy: &strategy,
                progress,
            })
        };
        let mut result = run_plan(&prepared, plan, cancel, on_progress).await?;
        if result.stopped.as_deref() == Some(CANCELLED) {
            events(Event::LevelDropped {
                index,
                strategy: &strategy,
            });
            stopped = Some(CANCELLED.to_owned());
            break;
        }
        budget.spend(&result);
        if checks_drift {
            drift = done.first().map(|first| Drift::between(first, &result));
            result
                .warnings
                .extend(drift.as_ref().and_then(Drift::warning));
        }
        if let Some(path) = &path {
            save(config, path, &result)?;
        }
        last_path.clone_from(&path);
        let metrics = LevelMetrics::of(&result);
        result.requests.intact()?;
        events(Event::LevelFinished {
            index,
            result: &result,
            metrics: &metrics,
            path: path.as_deref(),
        });
        if let Some(search) = search.as_mut().filter(|_| !checks_drift) {
            search.learn(&result, &metrics);
        }
        // To a search it is an answer that a server fails under more load than before.
        let failed = all_failed(&result, &name).filter(|_| search.is_none() || index == 0);
        let reason = result.stopped.clone().filter(|r| limits::failed(r));
        result.requests.put_away();
        done.push(result);
        if let Some(error) = failed {
            return Err(error);
        }
        if let Some(reason) = reason.filter(|_| config.limits.end_run) {
            stopped = Some(format!("level {name}: {reason}"));
            break;
        }
    }
    if let (Some(reason), Some(last)) = (&stopped, done.last_mut())
        && reason != CANCELLED
        && last.stopped.as_ref() != Some(reason)
    {
        // A limit that fell between two levels would otherwise stand in no file.
        last.warnings.push(format!("{RUN_ENDED}{reason}"));
        if let Some(path) = &last_path {
            save(config, path, last)?;
        }
    }
    let conclusion = search.map(|search| search.conclude(stopped.as_deref()));
    if let Some(conclusion) = &conclusion {
        conclude(directory, conclusion.file(), conclusion)?;
        events(Event::Concluded { conclusion });
    }
    if let Some(drift) = &drift {
        conclude(directory, "drift.json", drift)?;
        events(Event::DriftChecked { drift });
    }
    if let Some(reason) = &stopped {
        events(Event::RunStopped { reason });
    }
    Ok(RunResult {
        levels: done,
        stopped,
        drift,
        conclusion,
    })
}

/// Write what a run found out beside its levels.
fn conclude(
    directory: Option<&Path>,
    name: &str,
    finding: &impl serde::Serialize,
) -> Result<(), BenchError> {
    let Some(directory) = directory else {
        return Ok(());
    };
    whole_file::write(&directory.join(name), &Requests::default(), |out| {
        serde_json::to_writer_pretty(&mut *out, finding)?;
        out.write_all(b"\n")
    })
}

/// Write the files of a level. Its report is last: where that is, the level is finished.
fn save(config: &BenchConfig, path: &Path, level: &LevelResult) -> Result<(), BenchError> {
    if config.requests_jsonl {
        jsonl::write(&jsonl::beside(path), &level.requests)?;
    }
    match config.sample_size {
        None => guidellm::write(path, level),
        Some(sample_size) => guidellm::write_sample(path, level, sample_size),
    }
}

/// The level's name, made different where a run has two levels of one shape.
fn free_name(names: &mut HashSet<String>, strategy: &Strategy) -> String {
    let stem = strategy.file_stem();
    let mut name = stem.clone();
    let mut copy = 2;
    while !names.insert(name.clone()) {
        name = format!("{stem}-{copy}");
        copy += 1;
    }
    name
}

/// A level that an earlier run has finished, with the same settings.
fn finished_before(path: &Path, fingerprint: &str) -> Option<LevelResult> {
    let level = guidellm::read(path).ok()?.into_iter().next()?;
    let complete = level.stopped.as_deref().is_none_or(limits::complete);
    let any = level.requests.totals().successful > 0;
    (complete && any && level.fingerprint == fingerprint).then_some(level)
}

/// Send requests that are not recorded, at the first level's shape but never an open loop's.
async fn warm_up(
    prepared: &Prepared,
    first: &Strategy,
    requests: u64,
    events: &mut impl FnMut(Event<'_>),
    cancel: &Cancel,
) -> Result<(), BenchError> {
    events(Event::WarmingUp { requests });
    let streams = first.concurrency().unwrap_or(1).clamp(1, 64);
    let plan = LevelPlan {
        strategy: Strategy::Concurrent { streams },
        // Its prompts must not come again.
        number: u64::from(u32::MAX) >> 1,
        name: "warm-up",
        limits: Limits {
            max_requests: Some(requests),
            ..Limits::NONE
        },
        left: Left::default(),
        rampup_s: 0.0,
    };
    run_plan(prepared, plan, cancel, |_| {}).await.map(drop)
}

/// If no request came through and some failed: the reason that most of them gave.
fn all_failed(level: &LevelResult, name: &str) -> Option<BenchError> {
    /// Different reasons that are counted; a server that names each request would fill memory.
    const MOST_REASONS: usize = 1000;
    if level.requests.totals().successful > 0 {
        return None;
    }
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    for r in &level.requests {
        if let Outcome::Errored(reason) = &r.outcome
            && (reasons.len() < MOST_REASONS || reasons.contains_key(reason))
        {
            *reasons.entry(reason.clone()).or_default() += 1;
        }
    }
    let (reason, _) = reasons.into_iter().max_by_key(|(_, count)| *count)?;
    Some(BenchError::AllFailed {
        level: name.to_owned(),
        requests: level.requests.len(),
        reason,
    })
}
