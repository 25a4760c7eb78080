//! `.env`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use powerband_model::fetch::fuzzing::dotenv;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    for key in ["HF_TOKEN", ""] {
        if let Some(value) = dotenv(&text, key) {
            assert!(text.contains(&value));
        }
    }
});
