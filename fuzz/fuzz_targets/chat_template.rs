//! A chat template and, behind a zero byte, the messages (JSON, or one message's text).
#![no_main]

use libfuzzer_sys::fuzz_target;
use powerband_model::ChatTemplate;
use serde_json::json;

fuzz_target!(|bytes: &[u8]| {
    let (source, messages) = powerband_fuzz::halves(bytes);
    let Ok(template) = ChatTemplate::new(&String::from_utf8_lossy(source), "<s>", "</s>") else {
        return;
    };
    let messages = serde_json::from_slice(messages).unwrap_or_else(
        |_| json!([{"role": "user", "content": String::from_utf8_lossy(messages)}]),
    );
    let _ = template.render(&messages, Some(&messages), true);
});
