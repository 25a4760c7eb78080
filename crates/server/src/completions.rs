//! `/v1/completions`.

use std::sync::Arc;

use http::Response;

use crate::answer::{Envelope, Shape, send};
use crate::body::Body;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{Caller, Generation};
use crate::json::Document;
use crate::params::{self, Params};
use crate::prompt::{self, Prompt, PromptInput};
use crate::state::State;

/// OpenAI's default for completions.
const DEFAULT_MAX_TOKENS: usize = 16;

pub(crate) async fn handle(
    state: &Arc<State>,
    caller: &Caller,
    document: Document,
) -> Result<Response<Body>, ApiError> {
    let fields = Fields(document.fields);
    let model = state.model_name(fields.text("model")?)?;
    let input = document
        .prompt
        .ok_or_else(|| ApiError::invalid("prompt", "`prompt` is missing"))?;
    fields.refuse(
        "suffix",
        |_| false,
        "only text after the prompt is generated",
    )?;
    let most = i64::from(state.config.limits.logprobs);
    let logprobs = fields.integer("logprobs", 0..=most)?.map(|top| top as u32);
    let params = params::read(&fields, state, logprobs, &["max_tokens"])?;
    let echo = fields.flag("echo")?;
    if echo && logprobs.is_some() {
        return Err(ApiError::unsupported(
            "echo",
            "not together with `logprobs`, which are given for output tokens only",
        ));
    }
    let add_special = fields.boolean("add_special_tokens")?.unwrap_or(true);

    let place = state.reserve(params.n * sequences(&input))?;
    let room = state.config.limits.sequences / params.n;
    let prompts = prompt::resolve(state, input, add_special, room).await?;
    let echo = if echo {
        echoes(state, &params, &prompts)?
    } else {
        Vec::new()
    };
    let generation =
        Generation::submit(state, caller, params, &prompts, DEFAULT_MAX_TOKENS, place)?;
    let envelope = Envelope {
        shape: Shape::Completion,
        model,
        echo,
    };
    send(generation, envelope).await
}

fn sequences(input: &PromptInput) -> usize {
    match input {
        PromptInput::Texts(texts) => texts.len(),
        PromptInput::IdLists(lists) => lists.len(),
        _ => 1,
    }
}

/// The prompt's text for each choice.
fn echoes(state: &State, params: &Params, prompts: &[Prompt]) -> Result<Vec<String>, ApiError> {
    let mut echoes = Vec::with_capacity(prompts.len() * params.n);
    for prompt in prompts {
        let text = match &prompt.text {
            Some(text) => text.clone(),
            None => state
                .tokenizer("echo")?
                .decode(&prompt.ids, params.skip_special),
        };
        echoes.extend(std::iter::repeat_n(text, params.n));
    }
    Ok(echoes)
}
