//! The small endpoints: models, version, tokenize and detokenize.

use std::sync::Arc;

use http::Response;

use crate::answer::json_response;
use crate::body::Body;
use crate::chat::Chat;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::Document;
use crate::prompt::PromptInput;
use crate::state::State;
use crate::write;

pub(crate) fn version() -> Response<Body> {
    json_response(format!("{{\"version\":\"{}\"}}", env!("CARGO_PKG_VERSION")).into_bytes())
}

pub(crate) fn models(state: &State) -> Response<Body> {
    let mut out = b"{\"object\":\"list\",\"data\":[".to_vec();
    for (at, name) in state.model.served_names.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_model(&mut out, state, name);
    }
    out.extend_from_slice(b"]}");
    json_response(out)
}

/// `encoded` is the rest of the path; names may hold slashes, escaped or not.
pub(crate) fn model(state: &State, encoded: &str) -> Result<Response<Body>, ApiError> {
    let name = state.model_name(Some(&percent_decoded(encoded)))?;
    let mut out = Vec::new();
    write_model(&mut out, state, &name);
    Ok(json_response(out))
}

fn write_model(out: &mut Vec<u8>, state: &State, name: &str) {
    out.extend_from_slice(b"{\"id\":");
    write::json(out, name);
    out.extend_from_slice(b",\"object\":\"model\",\"created\":");
    write::integer(out, state.created);
    out.extend_from_slice(b",\"owned_by\":\"powerband\",\"root\":");
    write::json(out, &state.model.root);
    out.extend_from_slice(b",\"parent\":null,\"max_model_len\":");
    write::integer(out, state.max_model_len as u64);
    out.push(b'}');
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let escaped = (*first == b'%')
            .then(|| after.split_at_checked(2))
            .flatten()
            .and_then(|(digits, after)| {
                let digits = std::str::from_utf8(digits).ok()?;
                Some((u8::from_str_radix(digits, 16).ok()?, after))
            });
        match escaped {
            Some((byte, after)) => {
                bytes.push(byte);
                rest = after;
            }
            None => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A `prompt` or `messages` to token ids.
pub(crate) async fn tokenize(
    state: &Arc<State>,
    document: Document,
) -> Result<Response<Body>, ApiError> {
    let mut fields = Fields(document.fields);
    state.model_name(fields.text("model")?)?;
    let with_strings = fields.flag("return_token_strs")?;
    let tokenizer = state.tokenizer("prompt")?.clone();
    let ids = match document.prompt {
        Some(PromptInput::Text(text)) => {
            let add_special = fields.boolean("add_special_tokens")?.unwrap_or(true);
            let tokenizer = tokenizer.clone();
            state
                .blocking(move || tokenizer.encode(&text, add_special))
                .await?
                .map_err(|error| ApiError::invalid("prompt", format!("`prompt`: {error}")))?
        }
        Some(_) => return Err(ApiError::invalid("prompt", "`prompt` must be a string")),
        None if fields.get("messages").is_some() => {
            let prompt = Chat::read(&mut fields, state)?.prompt(state).await?;
            prompt.ids.to_vec()
        }
        None => {
            return Err(ApiError::invalid(
                "prompt",
                "`prompt` (a string) or `messages` is missing",
            ));
        }
    };
    let mut out = b"{\"count\":".to_vec();
    write::integer(&mut out, ids.len() as u64);
    out.extend_from_slice(b",\"max_model_len\":");
    write::integer(&mut out, state.max_model_len as u64);
    out.extend_from_slice(b",\"tokens\":");
    write::json(&mut out, &ids);
    out.extend_from_slice(b",\"token_strs\":");
    let strings: Option<Vec<String>> = with_strings.then(|| {
        ids.iter()
            .map(|id| String::from_utf8_lossy(&tokenizer.token_bytes(*id)).into_owned())
            .collect()
    });
    write::json(&mut out, &strings);
    out.push(b'}');
    Ok(json_response(out))
}

/// `tokens` to their text.
pub(crate) async fn detokenize(
    state: &Arc<State>,
    document: Document,
) -> Result<Response<Body>, ApiError> {
    let fields = Fields(document.fields);
    state.model_name(fields.text("model")?)?;
    let Some(PromptInput::Ids(ids)) = document.prompt else {
        return Err(ApiError::invalid(
            "tokens",
            "`tokens` must be a list of token ids",
        ));
    };
    if let Some(id) = ids
        .iter()
        .find(|id| **id as usize >= state.model.vocab_size)
    {
        return Err(ApiError::invalid(
            "tokens",
            format!(
                "token id {id} is out of the vocabulary, which has {} tokens",
                state.model.vocab_size
            ),
        ));
    }
    let tokenizer = state.tokenizer("tokens")?.clone();
    let text = state
        .blocking(move || tokenizer.decode(&ids, false))
        .await?;
    let mut out = b"{\"prompt\":".to_vec();
    write::json(&mut out, &text);
    out.push(b'}');
    Ok(json_response(out))
}

#[cfg(test)]
mod tests {
    #[test]
    fn percent_escapes_are_decoded_and_broken_ones_kept() {
        for (text, decoded) in [
            ("a/b", "a/b"),
            ("a%2Fb%20c", "a/b c"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz%41", "%zzA"),
            ("%c3%a9", "é"),
        ] {
            assert_eq!(super::percent_decoded(text), decoded);
        }
    }
}
