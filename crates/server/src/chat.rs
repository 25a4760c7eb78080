//! `/v1/chat/completions`: messages through the model's template into a prompt.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::{Map, Value};

use crate::answer::{Envelope, Shape, send};
use crate::body::Body;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{Caller, Generation};
use crate::json::Document;
use crate::params;
use crate::prompt::{self, Prompt};
use crate::state::State;

pub(crate) async fn handle(
    state: &Arc<State>,
    caller: &Caller,
    document: Document,
) -> Result<Response<Body>, ApiError> {
    let mut fields = Fields(document.fields);
    let model = state.model_name(fields.text("model")?)?;
    let logprobs = logprobs(&fields, state)?;
    let params = params::read(
        &fields,
        state,
        logprobs,
        &["max_tokens", "max_completion_tokens"],
    )?;
    refuse_what_is_not_built(&fields)?;
    let chat = Chat::read(&mut fields, state)?;
    let place = state.reserve(params.n)?;
    let prompt = chat.prompt(state).await?;
    let rest = state.max_model_len;
    let generation = Generation::submit(state, caller, params, &[prompt], rest, place)?;
    let envelope = Envelope {
        shape: Shape::Chat,
        model,
        echo: Vec::new(),
    };
    send(generation, envelope).await
}

/// `logprobs` switches them on, `top_logprobs` says how many.
fn logprobs(fields: &Fields, state: &State) -> Result<Option<u32>, ApiError> {
    let wanted = fields.flag("logprobs")?;
    let most = i64::from(state.config.limits.logprobs);
    let top = fields.integer("top_logprobs", 0..=most)?;
    if top.is_some_and(|top| top > 0) && !wanted {
        return Err(ApiError::invalid(
            "top_logprobs",
            "`top_logprobs` is only allowed with `logprobs: true`",
        ));
    }
    Ok(wanted.then(|| top.unwrap_or(0) as u32))
}

fn refuse_what_is_not_built(fields: &Fields) -> Result<(), ApiError> {
    let none = |value: &Value| *value == "none";
    fields.refuse(
        "tool_choice",
        none,
        "tools are shown to the model, but its answer is given as text",
    )?;
    fields.refuse("functions", |_| false, "use `tools`")?;
    fields.refuse("function_call", none, "use `tools`")?;
    fields.refuse("audio", |_| false, "text only")?;
    let text_only = |value: &Value| *value == serde_json::json!(["text"]);
    fields.refuse("modalities", text_only, "text only")?;
    fields.refuse(
        "continue_final_message",
        |value| *value == false,
        "the model answers with a new message",
    )?;
    fields.refuse(
        "documents",
        |value| *value == serde_json::json!([]),
        "put them into a message",
    )?;
    let empty = |value: &Value| *value == serde_json::json!({});
    fields.refuse(
        "chat_template_kwargs",
        empty,
        "the template takes messages and tools",
    )?;
    if fields.get("chat_template").is_some() {
        return Err(ApiError::invalid(
            "chat_template",
            "templates in requests are refused, because a template is a program: start the server with \
             --chat-template",
        ));
    }
    Ok(())
}

/// A conversation that is ready for the template.
pub(crate) struct Chat {
    messages: Value,
    tools: Option<Value>,
    add_generation_prompt: bool,
    add_special: bool,
}

impl Chat {
    /// Takes `messages` and `tools` out of the fields.
    pub fn read(fields: &mut Fields, state: &State) -> Result<Self, ApiError> {
        let invalid = |message: &str| ApiError::invalid("messages", message);
        let Some(Value::Array(messages)) = fields.take("messages") else {
            return Err(invalid("`messages` must be a list of messages"));
        };
        let most = state.config.limits.messages;
        if messages.is_empty() || messages.len() > most {
            return Err(invalid(&format!(
                "`messages` must hold 1 to {most} messages, it holds {}",
                messages.len()
            )));
        }
        let messages = messages
            .into_iter()
            .enumerate()
            .map(|(at, message)| normalized(at, message))
            .collect::<Result<_, _>>()?;
        let tools = match fields.take("tools") {
            None => None,
            Some(Value::Array(tools)) if tools.is_empty() => None,
            Some(Value::Array(tools)) if tools.iter().all(Value::is_object) => {
                Some(Value::Array(tools))
            }
            Some(_) => {
                return Err(ApiError::invalid(
                    "tools",
                    "`tools` must be a list of objects",
                ));
            }
        };
        Ok(Self {
            messages: Value::Array(messages),
            tools,
            add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
            // The template writes the begin token itself.
            add_special: fields.flag("add_special_tokens")?,
        })
    }

