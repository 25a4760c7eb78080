//! The hub's list of a repository's files: no name may lead out of the model's folder.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use powerband_model::fetch::fuzzing::listed_files;

fuzz_target!(|bytes: &[u8]| {
    for name in listed_files(&String::from_utf8_lossy(bytes)).unwrap_or_default() {
        let inside = |part| matches!(part, Component::Normal(_));
        assert!(Path::new(&name).components().all(inside), "{name}");
    }
});
