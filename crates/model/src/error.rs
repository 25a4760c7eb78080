//! One error type for everything that can be wrong with a model.

use std::path::{Path, PathBuf};

/// What can be wrong with a model: its files, its numbers, or where it comes from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not what its format demands.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// A model folder without weights.
    #[error("{folder}: {reason}")]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What was looked for.
        reason: String,
    },
    /// A tensor is missing or does not fit the configuration.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// The canonical (Hugging Face) name of the tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The architecture, a format or an option is known but not built yet, or unknown.
    #[error("not supported: {0}")]
    Unsupported(String),
}

impl ModelError {
    /// A [`ModelError::Format`].
    pub(crate) fn format(path: &Path, reason: impl Into<String>) -> Self {
        ModelError::Format {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    /// The same error, naming the file or folder if it did not.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            ModelError::Tensor { .. } => ModelError::format(path, self.to_string()),
            ModelError::Unsupported(what) if !what.contains(&*path.to_string_lossy()) => {
                ModelError::Unsupported(format!("{}: {what}", path.display()))
            }
            named => named,
        }
    }

    /// A [`ModelError::Io`].
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        ModelError::Io {
            path: path.to_owned(),
            source,
        }
    }
}
