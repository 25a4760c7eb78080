//! One error for the edge: what went wrong, and what to do next.

use std::fmt;

/// A message for a person, with the next step.
#[derive(Debug)]
pub struct CliError {
    /// What went wrong; names the flag or the file.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The process's exit code.
    pub code: u8,
}

impl CliError {
    /// An error with exit code 1.
    pub fn new(message: impl fmt::Display) -> Self {
        Self {
            message: message.to_string(),
            hint: None,
            code: 1,
        }
    }

    /// The same with the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with another exit code.
    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// What a command returns.
pub type CliResult<T = ()> = Result<T, CliError>;
