//! A request's sequences while they run: from the engine's events to what each adds to the answer.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use powerband_engine::request::{StopRules, TokenEvent};
use powerband_engine::{FinishReason, GenerationRequest, TokenOutput, TokenStream};

use crate::auth::{KeyDigest, cache_salt};
use crate::error::ApiError;
use crate::metrics::End;
use crate::params::Params;
use crate::prompt::Prompt;
use crate::state::{Place, State};
use crate::text::{StopScanner, TextStream};

/// What one token, or the end, adds to a sequence.
pub(crate) struct Delta {
    /// Which of the answer's choices.
    pub index: usize,
    pub text: String,
    /// `None` where only the end is told.
    pub token: Option<TokenOutput>,
    pub finish: Option<Finish>,
}

/// How a sequence ended, for its client.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finish {
    pub end: End,
    /// The stop token (not the model's own) or stop string it ended at.
    pub stopped_at: StoppedAt,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum StoppedAt {
    Nothing,
    Token(u32),
    Text(String),
}

/// Token counts of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub prompt: usize,
    pub completion: usize,
    /// Prompt tokens found in the prefix cache, where every sequence has told.
    pub cached: Option<usize>,
}

/// All sequences of one request. Dropping it cancels those that still run.
pub(crate) struct Generation {
    pub params: Params,
    choices: Vec<Choice>,
    prompt_tokens: usize,
    state: Arc<State>,
    _place: Place,
}

/// When a request came and with which key.
pub(crate) struct Caller {
    pub arrived: Instant,
    pub key: Option<KeyDigest>,
}

impl Generation {
    /// Submits `params.n` sequences for each prompt.
    pub fn submit(
        state: &Arc<State>,
        caller: &Caller,
        params: Params,
        prompts: &[Prompt],
        default_max_tokens: usize,
        place: Place,
    ) -> Result<Self, ApiError> {
        let salt = cache_salt(caller.key.as_ref(), params.cache_salt.as_deref());
        let mut generation = Self {
            choices: Vec::with_capacity(prompts.len() * params.n),
            prompt_tokens: prompts.iter().map(|prompt| prompt.ids.len()).sum(),
            params,
            state: state.clone(),
            _place: place,
        };
        let params = &generation.params;
        // Same seed for all would give the same answer n times.
        let samplings: Vec<_> = (0..params.n as u64)
            .map(|at| {
                let mut sampling = params.sampling.clone();
                sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(at));
                Arc::new(sampling)
            })
            .collect();
        for prompt in prompts {
            let max_tokens =
                params.output_room(prompt.ids.len(), state.max_model_len, default_max_tokens)?;
            for sampling in &samplings {
                let tokens = state.engine.submit(GenerationRequest {
                    prompt: prompt.ids.clone(),
                    sampling: sampling.clone(),
                    stop: StopRules {
                        max_tokens,
                        min_tokens: params.min_tokens.min(max_tokens),
                        stop_tokens: params.stop_tokens.clone(),
                    },
                    priority: params.priority,
                    cache_salt: salt,
                })?;
                generation.choices.push(Choice {
                    index: generation.choices.len(),
                    state: state.clone(),
                    tokens: Some(tokens),
                    pending: None,
                    max_tokens,
                    produced: 0,
                    prompt_tokens: prompt.ids.len(),
                    cached: None,
                    text: TextStream::new(
                        state.model.tokenizer.clone(),
                        params.skip_special,
                        StopScanner::new(params.stops.clone(), params.include_stop),
                        params.min_tokens,
                    ),
                    arrived: caller.arrived,
                    last_token: caller.arrived,
                });
            }
        }
        Ok(generation)
    }

    /// How many choices the answer has.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Waits for news, then takes all that is there. `false` after the end of all sequences; `Err` when
    /// the engine failed.
    pub async fn next(&mut self, deltas: &mut Vec<Delta>) -> Result<bool, String> {
        let params = &self.params;
        let (at, event) = match self.choices.as_mut_slice() {
            [only] => match &mut only.tokens {
                None => return Ok(false),
                Some(tokens) => (0, tokens.next().await),
            },
            choices => match first_event(choices).await {
                None => return Ok(false),
                Some(found) => found,
            },
        };
        let now = Instant::now();
        if let Some(choice) = self.choices.get_mut(at) {
            choice.accept(event.unwrap_or_else(stopped), params, now, deltas)?;
        }
        for choice in &mut self.choices {
            while let Some(event) = choice.tokens.as_mut().and_then(TokenStream::try_next) {
                choice.accept(event, params, now, deltas)?;
            }
        }
        Ok(true)
    }

    pub fn usage(&self) -> Usage {
        // The sequences of one prompt share it: it counts once, and so do its cached tokens.
        let firsts = self.choices.iter().step_by(self.params.n.max(1));
        Usage {
            prompt: self.prompt_tokens,
            completion: self.choices.iter().map(|choice| choice.produced).sum(),
            cached: firsts.map(|choice| choice.cached).sum(),
        }
    }

    pub fn state(&self) -> &Arc<State> {
        &self.state
    }
}

