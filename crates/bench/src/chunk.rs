//! What one event of an OpenAI stream, or a whole answer, says, parsed only as far as it is measured: is there content, is
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
#[serde(from = "RawUsage")]
pub(crate) struct Usage {
    /// Prompt tokens.
    pub prompt_tokens: Option<u64>,
    /// Output tokens.
    pub completion_tokens: Option<u64>,
    /// Prompt tokens from the prefix cache.
    pub cached_tokens: Option<u64>,
    /// Output tokens that are reasoning.
    pub reasoning_tokens: Option<u64>,
}

/// The Responses API has other names for the same. No serde aliases: a server may send both.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RawUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    completion_tokens_details: Option<Details>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_tokens_details: Option<Details>,
    output_tokens_details: Option<Details>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
    reasoning_tokens: Option<u64>,
}

impl From<RawUsage> for Usage {
    fn from(raw: RawUsage) -> Self {
        let input = raw.prompt_tokens_details.or(raw.input_tokens_details);
        let output = raw.completion_tokens_details.or(raw.output_tokens_details);
        Usage {
            prompt_tokens: raw.prompt_tokens.or(raw.input_tokens),
            completion_tokens: raw.completion_tokens.or(raw.output_tokens),
            cached_tokens: input.and_then(|d| d.cached_tokens),
            reasoning_tokens: output.and_then(|d| d.reasoning_tokens),
        }
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
    let response = raw.response.unwrap_or_default();
    let usage = raw.usage.or(response.usage);
    let error = match (raw.error.or(response.error), raw.choices.seen, raw.message) {
        (Some(error), _, _) => Some(error_text(&error)),
        // Older servers put {"object": "error", "message": ...} into the stream, the Responses API
        // {"type": "error", "message": ...}.
        (None, false, Some(message)) if usage.is_none() => Some(error_text(&message)),
        _ if raw.kind == Kind::Failed => Some("response.failed without a reason".into()),
        _ => None,
    };
    let counts = usage.map(|u| {
        [
            u.prompt_tokens,
            u.completion_tokens,
            u.cached_tokens,
            u.reasoning_tokens,
        ]
    });
    if let Some(n) = counts
        .into_iter()
        .flatten()
        .flatten()
        .find(|n| *n > MOST_TOKENS)
    {
        return Err(format!("the server counts {n} tokens in one request"));
    }
    let content = match raw.kind {
        Kind::TextDelta => raw.delta.content(),
        Kind::ReasoningDelta => raw.delta.content().min(Content::Reasoning),
        _ if !raw.output.is_empty() => Content::Text,
        _ => raw.choices.content,
    };
    Ok(ChunkInfo {
        content,
        finished: raw.choices.finished
            || raw.kind == Kind::End
            || !raw.output.is_empty()
            || !raw.data.is_empty(),
        usage,
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

/// Take the text that an event carries, and whether it is reasoning: only where tokens are counted by a
/// tokenizer, since the server sends no `usage`, or where the answer is part of the next prompt.
pub(crate) fn take_text(data: &[u8], mut take: impl FnMut(&str, bool)) {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(&String::from_utf8_lossy(data))
    else {
        return;
    };
    if let (Some(kind), Some(delta)) = (value["type"].as_str(), value["delta"].as_str()) {
        match Kind::of(kind) {
            Kind::TextDelta => take(delta, false),
            Kind::ReasoningDelta => take(delta, true),
            _ => {}
        }
    }
    for item in value["output"].as_array().into_iter().flatten() {
        let reasoning = item["type"] == "reasoning";
        for part in item["content"].as_array().into_iter().flatten() {
            take(part["text"].as_str().unwrap_or_default(), reasoning);
        }
    }
    for choice in value["choices"].as_array().into_iter().flatten() {
        let delta = if choice["delta"].is_null() {
            &choice["message"]
        } else {
            &choice["delta"]
        };
        for (text, reasoning) in [
            (&choice["text"], false),
            (&delta["reasoning_content"], true),
            (&delta["reasoning"], true),
            (&delta["content"], false),
        ] {
            take(text.as_str().unwrap_or_default(), reasoning);
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
    /// Of the Responses API: what an event is, its text, and at the start and the end the response.
    #[serde(default, rename = "type")]
    kind: Kind,
    #[serde(default)]
    delta: Text,
    #[serde(default)]
    response: Option<RawResponse>,
    /// Items of a response that is not streamed.
    #[serde(default)]
    output: Vec<IgnoredAny>,
    /// Embeddings.
    #[serde(default)]
    data: Vec<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawResponse {
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

/// What an event of the Responses API is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    /// Not an event of that API, or one that says nothing measured.
    #[default]
    Other,
    /// Text, a refusal, the arguments of a call.
    TextDelta,
    /// Reasoning or a summary of it.
    ReasoningDelta,
    /// The response is complete, or as long as it was allowed to be.
    End,
    /// The response failed.
    Failed,
}

impl Kind {
    fn of(name: &str) -> Self {
        match name.strip_prefix("response.") {
            Some("completed" | "incomplete") => Kind::End,
            Some("failed") => Kind::Failed,
            Some(part) if part.ends_with(".delta") && part.starts_with("reasoning") => {
                Kind::ReasoningDelta
            }
            Some(part) if part.ends_with(".delta") => Kind::TextDelta,
            _ => Kind::Other,
        }
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Kind;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a string or null")
            }

            fn visit_unit<E>(self) -> Result<Kind, E> {
                Ok(Kind::Other)
            }

            fn visit_str<E>(self, name: &str) -> Result<Kind, E> {
                Ok(Kind::of(name))
            }
        }
        deserializer.deserialize_any(Name)
    }
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
    // Servers use either name, some both: no alias, which would be a field given twice. Tags within the
    // content (`<think>`) are the server's to tell apart.
    #[serde(default)]
    reasoning_content: Text,
    #[serde(default)]
    reasoning: Text,
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
        let reasoning = delta.reasoning_content.0.max(delta.reasoning.0);
        match (delta.content.0, reasoning) {
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
mod tests;
