//! How an endpoint takes a prompt: as one text, or as messages with what was said before.

/// The form of a prompt in a request's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// One text; the parts of a conversation follow each other with a space between, as GuideLLM has it.
    Text,
    /// A list of messages.
    Messages,
    /// A text where that is all there is, else a list of messages.
    TextOrMessages,
}

/// Appends a text, escaped for JSON and without its quotes.
pub(crate) type Part<'a> = &'a dyn Fn(&mut Vec<u8>);

impl Form {
    /// Append a prompt: after `history` (as [`Form::keep`] made it) a system prompt, if there is one, and
    /// the user's words.
    pub fn write(
        self,
        out: &mut Vec<u8>,
        history: &[u8],
        system: Option<Part<'_>>,
        user: impl FnOnce(&mut Vec<u8>),
    ) {
        let plain = match self {
            Form::Text => true,
            Form::Messages => false,
            Form::TextOrMessages => history.is_empty() && system.is_none(),
        };
        if plain {
            out.push(b'"');
            out.extend_from_slice(history);
            if let Some(system) = system {
                if !history.is_empty() {
                    out.push(b' ');
                }
                system(out);
            }
            if !history.is_empty() || system.is_some() {
                out.push(b' ');
            }
            user(out);
            out.push(b'"');
            return;
        }
        out.push(b'[');
        out.extend_from_slice(history);
        if let Some(system) = system {
            if !history.is_empty() {
                out.push(b',');
            }
            message(out, "system", system);
        }
        if !history.is_empty() || system.is_some() {
            out.push(b',');
        }
        message(out, "user", user);
        out.push(b']');
    }

    /// What the next turn of a conversation begins with: a prompt as [`Form::write`] made it, and the answer.
    pub fn keep(self, history: &mut Vec<u8>, prompt: &[u8], answer: &str) {
        history.clear();
        let inner = prompt.get(1..prompt.len().saturating_sub(1));
        let inner = inner.unwrap_or_default();
        match (self, prompt.first()) {
            (Form::Text, _) => {
                history.extend_from_slice(inner);
                history.push(b' ');
                push_escaped(history, answer);
            }
            // The first turn had no history and stood as a text.
            (_, Some(b'"')) => {
                message(history, "user", |out| out.extend_from_slice(inner));
                history.push(b',');
                message(history, "assistant", |out| push_escaped(out, answer));
            }
            _ => {
                history.extend_from_slice(inner);
                history.push(b',');
                message(history, "assistant", |out| push_escaped(out, answer));
            }
        }
    }
}

fn message(out: &mut Vec<u8>, role: &str, content: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b"{\"role\":\"");
    out.extend_from_slice(role.as_bytes());
    out.extend_from_slice(b"\",\"content\":\"");
    content(out);
    out.extend_from_slice(b"\"}");
}

/// Append a text, escaped for JSON and without quotes around it.
pub(crate) fn push_escaped(out: &mut Vec<u8>, text: &str) {
    let start = out.len();
    // A vector takes all that is written to it.
    if serde_json::to_writer(&mut *out, text).is_ok() {
        out.remove(start);
        out.pop();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Two turns with an answer between them, in JSON.
    fn turns(form: Form, system: Option<&str>) -> [Value; 2] {
        let write = |history: &[u8], system: Option<&str>, user: &str| {
            let mut out = Vec::new();
            let part = |out: &mut Vec<u8>| push_escaped(out, system.unwrap_or_default());
            let system: Option<Part<'_>> = system.map(|_| &part as Part<'_>);
            form.write(&mut out, history, system, |out| push_escaped(out, user));
            out
        };
        let first = write(&[], system, "a \"b\"\n");
        let mut history = Vec::new();
        form.keep(&mut history, &first, "c\\");
        let second = write(&history, None, "d");
        [&first, &second].map(|json| serde_json::from_slice(json).unwrap())
    }

    #[test]
    fn texts_follow_each_other_with_a_space_between() {
        assert_eq!(
            turns(Form::Text, None),
            [json!("a \"b\"\n"), json!("a \"b\"\n c\\ d")]
        );
        assert_eq!(
            turns(Form::Text, Some("s")),
            [json!("s a \"b\"\n"), json!("s a \"b\"\n c\\ d")]
        );
    }

    #[test]
    fn messages_have_their_roles() {
        let said = |role, content| json!({"role": role, "content": content});
        let (user, answer) = (said("user", "a \"b\"\n"), said("assistant", "c\\"));
        assert_eq!(
            turns(Form::Messages, Some("s")),
            [
                json!([said("system", "s"), user]),
                json!([said("system", "s"), user, answer, said("user", "d")])
            ]
        );
        assert_eq!(
            turns(Form::TextOrMessages, None),
            [json!("a \"b\"\n"), json!([user, answer, said("user", "d")])]
        );
    }
}
