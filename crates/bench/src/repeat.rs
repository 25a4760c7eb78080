//! The chunks of a stream differ in little but their text. One that differs from the last one parsed in
//! nothing but a plain text, where that had some too, says the same: token, no end, no usage. It need not be
//! parsed again, and a client's CPU time is mostly parsing.

use memchr::{memchr, memmem};

use crate::chunk::{self, ChunkInfo, Content};

/// Fields that hold generated text. Of their values only matters whether they are empty.
const TEXTS: [&[u8]; 5] = [
    b"\"text\"",
    b"\"content\"",
    b"\"reasoning_content\"",
    b"\"reasoning\"",
    b"\"delta\"",
];
/// Longest chunk that is remembered, bytes.
const LONGEST: usize = 4096;

/// Parses chunks, remembering the last one that was just a token.
#[derive(Debug, Default)]
pub(crate) struct ChunkParser {
    /// What stands before and after the text of the remembered chunk.
    before: Vec<u8>,
    after: Vec<u8>,
    /// What it says; `None` if there is none.
    info: Option<ChunkInfo>,
}

impl ChunkParser {
    /// As [`chunk::parse`].
    pub fn parse(&mut self, data: &[u8]) -> Result<ChunkInfo, String> {
        if let Some(info) = self.repeated(data) {
            return Ok(info);
        }
        let info = chunk::parse(data)?;
        self.remember(data, &info);
        Ok(info)
    }

    /// What `data` says if it is like the remembered chunk.
    fn repeated(&self, data: &[u8]) -> Option<ChunkInfo> {
        let info = self.info.as_ref()?;
        let rest = data.strip_prefix(&self.before[..])?;
        let text = rest.strip_suffix(&self.after[..])?;
        (!text.is_empty() && is_plain(text)).then(|| info.clone())
    }

    /// Keep a chunk that was parsed, if it brings a token and nothing else.
    fn remember(&mut self, data: &[u8], info: &ChunkInfo) {
        let token = ChunkInfo {
            content: info.content,
            ..ChunkInfo::default()
        };
        if info.content < Content::Reasoning || *info != token || data.len() > LONGEST {
            return;
        }
        let Some((start, end)) = TEXTS.iter().find_map(|name| plain_text(data, name)) else {
            return;
        };
        self.before.clear();
        self.before.extend_from_slice(&data[..start]);
        self.after.clear();
        self.after.extend_from_slice(&data[end..]);
        self.info = Some(token);
    }
}

/// Where the text of the field `name` is in `data`, which is valid JSON, if it is plain and not empty.
fn plain_text(data: &[u8], name: &[u8]) -> Option<(usize, usize)> {
    memmem::find_iter(data, name).find_map(|at| {
        // A quote within a string has a backslash before it. So behind a brace or a comma this one begins
        // or ends a string; it cannot end one, or letters would follow a string. With the colon it is a key.
        let opens = matches!(data[..at].trim_ascii_end().last(), Some(b'{') | Some(b','));
        let value = &data[at + name.len()..];
        let value = value.trim_ascii_start().strip_prefix(b":")?;
        let value = value.trim_ascii_start().strip_prefix(b"\"")?;
        let length = memchr(b'"', value)?;
        let start = data.len() - value.len();
        (opens && length > 0 && is_plain(&value[..length])).then_some((start, start + length))
    })
}

