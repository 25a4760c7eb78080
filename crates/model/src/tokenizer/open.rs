//! A tokenizer by itself, without the model around it.

use std::path::Path;

use crate::files::read_text;
use crate::gguf::Gguf;
use crate::{ModelError, Tokenizer};

/// Largest `tokenizer.json` that is read, bytes: those of the largest vocabularies in use are a tenth of it.
const MOST_BYTES: u64 = 256 * 1024 * 1024;

impl Tokenizer {
    /// Opens the tokenizer of a `tokenizer.json`, of a folder that holds one, or of a GGUF file.
    ///
    /// # Errors
    /// There is none at `path`, or it is broken or of a kind that is not built.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let opened = if path.is_dir() {
            Self::open_json(&path.join("tokenizer.json"))
        } else if path.extension().is_some_and(|ending| ending == "gguf") {
            Gguf::open(path).and_then(|file| {
                Self::from_gguf(&file)?
                    .ok_or_else(|| ModelError::format(path, "this file holds no tokenizer"))
            })
        } else {
            Self::open_json(path)
        };
        opened.map_err(|error| error.in_file(path))
    }

    fn open_json(path: &Path) -> Result<Self, ModelError> {
        Self::from_json(read_text(path, MOST_BYTES)?.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four words, split at spaces.
    const JSON: &str = r#"{"version": "1.0", "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2, "?": 3}, "unk_token": "?"}}"#;

    #[test]
    fn a_file_or_the_folder_around_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokenizer.json");
        std::fs::write(&file, JSON).unwrap();
        for path in [file.as_path(), folder.path()] {
            let tokenizer = Tokenizer::open(path).unwrap();
            assert_eq!(tokenizer.encode("a c b x", false).unwrap(), [0, 2, 1, 3]);
        }
    }

    #[test]
    fn what_is_not_there_or_broken_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Tokenizer::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
        let broken = folder.path().join("t.json");
        std::fs::write(&broken, "{").unwrap();
        let error = Tokenizer::open(&broken).unwrap_err().to_string();
        assert!(error.contains("t.json"), "{error}");
    }
}
