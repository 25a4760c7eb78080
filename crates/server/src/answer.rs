//! The answer to a completion or a chat: whole, or as server-sent events.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use powerband_engine::TokenOutput;

use crate::body::Body;
use crate::error::ApiError;
use crate::generation::{Delta, Finish, Generation, Usage};
use crate::logprobs::{self, Names};
use crate::state::State;
use crate::{id, write};

/// Which of the two shapes an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Completion,
    Chat,
}

/// What stands in an answer besides what is generated.
pub(crate) struct Envelope {
    pub shape: Shape,
    pub model: String,
    /// Text that goes before each choice's (`echo`), by choice; empty for none.
    pub echo: Vec<String>,
}

/// Sends the answer in the form the request asked for.
pub(crate) async fn send(
    generation: Generation,
    envelope: Envelope,
) -> Result<Response<Body>, ApiError> {
    let answer = Answer::new(generation, envelope);
    if answer.generation.params.stream {
        answer.stream().await
    } else {
        answer.whole().await
    }
}

struct Answer {
    id: String,
    created: u64,
    envelope: Envelope,
    generation: Generation,
    deltas: Vec<Delta>,
    /// Where the next token's text begins, by choice, for log-probabilities.
    offsets: Vec<usize>,
    log: Log,
}

impl Answer {
    fn new(generation: Generation, envelope: Envelope) -> Self {
        let id = id::new(match envelope.shape {
            Shape::Completion => "cmpl",
            Shape::Chat => "chatcmpl",
        });
        let offsets = (0..generation.len())
            .map(|at| envelope.echo.get(at).map_or(0, |text| text.chars().count()))
            .collect();
        Self {
            log: Log {
                id: id.clone(),
                state: generation.state().clone(),
                started: Instant::now(),
                prompt: generation.usage().prompt,
                completion: 0,
            },
            id,
            created: id::unix_seconds(),
            envelope,
            deltas: Vec::new(),
            offsets,
            generation,
        }
    }

    /// `{"id":...,"object":...,"created":...,"model":...,"choices":[`
    fn head(&self, object: &str) -> Vec<u8> {
        let mut out = b"{\"id\":\"".to_vec();
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(b"\",\"object\":\"");
        out.extend_from_slice(object.as_bytes());
        out.extend_from_slice(b"\",\"created\":");
        write::integer(&mut out, self.created);
        out.extend_from_slice(b",\"model\":");
        write::json(&mut out, &self.envelope.model);
        out.extend_from_slice(b",\"choices\":[");
        out
    }

    async fn advance(&mut self) -> Result<bool, String> {
        self.deltas.clear();
        let more = self.generation.next(&mut self.deltas).await;
        self.log.completion = self.generation.usage().completion;
        more
    }

    async fn whole(mut self) -> Result<Response<Body>, ApiError> {
        #[derive(Default)]
        struct Collected {
            text: String,
            tokens: Vec<TokenOutput>,
            finish: Option<Finish>,
        }
        let mut choices: Vec<Collected> = (0..self.generation.len())
            .map(|at| Collected {
                text: self.envelope.echo.get(at).cloned().unwrap_or_default(),
                ..Collected::default()
            })
            .collect();
        let with_logprobs = self.generation.params.sampling.logprobs.is_some();
        while self.advance().await.map_err(engine_failed)? {
            for delta in self.deltas.drain(..) {
                let Some(choice) = choices.get_mut(delta.index) else {
                    continue;
                };
                choice.text.push_str(&delta.text);
                if with_logprobs {
                    choice.tokens.extend(delta.token);
                }
                if delta.finish.is_some() {
                    choice.finish = delta.finish;
                }
            }
        }
        let mut out = self.head(match self.envelope.shape {
            Shape::Completion => "text_completion",
            Shape::Chat => "chat.completion",
        });
        for (index, choice) in choices.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(b"{\"index\":");
            write::integer(&mut out, index as u64);
            match self.envelope.shape {
                Shape::Completion => {
                    out.extend_from_slice(b",\"text\":");
                    write::json(&mut out, &choice.text);
                }
                Shape::Chat => {
                    out.extend_from_slice(b",\"message\":{\"role\":\"assistant\",\"content\":");
                    write::json(&mut out, &choice.text);
                    out.push(b'}');
                }
            }
            let tokens = with_logprobs.then_some(choice.tokens.as_slice());
            self.logprobs(&mut out, index, tokens);
            out.push(b',');
            write::finish(&mut out, choice.finish.as_ref());
            out.push(b'}');
        }
        out.extend_from_slice(b"],\"usage\":");
        write::usage(&mut out, &self.generation.usage());
        out.push(b'}');
        Ok(json_response(out))
    }

    /// `,"logprobs":...`
    fn logprobs(&mut self, out: &mut Vec<u8>, index: usize, tokens: Option<&[TokenOutput]>) {
        out.extend_from_slice(b",\"logprobs\":");
        let Some(tokens) = tokens else {
            out.extend_from_slice(b"null");
            return;
        };
        let state = self.generation.state();
        let names = Names {
            tokenizer: state.model.tokenizer.as_deref(),
            as_ids: self.generation.params.tokens_as_ids,
        };
        match (self.envelope.shape, self.offsets.get_mut(index)) {
            (Shape::Completion, Some(offset)) => logprobs::completion(out, tokens, &names, offset),
            _ => logprobs::chat(out, tokens, &names),
        }
    }

    /// The head of the answer waits for the first token: a failure before it is a proper status, and
    /// head and first chunk are one write.
    async fn stream(mut self) -> Result<Response<Body>, ApiError> {
        self.advance().await.map_err(engine_failed)?;
        let object = match self.envelope.shape {
            Shape::Completion => "text_completion",
            Shape::Chat => "chat.completion.chunk",
        };
        let mut prefix = b"data: ".to_vec();
        prefix.extend(self.head(object));
        let events = Events {
            started: vec![false; self.generation.len()],
            prefix,
            answer: self,
            frame: Vec::new(),
            sent: 0,
            next: Next::Deltas,
        };
        let body = Body::stream(futures::stream::unfold(
            Box::new(events),
            |mut events| async {
                let frame = events.frame().await?;
                Some((frame, events))
            },
        ));
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Ok(response)
    }
}

