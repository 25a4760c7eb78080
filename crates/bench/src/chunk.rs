//! What one event of an OpenAI stream says, parsed only as far as it is measured: is there content, is
//! it the end, what does `usage` count. Nothing is allocated for the usual chunk.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use crate::record::MOST_TOKENS;

/// What a chunk brings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Content {
    /// Nothing that was generated (a role, a usage report).
    #[default]
    None,
    /// A token without visible text: part of a character, or a server without a tokenizer.
    Blank,
    /// Reasoning.
    Reasoning,
    /// Text or a tool call.
    Text,
}

/// One event.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ChunkInfo {
    /// The most telling content of its choices.
    pub content: Content,
    /// Did a choice end?
    pub finished: bool,
    /// Token counts.
    pub usage: Option<Usage>,
    /// An error in place of a chunk.
    pub error: Option<String>,
}

/// Token counts as the server gives them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Usage {
    /// Prompt tokens.
    #[serde(default)]
    pub prompt_tokens: Option<u64>,
    /// Output tokens.
    #[serde(default)]
    pub completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl Usage {
    /// Prompt tokens from the prefix cache.
    pub fn cached_tokens(&self) -> Option<u64> {
        self.prompt_tokens_details.and_then(|d| d.cached_tokens)
    }
}

/// Parse the data of an event. Text that is not UTF-8 (half a character) is read as if its broken bytes
/// were replacement characters: the token did arrive.
pub(crate) fn parse(data: &[u8]) -> Result<ChunkInfo, String> {
    let raw: RawChunk = match serde_json::from_slice(data) {
        Ok(raw) => raw,
        Err(_) if std::str::from_utf8(data).is_err() => {
            serde_json::from_str(&String::from_utf8_lossy(data)).map_err(|e| invalid(data, &e))?
        }
        Err(e) => return Err(invalid(data, &e)),
    };
    let error = match (raw.error, raw.choices.seen, raw.message) {
        (Some(error), _, _) => Some(error_text(&error)),
        // Older servers put {"object": "error", "message": ...} into the stream.
        (None, false, Some(message)) if raw.usage.is_none() => Some(error_text(&message)),
        _ => None,
    };
    let counts = raw
        .usage
        .map(|u| [u.prompt_tokens, u.completion_tokens, u.cached_tokens()]);
    if let Some(n) = counts
        .into_iter()
        .flatten()
        .flatten()
        .find(|n| *n > MOST_TOKENS)
    {
        return Err(format!("the server counts {n} tokens in one request"));
    }
    Ok(ChunkInfo {
        content: raw.choices.content,
        finished: raw.choices.finished,
        usage: raw.usage,
        error,
    })
}

fn invalid(data: &[u8], error: &serde_json::Error) -> String {
    format!("invalid JSON in the stream ({error}): {}", excerpt(data))
}

/// The message of an error value: its `message`, else itself.
pub(crate) fn error_text(error: &serde_json::Value) -> String {
    match error.get("message").unwrap_or(error) {
        serde_json::Value::String(text) => excerpt(text.as_bytes()),
        other => excerpt(other.to_string().as_bytes()),
    }
}

/// The start of some bytes, printable, for a message.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]);
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect();
    line.trim().to_owned()
}

/// Append the text that an event carries: only for servers without `usage`, whose tokens are counted by
/// a tokenizer.
pub(crate) fn append_text(data: &[u8], out: &mut String) {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(&String::from_utf8_lossy(data))
    else {
        return;
    };
    for choice in value["choices"].as_array().into_iter().flatten() {
        let delta = if choice["delta"].is_null() {
            &choice["message"]
        } else {
            &choice["delta"]
        };
        for text in [
            &choice["text"],
            &delta["reasoning_content"],
            &delta["reasoning"],
            &delta["content"],
        ] {
            out.push_str(text.as_str().unwrap_or_default());
        }
    }
}

#[derive(Deserialize)]
struct RawChunk {
    #[serde(default)]
    choices: Choices,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<serde_json::Value>,
    #[serde(default)]
    message: Option<serde_json::Value>,
}

/// All choices folded into what is measured.
#[derive(Default)]
struct Choices {
    seen: bool,
    content: Content,
    finished: bool,
}

