//! What is known of a run beside its results. All of it may be missing: a summary CSV carries none.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// Its file in a folder of results.
pub const FILE_NAME: &str = "context.json";

/// Facts about the server and the run that sharpen the findings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Context {
    /// Heading of the report; made from the model where it is missing.
    pub title: Option<String>,
    /// Model served.
    pub model: Option<String>,
    /// Base URL of the server.
    pub target: Option<String>,
    /// What computes: `cpu`, `cuda`, `sim`, or another server's name.
    pub backend: Option<String>,
    /// The machine in words: CPU, GPU, memory.
    pub machine: Option<String>,
    /// The command that made the run.
    pub command: Option<String>,
    /// The server's cap on running requests (`--max-num-seqs`).
    pub max_num_seqs: Option<usize>,
    /// Tokens that the server's KV cache holds.
    pub kv_cache_tokens: Option<u64>,
}

impl Context {
    /// What the folder of a run says of it; `None` where it says nothing readable.
    pub fn read(folder: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(folder.join(FILE_NAME)).ok()?;
        serde_json::from_str(&text).ok()
    }
}