    /// Renders and tokenizes, off the async threads: both take as long as their input wants.
    pub async fn prompt(self, state: &Arc<State>) -> Result<Prompt, ApiError> {
        let tokenizer = state.tokenizer("messages")?.clone();
        let template = state.model.chat_template.clone().ok_or_else(|| {
            ApiError::invalid(
                "messages",
                "this model has no chat template: use /v1/completions, or start the server with \
                 --chat-template",
            )
        })?;
        let ids = state
            .blocking(move || {
                let refused = |error| ApiError::invalid("messages", format!("`messages`: {error}"));
                let text = template
                    .render(
                        &self.messages,
                        self.tools.as_ref(),
                        self.add_generation_prompt,
                    )
                    .map_err(refused)?;
                tokenizer.encode(&text, self.add_special).map_err(refused)
            })
            .await??;
        prompt::check(state, &ids)?;
        Ok(Prompt {
            ids: ids.into(),
            text: None,
        })
    }
}

/// A message as templates expect it: text content is one string, call arguments are objects.
fn normalized(at: usize, message: Value) -> Result<Value, ApiError> {
    let invalid = |message: String| ApiError::invalid(format!("messages[{at}]"), message);
    let Value::Object(mut message) = message else {
        return Err(invalid("a message must be an object".to_owned()));
    };
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(invalid("a message must have a `role`, a string".to_owned()));
    }
    let calls = message
        .get("tool_calls")
        .is_some_and(|calls| !calls.is_null());
    let content = match message.remove("content") {
        None | Some(Value::Null) if calls => Value::String(String::new()),
        None | Some(Value::Null) => {
            return Err(invalid("a message must have `content`".to_owned()));
        }
        Some(Value::String(text)) => Value::String(text),
        Some(Value::Array(parts)) => Value::String(joined(at, parts)?),
        Some(_) => {
            return Err(invalid(
                "`content` must be a string or a list of text parts".to_owned(),
            ));
        }
    };
    message.insert("content".to_owned(), content);
    if calls {
        parse_arguments(at, &mut message)?;
    }
    Ok(Value::Object(message))
}

fn joined(at: usize, parts: Vec<Value>) -> Result<String, ApiError> {
    let texts: Result<Vec<String>, ApiError> = parts
        .into_iter()
        .map(|part| match part {
            Value::String(text) => Ok(text),
            part => match (part["type"].as_str(), part["text"].as_str()) {
                (Some("text"), Some(text)) => Ok(text.to_owned()),
                (Some(kind), _) if kind != "text" => Err(ApiError {
                    code: Some("unsupported_parameter"),
                    ..ApiError::invalid(
                        format!("messages[{at}].content"),
                        format!(
                            "content of type `{}` is not supported yet: text only",
                            crate::state::shortened(kind)
                        ),
                    )
                }),
                _ => Err(ApiError::invalid(
                    format!("messages[{at}].content"),
                    "a part of a message must be {\"type\": \"text\", \"text\": \"...\"}",
                )),
            },
        })
        .collect();
    Ok(texts?.join("\n"))
}

/// The API carries arguments as JSON in a string; templates want the object.
fn parse_arguments(at: usize, message: &mut Map<String, Value>) -> Result<(), ApiError> {
    let invalid = |what: &str| {
        ApiError::new(StatusCode::BAD_REQUEST, what.to_owned())
            .at(format!("messages[{at}].tool_calls"))
    };
    let Some(Value::Array(calls)) = message.get_mut("tool_calls") else {
        return Err(invalid("`tool_calls` must be a list"));
    };
    for call in calls {
        let Some(arguments) = call.pointer_mut("/function/arguments") else {
            continue;
        };
        if let Value::String(text) = arguments {
            *arguments = serde_json::from_str::<Map<String, Value>>(text)
                .map(Value::Object)
                .map_err(|_| invalid("the `arguments` of a call must be a JSON object"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn content_becomes_one_string_and_arguments_an_object() {
        let parts = json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"});
        assert_eq!(
            normalized(0, parts).unwrap(),
            json!({"role": "user", "content": "a\nb", "name": "x"})
        );
        let call = json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\":1}"}}]});
        assert_eq!(
            normalized(0, call).unwrap(),
            json!({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]})
        );
    }

    #[test]
    fn bad_messages_are_named() {
        for (message, word) in [
            (json!("hi"), "object"),
            (json!({"content": "hi"}), "role"),
            (json!({"role": 1, "content": "hi"}), "role"),
            (json!({"role": "user"}), "content"),
            (json!({"role": "user", "content": 1}), "content"),
            (
                json!({"role": "user", "content": [{"type": "image_url"}]}),
                "image_url",
            ),
            (
                json!({"role": "user", "content": [{"type": "text"}]}),
                "part",
            ),
            (json!({"role": "assistant", "tool_calls": 1}), "tool_calls"),
            (
                json!({"role": "assistant", "tool_calls": [{"function": {"arguments": "["}}]}),
                "arguments",
            ),
        ] {
            let error = normalized(3, message.clone()).unwrap_err();
            assert!(error.message.contains(word), "{message}: {}", error.message);
            assert!(error.param.unwrap().starts_with("messages[3]"));
        }
    }
}
