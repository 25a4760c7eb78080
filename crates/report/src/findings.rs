//! What follows from a sweep: each finding one small function with its thresholds stated, from the
//! data alone. What the data does not show is not found.

mod cap;
mod collapse;
mod health;
mod jump;
mod machine;
mod places;
mod queue;
mod scaling;
mod server;
mod steps;
mod tokens;
mod waves;

use serde::{Deserialize, Serialize};

use crate::sweep::{Point, Sweep};

/// What a change is expected to bring, in one number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Under which load.
    pub scenario: String,
    /// Which number.
    pub metric: String,
    /// Its unit.
    pub unit: String,
    /// As measured, or as it follows from what was measured.
    pub before: f64,
    /// As expected after the change.
    pub after: f64,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What kind it is; stable, for scripts.
    pub id: String,
    /// Clients of the level that it is about; `None` where it is about the sweep.
    pub level: Option<f64>,
    /// Its number.
    pub value: f64,
    /// The number's unit.
    pub unit: String,
    /// Between which bounds the number lies, where the data tells.
    pub interval: Option<(f64, f64)>,
    /// The numbers that show it, in words.
    pub evidence: String,
    /// What to do about it; empty where nothing is to be done.
    pub advice: String,
    /// What the advice is expected to bring.
    pub predicted: Vec<Prediction>,
}

impl Finding {
    fn new(id: &str, at: Option<&Point>, value: f64, unit: &str, evidence: String) -> Finding {
        Finding {
            id: id.into(),
            level: at.map(Point::load),
            value,
            unit: unit.into(),
            interval: None,
            evidence,
            advice: String::new(),
            predicted: Vec::new(),
        }
    }

    fn advise(mut self, advice: impl Into<String>) -> Finding {
        self.advice = advice.into();
        self
    }

    fn within(mut self, interval: Option<(f64, f64)>) -> Finding {
        self.interval = interval;
        self
    }
}

/// Everything that follows from a sweep, in the order in which a reader wants it.
pub fn all(sweep: &Sweep<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(health::find(sweep));
    found.extend(tokens::throughput_is_total_tokens(sweep));
    found.extend(tokens::e2e_identity(sweep));
    found.extend(scaling::peak(sweep));
    found.extend(scaling::linear(sweep));
    found.extend(scaling::plateau(sweep));
    found.extend(jump::find(sweep));
    let collapse = collapse::find(sweep);
    let queue = queue::find(sweep);
    found.extend(collapse.clone());
    found.extend(queue.clone());
    found.extend(server::find(sweep));
    found.extend(steps::find(sweep));
    found.extend(machine::find(sweep));
    found.extend(cap::find(sweep, collapse.as_ref()));
    found.extend(places::find(sweep, collapse.as_ref()));
    found.extend(waves::find(sweep));
    found
}

/// The first finding of a kind.
pub fn first<'a>(findings: &'a [Finding], id: &str) -> Option<&'a Finding> {
    findings.iter().find(|f| f.id == id)
}