impl<'de> Deserialize<'de> for Choices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fold;
        impl<'de> Visitor<'de> for Fold {
            type Value = Choices;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an array of choices")
            }

            fn visit_unit<E>(self) -> Result<Choices, E> {
                Ok(Choices::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Choices, A::Error> {
                let mut all = Choices {
                    seen: true,
                    ..Choices::default()
                };
                while let Some(choice) = seq.next_element::<RawChoice>()? {
                    all.content = all.content.max(choice.content());
                    all.finished |= choice.finish_reason.0.is_some();
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(Fold)
    }
}

#[derive(Deserialize)]
struct RawChoice {
    #[serde(default)]
    text: Text,
    #[serde(default)]
    delta: Option<Delta>,
    /// In place of `delta` where the answer is not streamed.
    #[serde(default)]
    message: Option<Delta>,
    #[serde(default)]
    finish_reason: Text,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    role: Text,
    #[serde(default)]
    content: Text,
    #[serde(default, alias = "reasoning")]
    reasoning_content: Text,
    // A Vec of nothing allocates nothing.
    #[serde(default)]
    tool_calls: Option<Vec<IgnoredAny>>,
}

impl RawChoice {
    fn content(&self) -> Content {
        let delta = self.delta.as_ref().or(self.message.as_ref());
        let Some(delta) = delta else {
            return self.text.content();
        };
        if delta
            .tool_calls
            .as_ref()
            .is_some_and(|calls| !calls.is_empty())
        {
            return Content::Text;
        }
        match (delta.content.0, delta.reasoning_content.0) {
            (Some(true), _) => Content::Text,
            (_, Some(true)) => Content::Reasoning,
            // The first delta of a chat names the role, before any token.
            (Some(false), _) if delta.role.0.is_none() => Content::Blank,
            _ => self.text.content(),
        }
    }
}

/// A string of which only matters whether it is there and whether it is empty: null or absent, empty
/// (`Some(false)`), or with text (`Some(true)`).
#[derive(Default, Clone, Copy)]
struct Text(Option<bool>);

impl Text {
    fn content(self) -> Content {
        match self.0 {
            None => Content::None,
            Some(false) => Content::Blank,
            Some(true) => Content::Text,
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl Visitor<'_> for Seen {
            type Value = Text;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a string or null")
            }

            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(Some(!text.is_empty())))
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(json: &str) -> Content {
        parse(json.as_bytes()).unwrap().content
    }

    #[test]
    fn completions_and_chat() {
        assert_eq!(
            content(r#"{"id":"c","choices":[{"index":0,"text":" hi","finish_reason":null}]}"#),
            Content::Text
        );
        assert_eq!(
            content(r#"{"choices":[{"text":"","finish_reason":null}],"usage":null}"#),
            Content::Blank
        );
        assert_eq!(
            content(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#),
            Content::None
        );
        assert_eq!(
            content(r#"{"choices":[{"delta":{"role":"assistant","content":"a"}}]}"#),
            Content::Text
        );
        assert_eq!(
            content(r#"{"choices":[{"delta":{"content":"\ud83d\ude42"}}]}"#),
            Content::Text
        );
        assert_eq!(
            content(r#"{"choices":[{"delta":{"content":""}}]}"#),
            Content::Blank
        );
        assert_eq!(
            content(r#"{"choices":[{"delta":{"content":null,"reasoning_content":"hm"}}]}"#),
            Content::Reasoning
        );
        assert_eq!(
            content(r#"{"choices":[{"delta":{"reasoning":"hm"}}]}"#),
            Content::Reasoning
        );
        assert_eq!(
            content(r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#),
            Content::Text
        );
        assert_eq!(
            content(r#"{"choices":[{"delta":{"tool_calls":[]}}]}"#),
            Content::None
        );
        assert_eq!(
            content(r#"{"choices":[{"message":{"role":"assistant","content":"whole"}}]}"#),
            Content::Text
        );
        assert_eq!(content(r#"{"choices":[]}"#), Content::None);
    }

    #[test]
    fn the_end_and_usage() {
        let last = parse(br#"{"choices":[{"text":"x","finish_reason":"length"}],"usage":{"prompt_tokens":128,"completion_tokens":64,"total_tokens":192,"prompt_tokens_details":{"cached_tokens":16}}}"#).unwrap();
        assert!(last.finished);
        let usage = last.usage.unwrap();
        assert_eq!(
            (
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.cached_tokens()
            ),
            (Some(128), Some(64), Some(16))
        );
        assert_eq!(
            parse(br#"{"choices":[],"usage":{"prompt_tokens":1,"prompt_tokens_details":null}}"#)
                .unwrap()
                .usage
                .unwrap()
                .cached_tokens(),
            None
        );
    }

    #[test]
    fn errors_in_the_stream() {
        let error = |json: &str| parse(json.as_bytes()).unwrap().error;
        assert_eq!(
            error(r#"{"error":{"message":"out of memory","code":500}}"#).as_deref(),
            Some("out of memory")
        );
        assert_eq!(error(r#"{"error":"plain"}"#).as_deref(), Some("plain"));
        assert_eq!(
            error(r#"{"object":"error","message":"old"}"#).as_deref(),
            Some("old")
        );
        assert_eq!(error(r#"{"choices":[],"error":null}"#), None);
        for bad in [
            "{",
            "nonsense",
            r#"{"choices":5}"#,
            r#"{"usage":{"prompt_tokens":-1}}"#,
        ] {
            assert!(
                parse(bad.as_bytes())
                    .unwrap_err()
                    .starts_with("invalid JSON"),
                "{bad}"
            );
        }
    }

    #[test]
    fn half_a_character_is_still_a_token() {
        assert_eq!(
            parse(b"{\"choices\":[{\"text\":\"\xe4\xb8\"}]}")
                .unwrap()
                .content,
            Content::Text
        );
        assert!(parse(b"\xff\xfe").is_err());
    }

    #[test]
    fn a_count_that_no_request_can_have_is_an_error() {
        let usage = |n: u64| format!("{{\"usage\":{{\"completion_tokens\":{n}}}}}");
        assert!(parse(usage(1 << 32).as_bytes()).is_ok());
        let error = parse(usage(u64::MAX).as_bytes()).unwrap_err();
        assert!(error.contains("18446744073709551615 tokens"), "{error}");
    }

    #[test]
    fn text_for_a_tokenizer() {
        let mut text = String::new();
        append_text(br#"{"choices":[{"text":"a\n"}]}"#, &mut text);
        append_text(
            br#"{"choices":[{"delta":{"reasoning_content":"b","content":"c"}}]}"#,
            &mut text,
        );
        append_text(b"nonsense", &mut text);
        assert_eq!(text, "a\nbc");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_chunk_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_text_counts_as_content(text in "\\PC{1,20}") {
            let json = serde_json::json!({"choices": [{"index": 0, "text": text, "logprobs": null}]}).to_string();
            prop_assert_eq!(parse(json.as_bytes()).unwrap().content, Content::Text);
        }
    }
}
