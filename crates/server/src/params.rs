//! The parameters that completions and chats share, each within its bounds.

use std::sync::Arc;

use powerband_engine::SamplingParams;
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Fields, integer};
use crate::state::State;

/// Below this, a temperature is greedy.
const GREEDY_BELOW: f32 = 1e-5;
/// Between greedy and this, it is raised to this: smaller ones overflow the logits.
const LEAST_TEMPERATURE: f32 = 0.01;
const MOST_TOKENS: i64 = i32::MAX as i64;
const MOST_CACHE_SALT_BYTES: usize = 256;

/// What a request asks for besides its prompt.
pub(crate) struct Params {
    /// Sequences for each prompt.
    pub n: usize,
    pub stream: bool,
    /// A last chunk with the usage.
    pub include_usage: bool,
    /// The usage so far in every chunk.
    pub continuous_usage: bool,
    pub sampling: SamplingParams,
    /// `None`: the endpoint's default.
    pub max_tokens: Option<usize>,
    pub min_tokens: usize,
    pub stop_tokens: Arc<[u32]>,
    /// Ids among them that the model itself ends with.
    pub eos_tokens: Arc<[u32]>,
    pub stops: Arc<[String]>,
    pub include_stop: bool,
    pub skip_special: bool,
    /// Tokens in log-probabilities are named `token_id:ID`.
    pub tokens_as_ids: bool,
    pub priority: i32,
    pub cache_salt: Option<String>,
}

/// Reads all shared fields. `max_logprobs` is what the endpoint's own field asks for.
pub(crate) fn read(
    fields: &Fields,
    state: &State,
    logprobs: Option<u32>,
    max_tokens_fields: &[&'static str],
) -> Result<Params, ApiError> {
    refuse_what_is_not_built(fields)?;
    let limits = &state.config.limits;
    let n = fields
        .integer("n", 1..=limits.sequences as i64)?
        .unwrap_or(1);
    if let Some(best_of) = fields.integer("best_of", 1..=limits.sequences as i64)?
        && best_of != n
    {
        return Err(ApiError::unsupported("best_of", "it must be equal to `n`"));
    }
    let stream = fields.flag("stream")?;
    let (include_usage, continuous_usage) = stream_options(fields, stream)?;

    let mut max_tokens = None;
    for name in max_tokens_fields {
        if let Some(value) = fields.integer(name, 1..=MOST_TOKENS)? {
            max_tokens = Some(value as usize);
        }
    }
    let min_tokens = fields.integer("min_tokens", 0..=MOST_TOKENS)?.unwrap_or(0) as usize;
    if let Some(max_tokens) = max_tokens
        && min_tokens > max_tokens
    {
        return Err(ApiError::invalid(
            "min_tokens",
            format!("`min_tokens` ({min_tokens}) is above the most tokens allowed ({max_tokens})"),
        ));
    }

    let eos_tokens: Arc<[u32]> = if fields.flag("ignore_eos")? {
        Arc::default()
    } else {
        state.model.eos_tokens.clone().into()
    };
    let own = stop_token_ids(fields, state)?;
    let stop_tokens: Arc<[u32]> = eos_tokens.iter().copied().chain(own).collect();
    if let Some(user) = fields.text("user")? {
        // Nothing is done with it, but a wrong type is a mistake of the client.
        tracing::trace!(bytes = user.len(), "user");
    }
    Ok(Params {
        n: n as usize,
        stream,
        include_usage,
        continuous_usage,
        sampling: sampling(fields, state, logprobs)?,
        max_tokens,
        min_tokens,
        stop_tokens,
        eos_tokens,
        stops: stop_strings(fields, state)?,
        include_stop: fields.flag("include_stop_str_in_output")?,
        skip_special: fields.boolean("skip_special_tokens")?.unwrap_or(true),
        tokens_as_ids: fields.flag("return_tokens_as_token_ids")?,
        priority: fields
            .integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?
            .unwrap_or(0) as i32,
        cache_salt: cache_salt(fields)?,
    })
}

fn sampling(
    fields: &Fields,
    state: &State,
    logprobs: Option<u32>,
) -> Result<SamplingParams, ApiError> {
    let temperature = match fields.number("temperature", 0.0..=100.0, false)? {
        Some(value) if value < GREEDY_BELOW => 0.0,
        Some(value) => value.max(LEAST_TEMPERATURE),
        None => 1.0,
    };
    let top_k = fields
        .integer("top_k", -1..=i64::from(i32::MAX))?
        .map_or(0, |k| k.max(0) as usize)
        .min(state.model.vocab_size) as u32;
    Ok(SamplingParams {
        temperature,
        top_k,
        top_p: fields.number("top_p", 0.0..=1.0, true)?.unwrap_or(1.0),
        min_p: fields.number("min_p", 0.0..=1.0, false)?.unwrap_or(0.0),
        repetition_penalty: fields
            .number("repetition_penalty", 0.0..=100.0, true)?
            .unwrap_or(1.0),
        presence_penalty: fields
            .number("presence_penalty", -2.0..=2.0, false)?
            .unwrap_or(0.0),
        frequency_penalty: fields
            .number("frequency_penalty", -2.0..=2.0, false)?
            .unwrap_or(0.0),
        seed: fields
            .integer("seed", i64::MIN..=i64::MAX)?
            .map(|seed| seed as u64),
        logprobs,
        logit_bias: logit_bias(fields, state)?,
    })
}

/// Known fields that would change the output. They are refused by name, never ignored.
fn refuse_what_is_not_built(fields: &Fields) -> Result<(), ApiError> {
    let off = |value: &Value| {
        *value == Value::Bool(false)
            || value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty)
    };
    let plain_text = |value: &Value| value["type"] == "text";
    fields.refuse(
        "response_format",
        plain_text,
        "only {\"type\": \"text\"} is",
    )?;
    for name in [
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
    ] {
        fields.refuse(name, off, "output is not constrained by a schema")?;
    }
    for name in ["bad_words", "allowed_token_ids", "logits_processors"] {
        fields.refuse(name, off, "use `logit_bias`")?;
    }
    fields.refuse("use_beam_search", off, "sampling only")?;
    fields.refuse(
        "prompt_logprobs",
        off,
        "log-probabilities are given for output tokens",
    )?;
    fields.refuse("prompt_embeds", off, "send text or token ids")?;
    fields.refuse(
        "truncate_prompt_tokens",
        off,
        "cut the prompt before it is sent",
    )?;
    Ok(())
}

