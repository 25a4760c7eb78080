//! An answer as it comes in: what its events make of a request's record.

use std::sync::atomic::Ordering::Relaxed;

use crate::chunk::{self, ChunkInfo, Content, Usage};
use crate::client::{MAX_BODY, Shared};
use crate::record::{RequestRecord, TokenSource};
use crate::repeat::ChunkParser;

/// Most events of an answer: no model says as much, and a server that never ends must not fill the memory.
const MAX_EVENTS: u64 = 1 << 20;

/// See the module.
pub(crate) struct Answer<'a> {
    shared: &'a Shared,
    record: &'a mut RequestRecord,
    chunks: &'a mut ChunkParser,
    usage: Option<Usage>,
    /// `[DONE]` or a finish reason was seen.
    ended: bool,
    /// Only chunks without visible text so far: they count if nothing else ever comes.
    blank: bool,
    /// A last chunk without text, with the finish reason: a token only if `usage` says so.
    blank_end_ns: Option<u64>,
    /// Tokens came in an answer that is not streamed.
    whole: bool,
    /// The text, where a tokenizer will have to count it.
    text: Option<String>,
    /// The text without reasoning, where the next turn begins with it.
    said: Option<&'a mut String>,
}

impl<'a> Answer<'a> {
    pub fn new(
        shared: &'a Shared,
        output_tokens: u64,
        record: &'a mut RequestRecord,
        chunks: &'a mut ChunkParser,
        said: Option<&'a mut String>,
    ) -> Self {
        // A sane guess, whatever was asked for: the vector grows if need be.
        record.gaps_us.reserve(output_tokens.min(4096) as usize);
        Answer {
            shared,
            record,
            chunks,
            usage: None,
            ended: false,
            blank: true,
            blank_end_ns: None,
            whole: false,
            text: shared.tokenizer.is_some().then(String::new),
            said,
        }
    }

    /// One event of the stream, arrived at `at`.
    pub fn event(&mut self, data: &[u8], at: u64) -> Result<(), String> {
        if self.record.iterations >= MAX_EVENTS {
            return Err(format!("no end of the answer after {MAX_EVENTS} events"));
        }
        self.record.iterations += 1;
        if data == b"[DONE]" {
            self.ended = true;
            return Ok(());
        }
        let ChunkInfo {
            content,
            finished,
            usage,
            error,
        } = self.chunks.parse(data)?;
        if let Some(error) = error {
            return Err(format!("the server reported in the stream: {error}"));
        }
        self.ended |= finished;
        self.usage = usage.or(self.usage);
        if self.text.is_some() || self.said.is_some() {
            self.keep_text(data);
        }
        if !self.shared.template.streams {
            // Tokens that come all at once, as was asked for, have no times of their own.
            self.whole |= content != Content::None;
            return Ok(());
        }
        match content {
            Content::None => {}
            Content::Blank if finished => self.blank_end_ns = Some(at),
            Content::Blank if self.blank => self.token(at),
            Content::Blank => {}
            Content::Reasoning | Content::Text => {
                if std::mem::take(&mut self.blank) {
                    self.record.first_token_ns = None;
                    self.record.chunks = 0;
                    self.record.gaps_us.clear();
                }
                self.token(at);
                if content == Content::Text && self.record.first_output_token_ns.is_none() {
                    self.record.first_output_token_ns = Some(at);
                }
            }
        }
        Ok(())
    }

    fn keep_text(&mut self, data: &[u8]) {
        chunk::take_text(data, |part, reasoning| {
            let keep = |text: &mut String| {
                if text.len() + part.len() <= MAX_BODY {
                    text.push_str(part);
                }
            };
            self.text.as_mut().map(keep);
            if !reasoning {
                self.said.as_deref_mut().map(keep);
            }
        });
    }

    fn token(&mut self, at: u64) {
        let record = &mut *self.record;
        match (record.first_token_ns, record.last_token_ns) {
            // Differences of rounded times, not rounded differences: these do not add up to a drift.
            (Some(first), Some(last)) => {
                let gap = (at - first) / 1000 - (last - first) / 1000;
                record.gaps_us.push(u32::try_from(gap).unwrap_or(u32::MAX));
            }
            _ => {
                record.first_token_ns = Some(at);
                let counters = &self.shared.counters;
                counters.first_tokens.fetch_add(1, Relaxed);
                counters
                    .first_token_us
                    .fetch_add(at.saturating_sub(record.sent_ns) / 1000, Relaxed);
            }
        }
        record.last_token_ns = Some(at);
        record.chunks += 1;
        self.shared.counters.chunks.fetch_add(1, Relaxed);
    }

    /// The body is complete. `must_end`: the framing cannot tell a cut from an end, the stream has to.
    pub fn finish(mut self, must_end: bool) -> Result<Option<Usage>, String> {
        let counted = self.usage.and_then(|u| u.completion_tokens);
        if let Some(at) = self
            .blank_end_ns
            .filter(|_| self.blank && counted.is_some_and(|n| n > self.record.chunks))
        {
            self.token(at);
        }
        let template = &self.shared.template;
        if !self.ended && (must_end || self.usage.is_none() || !template.generates) {
            return Err(match template.generates {
                true => "the stream ended before its last chunk".into(),
                false => "the answer holds no embedding".into(),
            });
        }
        let record = self.record;
        if self.whole {
            record.chunks = 1;
        }
        if record.first_output_token_ns.is_none() && self.blank {
            record.first_output_token_ns = record.first_token_ns;
        }
        if let Some(prompt) = self.usage.and_then(|u| u.prompt_tokens) {
            record.prompt_tokens = prompt;
        }
        record.cached_tokens = self.usage.and_then(|u| u.cached_tokens);
        record.reasoning_tokens = self.usage.and_then(|u| u.reasoning_tokens);
        if !template.generates {
            record.token_source = match self.usage {
                Some(_) => TokenSource::Usage,
                None => TokenSource::Chunks,
            };
            return Ok(self.usage);
        }
        (record.output_tokens, record.token_source) = match (counted, &self.shared.tokenizer) {
            (Some(tokens), _) => (tokens, TokenSource::Usage),
            (None, Some(tokenizer)) => {
                let text = self.text.as_deref().unwrap_or_default();
                (tokenizer.count_output(text) as u64, TokenSource::Tokenizer)
            }
            (None, None) => (record.chunks, TokenSource::Chunks),
        };
        if record.chunks == 0 && record.output_tokens == 0 {
            return Err("the answer holds no token".into());
        }
        Ok(self.usage)
    }
}