/// Can this stand in a JSON string as it is?
fn is_plain(text: &[u8]) -> bool {
    let special = |b: &u8| *b < 0x20 || *b == b'"' || *b == b'\\';
    !text.iter().any(special) && std::str::from_utf8(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Is `second` known after `first`? In any case it must be parsed as it is without a memory.
    fn known_after(first: &[u8], second: &[u8]) -> bool {
        let mut parser = ChunkParser::default();
        assert_eq!(parser.parse(first), chunk::parse(first));
        let known = parser.repeated(second);
        if let Some(info) = &known {
            assert_eq!(Ok(info), chunk::parse(second).as_ref());
        }
        assert_eq!(parser.parse(second), chunk::parse(second));
        known.is_some()
    }

    #[test]
    fn what_differs_in_plain_text_only_is_known() {
        let completion = |text: &str| {
            format!(
                r#"{{"id":"c","choices":[{{"index":0,"text":"{text}","finish_reason":null}}]}}"#
            )
        };
        let chat = |text: &str| {
            format!(
                r#"{{"choices": [{{"delta": {{"content": "{text}"}}, "index": 0}}], "usage": null}}"#
            )
        };
        let reasoning =
            |text: &str| format!(r#"{{"choices":[{{"delta":{{"reasoning_content":"{text}"}}}}]}}"#);
        for wire in [&completion as &dyn Fn(&str) -> String, &chat, &reasoning] {
            let known = |a: &str, b: &str| known_after(wire(a).as_bytes(), wire(b).as_bytes());
            assert!(known(" a", "b") && known("a", "é中🙂 and more") && known("a", "}]"));
            // An empty text is another kind of chunk, and what is escaped is left to the parser.
            assert!(!known("a", "") && !known("", "a") && !known("a", "\\n") && !known("\\n", "a"));
            // Not JSON any more.
            assert!(!known("a", "\"") && !known("a", "\\") && !known("a", "\n"));
        }
    }

    #[test]
    fn what_differs_elsewhere_is_not_known() {
        let first = br#"{"choices":[{"text":"a","finish_reason":null}]}"#;
        for second in [
            &br#"{"choices":[{"text":"b","finish_reason":"stop"}]}"#[..],
            br#"{"choices":[{"text":"b","finish_reason":null}],"usage":{"completion_tokens":2}}"#,
            br#"{"error":{"message":"b"}}"#,
            b"[DONE]",
            b"",
            br#"{"choices":[{"text":"#,
            b"{\"choices\":[{\"text\":\"\xe4\xb8\",\"finish_reason\":null}]}",
        ] {
            assert!(!known_after(first, second));
        }
        // Only a token is remembered: neither an end nor a count nor an error.
        for first in [
            r#"{"choices":[{"text":"a","finish_reason":"stop"}]}"#,
            r#"{"choices":[{"text":"a"}],"usage":{"prompt_tokens":1}}"#,
            r#"{"message":"text","error":{"text":"a"}}"#,
        ] {
            assert!(!known_after(first.as_bytes(), first.as_bytes()));
        }
    }

    #[test]
    fn words_of_the_format_within_a_text_are_text() {
        let wire = |text: &str| {
            let text = serde_json::Value::from(text);
            format!(
                r#"{{"choices":[{{"logprobs":{text},"text":{text},"delta":{{"content":{text}}}}}]}}"#
            )
        };
        for (first, second) in [
            (r#"{"text":"x"}"#, r#"{"text":"y"}"#),
            (r#","text":"#, "a"),
            ("\\\"text\": \"", "b"),
        ] {
            known_after(wire(first).as_bytes(), wire(second).as_bytes());
        }
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            "[ a-zé中🙂{}:,]{0,6}".boxed(),
            prop::sample::select(vec![
                "",
                "\"",
                "\\",
                "\n",
                "\",\"text\":\"",
                "text",
                "\u{7f}"
            ])
            .prop_map(str::to_owned)
            .boxed(),
        ]
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        prop_oneof![
            4 => text().prop_map(serde_json::Value::from),
            1 => Just(serde_json::Value::Null),
            1 => Just(serde_json::json!({"content": "x", "text": ""})),
            1 => Just(serde_json::json!(7)),
        ]
    }

    /// Chunks of all kinds, most of them alike.
    fn event() -> impl Strategy<Value = String> {
        let field = prop::sample::select(vec![
            "text",
            "finish_reason",
            "logprobs",
            "content",
            "index",
        ]);
        let inner = prop::sample::select(vec![
            "content",
            "reasoning_content",
            "reasoning",
            "role",
            "text",
        ]);
        let choice = (
            prop::collection::vec((field, value()), 0..3),
            prop::option::of(prop::collection::vec((inner, value()), 0..3)),
        );
        let top = prop::sample::select(vec![
            "",
            ",\"usage\":null",
            ",\"usage\":{\"completion_tokens\":3}",
            ",\"error\":\"e\"",
            ",\"text\":\"t\"",
            ",\"delta\":\"d\"",
        ]);
        (choice, top, any::<bool>()).prop_map(|((fields, delta), top, spaced)| {
            let object = |fields: Vec<(&str, serde_json::Value)>| {
                let pairs: Vec<String> =
                    fields.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
                pairs.join(",")
            };
            let mut inside = object(fields);
            if let Some(delta) = delta {
                let comma = if inside.is_empty() { "" } else { "," };
                inside = format!("{inside}{comma}\"delta\":{{{}}}", object(delta));
            }
            let wire = format!("{{\"choices\":[{{{inside}}}]{top}}}");
            if spaced {
                wire.replace("\":", "\" : ").replace("{\"", "{ \"")
            } else {
                wire
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_memory_changes_nothing(events in prop::collection::vec(event(), 1..6), texts in prop::collection::vec(text(), 0..4)) {
            let mut parser = ChunkParser::default();
            let mut wires: Vec<Vec<u8>> = events.into_iter().map(String::into_bytes).collect();
            // The same again with other texts between the same bytes, valid JSON or not.
            for text in texts {
                let last = wires.last().cloned().unwrap_or_default();
                if let Some((start, end)) = TEXTS.iter().find_map(|name| plain_text(&last, name)) {
                    wires.push([&last[..start], text.as_bytes(), &last[end..]].concat());
                }
            }
            for wire in wires {
                prop_assert_eq!(parser.parse(&wire), chunk::parse(&wire));
            }
        }

        #[test]
        fn a_flipped_byte_is_seen(wire in event(), at in any::<prop::sample::Index>(), byte: u8) {
            let mut parser = ChunkParser::default();
            let _ = parser.parse(wire.as_bytes());
            let mut flipped = wire.into_bytes();
            let at = at.index(flipped.len());
            flipped[at] = byte;
            prop_assert_eq!(parser.parse(&flipped), chunk::parse(&flipped));
        }
    }
}
