//! What is known of a run beside its results. All of it may be missing: a summary CSV carries none.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use powerband_bench::{Drift, GoodputResult, KneeResult};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Its file in a folder of results.
pub const FILE_NAME: &str = "context.json";

/// What a run concludes is no larger, bytes: a line for each level.
const LARGEST: u64 = 4 << 20;

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
    /// What the run has found out itself, a sentence each: of a search for the knee or for the largest load
    /// that meets an objective. In files of their own.
    #[serde(skip)]
    pub conclusions: Vec<String>,
    /// Whether the server drifted during the run, where that was measured. In a file of its own.
    #[serde(skip)]
    pub drift: Option<String>,
}

impl Context {
    /// What the folder of a run says of it: what is not readable is as if it were not there, but for
    /// conclusions, of which that is said.
    pub fn read(folder: &Path) -> Self {
        let text = std::fs::read_to_string(folder.join(FILE_NAME));
        let known: Option<Context> = text.ok().and_then(|text| serde_json::from_str(&text).ok());
        known.unwrap_or_default().with_conclusions(folder)
    }

    /// The same with what the run in this folder has found out: `knee.json`, `goodput.json`, `drift.json`.
    pub fn with_conclusions(mut self, folder: &Path) -> Self {
        let knee = concluded(folder, "knee.json", |knee: KneeResult| knee.statement);
        let goodput = concluded(folder, "goodput.json", |found: GoodputResult| {
            found.statement
        });
        self.conclusions = [knee, goodput].into_iter().flatten().collect();
        self.drift = concluded(folder, "drift.json", told);
        self
    }

    /// Is there nothing to be kept in the context's own file?
    pub(crate) fn is_empty(&self) -> bool {
        let kept = Context {
            conclusions: Vec::new(),
            drift: None,
            ..self.clone()
        };
        kept == Context::default()
    }
}

/// What a file of a run concludes, as a sentence; `None` where there is no such file.
fn concluded<T: DeserializeOwned>(
    folder: &Path,
    name: &str,
    sentence: impl FnOnce(T) -> String,
) -> Option<String> {
    let file = File::open(folder.join(name)).ok()?;
    Some(match serde_json::from_reader(file.take(LARGEST)) {
        Ok(found) => sentence(found),
        Err(problem) => format!("{name} cannot be read ({problem})."),
    })
}

/// A drift check in words.
fn told(drift: Drift) -> String {
    let tested = drift.metrics.iter().any(|m| m.p_value.is_some());
    match drift.warning() {
        Some(moved) => {
            format!("Caution: {moved}. Levels that were measured far apart are not comparable.")
        }
        None if tested => format!(
            "Level {} was measured once more at the end and has not moved: the server did not drift during the run.",
            drift.level
        ),
        None => format!(
            "Level {} was measured once more at the end, with too few requests to tell whether the server drifted.",
            drift.level
        ),
    }
}
