//! One request on its way through the engine.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::block_pool::Prefix;
use crate::executor::Admission;
use crate::queue::Place;
use crate::request::{FinishReason, GenerationRequest, TokenEvent, TokenOutput};

/// Numbers requests in the order in which they came.
pub type SequenceId = u64;

/// A request and how far it has come.
#[derive(Debug)]
pub struct Sequence {
    /// Its number.
    pub id: SequenceId,
    /// What was asked.
    pub request: GenerationRequest,
    /// Where its tokens go.
    pub events: mpsc::UnboundedSender<TokenEvent>,
    /// Its place in the queue, kept for a preemption.
    pub place: Place,
    /// Seed of its sampling.
    pub seed: u64,
    /// Prompt and output as far as the host knows it.
    pub tokens: Vec<u32>,
    /// Tokens being sampled in steps in flight: they follow `tokens`, still unknown.
    pub in_flight: usize,
    /// Drafts in the step in flight. Those that the model agrees with follow the token in flight.
    pub drafted: usize,
    /// Positions whose keys and values are in the cache once all steps in flight have ended, drafts not
    /// counted.
    pub computed: usize,
    /// KV blocks of positions `0..`.
    pub blocks: Vec<u32>,
    /// How many of them went to the prefix cache, and what the next one follows.
    pub registered: usize,
    /// See `registered`.
    pub prefix: Prefix,
    /// Prompt tokens found in the cache at the first admission.
    pub cached_tokens: Option<usize>,
    /// The slot while it runs.
    pub slot: Option<usize>,
    /// Not yet announced to the executor in this slot.
    pub unannounced: bool,
}

impl Sequence {
    /// A request that has not begun.
    pub fn new(
        id: SequenceId,
        request: GenerationRequest,
        events: mpsc::UnboundedSender<TokenEvent>,
        place: Place,
        seed: u64,
    ) -> Self {
        Self {
            id,
            events,
            place,
            seed,
            tokens: request.prompt.to_vec(),
            in_flight: 0,
            drafted: 0,
            computed: 0,
            blocks: Vec::new(),
            registered: 0,
            prefix: Prefix::Start {
                salt: request.cache_salt,
            },
            cached_tokens: None,
            slot: None,
            unannounced: false,
            request,
        }
    }

    /// Output tokens, those in flight included.
    pub fn produced(&self) -> usize {
        self.tokens.len() + self.in_flight - self.request.prompt.len()
    }

    /// Positions still to be computed before the next token can be sampled.
    pub fn lag(&self) -> usize {
        self.tokens.len() + self.in_flight - self.computed
    }

    /// The tokens in flight are its last ones, whatever they turn out to be.
    pub fn is_complete(&self, max_model_len: usize) -> bool {
        self.produced() >= self.request.stop.max_tokens
            || self.tokens.len() + self.in_flight >= max_model_len
    }

    /// End tokens that may not be sampled next.
    pub fn suppressed(&self) -> Option<Arc<[u32]>> {
        let stop = &self.request.stop;
        let early = self.produced() < stop.min_tokens && !stop.stop_tokens.is_empty();
        early.then(|| stop.stop_tokens.clone())
    }

    /// What the executor must know before it computes this sequence in a slot.
    pub fn admission(&self) -> Admission {
        Admission {
            sampling: self.request.sampling.clone(),
            prompt: self.request.prompt.clone(),
            output: self.tokens[self.request.prompt.len()..].to_vec(),
            seed: self.seed,
        }
    }

    /// May what follows be drafted? Only where sampling is a function of the tokens alone and nothing
    /// but the token is wanted.
    pub fn takes_drafts(&self) -> bool {
        let sampling = &self.request.sampling;
        sampling.is_greedy() && sampling.logprobs.is_none()
    }

    /// Takes what a step sampled: a token, and behind it those that were drafted right and the one
    /// after them. Returns how many it took and why the sequence ends with the last of these.
    pub fn extend(
        &mut self,
        outputs: impl Iterator<Item = TokenOutput>,
        max_model_len: usize,
    ) -> (usize, Option<FinishReason>) {
        self.in_flight -= 1;
        self.drafted = 0;
        let mut taken = 0;
        for output in outputs {
            // The token before was a draft that the step computed.
            self.computed += usize::from(taken > 0);
            taken += 1;
            if let Some(reason) = self.push(output, max_model_len) {
                return (taken, Some(reason));
            }
        }
        (taken, None)
    }

    /// Takes a sampled token, passes it on and says whether the sequence ends with it.
    fn push(&mut self, output: TokenOutput, max_model_len: usize) -> Option<FinishReason> {
        let token = output.token;
        self.tokens.push(token);
        // A closed channel is a cancelled request; the engine hears of it by another way.
        let _ = self.events.send(TokenEvent::Token(output));
        let produced = self.tokens.len() - self.request.prompt.len();
        let stop = &self.request.stop;
        if produced >= stop.min_tokens && stop.stop_tokens.contains(&token) {
            Some(FinishReason::Stop)
        } else if produced >= stop.max_tokens || self.tokens.len() >= max_model_len {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Tells the stream that it ended.
    pub fn finish(&self, reason: FinishReason) {
        let _ = self.events.send(TokenEvent::Finished {
            reason,
            cached_tokens: self.cached_tokens.unwrap_or(0),
        });
    }

    /// Tells the stream that the engine failed.
    pub fn fail(&self, why: &str) {
        let _ = self.events.send(TokenEvent::Failed(why.to_owned()));
    }
}
