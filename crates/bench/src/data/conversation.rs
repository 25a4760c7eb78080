//! Conversations: what they hold, and reading them from lists of messages.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::table::name_of;

/// A session of a file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Conversation<'a> {
    /// The system's words before the first turn.
    #[serde(borrow)]
    pub prefix: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub turns: Vec<Turn<'a>>,
}

/// What a user says, and what is known of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Turn<'a> {
    #[serde(borrow)]
    pub prompt: Prompt<'a>,
    pub prompt_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    /// The user's think time after the answer.
    pub think_s: Option<f64>,
    /// The answer as the file has it.
    #[serde(borrow)]
    pub answer: Option<Cow<'a, str>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Prompt<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    TokenIds(Vec<u32>),
}

impl Turn<'_> {
    pub fn of(prompt: Prompt<'static>) -> Turn<'static> {
        Turn {
            prompt,
            prompt_tokens: None,
            output_tokens: None,
            think_s: None,
            answer: None,
        }
    }
}

/// Who says something.
enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    /// As OpenAI's messages and ShareGPT's name them.
    fn of(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "system" | "developer" => Some(Role::System),
            "user" | "human" => Some(Role::User),
            "assistant" | "gpt" | "chatgpt" | "bing" | "bard" | "model" => Some(Role::Assistant),
            _ => None,
        }
    }
}

/// Read a list of messages. What an assistant says before any user is no answer and left out, as is what a user
/// says in several messages joined with line ends; `None` if no user says anything.
///
/// # Errors
/// A phrase about the message that cannot be used.
pub(crate) fn read(messages: &[Value]) -> Result<Option<Conversation<'static>>, String> {
    let mut conversation = Conversation::default();
    for (message, number) in messages.iter().zip(1..) {
        let (role, text) = read_message(message).map_err(|e| format!("message {number}: {e}"))?;
        let last = conversation.turns.last_mut();
        match (role, last) {
            (Role::System, _) => join(&mut conversation.prefix, text),
            (Role::User, Some(turn)) if turn.answer.is_none() => {
                if let Prompt::Text(said) = &mut turn.prompt {
                    said.to_mut().push('\n');
                    said.to_mut().push_str(&text);
                }
            }
            (Role::User, _) => {
                let turn = Turn::of(Prompt::Text(Cow::Owned(text)));
                conversation.turns.push(turn);
            }
            (Role::Assistant, Some(turn)) => join(&mut turn.answer, text),
            (Role::Assistant, None) => {}
        }
    }
    let empty = |turn: &Turn<'_>| matches!(&turn.prompt, Prompt::Text(text) if text.is_empty());
    conversation.turns.retain(|turn| !empty(turn));
    Ok((!conversation.turns.is_empty()).then_some(conversation))
}

fn join(before: &mut Option<Cow<'static, str>>, text: String) {
    match before {
        Some(before) => {
            before.to_mut().push('\n');
            before.to_mut().push_str(&text);
        }
        None => *before = Some(Cow::Owned(text)),
    }
}

fn read_message(message: &Value) -> Result<(Role, String), String> {
    let Value::Object(fields) = message else {
        return Err(format!("{} where an object should be", name_of(message)));
    };
    let names = [("role", "content"), ("from", "value")];
    let Some((who, what)) = names.into_iter().find(|(who, _)| fields.contains_key(*who)) else {
        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
        return Err(format!(
            "it has neither `role` and `content` nor `from` and `value` but {}",
            names.join(", ")
        ));
    };
    let role = match &fields[who] {
        Value::String(name) => Role::of(name).ok_or_else(|| {
            let name: String = name.chars().take(40).collect();
            format!(
                "the {who} `{}` is neither system, user nor assistant",
                name.escape_debug()
            )
        }),
        other => Err(format!("its {who} is {}", name_of(other))),
    }?;
    Ok((role, content(fields, what)?))
}

/// A text, or the texts among parts.
fn content(fields: &Map<String, Value>, name: &str) -> Result<String, String> {
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        // An assistant that only calls a tool says nothing.
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for part in parts {
                match part.get("text").or(Some(part)) {
                    Some(Value::String(part)) => text.push_str(part),
                    _ => {
                        let kind = part.get("type").and_then(Value::as_str).unwrap_or("?");
                        let kind: String = kind.chars().take(40).collect();
                        return Err(format!(
                            "a part of its {name} is no text but `{}`: only text is sent",
                            kind.escape_debug()
                        ));
                    }
                }
            }
            Ok(text)
        }
        Some(other) => Err(format!("its {name} is {}", name_of(other))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(messages: Value) -> Result<Option<Conversation<'static>>, String> {
        read(messages.as_array().unwrap())
    }

    /// (prompt, answer) of each turn.
    fn turns(conversation: &Conversation<'_>) -> Vec<(String, Option<String>)> {
        let text = |prompt: &Prompt<'_>| match prompt {
            Prompt::Text(text) => text.to_string(),
            Prompt::TokenIds(_) => "ids".to_owned(),
        };
        let turns = conversation.turns.iter();
        turns
            .map(|t| (text(&t.prompt), t.answer.as_deref().map(str::to_owned)))
            .collect()
    }

    fn turn(prompt: &str, answer: Option<&str>) -> (String, Option<String>) {
        (prompt.to_owned(), answer.map(str::to_owned))
    }

    #[test]
    fn openai_and_sharegpt_messages_are_read_alike() {
        let openai = of(
            json!([{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                               {"role": "assistant", "content": "b"},
                               {"role": "user", "content": [{"type": "text", "text": "c"}, "d"]}]),
        );
        let openai = openai.unwrap().unwrap();
        let sharegpt = of(
            json!([{"from": "system", "value": "s"}, {"from": "human", "value": "a"},
                                 {"from": "gpt", "value": "b"}, {"from": "human", "value": "cd"}]),
        );
        assert_eq!(openai, sharegpt.unwrap().unwrap());
        assert_eq!(openai.prefix.as_deref(), Some("s"));
        assert_eq!(turns(&openai), [turn("a", Some("b")), turn("cd", None)]);
    }

    #[test]
    fn odd_orders_make_the_best_of_it() {
        let c = of(
            json!([{"from": "gpt", "value": "hello"}, {"from": "human", "value": "a"},
                          {"from": "human", "value": "b"}, {"from": "gpt", "value": "c"},
                          {"from": "gpt", "value": "d"}, {"from": "human", "value": ""}]),
        );
        assert_eq!(turns(&c.unwrap().unwrap()), [turn("a\nb", Some("c\nd"))]);
        for none in [json!([]), json!([{"from": "gpt", "value": "a"}])] {
            assert_eq!(of(none), Ok(None));
        }
    }

    #[test]
    fn what_cannot_be_sent_is_named() {
        for (messages, words) in [
            (
                json!([{"role": "user", "content": "a"}, 5]),
                "message 2: a number where an object",
            ),
            (
                json!([{"role": "tool", "content": "a"}]),
                "the role `tool` is neither",
            ),
            (json!([{"from": 7, "value": "a"}]), "its from is a number"),
            (json!([{"who": "me", "says": "a"}]), "but who, says"),
            (
                json!([{"role": "user", "content": {"a": 1}}]),
                "its content is an object",
            ),
            (
                json!([{"role": "user", "content": [{"type": "image_url"}]}]),
                "`image_url`: only text",
            ),
        ] {
            let error = of(messages).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
