//! A session while a client plays it: one request, or the turns of a conversation.

use crate::form::Form;

/// What is wanted of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Prompt tokens, where they are known beforehand.
    pub prompt_tokens: Option<u64>,
    /// Must the server count just as many?
    pub exact: bool,
    /// Output tokens.
    pub output_tokens: u64,
}

/// A session on its way. One that has a single request takes no memory of its own.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// Unique in the run.
    pub number: u64,
    /// The turn to come, from 0, and how many there are.
    pub turn: u32,
    pub turns: u32,
    /// What a file holds of it, as it is stored.
    pub row: Vec<u8>,
    /// What was said before, as [`Form::keep`] has it.
    pub history: Vec<u8>,
    /// Tokens of that, as far as they are known.
    pub context_tokens: u64,
    /// When the turn before ended, ns.
    pub predecessor_end_ns: Option<u64>,
}

impl Session {
    pub fn new(number: u64, turns: u32) -> Self {
        Session {
            number,
            turns,
            ..Session::default()
        }
    }

    /// Will there be another turn after the one to come?
    pub fn goes_on(&self) -> bool {
        self.turn + 1 < self.turns
    }

    /// A number for the text of the turn to come, which no other turn has.
    pub fn text_number(&self) -> u64 {
        // Numbers of sessions have their high bits in the level, of which there are few.
        self.number ^ (u64::from(self.turn) << 44)
    }

    /// A turn is over, with so many tokens in all: keep what was said if another one comes.
    pub fn advance(&mut self, form: Form, prompt: &[u8], answer: &str, tokens: u64, end_ns: u64) {
        if self.goes_on() {
            form.keep(&mut self.history, prompt, answer);
        }
        self.context_tokens = tokens;
        self.predecessor_end_ns = Some(end_ns);
        self.turn += 1;
    }

    /// Are all turns over?
    pub fn is_over(&self) -> bool {
        self.turn >= self.turns
    }
}
