//! Two runs told apart: level by level, metric by metric, with a test where the requests are known, and one
//! answer for a script.
//!
//! Reading order: `metric` (what is compared), `slices` (how sure a number is), `significance` (is a difference
//! more than chance), this file (what is said of it), `text` (the forms).

mod answer;
mod metric;
mod significance;
mod slices;
mod text;

use std::path::Path;

use powerband_bench::{LevelMetrics, LevelResult, metrics};
use serde::Serialize;

pub use metric::Metric;
use significance::{Estimate, Tested, holm, of_repeats, shares, welch};
use slices::{Slices, TAIL};

use crate::error::ReportError;
use crate::load::{self, Level};

/// So many repeats of a level on both sides are compared by their scatter, which holds what time slices of
/// one run cannot show: heat, neighbours, the order of the levels.
const REPEATS: usize = 3;

/// When a difference counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Settings {
    /// Smallest relative change that counts (0.05 = 5 %); of the share of failed requests the smallest
    /// difference.
    pub threshold: f64,
    /// The same where only summaries are known and nothing can be tested.
    pub untested_threshold: f64,
    /// Probability with which a run without any change is not called changed, over all its levels and
    /// metrics; also that of each interval by itself.
    pub confidence: f64,
}

impl Settings {
    /// Changes from `threshold` on count (0.05 = 5 %), those that cannot be tested from four times that on.
    pub fn new(threshold: f64) -> Settings {
        Settings {
            threshold,
            untested_threshold: 4.0 * threshold,
            confidence: powerband_bench::metrics::CONFIDENCE,
        }
    }
}

/// What is said of a metric: of B, as against A.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// More than chance, by more than the threshold, to the good.
    Better,
    /// More than chance, by more than the threshold, to the bad.
    Worse,
    /// Whatever the difference is, it is smaller than the threshold.
    Same,
    /// The data does not tell.
    Undecided,
}

/// One metric of one level.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricChange {
    /// Which.
    pub metric: Metric,
    /// In A.
    pub a: f64,
    /// In B.
    pub b: f64,
    /// B / A - 1; of the share of failed requests B - A.
    pub change: f64,
    /// Interval of the change, by itself; `None` where nothing could be tested.
    pub interval: Option<(f64, f64)>,
    /// Probability of such a difference by chance, corrected for the number of comparisons.
    pub p: Option<f64>,
    /// What follows.
    pub verdict: Verdict,
    /// Why nothing could be tested; empty where it was.
    pub untested: String,
}

/// One load that both runs have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LevelChange {
    /// The load.
    pub level: String,
    /// Runs of it in A and in B.
    pub runs: (usize, usize),
    /// What the numbers are of: the steady middle, the whole level, repeats, summaries.
    pub basis: String,
    /// Why it is not judged; `None` where it is.
    pub not_judged: Option<String>,
    /// Its metrics; empty where it is not judged.
    pub metrics: Vec<MetricChange>,
}

/// What a script needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing is worse.
    NoRegression,
    /// Something is worse.
    Regression,
    /// No level of the two could be judged.
    CannotCompare,
}

/// Two runs, compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Where A comes from.
    pub a: String,
    /// Where B comes from.
    pub b: String,
    /// With which settings.
    pub settings: Settings,
    /// The answer.
    pub outcome: Outcome,
    /// The answer in words.
    pub answer: String,
    /// Loads that both have, by rising load.
    pub levels: Vec<LevelChange>,
    /// Loads that only A has.
    pub only_a: Vec<String>,
    /// Loads that only B has.
    pub only_b: Vec<String>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

impl Comparison {
    /// For a script: 0 nothing is worse, 1 something is, 2 nothing could be compared.
    pub fn exit_code(&self) -> u8 {
        match self.outcome {
            Outcome::NoRegression => 0,
            Outcome::Regression => 1,
            Outcome::CannotCompare => 2,
        }
    }
}

/// The levels of one load in one run.
struct Group<'a> {
    name: String,
    /// Closed loops before open ones, by rising load.
    order: (bool, f64),
    levels: Vec<&'a Level>,
}

/// Compare two runs, each a folder or a file that [`crate::load`] reads.
///
/// # Errors
/// [`ReportError`] if one of them cannot be read.
pub fn compare(a: &Path, b: &Path, settings: Settings) -> Result<Comparison, ReportError> {
    let read = |path: &Path| load::load(&[path.to_owned()]).map(|loaded| loaded.levels);
    let names = (a.display().to_string(), b.display().to_string());
    compare_levels(names, &read(a)?, &read(b)?, settings)
}

/// Compare two runs just measured; `names` are what the answer calls them.
///
/// # Errors
/// [`ReportError::Level`] if requests that were put on the disk cannot be read back.
pub fn compare_results(
    names: (&str, &str),
    a: &[LevelResult],
    b: &[LevelResult],
    settings: Settings,
) -> Result<Comparison, ReportError> {
    let known = |results: &[LevelResult]| results.iter().map(Level::of).collect::<Vec<_>>();
    let names = (names.0.to_owned(), names.1.to_owned());
    compare_levels(names, &known(a), &known(b), settings)
}

