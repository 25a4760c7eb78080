//! A safetensors file.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use powerband_model::hf::load_weights;

fuzz_target!(|bytes: &[u8]| {
    powerband_fuzz::in_file("model.safetensors", bytes, |path| {
        match load_weights(path.parent().unwrap_or(Path::new("."))) {
            Ok(weights) => {
                for name in weights.names() {
                    let _ = weights.get(name);
                }
            }
            Err(error) => assert!(error.to_string().contains("model.safetensors"), "{error}"),
        }
    });
});
