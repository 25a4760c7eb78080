//! What the fuzz targets share.

use std::path::Path;
use std::sync::OnceLock;

use tempfile::TempDir;

/// Runs `read` on a file of that name with these bytes, alone in its folder.
pub fn in_file<T>(name: &str, bytes: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a temporary folder"));
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("the file is written");
    read(&path)
}

/// The bytes before and behind the first zero byte; nothing behind it if there is none.
pub fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let first = parts.next().unwrap_or_default();
    (first, parts.next().unwrap_or_default())
}

/// A byte-level vocabulary without merges.
pub fn byte_tokenizer() -> powerband_model::Tokenizer {
    let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let spellings = (0..=255).filter(printable).chain(256..324);
    let vocabulary: serde_json::Map<String, serde_json::Value> = spellings
        .zip(0u32..)
        .map(|(code, id)| (char::from_u32(code).unwrap_or_default().into(), id.into()))
        .collect();
    let json = serde_json::json!({
        "version": "1.0",
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    powerband_model::Tokenizer::from_json(json.to_string().as_bytes()).expect("a tokenizer")
}