fn stream_options(fields: &Fields, stream: bool) -> Result<(bool, bool), ApiError> {
    let Some(options) = fields.get("stream_options") else {
        return Ok((false, false));
    };
    let Some(options) = options.as_object() else {
        return Err(ApiError::invalid(
            "stream_options",
            "`stream_options` must be an object",
        ));
    };
    if !stream {
        return Err(ApiError::invalid(
            "stream_options",
            "`stream_options` is only allowed with `stream: true`",
        ));
    }
    let options = Fields(options.clone());
    let include = options.flag("include_usage")?;
    Ok((include, include && options.flag("continuous_usage_stats")?))
}

fn stop_strings(fields: &Fields, state: &State) -> Result<Arc<[String]>, ApiError> {
    let limits = &state.config.limits;
    let invalid = |message: String| ApiError::invalid("stop", message);
    let stops: Vec<String> = match fields.get("stop") {
        None => return Ok(Arc::default()),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(stops)) => {
            if stops.len() > limits.stop_strings {
                return Err(invalid(format!(
                    "`stop` has {} strings; at most {} are allowed",
                    stops.len(),
                    limits.stop_strings
                )));
            }
            stops
                .iter()
                .map(|stop| stop.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(|| invalid("`stop` must be a string or a list of strings".to_owned()))?
        }
        Some(_) => {
            return Err(invalid(
                "`stop` must be a string or a list of strings".to_owned(),
            ));
        }
    };
    if let Some(stop) = stops
        .iter()
        .find(|stop| stop.is_empty() || stop.len() > limits.stop_string_bytes)
    {
        return Err(invalid(format!(
            "a stop string must have 1 to {} bytes, this one has {}",
            limits.stop_string_bytes,
            stop.len()
        )));
    }
    if !stops.is_empty() && state.model.tokenizer.is_none() {
        return Err(invalid(
            "this model is served without a tokenizer, so there is no text to find `stop` in: use \
             `stop_token_ids`"
                .to_owned(),
        ));
    }
    Ok(stops.into())
}

