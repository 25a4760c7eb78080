//! A safetensors file, of plain weights and of every method of quantised ones.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use powerband_model::hf::{Method, load_weights};

fuzz_target!(|bytes: &[u8]| {
    powerband_fuzz::in_file("model.safetensors", bytes, |path| {
        let folder = path.parent().unwrap_or(Path::new("."));
        let plain_zeros = false;
        for method in [
            None,
            Some(Method::BitsAndBytes),
            Some(Method::Gptq {
                bits: 4,
                plain_zeros,
            }),
            Some(Method::Gptq {
                bits: 8,
                plain_zeros,
            }),
            Some(Method::Awq),
            Some(Method::Fp8 {
                block: Some([2, 2]),
            }),
        ] {
            match load_weights(folder, method.as_ref()) {
                Ok(weights) => {
                    for name in weights.names() {
                        let _ = weights.get(name);
                    }
                }
                Err(error) => {
                    let folder = folder.to_string_lossy();
                    assert!(error.to_string().contains(&*folder), "{error}");
                }
            }
        }
    });
});
