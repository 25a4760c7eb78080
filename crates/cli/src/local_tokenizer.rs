//! The model's tokenizer as the load generator's counter.

use std::path::Path;
use std::sync::Arc;

use powerband_bench::TokenCounter;
use powerband_model::Tokenizer;

use crate::error::{CliError, CliResult};

/// Counts tokens as the model's tokenizer makes them.
struct Local(Tokenizer);

impl TokenCounter for Local {
    fn count_prompt(&self, text: &str) -> usize {
        self.count(text, true)
    }

    fn count_output(&self, text: &str) -> usize {
        self.count(text, false)
    }
}

impl Local {
    /// Text that a tokenizer cannot take has no tokens that it could count.
    fn count(&self, text: &str, special: bool) -> usize {
        self.0.encode(text, special).map_or(0, |ids| ids.len())
    }
}

/// Opens `--tokenizer`.
pub fn open(path: &Path) -> CliResult<Arc<dyn TokenCounter>> {
    match Tokenizer::open(path) {
        Ok(tokenizer) => Ok(Arc::new(Local(tokenizer))),
        Err(error) => Err(CliError::new(format!("--tokenizer: {error}")).hint(
            "give a tokenizer.json, a folder that holds one, or a GGUF file; none is needed where the server counts",
        )),
    }
}
