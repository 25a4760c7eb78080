//! `--load-format dummy` for a folder: its configuration is enough.

use std::path::Path;

use powerband_model::{Checkpoint, DType, ModelError};

#[test]
fn a_folder_without_weights_gets_random_ones() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/llama-3.2");
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error, ModelError::NoWeights { .. }));
    assert!(error.to_string().contains("safetensors"), "{error}");

    let stored = Checkpoint::open(&from).unwrap();
    let invented = Checkpoint::open_invented(folder.path(), DType::BF16, 7).unwrap();
    assert_eq!(invented.spec.hidden_size, stored.spec.hidden_size);
    let mut names = stored.weights.names();
    let mut found = invented.weights.names();
    names.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, names);
    for name in names {
        let shape = |checkpoint: &Checkpoint| checkpoint.weights.shape(name).unwrap();
        assert_eq!(shape(&invented), shape(&stored), "{name}");
    }
}

#[test]
fn a_folder_without_a_configuration_still_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = Checkpoint::open_invented(folder.path(), DType::BF16, 7).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
}
