//! Profiles that look for something: each level is chosen by what those before it measured, and at the end
//! there is an answer.

use serde::Serialize;

use crate::config::BenchConfig;
use crate::goodput::{GoodputResult, GoodputState};
use crate::knee::{KneeResult, KneeState};
use crate::limits::Limits;
use crate::metrics::{LevelMetrics, STEADY_WAVES};
use crate::profile::Profile;
use crate::record::{LevelResult, Strategy};

/// What a search has found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Conclusion {
    /// Of a knee; `knee.json`.
    Knee(KneeResult),
    /// Of the largest load that meets an objective; `goodput.json`.
    Goodput(GoodputResult),
}

impl Conclusion {
    /// The answer as a sentence.
    pub fn statement(&self) -> &str {
        match self {
            Conclusion::Knee(knee) => &knee.statement,
            Conclusion::Goodput(goodput) => &goodput.statement,
        }
    }

    /// Name of its file.
    pub(crate) fn file(&self) -> &'static str {
        match self {
            Conclusion::Knee(_) => "knee.json",
            Conclusion::Goodput(_) => "goodput.json",
        }
    }
}

/// A search on its way.
pub(crate) enum Search {
    Knee(KneeState),
    Goodput(GoodputState, u64),
}

impl Search {
    /// Of a run; `None` if its profile looks for nothing.
    pub fn of(config: &BenchConfig) -> Option<Search> {
        match &config.profile {
            Profile::Knee(search) => Some(Search::Knee(KneeState::new(*search))),
            Profile::Goodput(search) => Some(Search::Goodput(
                GoodputState::new(*search, config.slo?),
                search.least_requests(),
            )),
            _ => None,
        }
    }

    /// The next level; `None` at the end.
    pub fn next(&self) -> Option<Strategy> {
        match self {
            Search::Knee(state) => state.next(),
            Search::Goodput(state, _) => state.next(),
        }
    }

    /// Take in a level.
    pub fn learn(&mut self, level: &LevelResult, metrics: &LevelMetrics) {
        match self {
            Search::Knee(state) => state.learn(level, metrics),
            Search::Goodput(state, _) => state.learn(level, metrics),
        }
    }

    /// The limits of a level: a number of requests is raised to what a verdict needs, which grows with the
    /// clients. A steady part takes one wave more than are counted.
    pub fn limits(&self, strategy: &Strategy, limits: Limits) -> Limits {
        let waves = match strategy {
            Strategy::Concurrent { streams } => (STEADY_WAVES + 2).saturating_mul(*streams),
            _ => 0,
        };
        let least = match self {
            Search::Knee(_) => waves as u64,
            Search::Goodput(_, least) => (waves as u64).max(*least),
        };
        Limits {
            max_requests: limits.max_requests.map(|n| n.max(least)),
            ..limits
        }
    }

    /// The answer; `stopped` tells why the run ended before the search did.
    pub fn conclude(&self, stopped: Option<&str>) -> Conclusion {
        match self {
            Search::Knee(state) => Conclusion::Knee(state.result(stopped)),
            Search::Goodput(state, _) => Conclusion::Goodput(state.result(stopped)),
        }
    }
}
