//! Why requests of a level failed, in a sentence: nobody should have to look for that in a file of requests.

use std::collections::HashMap;

use crate::chunk::excerpt;
use crate::record::{LevelResult, Outcome};

/// Reasons that are told one by one.
const TOLD: usize = 3;
/// Reasons that are told apart: a server may put a number of its own into each.
const TOLD_APART: usize = 1000;

/// The most frequent reasons; `None` if no request failed.
pub(super) fn warning(level: &LevelResult) -> Option<String> {
    let totals = level.requests.totals();
    if totals.errored == 0 {
        return None;
    }
    let mut reasons: HashMap<String, usize> = HashMap::new();
    for request in &level.requests {
        let Outcome::Errored(reason) = &request.outcome else {
            continue;
        };
        if let Some(times) = reasons.get_mut(reason) {
            *times += 1;
        } else if reasons.len() < TOLD_APART {
            reasons.insert(reason.clone(), 1);
        }
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by(|(a, a_times), (b, b_times)| b_times.cmp(a_times).then_with(|| a.cmp(b)));
    reasons.truncate(TOLD);
    let others = totals.errored - reasons.iter().map(|(_, times)| times).sum::<usize>();
    let mut told: Vec<String> = reasons
        .iter()
        .map(|(reason, times)| format!("{times} x {}", excerpt(reason.as_bytes())))
        .collect();
    if others > 0 {
        told.push(format!("{others} x something else"));
    }
    Some(format!(
        "{} of {} requests failed: {}",
        totals.errored,
        totals.total(),
        told.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{RequestRecord, Strategy};

    fn warning_of(reasons: impl Iterator<Item = String>) -> Option<String> {
        let mut level = LevelResult::empty(Strategy::Synchronous);
        let failed = reasons.map(Outcome::Errored);
        let outcomes = [Outcome::Successful, Outcome::Incomplete("cut".into())];
        level.requests = (outcomes.into_iter().chain(failed))
            .map(|outcome| RequestRecord {
                outcome,
                ..RequestRecord::default()
            })
            .collect();
        warning(&level)
    }

    #[test]
    fn the_most_frequent_reasons_come_first() {
        assert_eq!(warning_of(std::iter::empty()), None);
        let reasons = ["b", "a", "d", "b", "c", "b", "a"].map(str::to_owned);
        assert_eq!(
            warning_of(reasons.into_iter()).unwrap(),
            "7 of 9 requests failed: 3 x b; 2 x a; 1 x c; 1 x something else"
        );
    }

    #[test]
    fn reasons_that_all_differ_are_bounded() {
        let reasons = (0..5_000).map(|i| format!("request {i:04} {}", "x".repeat(300)));
        let told = warning_of(reasons).unwrap();
        assert!(told.starts_with("5000 of 5002 requests failed: 1 x request 0000 x"));
        assert!(told.ends_with("; 4997 x something else") && told.len() < 1_000);
    }
}
