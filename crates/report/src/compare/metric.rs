//! What is compared.

use serde::Serialize;

use crate::summary::LevelSummary;

/// A number of a level that two runs are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of the requests that failed.
    Failed,
    /// Output tokens per second.
    OutputThroughput,
    /// Completed requests per second.
    RequestThroughput,
    /// Mean TTFT, ms.
    Ttft,
    /// 99th percentile of TTFT, ms.
    TtftP99,
    /// Mean ITL, ms.
    Itl,
    /// 99th percentile of ITL, ms.
    ItlP99,
    /// Mean TPOT, ms.
    Tpot,
    /// 99th percentile of TPOT, ms.
    TpotP99,
    /// Mean E2E, ms.
    E2e,
    /// 99th percentile of E2E, ms.
    E2eP99,
}

impl Metric {
    /// All of them, in the order of a table.
    pub const ALL: [Metric; 11] = [
        Metric::Failed,
        Metric::OutputThroughput,
        Metric::RequestThroughput,
        Metric::Ttft,
        Metric::TtftP99,
        Metric::Itl,
        Metric::ItlP99,
        Metric::Tpot,
        Metric::TpotP99,
        Metric::E2e,
        Metric::E2eP99,
    ];

    /// Its name with its unit.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Failed => "failed requests, share",
            Metric::OutputThroughput => "output tok/s",
            Metric::RequestThroughput => "requests/s",
            Metric::Ttft => "TTFT mean, ms",
            Metric::TtftP99 => "TTFT p99, ms",
            Metric::Itl => "ITL mean, ms",
            Metric::ItlP99 => "ITL p99, ms",
            Metric::Tpot => "TPOT mean, ms",
            Metric::TpotP99 => "TPOT p99, ms",
            Metric::E2e => "E2E mean, ms",
            Metric::E2eP99 => "E2E p99, ms",
        }
    }

    /// Is more of it better?
    pub fn more_is_better(self) -> bool {
        matches!(self, Metric::OutputThroughput | Metric::RequestThroughput)
    }

    /// Does it need the requests in the tail?
    pub(super) fn is_tail(self) -> bool {
        matches!(
            self,
            Metric::TtftP99 | Metric::ItlP99 | Metric::TpotP99 | Metric::E2eP99
        )
    }

    /// Its value where there is only a summary; TPOT is in none.
    pub(super) fn of_summary(self, level: &LevelSummary) -> Option<f64> {
        let value = match self {
            Metric::Failed => failed(level).map(|(n, of)| n / of),
            Metric::OutputThroughput => level.output_tokens_per_second,
            Metric::RequestThroughput => level.requests_per_second,
            Metric::Ttft => level.ttft_ms,
            Metric::TtftP99 => level.ttft.p99,
            Metric::Itl => level.itl_ms,
            Metric::ItlP99 => level.itl.p99,
            Metric::Tpot | Metric::TpotP99 => None,
            Metric::E2e => level.e2e_ms,
            Metric::E2eP99 => level.e2e.p99,
        };
        let any = |v: &f64| v.is_finite() && (*v > 0.0 || self == Metric::Failed);
        value.filter(any)
    }
}

/// Failed requests, and those that ended by themselves; `None` where there is none or it is not known.
pub(super) fn failed(level: &LevelSummary) -> Option<(f64, f64)> {
    let (failed, whole) = (level.errored? as f64, level.successful? as f64);
    (failed + whole > 0.0).then_some((failed, failed + whole))
}
