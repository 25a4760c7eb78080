//! A GGUF file, as far as a model is opened: header, weights, tokenizer, chat template.
#![no_main]

use libfuzzer_sys::fuzz_target;
use powerband_model::Checkpoint;

fuzz_target!(|bytes: &[u8]| {
    powerband_fuzz::in_file("model.gguf", bytes, |path| match Checkpoint::open(path) {
        Ok(checkpoint) => {
            for name in checkpoint.weights.names() {
                let _ = checkpoint.weights.get(name);
            }
            if let Some(tokenizer) = checkpoint.tokenizer
                && let Ok(ids) = tokenizer.encode("a b\n12 é", true)
            {
                tokenizer.decode(&ids, false);
            }
        }
        Err(error) => assert!(error.to_string().contains("model.gguf"), "{error}"),
    });
});
