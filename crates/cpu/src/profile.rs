//! Where the time of a step goes.

use std::time::{Duration, Instant};

/// A part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Phase {
    Embed,
    Norm,
    Qkv,
    Rotate,
    Attention,
    Output,
    GateUp,
    Down,
    Head,
    Sampling,
}

impl Phase {
    /// All, in the order of a step.
    pub const ALL: [Phase; 10] = [
        Phase::Embed,
        Phase::Norm,
        Phase::Qkv,
        Phase::Rotate,
        Phase::Attention,
        Phase::Output,
        Phase::GateUp,
        Phase::Down,
        Phase::Head,
        Phase::Sampling,
    ];
}

/// Time spent in each phase since [`Profile::reset`]; costs nothing until it is enabled.
#[derive(Debug, Default)]
pub struct Profile {
    enabled: bool,
    last: Option<Instant>,
    spent: [Duration; Phase::ALL.len()],
}

impl Profile {
    /// Begins to count, from zero.
    pub fn reset(&mut self) {
        *self = Self {
            enabled: true,
            ..Self::default()
        };
    }

    /// Time in each phase.
    pub fn spent(&self) -> impl Iterator<Item = (Phase, Duration)> {
        Phase::ALL.into_iter().zip(self.spent)
    }

    /// A step begins.
    pub(crate) fn start(&mut self) {
        if self.enabled {
            self.last = Some(Instant::now());
        }
    }

    /// What passed since the last call belongs to `phase`.
    pub(crate) fn lap(&mut self, phase: Phase) {
        if let Some(last) = self.last {
            let now = Instant::now();
            self.spent[phase as usize] += now - last;
            self.last = Some(now);
        }
    }
}
