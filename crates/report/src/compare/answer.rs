//! What is said of two runs beside their numbers.

use powerband_bench::LevelResult;

use super::{Comparison, LevelChange, Outcome, REPEATS, SUMMARIES, Verdict};
use crate::load::Level;
use crate::summary::LevelSummary;

/// What a reader must know.
pub(super) fn notes(a: &[Level], b: &[Level], levels: &[LevelChange]) -> Vec<String> {
    let mut notes = Vec::new();
    let result = |levels: &[Level], of: fn(&LevelResult) -> String| {
        let first = levels.iter().find_map(|l| l.result.as_ref());
        first.map(of).filter(|text| !text.is_empty())
    };
    for (what, of) in [
        ("model", (|r| r.model.clone()) as fn(&LevelResult) -> String),
        ("endpoint", |r| r.endpoint.clone()),
        ("version of HTTP", |r| r.http_version.clone()),
    ] {
        if let (Some(a), Some(b)) = (result(a, of), result(b, of))
            && a != b
        {
            notes.push(format!("The {what} differs: `{a}` in A, `{b}` in B."));
        }
    }
    let mean = |levels: &[Level], of: fn(&LevelSummary) -> Option<f64>| {
        crate::sweep::median(levels.iter().filter_map(|l| of(&l.summary)))
    };
    for (what, of) in [
        (
            "prompt",
            (|l| l.prompt_tokens) as fn(&LevelSummary) -> Option<f64>,
        ),
        ("output", |l| l.output_tokens),
    ] {
        if let (Some(a), Some(b)) = (mean(a, of), mean(b, of))
            && (b / a - 1.0).abs() > 0.05
        {
            notes.push(format!(
                "The workload differs: {a:.1} {what} tokens a request in A, {b:.1} in B. A difference may be that of the work."
            ));
        }
    }
    if levels.iter().any(|l| l.basis == SUMMARIES) {
        notes.push("Summaries do not hold single requests: nothing but the failed requests is tested there, and only large differences are judged.".into());
    }
    let once = |l: &LevelChange| l.basis.starts_with("the ");
    if levels.iter().any(once) {
        notes.push(format!("A level that was run once tells its own scatter, not that from run to run (heat, neighbours, order): with {REPEATS} runs of a level on both sides these are compared instead."));
    }
    notes
}

/// The answer to a script, and in words.
pub(super) fn answer(c: &Comparison) -> (Outcome, String) {
    let count = |verdict: Verdict| {
        let all = c.levels.iter().flat_map(|l| &l.metrics);
        all.filter(|m| m.verdict == verdict).count()
    };
    let judged = c.levels.iter().filter(|l| l.not_judged.is_none()).count();
    if c.levels.is_empty() {
        let names = |levels: &[String]| levels.join(", ");
        return (
            Outcome::CannotCompare,
            format!(
                "cannot compare: A and B have no level in common (A: {}; B: {})",
                names(&c.only_a),
                names(&c.only_b)
            ),
        );
    }
    if judged == 0 {
        let why = c.levels.iter().find_map(|l| l.not_judged.clone());
        return (
            Outcome::CannotCompare,
            format!(
                "cannot compare: no level can be judged ({})",
                why.unwrap_or_default()
            ),
        );
    }
    let (worse, undecided) = (count(Verdict::Worse), count(Verdict::Undecided));
    let counts = format!(
        "{worse} worse, {} better, {} same, {undecided} undecided of {} comparisons at {judged} level(s)",
        count(Verdict::Better),
        count(Verdict::Same),
        c.levels.iter().map(|l| l.metrics.len()).sum::<usize>(),
    );
    match worse {
        0 => (Outcome::NoRegression, format!("no regression: {counts}")),
        _ => (Outcome::Regression, format!("regression: {counts}")),
    }
}
