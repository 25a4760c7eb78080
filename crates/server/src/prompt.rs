//! The prompt of a request: a text, texts, token ids or lists of token ids, and how it becomes ids.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::ApiError;
use crate::json::skip_rest;
use crate::state::State;

/// More prompts than any limit allows: reading stops here.
const MOST_PROMPTS: usize = 4096;
/// Texts up to this many bytes are tokenized where they are; longer ones on a blocking thread.
const SHORT_TEXT: usize = 2048;

/// A prompt as the body gives it.
#[derive(Debug, PartialEq)]
pub(crate) enum PromptInput {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
    /// None of these; says why.
    Invalid(&'static str),
}

const SHAPES: &str =
    "it must be a string, a list of strings, a list of token ids or a list of lists of token ids";
const BAD_ID: &str = "token ids must be integers between 0 and 4294967295";

impl<'de> Deserialize<'de> for PromptInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptVisitor)
    }
}

struct PromptVisitor;

impl<'de> Visitor<'de> for PromptVisitor {
    type Value = PromptInput;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a prompt")
    }

    fn visit_str<E>(self, text: &str) -> Result<PromptInput, E> {
        Ok(PromptInput::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<PromptInput, E> {
        Ok(PromptInput::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<PromptInput, A::Error> {
        let mut prompt = match seq.next_element::<Item>()? {
            None => return Ok(PromptInput::Ids(Vec::new())),
            Some(Item::Id(id)) => PromptInput::Ids(vec![id]),
            Some(Item::Text(text)) => PromptInput::Texts(vec![text]),
            Some(Item::Ids(ids)) => PromptInput::IdLists(vec![ids]),
            Some(Item::Bad(why)) => PromptInput::Invalid(why),
        };
        loop {
            let fits = match &mut prompt {
                PromptInput::Ids(ids) => match seq.next_element::<Item>()? {
                    None => return Ok(prompt),
                    Some(Item::Id(id)) => {
                        ids.push(id);
                        Ok(())
                    }
                    Some(Item::Bad(why)) => Err(why),
                    Some(_) => Err(SHAPES),
                },
                PromptInput::Texts(texts) => match seq.next_element::<Item>()? {
                    None => return Ok(prompt),
                    Some(Item::Text(text)) if texts.len() < MOST_PROMPTS => {
                        texts.push(text);
                        Ok(())
                    }
                    Some(Item::Text(_)) => Err("there are too many prompts"),
                    Some(_) => Err(SHAPES),
                },
                PromptInput::IdLists(lists) => match seq.next_element::<Item>()? {
                    None => return Ok(prompt),
                    Some(Item::Ids(ids)) if lists.len() < MOST_PROMPTS => {
                        lists.push(ids);
                        Ok(())
                    }
                    Some(Item::Ids(_)) => Err("there are too many prompts"),
                    Some(Item::Bad(why)) => Err(why),
                    Some(_) => Err(SHAPES),
                },
                PromptInput::Text(_) | PromptInput::Invalid(_) => {
                    skip_rest(seq)?;
                    return Ok(prompt);
                }
            };
            if let Err(why) = fits {
                prompt = PromptInput::Invalid(why);
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PromptInput, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(PromptInput::Invalid(SHAPES))
    }

    fn visit_bool<E>(self, _: bool) -> Result<PromptInput, E> {
        Ok(PromptInput::Invalid(SHAPES))
    }

    fn visit_i64<E>(self, _: i64) -> Result<PromptInput, E> {
        Ok(PromptInput::Invalid(SHAPES))
    }

    fn visit_u64<E>(self, _: u64) -> Result<PromptInput, E> {
        Ok(PromptInput::Invalid(SHAPES))
    }

    fn visit_f64<E>(self, _: f64) -> Result<PromptInput, E> {
        Ok(PromptInput::Invalid(SHAPES))
    }
}

/// An element of a list of prompts.
enum Item {
    Id(u32),
    Text(String),
    Ids(Vec<u32>),
    Bad(&'static str),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a token id or a list of token ids")
    }

    fn visit_u64<E>(self, id: u64) -> Result<Item, E> {
        Ok(u32::try_from(id).map_or(Item::Bad(BAD_ID), Item::Id))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Item, E> {
        Ok(Item::Bad(BAD_ID))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Item, E> {
        Ok(Item::Bad(BAD_ID))
    }

    fn visit_str<E>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Item, E> {
        Ok(Item::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
        let mut ids = Vec::new();
        while let Some(Id(id)) = seq.next_element::<Id>()? {
            match id {
                Some(id) => ids.push(id),
                None => {
                    skip_rest(seq)?;
                    return Ok(Item::Bad(BAD_ID));
                }
            }
        }
        Ok(Item::Ids(ids))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Item::Bad(SHAPES))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Item, E> {
        Ok(Item::Bad(SHAPES))
    }

    fn visit_unit<E>(self) -> Result<Item, E> {
        Ok(Item::Bad(SHAPES))
    }
}

/// A token id, or `None` for anything else.
struct Id(Option<u32>);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Item::deserialize(deserializer).map(|item| match item {
            Item::Id(id) => Id(Some(id)),
            _ => Id(None),
        })
    }
}

/// A prompt that the engine can take.
#[derive(Debug, Clone)]
pub(crate) struct Prompt {
    pub ids: Arc<[u32]>,
    /// As the client wrote it, where it wrote text.
    pub text: Option<String>,
}

/// Turns the input into one or more checked prompts; `room` is how many the request may have.
pub(crate) async fn resolve(
    state: &Arc<State>,
    input: PromptInput,
    add_special: bool,
    room: usize,
) -> Result<Vec<Prompt>, ApiError> {
    let count = match &input {
        PromptInput::Texts(texts) => texts.len(),
        PromptInput::IdLists(lists) => lists.len(),
        _ => 1,
    };
    if count > room {
        return Err(ApiError::invalid(
            "prompt",
            format!(
                "the request asks for too many sequences: {count} prompts, {room} are allowed with this `n`"
            ),
        ));
    }
    let prompts = match input {
        PromptInput::Invalid(why) => {
            return Err(ApiError::invalid(
                "prompt",
                format!("`prompt` is invalid: {why}"),
            ));
        }
        PromptInput::Ids(ids) => vec![from_ids(ids)],
        PromptInput::IdLists(lists) => lists.into_iter().map(from_ids).collect(),
        PromptInput::Text(text) => encode(state, vec![text], add_special).await?,
        PromptInput::Texts(texts) => encode(state, texts, add_special).await?,
    };
    for prompt in &prompts {
        check(state, &prompt.ids)?;
    }
    Ok(prompts)
}

fn from_ids(ids: Vec<u32>) -> Prompt {
    Prompt {
        ids: ids.into(),
        text: None,
    }
}

async fn encode(
    state: &Arc<State>,
    texts: Vec<String>,
    add_special: bool,
) -> Result<Vec<Prompt>, ApiError> {
    let tokenizer = state.tokenizer("prompt")?.clone();
    let short = texts.iter().map(String::len).sum::<usize>() <= SHORT_TEXT;
    let work = move || {
        texts
            .into_iter()
            .map(|text| {
                let ids = tokenizer
                    .encode(&text, add_special)
                    .map_err(|error| ApiError::invalid("prompt", format!("`prompt`: {error}")))?;
                Ok(Prompt {
                    ids: ids.into(),
                    text: Some(text),
                })
            })
            .collect()
    };
    if short {
        work()
    } else {
        state.blocking(work).await?
    }
}

/// What every prompt must be: not empty, known tokens, and room for at least one more.
pub(crate) fn check(state: &State, ids: &[u32]) -> Result<(), ApiError> {
    if ids.is_empty() {
        return Err(ApiError::invalid(
            "prompt",
            "the prompt is empty: it must hold at least one token",
        ));
    }
    if let Some(id) = ids
        .iter()
        .find(|&&id| id as usize >= state.model.vocab_size)
    {
        return Err(ApiError::invalid(
            "prompt",
            format!(
                "token id {id} is out of the vocabulary, which has {} tokens",
                state.model.vocab_size
            ),
        ));
    }
    if ids.len() >= state.max_model_len {
        return Err(ApiError::invalid(
            "prompt",
            format!(
                "the prompt has {} tokens and the context length is {}, output included; shorten the \
                 prompt, or start the server with a larger --max-model-len where the model and the \
                 memory allow it",
                ids.len(),
                state.max_model_len
            ),
        )
        .with_code("context_length_exceeded"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> PromptInput {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_four_shapes() {
        assert_eq!(read(r#""hi""#), PromptInput::Text("hi".into()));
        assert_eq!(
            read(r#"["a","b\n"]"#),
            PromptInput::Texts(vec!["a".into(), "b\n".into()])
        );
        assert_eq!(read("[1,2]"), PromptInput::Ids(vec![1, 2]));
        assert_eq!(
            read("[[1],[2,3],[]]"),
            PromptInput::IdLists(vec![vec![1], vec![2, 3], vec![]])
        );
        assert_eq!(read("[]"), PromptInput::Ids(vec![]));
    }

    #[test]
    fn other_shapes_are_invalid_wherever_they_go_wrong() {
        for json in [
            "1",
            "-1",
            "1.5",
            "true",
            "{}",
            r#"{"a":[1]}"#,
            "[true]",
            "[null]",
            "[{}]",
            "[-1]",
            "[1.5]",
            "[4294967296]",
            "[9223372036854775808]",
            r#"[1,"a"]"#,
            r#"["a",1]"#,
            "[1,[2]]",
            "[[1],2]",
            "[[1],[-1,2]]",
            "[[[1]]]",
            r#"[["a"]]"#,
            "[1,2,null,3]",
        ] {
            assert!(matches!(read(json), PromptInput::Invalid(_)), "{json}");
        }
        let many = format!("[{}\"\"]", "\"\",".repeat(MOST_PROMPTS));
        assert_eq!(
            read(&many),
            PromptInput::Invalid("there are too many prompts")
        );
    }
}