fn compare_levels(
    (name_a, name_b): (String, String),
    levels_a: &[Level],
    levels_b: &[Level],
    settings: Settings,
) -> Result<Comparison, ReportError> {
    let (groups_a, groups_b) = (grouped(levels_a), grouped(levels_b));
    let missing = |of: &[Group<'_>], other: &[Group<'_>]| {
        let here = of
            .iter()
            .filter(|g| !other.iter().any(|o| o.name == g.name));
        here.map(|g| g.name.clone()).collect::<Vec<_>>()
    };
    let mut levels = Vec::new();
    for ga in &groups_a {
        if let Some(gb) = groups_b.iter().find(|gb| gb.name == ga.name) {
            levels.push(level(ga, gb, &settings));
        }
    }
    // What was read only in part would have been compared in part.
    for result in levels_a.iter().chain(levels_b).flat_map(|l| &l.result) {
        result.requests.intact()?;
    }
    judge(&mut levels, &settings);
    let mut comparison = Comparison {
        a: name_a,
        b: name_b,
        settings,
        outcome: Outcome::CannotCompare,
        answer: String::new(),
        only_a: missing(&groups_a, &groups_b),
        only_b: missing(&groups_b, &groups_a),
        notes: answer::notes(levels_a, levels_b, &levels),
        levels,
    };
    (comparison.outcome, comparison.answer) = answer::answer(&comparison);
    Ok(comparison)
}

/// By load: one request after the other is one client.
fn grouped(levels: &[Level]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for level in levels {
        let summary = &level.summary;
        let stem = summary.file.trim_end_matches(".json");
        let (name, load) = match summary.concurrency {
            Some(clients) if !summary.open_loop && stem != "throughput-max" => {
                (crate::sweep::clients(clients), clients)
            }
            _ => (stem.to_owned(), f64::INFINITY),
        };
        match groups.iter_mut().find(|g| g.name == name) {
            Some(group) => group.levels.push(level),
            None => groups.push(Group {
                name,
                order: (summary.open_loop, load),
                levels: vec![level],
            }),
        }
    }
    groups.sort_by(|a, b| {
        a.order
            .0
            .cmp(&b.order.0)
            .then(a.order.1.total_cmp(&b.order.1))
    });
    groups
}

/// One load of both runs; verdicts come later, when all probabilities are known.
fn level(a: &Group<'_>, b: &Group<'_>, settings: &Settings) -> LevelChange {
    let mut change = LevelChange {
        level: a.name.clone(),
        runs: (a.levels.len(), b.levels.len()),
        basis: String::new(),
        not_judged: None,
        metrics: Vec::new(),
    };
    for (run, group) in [("A", a), ("B", b)] {
        let limit = group.levels.iter().find(|l| l.summary.client_limited());
        if let Some(why) = limit.and_then(|l| l.summary.client_limit.as_ref()) {
            change.not_judged = Some(format!(
                "in {run} the load generator was the limit ({why}), so the numbers are not the server's"
            ));
            return change;
        }
    }
    let (ea, eb, basis) = estimates(a, b);
    change.basis = basis.into();
    for (metric, (ea, eb)) in Metric::ALL.into_iter().zip(ea.into_iter().zip(eb)) {
        change.metrics.extend(match metric {
            Metric::Failed => failed(a, b, settings),
            _ => ea.zip(eb).map(|(ea, eb)| {
                let tested = welch(&ea, &eb, settings.confidence);
                let untested = match (tested, basis) {
                    (Some(_), _) => "",
                    (None, SUMMARIES) => NO_REQUESTS,
                    (None, _) if metric.is_tail() => "too few requests for a 99th percentile",
                    (None, _) => "too short: fewer than five times the length of a request",
                };
                let of = (ea.value, eb.value, eb.value / ea.value - 1.0);
                change_of(metric, of, tested, untested)
            }),
        });
    }
    let completed = |g: &Group<'_>| g.levels.iter().any(|l| l.summary.successful != Some(0));
    if !completed(a) && !completed(b) {
        change.metrics.clear();
        change.not_judged = Some("no request completed in A or in B".into());
    } else if change.metrics.is_empty() {
        change.not_judged = Some("A and B have no metric in common".into());
    }
    change
}

/// The basis where no requests are known.
const SUMMARIES: &str = "summaries";
/// Why nothing is tested there.
const NO_REQUESTS: &str = "no single requests are known";

/// Each metric of both runs, in the order of [`Metric::ALL`], and what it is made from.
type Estimates = Vec<Option<Estimate>>;