fn stop_token_ids(fields: &Fields, state: &State) -> Result<Vec<u32>, ApiError> {
    let name = "stop_token_ids";
    let Some(value) = fields.get(name) else {
        return Ok(Vec::new());
    };
    let ids = value
        .as_array()
        .ok_or_else(|| ApiError::invalid(name, format!("`{name}` must be a list of token ids")))?;
    let most = state.config.limits.stop_token_ids;
    if ids.len() > most {
        return Err(ApiError::invalid(
            name,
            format!("`{name}` has {} ids; at most {most} are allowed", ids.len()),
        ));
    }
    let last = state.model.vocab_size as i64 - 1;
    ids.iter()
        .map(|id| integer(name, id, 0..=last).map(|id| id as u32))
        .collect()
}

fn logit_bias(fields: &Fields, state: &State) -> Result<Vec<(u32, f32)>, ApiError> {
    let name = "logit_bias";
    let Some(value) = fields.get(name) else {
        return Ok(Vec::new());
    };
    let invalid = |message: String| ApiError::invalid(name, message);
    let biases = value.as_object().ok_or_else(|| {
        invalid(format!(
            "`{name}` must be an object from token ids to biases"
        ))
    })?;
    let most = state.config.limits.logit_bias;
    if biases.len() > most {
        return Err(invalid(format!(
            "`{name}` has {} entries; at most {most} are allowed",
            biases.len()
        )));
    }
    biases
        .iter()
        .map(|(id, bias)| {
            let token = id
                .parse::<u32>()
                .ok()
                .filter(|token| (*token as usize) < state.model.vocab_size)
                .ok_or_else(|| {
                    invalid(format!(
                        "`{name}`: \"{}\" is not a token id below {}",
                        crate::state::shortened(id),
                        state.model.vocab_size
                    ))
                })?;
            let bias = bias
                .as_f64()
                .filter(|bias| (-100.0..=100.0).contains(bias))
                .ok_or_else(|| {
                    invalid(format!(
                        "`{name}`: the bias of token {token} must be a number between -100 and 100"
                    ))
                })?;
            Ok((token, bias as f32))
        })
        .collect()
}

fn cache_salt(fields: &Fields) -> Result<Option<String>, ApiError> {
    let Some(salt) = fields.text("cache_salt")? else {
        return Ok(None);
    };
    if salt.is_empty() || salt.len() > MOST_CACHE_SALT_BYTES {
        return Err(ApiError::invalid(
            "cache_salt",
            format!("`cache_salt` must have 1 to {MOST_CACHE_SALT_BYTES} bytes"),
        ));
    }
    Ok(Some(salt.to_owned()))
}

impl Params {
    /// The most output tokens after a prompt of `prompt` tokens, or 400 with the numbers.
    pub fn output_room(
        &self,
        prompt: usize,
        context: usize,
        default: usize,
    ) -> Result<usize, ApiError> {
        let room = context.saturating_sub(prompt);
        let Some(asked) = self.max_tokens else {
            return Ok(default.max(self.min_tokens).min(room).max(1));
        };
        if asked > room {
            return Err(ApiError::invalid(
                "max_tokens",
                format!(
                    "the context length is {context} tokens; the prompt has {prompt} and {asked} more were \
                     asked for: set `max_tokens` to {room} or less, or shorten the prompt"
                ),
            )
            .with_code("context_length_exceeded"));
        }
        Ok(asked)
    }
}
