//! `config.json` and, behind a zero byte, `generation_config.json`.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use powerband_model::hf::spec_from_config;

fuzz_target!(|bytes: &[u8]| {
    let (config, generation) = powerband_fuzz::halves(bytes);
    let (Ok(config), Ok(generation)) = (str::from_utf8(config), str::from_utf8(generation)) else {
        return;
    };
    let generation = (!generation.is_empty()).then_some(generation);
    if let Err(error) = spec_from_config(config, generation, Path::new("config.json")) {
        assert!(error.to_string().contains("config.json"), "{error}");
    }
});
