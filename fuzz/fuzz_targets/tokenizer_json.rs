//! `tokenizer.json` and, behind a zero byte, a text for it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use powerband_model::{IncrementalDecoder, Tokenizer};

/// The crate below panics on some files, which is caught and told as an error: libFuzzer's hook would
/// end the run before that.
fn allow_caught_panics() {
    drop(std::panic::take_hook());
}

fuzz_target!(init: allow_caught_panics(), |bytes: &[u8]| {
    let (json, text) = powerband_fuzz::halves(bytes);
    let Ok(tokenizer) = Tokenizer::from_json(json) else {
        return;
    };
    let Ok(ids) = tokenizer.encode(&String::from_utf8_lossy(text), true) else {
        return;
    };
    let mut decoder = IncrementalDecoder::new(false);
    let mut streamed: String = ids.iter().map(|id| decoder.push(&tokenizer, *id)).collect();
    streamed += &decoder.finish();
    assert_eq!(streamed, tokenizer.decode(&ids, false));
});
