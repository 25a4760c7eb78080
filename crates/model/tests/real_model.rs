//! The default model's own file against what an independent implementation says of it. Skipped,
//! visibly, where the file is not there.

use std::path::PathBuf;

use powerband_model::{Checkpoint, IncrementalDecoder};
use serde_json::json;

/// The file named by `POWERBAND_TEST_MODEL`, else the one that `powerband pull` has cached.
fn model() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let cached =
        cache.map(|c| c.join("powerband/models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"));
    let found = std::env::var_os("POWERBAND_TEST_MODEL")
        .map(PathBuf::from)
        .or(cached);
    let found = found.filter(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: the default model is not cached (powerband pull smollm2-135m)");
    }
    found
}

#[test]
fn the_default_model_opens_and_tokenizes_as_published() {
    let Some(path) = model() else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let spec = &checkpoint.spec;
    assert_eq!(
        (
            spec.num_layers,
            spec.hidden_size,
            spec.num_heads,
            spec.num_kv_heads
        ),
        (30, 576, 9, 3)
    );
    assert_eq!(
        (spec.intermediate_size, spec.vocab_size, spec.head_dim),
        (1536, 49152, 64)
    );
    assert!(spec.tie_embeddings);
    let tokenizer = checkpoint.tokenizer.unwrap();
    assert_eq!(
        tokenizer.encode("Gravity is", true).unwrap(),
        [22007, 6463, 314]
    );
    let messages = json!([{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]);
    let prompt = checkpoint
        .chat_template
        .unwrap()
        .render(&messages, None, true)
        .unwrap();
    let ids = tokenizer.encode(&prompt, false).unwrap();
    assert_eq!(ids.len(), 42, "{prompt}");
    assert_eq!(tokenizer.decode(&ids, false), prompt);
    let answer = [504, 3575, 282, 4649, 314, 7042, 30, 2];
    assert_eq!(
        tokenizer.decode(&answer, true),
        "The capital of France is Paris."
    );
}

#[test]
fn streamed_text_is_the_whole_text() {
    let Some(path) = model() else { return };
    let tokenizer = Checkpoint::open(&path).unwrap().tokenizer.unwrap();
    for text in [
        "Füße, naïve café",
        "日本語のテキスト 12345",
        "👩‍👩‍👧‍👦 emoji 🏳️‍🌈",
        "a\n\n\tb  c\r\n",
        "<|im_start|>user",
    ] {
        let ids = tokenizer.encode(text, false).unwrap();
        let mut decoder = IncrementalDecoder::new(false);
        let mut streamed: String = ids.iter().map(|id| decoder.push(&tokenizer, *id)).collect();
        streamed += &decoder.finish();
        assert_eq!(streamed, text);
        assert_eq!(tokenizer.decode(&ids, false), text);
    }
}
