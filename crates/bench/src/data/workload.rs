//! What the requests of a run hold, whatever it comes from.

use super::session::{Session, Sizes};
use super::synthetic::Synthetic;
use crate::form::Form;

/// The sessions of a run.
#[derive(Debug, Clone)]
pub(crate) enum Workload {
    /// Made up.
    Synthetic(Synthetic),
}

impl Workload {
    /// The number of the first session of a level: no two levels send the same prompt.
    pub fn first_session(&self, level: u64) -> u64 {
        match self {
            Workload::Synthetic(_) => level << 32,
        }
    }

    /// A session at its start.
    pub fn session(&self, number: u64) -> Session {
        match self {
            Workload::Synthetic(made) => Session::new(number, made.turns),
        }
    }

    /// Append the session's next prompt as JSON.
    pub fn write(&self, form: Form, session: &Session, out: &mut Vec<u8>) -> Sizes {
        match self {
            Workload::Synthetic(made) => made.write(form, session, out),
        }
    }

    /// How long the user thinks after a turn of a session, seconds.
    pub fn think_s(&self, session: u64, turn: u32) -> f64 {
        match self {
            Workload::Synthetic(made) => made.think_s(session, turn),
        }
    }

    /// The prompt and the output tokens that all requests have, where they do.
    pub fn uniform(&self) -> (Option<u64>, Option<u64>) {
        match self {
            Workload::Synthetic(made) => made.uniform(),
        }
    }
}
