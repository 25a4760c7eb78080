//! The cache of quantised weights, as the start-up lines tell of it.

use std::path::Path;

use powerband_engine::human_bytes;
use powerband_model::weight_cache::{KeptWeights, Outcome, WeightCache};
use powerband_model::{ModelSpec, Weights, fetch};

/// The weights of the model at `source` with the cache before them, which takes at most `most` bytes.
pub fn attach(
    weights: Weights,
    spec: &ModelSpec,
    source: Option<&Path>,
    most: u64,
) -> (Weights, Option<KeptWeights>) {
    let (Some(folder), Some(source)) = (fetch::cache_folder(), source) else {
        return (weights, None);
    };
    let folder = folder.join("weights");
    WeightCache { folder, most }.keep(weights, spec, source)
}

/// A line about what became of it.
pub fn in_words(outcome: Outcome) -> String {
    let anew = |instead: Option<String>| match instead {
        Some(reason) => format!("; the file that was there is not used: {reason}"),
        None => String::new(),
    };
    let size = |bytes: u64| human_bytes(usize::try_from(bytes).unwrap_or(usize::MAX));
    match outcome {
        Outcome::Read { path, bytes } => format!(
            "quantised weights read from {} ({})",
            path.display(),
            size(bytes)
        ),
        Outcome::Written {
            path,
            bytes,
            instead,
        } => format!(
            "quantised weights kept in {} ({}; --weight-cache-bytes bounds or ends that){}",
            path.display(),
            size(bytes),
            anew(instead)
        ),
        Outcome::NotWritten {
            path,
            reason,
            instead,
        } => format!(
            "quantised weights are not kept in {}: {reason}{}",
            path.display(),
            anew(instead)
        ),
    }
}