fn engine_failed(why: String) -> ApiError {
    ApiError::internal(format!("the engine failed: {why}"))
}

/// An answer on its way out as server-sent events: one event a token, all that are ready in one frame.
struct Events {
    answer: Answer,
    /// What every event begins with.
    prefix: Vec<u8>,
    frame: Vec<u8>,
    /// Which choices have sent their first event.
    started: Vec<bool>,
    /// Tokens of all choices that stand in events already written.
    sent: usize,
    next: Next,
}

enum Next {
    /// Deltas are there: write them.
    Deltas,
    /// Wait for more.
    Wait,
    Nothing,
}

impl Events {
    async fn frame(&mut self) -> Option<Bytes> {
        loop {
            match self.next {
                Next::Nothing => return None,
                Next::Deltas => {
                    self.next = Next::Wait;
                    self.write_deltas();
                    if !self.frame.is_empty() {
                        break;
                    }
                }
                Next::Wait => match self.answer.advance().await {
                    Ok(true) => self.next = Next::Deltas,
                    Ok(false) => {
                        self.next = Next::Nothing;
                        self.write_end();
                        break;
                    }
                    Err(why) => {
                        self.next = Next::Nothing;
                        self.frame.extend_from_slice(b"data: ");
                        self.frame.extend(engine_failed(why).to_json());
                        self.frame.extend_from_slice(b"\n\ndata: [DONE]\n\n");
                        break;
                    }
                },
            }
        }
        let capacity = self.frame.len();
        let frame = std::mem::replace(&mut self.frame, Vec::with_capacity(capacity));
        Some(frame.into())
    }

    fn write_deltas(&mut self) {
        let deltas = std::mem::take(&mut self.answer.deltas);
        for delta in &deltas {
            self.write_delta(delta);
        }
        // Keeps its memory.
        self.answer.deltas = deltas;
    }

    fn write_delta(&mut self, delta: &Delta) {
        let first = self
            .started
            .get_mut(delta.index)
            .is_some_and(|started| !std::mem::replace(started, true));
        let shape = self.answer.envelope.shape;
        self.sent += usize::from(delta.token.is_some());
        let mut out = std::mem::take(&mut self.frame);
        if first && shape == Shape::Chat {
            self.open_choice(&mut out, delta.index);
            out.extend_from_slice(
                b",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null",
            );
            self.close_choice(&mut out);
        }
        self.open_choice(&mut out, delta.index);
        match shape {
            Shape::Completion => {
                out.extend_from_slice(b",\"text\":");
                match self.answer.envelope.echo.get(delta.index) {
                    Some(echo) if first => write::json(&mut out, &format!("{echo}{}", delta.text)),
                    _ => write::json(&mut out, &delta.text),
                }
            }
            Shape::Chat => {
                out.extend_from_slice(b",\"delta\":{\"content\":");
                write::json(&mut out, &delta.text);
                out.push(b'}');
            }
        }
        let wanted = self.answer.generation.params.sampling.logprobs.is_some();
        let tokens = delta.token.as_ref().filter(|_| wanted);
        self.answer
            .logprobs(&mut out, delta.index, tokens.map(std::slice::from_ref));
        out.push(b',');
        write::finish(&mut out, delta.finish.as_ref());
        self.close_choice(&mut out);
        self.frame = out;
    }

    fn open_choice(&self, out: &mut Vec<u8>, index: usize) {
        out.extend_from_slice(&self.prefix);
        out.extend_from_slice(b"{\"index\":");
        write::integer(out, index as u64);
    }

    fn close_choice(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"}]");
        let params = &self.answer.generation.params;
        if params.continuous_usage {
            out.extend_from_slice(b",\"usage\":");
            let so_far = Usage {
                completion: self.sent,
                cached: None,
                ..self.answer.generation.usage()
            };
            write::usage(out, &so_far);
        } else if params.include_usage {
            out.extend_from_slice(b",\"usage\":null");
        }
        out.extend_from_slice(b"}\n\n");
    }

    fn write_end(&mut self) {
        if self.answer.generation.params.include_usage {
            self.frame.extend_from_slice(&self.prefix);
            self.frame.extend_from_slice(b"],\"usage\":");
            write::usage(&mut self.frame, &self.answer.generation.usage());
            self.frame.extend_from_slice(b"}\n\n");
        }
        self.frame.extend_from_slice(b"data: [DONE]\n\n");
    }
}

/// A 200 with a JSON body.
pub(crate) fn json_response(body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// Writes the line of the request log when the answer is over, however it ended.
struct Log {
    id: String,
    state: Arc<State>,
    started: Instant,
    prompt: usize,
    completion: usize,
}

impl Drop for Log {
    fn drop(&mut self) {
        if self.state.config.log_requests {
            tracing::info!(
                id = self.id,
                prompt_tokens = self.prompt,
                completion_tokens = self.completion,
                seconds = self.started.elapsed().as_secs_f64(),
                "request"
            );
        }
    }
}