fn estimates(a: &Group<'_>, b: &Group<'_>) -> (Estimates, Estimates, &'static str) {
    let each = |of: &dyn Fn(Metric) -> Option<Estimate>| Metric::ALL.map(of).to_vec();
    let (Some(ra), Some(rb)) = (results(a), results(b)) else {
        let of = |g: &Group<'_>| {
            each(&|metric| {
                let values = g.levels.iter().map(|l| metric.of_summary(&l.summary));
                let values: Vec<f64> = values.collect::<Option<_>>()?;
                // A tail of few requests is noise of any size.
                let known = g.levels.iter().map(|l| l.summary.successful);
                let few = known.sum::<Option<u64>>().is_some_and(|n| n < TAIL as u64);
                (!(metric.is_tail() && few)).then(|| Estimate {
                    error: None,
                    ..of_repeats(&values)
                })
            })
        };
        return (of(a), of(b), SUMMARIES);
    };
    let steady = ra.iter().chain(&rb).all(|r| r.1.steady.is_some());
    let cut = |runs: &[&Run<'_>]| {
        let mut slices = Slices::default();
        for (level, metrics) in runs.iter().copied() {
            let window = match metrics.steady.as_ref().filter(|_| steady) {
                Some(steady) => (steady.start_s, steady.end_s),
                None => metrics::window(level),
            };
            slices.add(level, window, steady, metrics.latency_s.mean);
        }
        slices
    };
    if ra.len() >= REPEATS && rb.len() >= REPEATS {
        let of = |runs: &[Run<'_>]| {
            let cuts: Vec<Slices> = runs.iter().map(|run| cut(&[run])).collect();
            each(&|metric| {
                let values = cuts.iter().map(|c| Some(c.estimate(metric)?.value));
                Some(of_repeats(&values.collect::<Option<Vec<f64>>>()?))
            })
        };
        return (of(&ra), of(&rb), "repeats");
    }
    let of = |runs: &[Run<'_>]| {
        let cut = cut(&runs.iter().collect::<Vec<_>>());
        each(&|metric| cut.estimate(metric))
    };
    let basis = match steady {
        true => "the steady middle",
        false => "the whole level",
    };
    (of(&ra), of(&rb), basis)
}

type Run<'a> = (&'a LevelResult, LevelMetrics);

/// The runs of a load with their requests; `None` if those of one are not known.
fn results<'a>(group: &Group<'a>) -> Option<Vec<Run<'a>>> {
    let results = group.levels.iter().map(|l| l.result.as_ref());
    let known = |r: &'a LevelResult| (r, LevelMetrics::of(r));
    results.map(|r| r.map(known)).collect()
}

/// The share of failed requests, which every kind of result tells.
fn failed(a: &Group<'_>, b: &Group<'_>, settings: &Settings) -> Option<MetricChange> {
    let of = |g: &Group<'_>| {
        let counts = g.levels.iter().filter_map(|l| metric::failed(&l.summary));
        let (n, of) = counts.fold((0.0, 0.0), |t, c| (t.0 + c.0, t.1 + c.1));
        (of > 0.0).then_some((n, of))
    };
    let (a, b) = (of(a)?, of(b)?);
    let tested = shares(a, b, settings.confidence);
    let (sa, sb) = (a.0 / a.1, b.0 / b.1);
    Some(change_of(
        Metric::Failed,
        (sa, sb, sb - sa),
        Some(tested),
        "",
    ))
}

fn change_of(
    metric: Metric,
    (a, b, change): (f64, f64, f64),
    tested: Option<Tested>,
    untested: &str,
) -> MetricChange {
    MetricChange {
        metric,
        a,
        b,
        change,
        interval: tested.map(|t| t.interval),
        p: tested.map(|t| t.p),
        verdict: Verdict::Undecided,
        untested: untested.into(),
    }
}

/// Correct all probabilities for each other, and decide.
fn judge(levels: &mut [LevelChange], settings: &Settings) {
    let all = || levels.iter().flat_map(|l| &l.metrics);
    let p: Vec<f64> = all().filter_map(|m| m.p).collect();
    let mut corrected = holm(&p).into_iter();
    for m in levels.iter_mut().flat_map(|l| &mut l.metrics) {
        if let Some(p) = &mut m.p {
            *p = corrected.next().unwrap_or(1.0);
        }
        m.verdict = verdict(m, settings);
    }
}

fn verdict(m: &MetricChange, settings: &Settings) -> Verdict {
    let beyond = |threshold: f64| {
        if m.change.abs() <= threshold {
            None
        } else if (m.change > 0.0) == m.metric.more_is_better() {
            Some(Verdict::Better)
        } else {
            Some(Verdict::Worse)
        }
    };
    let within = |(low, high): (f64, f64)| low >= -settings.threshold && high <= settings.threshold;
    let decided = match (m.p, m.interval) {
        // The same number is the same measurement.
        _ if m.change == 0.0 => Some(Verdict::Same),
        (Some(p), _) if p < 1.0 - settings.confidence && beyond(settings.threshold).is_some() => {
            beyond(settings.threshold)
        }
        (Some(_), Some(interval)) if within(interval) => Some(Verdict::Same),
        (Some(_), _) => None,
        _ if m.untested == NO_REQUESTS => beyond(settings.untested_threshold),
        _ => None,
    };
    decided.unwrap_or(Verdict::Undecided)
}

#[cfg(test)]
mod tests;