/// The first event of any running sequence; `None` when none runs.
async fn first_event(choices: &mut [Choice]) -> Option<(usize, Option<TokenEvent>)> {
    poll_fn(|cx| {
        let mut running = false;
        for (at, choice) in choices.iter_mut().enumerate() {
            let Some(tokens) = &mut choice.tokens else {
                continue;
            };
            running = true;
            if let Poll::Ready(event) = pin!(tokens.next()).poll(cx) {
                return Poll::Ready(Some((at, event)));
            }
        }
        if running {
            Poll::Pending
        } else {
            Poll::Ready(None)
        }
    })
    .await
}

fn stopped() -> TokenEvent {
    TokenEvent::Failed("the engine stopped".to_owned())
}

/// One sequence.
struct Choice {
    index: usize,
    state: Arc<State>,
    /// `None` once it has ended.
    tokens: Option<TokenStream>,
    /// A token that is likely the last: kept until the engine says so, because the text of a stop
    /// token is not shown and because the end belongs into the chunk of the last token.
    pending: Option<TokenOutput>,
    max_tokens: usize,
    produced: usize,
    prompt_tokens: usize,
    cached: Option<usize>,
    text: TextStream,
    arrived: Instant,
    last_token: Instant,
}

impl Choice {
    fn accept(
        &mut self,
        event: TokenEvent,
        params: &Params,
        now: Instant,
        deltas: &mut Vec<Delta>,
    ) -> Result<(), String> {
        match event {
            TokenEvent::Token(output) => {
                self.count(now);
                if let Some(before) = self.pending.take() {
                    self.token(before, params, deltas);
                }
                if self.tokens.is_none() {
                    // The token before ended it: this one is beyond a stop string.
                    self.produced -= 1;
                } else if self.produced == self.max_tokens
                    || params.stop_tokens.contains(&output.token)
                {
                    self.pending = Some(output);
                } else {
                    self.token(output, params, deltas);
                }
                Ok(())
            }
            TokenEvent::Finished {
                reason,
                cached_tokens,
            } => {
                self.cached = Some(cached_tokens);
                self.finished(reason, params, deltas);
                Ok(())
            }
            TokenEvent::Failed(why) => {
                self.close(End::Error);
                Err(why)
            }
        }
    }

    fn count(&mut self, now: Instant) {
        let metrics = &self.state.metrics;
        let histogram = if self.produced == 0 {
            &metrics.time_to_first_token
        } else {
            &metrics.inter_token
        };
        histogram.observe_time(now - self.last_token);
        self.last_token = now;
        self.produced += 1;
    }

    /// A token after which the sequence goes on, unless its text ends in a stop string.
    fn token(&mut self, output: TokenOutput, params: &Params, deltas: &mut Vec<Delta>) {
        let (text, stop) = self.text.push(output.token);
        let finish = stop.map(|at| Finish {
            end: End::Stop,
            stopped_at: stop_text(params, at),
        });
        if finish.is_some() {
            self.close(End::Stop);
        }
        deltas.push(Delta {
            index: self.index,
            text,
            token: Some(output),
            finish,
        });
    }

    fn finished(&mut self, reason: FinishReason, params: &Params, deltas: &mut Vec<Delta>) {
        let last = self.pending.take();
        let end = match reason {
            FinishReason::Stop => End::Stop,
            FinishReason::Length => End::Length,
            FinishReason::Abort => End::Abort,
        };
        let mut finish = Finish {
            end,
            stopped_at: StoppedAt::Nothing,
        };
        let hidden = end == End::Stop && !params.include_stop;
        let (mut text, mut stop) = match &last {
            Some(output) if !hidden => self.text.push(output.token),
            _ => (String::new(), None),
        };
        if let (End::Stop, Some(output)) = (end, &last)
            && !params.eos_tokens.contains(&output.token)
        {
            finish.stopped_at = StoppedAt::Token(output.token);
        }
        if stop.is_none() {
            let (rest, found) = self.text.finish();
            text.push_str(&rest);
            stop = found;
        }
        if let Some(at) = stop {
            finish = Finish {
                end: End::Stop,
                stopped_at: stop_text(params, at),
            };
        }
        self.close(finish.end);
        deltas.push(Delta {
            index: self.index,
            text,
            token: last,
            finish: Some(finish),
        });
    }

    /// The end, once: the rest of the stream is dropped, which cancels it.
    fn close(&mut self, end: End) {
        if self.tokens.take().is_none() {
            return;
        }
        let metrics = &self.state.metrics;
        metrics.end(end);
        metrics.prompt_tokens.observe(self.prompt_tokens as u64);
        metrics.generation_tokens.observe(self.produced as u64);
        if matches!(end, End::Stop | End::Length) {
            metrics.end_to_end.observe_time(self.arrived.elapsed());
        }
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        self.close(End::Abort);
    }
}

fn stop_text(params: &Params, at: usize) -> StoppedAt {
    params
        .stops
        .get(at)
        .map_or(StoppedAt::Nothing, |stop| StoppedAt::Text(stop.clone()))
}
