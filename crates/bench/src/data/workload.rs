//! What the requests of a run hold, whatever it comes from.

use std::sync::Arc;

use super::rows::Rows;
use super::session::{Session, Sizes};
use super::synthetic::Synthetic;
use super::trace::Trace;
use crate::form::Form;

/// The sessions of a run.
#[derive(Debug)]
pub(crate) enum Workload {
    /// Made up.
    Synthetic(Synthetic),
    /// Of a file.
    Rows(Rows),
    /// Of a trace.
    Trace(Trace),
}

impl Workload {
    /// The number of the first session of a level: no two levels send the same prompt.
    pub fn first_session(&self, level: u64) -> u64 {
        match self {
            Workload::Synthetic(_) | Workload::Trace(_) => level << 32,
            Workload::Rows(rows) => rows.first_session(),
        }
    }

    /// A session at its start.
    pub fn session(&self, number: u64) -> Session {
        match self {
            Workload::Synthetic(made) => Session::new(number, made.turns),
            Workload::Rows(rows) => rows.session(number),
            Workload::Trace(_) => Session::new(number, 1),
        }
    }

    /// When requests are due by themselves, seconds after the first.
    pub fn times_s(&self) -> Option<Arc<[f64]>> {
        match self {
            Workload::Synthetic(_) | Workload::Rows(_) => None,
            Workload::Trace(trace) => Some(trace.times_s.clone()),
        }
    }

    /// Append the session's next prompt as JSON.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub fn write(&self, form: Form, session: &Session, out: &mut Vec<u8>) -> Result<Sizes, String> {
        match self {
            Workload::Synthetic(made) => Ok(made.write(form, session, out)),
            Workload::Rows(rows) => rows.write(form, session, out),
            Workload::Trace(trace) => trace.write(form, session, out),
        }
    }

    /// How long the user thinks before the session's next turn, seconds.
    pub fn think_s(&self, session: &Session) -> f64 {
        match self {
            Workload::Synthetic(made) => {
                made.think_s(session.number, session.turn.saturating_sub(1))
            }
            Workload::Rows(rows) => rows.think_s(session),
            Workload::Trace(_) => 0.0,
        }
    }

    /// What the session's next turn is to hold as the answer to this one, if not what the server says.
    pub fn answer(&self, session: &Session) -> Option<String> {
        match self {
            Workload::Synthetic(_) | Workload::Trace(_) => None,
            Workload::Rows(rows) => rows.answer(session),
        }
    }

    /// The prompt and the output tokens that all requests have, where they do.
    pub fn uniform(&self) -> (Option<u64>, Option<u64>) {
        match self {
            Workload::Synthetic(made) => made.uniform(),
            Workload::Rows(rows) => (None, rows.uniform()),
            Workload::Trace(_) => (None, None),
        }
    }

    /// What is to be told of a level of so many sessions, the first with this number.
    pub fn warning(&self, first_session: u64, sessions: u64) -> Option<String> {
        match self {
            Workload::Synthetic(_) => None,
            Workload::Rows(rows) => rows.warning(first_session, sessions),
            Workload::Trace(trace) => trace.warning(sessions),
        }
    }
}
